"""The metrics of what a slot's server holds in memory and is at, from a snapshot. Pure.

/api/ps is asked before each canary, so what it tells is as old as the last canary: a minute, where users speak for the
server.
"""

from __future__ import annotations

from collections.abc import Iterator

from appliance_agent import catalogue_slots as names
from appliance_agent.metric import Metric
from appliance_agent.slots import Slot
from appliance_agent.snapshot import Snapshot
from appliance_agent.status_view import container_of, release_of

Rows = list[tuple[tuple[str, ...], float]]


def models(snapshot: Snapshot) -> Iterator[tuple[Metric, Rows]]:
    """A model that is not loaded has no series. Of several others there is the sum."""
    found: dict[Metric, Rows] = {}
    for slot in snapshot.host.slots:
        for metric, labels, value in _of_slot(snapshot, slot):
            found.setdefault(metric, []).append((labels, value))
    yield from found.items()


def _of_slot(snapshot: Snapshot, slot: Slot) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
    gpu, evidence = str(slot.plan.index), snapshot.evidence.get(slot.plan.index)
    container = container_of(snapshot, slot)
    release = release_of(snapshot, container)
    if evidence is None or container is None:
        return
    if release and release.model and evidence.loaded and evidence.model_bytes:
        # `other` is taken; Ollama itself calls such a model by its whole name.
        own = (gpu, release.model if release.model != names.OTHER else f"{release.model}:latest")
        yield names.MODEL_SIZE, own, evidence.model_bytes
        yield names.MODEL_VRAM, own, evidence.vram_bytes
        if evidence.context_tokens:
            yield names.MODEL_CONTEXT, own, evidence.context_tokens
        if evidence.expires_wall_s is not None:
            yield names.MODEL_EXPIRY, own, evidence.expires_wall_s
    if evidence.running is not None:
        ours = evidence.canary is not None and evidence.canary.pieces > 0
        yield names.RUNNING, (gpu,), max(0, evidence.running - ours)
    if evidence.others_bytes is not None:
        yield names.MODEL_SIZE, (gpu, names.OTHER), evidence.others_bytes
        yield names.MODEL_VRAM, (gpu, names.OTHER), evidence.others_vram_bytes
