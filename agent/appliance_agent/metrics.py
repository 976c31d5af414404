"""Metrics that mirror the state: from a snapshot to families of samples. Pure; what is counted as it happens is in `events`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from appliance_agent import catalogue as names
from appliance_agent import catalogue_gpu as of_gpu
from appliance_agent import catalogue_slots as of_slot
from appliance_agent.config import GpuChoice
from appliance_agent.gpus import GpuReading, RecoveryAction, Xid
from appliance_agent.metric import Metric
from appliance_agent.metrics_models import models
from appliance_agent.slots import Slot
from appliance_agent.snapshot import Snapshot
from appliance_agent.states import Reason, State
from appliance_agent.status_view import container_of, release_of, wall_s

_STALE_S = 10.0  # an older reading is no reading
_STATES = tuple((state, state.name.lower()) for state in State)
_REASONS = tuple((reason, reason.value) for reason in Reason)
_ACTIONS = tuple((action, action.name.lower()) for action in RecoveryAction if action is not RecoveryAction.NONE)

Labels = tuple[str, ...]
Row = tuple[Labels, float]


@dataclass(frozen=True, slots=True)
class Family:
    metric: Metric
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class XidTally:
    """How often each XID was reported. A snapshot has the last 200 only, so what is new in each is added up."""

    counts: Mapping[tuple[str, str], int] = field(default_factory=dict[tuple[str, str], int])  # by UUID and label
    newest: Xid | None = None

    def after(self, xids: tuple[Xid, ...]) -> XidTally:
        if not xids or xids[-1] == self.newest:
            return self
        known = next((place for place in range(len(xids) - 1, -1, -1) if xids[place] == self.newest), -1)
        counts = dict(self.counts)
        for xid in xids[known + 1 :]:
            key = (xid.uuid, xid_label(xid.code))
            counts[key] = counts.get(key, 0) + 1
        return XidTally(counts, xids[-1])


def xid_label(code: int) -> str:
    return str(code) if str(code) in of_gpu.XIDS else of_gpu.OTHER_XID


def families(snapshot: Snapshot, tally: XidTally, *, python: str) -> Iterator[Family]:
    yield from _agent(snapshot, python)
    yield from _neighbours(snapshot)
    yield from _backends(snapshot)
    yield from (Family(metric, rows) for metric, rows in models(snapshot))
    yield from _gpus(snapshot)
    yield from _xids(snapshot, tally)


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


def _gpus(snapshot: Snapshot) -> Iterator[Family]:
    cards = [(str(slot.plan.index), uuid) for slot in snapshot.host.slots for uuid in slot.plan.gpus]
    if not cards:
        return
    readings = {card: snapshot.gpus.readings.get(card[1]) for card in cards}
    fresh = {
        card: reading
        for card, reading in readings.items()
        if reading and reading.sound and snapshot.now.mono_s - reading.at_s <= _STALE_S
    }
    yield Family(of_gpu.INFO, [(_gpu_labels(snapshot, card), 1) for card in cards])
    yield Family(of_gpu.UP, [(card, snapshot.gpus.up and card in fresh) for card in cards])
    yield Family(
        of_gpu.COLLECTED, [((*card, "1s"), wall_s(snapshot, seen.at_s)) for card, seen in readings.items() if seen]
    )
    yield from _readings(fresh)


def _gpu_labels(snapshot: Snapshot, card: tuple[str, str]) -> Labels:
    gpu = snapshot.gpus.gpu(card[1])
    versions = (snapshot.gpus.driver_version, snapshot.gpus.cuda_version)
    if gpu is None:
        return (*card, "", "", "", "", "", "", *versions, "")
    return (*card, str(gpu.index), gpu.name, "", "", gpu.pci_bus_id, gpu.parent_uuid, *versions, "")


def _readings(fresh: Mapping[tuple[str, str], GpuReading]) -> Iterator[Family]:
    values: dict[Metric, list[Row]] = {}

    def add(metric: Metric, labels: Labels, value: float | None) -> None:
        if value is not None:
            values.setdefault(metric, []).append((labels, value))

    for card, seen in fresh.items():
        add(of_gpu.UTILIZATION, card, seen.utilization_ratio)
        add(of_gpu.MEMORY_TOTAL, card, seen.memory_total_bytes)
        add(of_gpu.MEMORY_USED, card, seen.memory_used_bytes)
        add(of_gpu.TEMPERATURE, (*card, "core"), seen.temperature_c)
        add(of_gpu.POWER, card, seen.power_w)
        add(of_gpu.POWER_LIMIT, card, seen.power_limit_w)
        add(of_gpu.ENERGY, card, seen.energy_j)
        for action, word in _ACTIONS if seen.recovery_action is not None else ():
            add(of_gpu.RECOVERY, (*card, word), seen.recovery_action is action)
    yield from (Family(metric, rows) for metric, rows in values.items())


def _xids(snapshot: Snapshot, tally: XidTally) -> Iterator[Family]:
    """Of a MIG device its parent's are told: they concern all of the card."""
    counts: list[Row] = []
    last: dict[Labels, float] = {}
    for slot in snapshot.host.slots:
        for uuid in slot.plan.gpus:
            card, gpu = (str(slot.plan.index), uuid), snapshot.gpus.gpu(uuid)
            owner = (gpu.parent_uuid if gpu else "") or uuid
            counts += [((*card, label), tally.counts.get((owner, label), 0)) for label in of_gpu.XID_LABELS]
            for xid in snapshot.gpus.xids:
                if xid.uuid == owner:
                    last[(*card, xid_label(xid.code))] = wall_s(snapshot, xid.at_s)
    if counts:
        yield Family(of_gpu.XID_ERRORS, counts)
    if last:
        yield Family(of_gpu.XID_LAST, list(last.items()))
