"""Metrics that mirror the state: from a snapshot to families of samples. Pure; what is counted as it happens is in `events`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from appliance_agent import catalogue as names
from appliance_agent import catalogue_slots as of_slot
from appliance_agent.config import GpuChoice
from appliance_agent.metric import Metric
from appliance_agent.metrics_gpu import XidTally, gpus
from appliance_agent.metrics_models import models
from appliance_agent.slots import Slot
from appliance_agent.snapshot import Snapshot
from appliance_agent.states import Reason, State
from appliance_agent.status_view import container_of, release_of

_STATES = tuple((state, state.name.lower()) for state in State)
_REASONS = tuple((reason, reason.value) for reason in Reason)

Labels = tuple[str, ...]
Row = tuple[Labels, float]


@dataclass(frozen=True, slots=True)
class Family:
    metric: Metric
    rows: list[Row]


def families(snapshot: Snapshot, tally: XidTally, *, python: str) -> Iterator[Family]:
    yield from _agent(snapshot, python)
    yield from _neighbours(snapshot)
    yield from _backends(snapshot)
    yield from (Family(metric, rows) for metric, rows in models(snapshot))
    yield from (Family(metric, rows) for metric, rows in gpus(snapshot, tally))


def _one(metric: Metric, value: float, *labels: str) -> Family:
    return Family(metric, [(labels, value)])


def _agent(snapshot: Snapshot, python: str) -> Iterator[Family]:
    yield _one(names.BUILD_INFO, 1, snapshot.version, python)
    yield _one(names.RELOAD_SUCCESSFUL, not snapshot.reload_problem)
    yield _one(names.RELOAD_SUCCESS, snapshot.reloaded_wall_s or snapshot.started_wall_s)
    yield _one(names.TICKS, snapshot.ticks)
    yield _one(names.LAST_TICK, snapshot.now.wall_s)
    yield _one(names.HOST_PROBLEMS, len(snapshot.problems))


def _neighbours(snapshot: Snapshot) -> Iterator[Family]:
    facts = snapshot.engine.facts
    yield _one(names.ENGINE_UP, snapshot.engine.up)
    if facts:
        yield _one(names.ENGINE_INFO, 1, facts.version)
    if snapshot.config.gpus != GpuChoice.NONE:
        yield _one(names.NVML_UP, snapshot.gpus.up)
    if snapshot.gpus.process_cpu_s is not None:
        yield _one(names.NVML_PROCESS_CPU, snapshot.gpus.process_cpu_s)
    if snapshot.gpus.process_memory_bytes is not None:
        yield _one(names.NVML_PROCESS_MEMORY, snapshot.gpus.process_memory_bytes)


def _backends(snapshot: Snapshot) -> Iterator[Family]:
    slots = snapshot.host.slots
    yield Family(of_slot.INFO, [(_backend_labels(snapshot, slot), 1) for slot in slots])
    indexed = [(str(slot.plan.index), slot) for slot in slots]
    yield Family(
        of_slot.STATE,
        [((index, word), slot.state is state) for index, slot in indexed for state, word in _STATES],
    )
    yield Family(
        of_slot.RESTARTS,
        [((index, word), slot.restarts.get(reason, 0)) for index, slot in indexed for reason, word in _REASONS],
    )
    started = ((slot, container_of(snapshot, slot)) for slot in slots)
    yield Family(
        of_slot.START,
        [((str(slot.plan.index),), seen.started_at_s) for slot, seen in started if seen and seen.started_at_s],
    )


def _backend_labels(snapshot: Snapshot, slot: Slot) -> Labels:
    container, evidence = container_of(snapshot, slot), snapshot.evidence.get(slot.plan.index)
    release = release_of(snapshot, container)
    return (
        str(slot.plan.index),
        slot.plan.name,
        release.image if release else "",
        container.image_id if container else "",
        release.model if release else "",
        evidence.ollama_version if evidence else "",
    )
