"""Metrics of GPUs: from a snapshot to rows of samples. Pure. What a card does not support has no row.

The label `gpu` is the slot's index. A card that MIG divides belongs to no slot: it stands there once, without a number,
with what is the whole card's; memory, processes and activity are its parts'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from appliance_agent import catalogue_gpu as names
from appliance_agent.gpus import GpuReading, RecoveryAction, Xid
from appliance_agent.metric import Metric
from appliance_agent.slots import Slot
from appliance_agent.snapshot import Snapshot
from appliance_agent.status_view import wall_s

Card = tuple[str, str]  # slot, UUID
Labels = tuple[str, ...]
Where = tuple[str, int | None, str]  # UUID of a whole GPU, instance of MIG, label
Rows = list[tuple[Labels, float]]

_STALE_S: Final = 10.0  # an older reading is no reading
_ACTIONS: Final = tuple((each, each.name.lower()) for each in RecoveryAction if each is not RecoveryAction.NONE)
_REASONS: Final = tuple((1 << bit, word) for bit, word in enumerate(names.CLOCK_EVENTS))
_VALUES: Final[tuple[tuple[Metric, Labels, str], ...]] = (
    (names.UTILIZATION, (), "utilization_ratio"),
    (names.BUSY, (), "busy_s"),
    (names.MEMORY_ACTIVITY, (), "memory_activity_ratio"),
    (names.MEMORY_TOTAL, (), "memory_total_bytes"),
    (names.MEMORY_USED, (), "memory_used_bytes"),
    (names.MEMORY_RESERVED, (), "memory_reserved_bytes"),
    (names.TEMPERATURE, ("core",), "temperature_c"),
    (names.TEMPERATURE, ("memory",), "memory_temperature_c"),
    (names.THERMAL_MARGIN, (), "thermal_margin_c"),
    (names.POWER, (), "power_w"),
    (names.POWER_LIMIT, (), "power_limit_w"),
    (names.ENERGY, (), "energy_j"),
    (names.CLOCK, ("sm",), "sm_clock_hz"),
    (names.CLOCK, ("memory",), "memory_clock_hz"),
    (names.CLOCK_MAX, ("sm",), "sm_clock_max_hz"),
    (names.CLOCK_MAX, ("memory",), "memory_clock_max_hz"),
    *((names.CLOCK_EVENT_SECONDS, (reason,), f"{reason}_s") for reason in names.COUNTED_CLOCK_EVENTS),
    (names.PERFORMANCE_STATE, (), "performance_state"),
    (names.ECC, ("corrected",), "corrected_ecc_errors"),
    (names.ECC, ("uncorrected",), "uncorrected_ecc_errors"),
    (names.ECC_LIFETIME, ("corrected",), "corrected_ecc_errors_lifetime"),
    (names.ECC_LIFETIME, ("uncorrected",), "uncorrected_ecc_errors_lifetime"),
    (names.REMAPPED_ROWS, ("correctable",), "correctable_remapped_rows"),
    (names.REMAPPED_ROWS, ("uncorrectable",), "uncorrectable_remapped_rows"),
    (names.ROW_REMAP_PENDING, (), "row_remap_pending"),
    (names.ROW_REMAP_FAILED, (), "row_remap_failed"),
    (names.RETIRED_PAGES, ("correctable",), "correctable_retired_pages"),
    (names.RETIRED_PAGES, ("uncorrectable",), "uncorrectable_retired_pages"),
    (names.RETIRED_PAGES_PENDING, (), "retired_pages_pending"),
    (names.PCIE_GENERATION, (), "pcie_generation"),
    (names.PCIE_GENERATION_MAX, (), "pcie_generation_max"),
    (names.PCIE_LANES, (), "pcie_lanes"),
    (names.PCIE_LANES_MAX, (), "pcie_lanes_max"),
    (names.PCIE_REPLAYS, (), "pcie_replays"),
    (names.PCIE_TRANSMIT, (), "pcie_transmit_bytes"),
    (names.PCIE_RECEIVE, (), "pcie_receive_bytes"),
    (names.PERSISTENCE, (), "persistence"),
    (names.MIG, (), "mig_enabled"),
    (names.SM_ACTIVE, (), "sm_active_ratio"),
    (names.TENSOR_ACTIVE, (), "tensor_active_ratio"),
    (names.DRAM_ACTIVE, (), "dram_active_ratio"),
    (names.NVLINK_TRANSMIT, (), "nvlink_transmit_bytes"),
    (names.NVLINK_RECEIVE, (), "nvlink_receive_bytes"),
    (names.NVLINK_ERRORS, ("crc",), "nvlink_crc_errors"),
    (names.NVLINK_ERRORS, ("replay",), "nvlink_replay_errors"),
    (names.NVLINK_ERRORS, ("recovery",), "nvlink_recovery_errors"),
)
_OF_PARTS: Final = frozenset(
    {
        names.MEMORY_TOTAL,
        names.MEMORY_USED,
        names.MEMORY_RESERVED,
        names.SM_ACTIVE,
        names.TENSOR_ACTIVE,
        names.DRAM_ACTIVE,
    }
)
_COLLECTION: Final[tuple[tuple[Metric, Labels, str], ...]] = (
    (names.COLLECT_DURATION, (), "look_s"),
    (names.COLLECT_ERRORS, (), "failed_calls"),
)
_TIMES: Final = tuple(zip(names.INTERVALS, ("at_s", "tens_at_s", "thirties_at_s"), strict=True))


@dataclass(frozen=True, slots=True)
class XidTally:
    """How often each XID was reported. A snapshot has the last 200 only, so what is new in each is added up."""

    counts: Mapping[Where, int] = field(default_factory=dict[Where, int])
    newest: Xid | None = None

    def of(self, uuid: str, instance: int | None) -> Counter[str]:
        """By label; where there is an instance of MIG, without what happened in others of the card."""
        found: Counter[str] = Counter()
        for (owner, where, label), count in self.counts.items():
            if owner == uuid and (where is None or instance in (None, where)):
                found[label] += count
        return found

    def after(self, xids: tuple[Xid, ...]) -> XidTally:
        if not xids or xids[-1] == self.newest:
            return self
        known = next((place for place in range(len(xids) - 1, -1, -1) if xids[place] == self.newest), -1)
        counts = dict(self.counts)
        for xid in xids[known + 1 :]:
            key = (xid.uuid, xid.instance, xid_label(xid.code))
            counts[key] = counts.get(key, 0) + 1
        return XidTally(counts, xids[-1])


def xid_label(code: int) -> str:
    return str(code) if str(code) in names.XIDS else names.OTHER_XID


def gpus(snapshot: Snapshot, tally: XidTally) -> Iterator[tuple[Metric, Rows]]:
    cards = _cards(snapshot)
    if not cards:
        return
    readings = {card: snapshot.gpus.readings.get(card[1]) for card in cards}
    seen = {card: reading for card, reading in readings.items() if reading}
    fresh = {
        card: reading
        for card, reading in seen.items()
        if reading.sound and snapshot.now.mono_s - reading.at_s <= _STALE_S
    }
    yield names.INFO, [(_info(snapshot, card), 1) for card in cards]
    yield names.UP, [(card, snapshot.gpus.up and card in fresh) for card in cards]
    yield names.COLLECTED, _collected(snapshot, seen)
    yield from _values(_COLLECTION, seen)
    yield from _values(_VALUES, fresh)
    yield from _words(fresh)
    yield from _processes(snapshot, fresh)
    yield from _xids(snapshot, tally)


def _cards(snapshot: Snapshot) -> list[Card]:
    cards = [(str(slot.plan.index), uuid) for slot in snapshot.host.slots for uuid in slot.plan.gpus]
    known = (snapshot.gpus.gpu(uuid) for _, uuid in cards)
    return [*cards, *dict.fromkeys(("", gpu.parent_uuid) for gpu in known if gpu and gpu.is_mig)]


def _info(snapshot: Snapshot, card: Card) -> Labels:
    gpu = snapshot.gpus.gpu(card[1])
    versions = (snapshot.gpus.driver_version, snapshot.gpus.cuda_version)
    if gpu is None:
        return (*card, "", "", "", "", "", "", *versions, "")
    kind = (str(gpu.index), gpu.name, gpu.architecture, gpu.compute_capability, gpu.pci_bus_id, gpu.parent_uuid)
    return (*card, *kind, *versions, gpu.vbios_version)


def _collected(snapshot: Snapshot, seen: Mapping[Card, GpuReading]) -> Rows:
    return [
        ((*card, interval), wall_s(snapshot, at_s))
        for card, reading in seen.items()
        for interval, attribute in _TIMES
        if (at_s := getattr(reading, attribute)) is not None
    ]


def _values(
    wanted: tuple[tuple[Metric, Labels, str], ...], readings: Mapping[Card, GpuReading]
) -> Iterator[tuple[Metric, Rows]]:
    rows: dict[Metric, Rows] = {}
    for card, reading in readings.items():
        for metric, labels, attribute in wanted:
            value = getattr(reading, attribute)
            if value is not None and (card[0] or metric not in _OF_PARTS):
                rows.setdefault(metric, []).append(((*card, *labels), value))
    yield from rows.items()


def _words(fresh: Mapping[Card, GpuReading]) -> Iterator[tuple[Metric, Rows]]:
    """A row for each word, of which some are true."""
    events: Rows = []
    actions: Rows = []
    for card, reading in fresh.items():
        if (mask := reading.clock_event_reasons) is not None:
            events += [((*card, word), bool(mask & bit)) for bit, word in _REASONS]
        if (action := reading.recovery_action) is not None:
            actions += [((*card, word), action is each) for each, word in _ACTIONS]
    yield from ((metric, rows) for metric, rows in ((names.CLOCK_EVENT, events), (names.RECOVERY, actions)) if rows)


def _processes(snapshot: Snapshot, fresh: Mapping[Card, GpuReading]) -> Iterator[tuple[Metric, Rows]]:
    counts: Rows = []
    memory: Rows = []
    for slot in snapshot.host.slots:
        owned = _owned(snapshot, slot)
        for uuid in slot.plan.gpus:
            card = (str(slot.plan.index), uuid)
            processes = fresh[card].processes if card in fresh else None
            for owner, pids in owned.items() if processes is not None else ():
                theirs = [each for each in processes or () if pids is None or each.pid in pids]
                known = [each.memory_bytes for each in theirs if each.memory_bytes is not None]
                counts.append(((*card, owner), len(theirs)))
                if known or not theirs:
                    memory.append(((*card, owner), sum(known)))
    yield from ((metric, rows) for metric, rows in ((names.PROCESSES, counts), (names.PROCESS_MEMORY, memory)) if rows)


def _owned(snapshot: Snapshot, slot: Slot) -> Mapping[str, frozenset[int] | None]:
    """The process ids by owner, None for all; empty while nobody has looked."""
    backend, foreign = names.OWNERS
    if not slot.container_id:
        return {backend: frozenset(), foreign: None}
    evidence = snapshot.evidence.get(slot.plan.index)
    if evidence is None or evidence.container_id != slot.container_id or evidence.gpu_pids is None:
        return {}
    return {backend: evidence.gpu_pids.own, foreign: evidence.gpu_pids.foreign}


def _xids(snapshot: Snapshot, tally: XidTally) -> Iterator[tuple[Metric, Rows]]:
    """Of a MIG device its parent's are told, too, but for those of other instances: they concern all of the card."""
    counts: Rows = []
    last: dict[Labels, float] = {}
    for slot in snapshot.host.slots:
        for uuid in slot.plan.gpus:
            card, gpu = (str(slot.plan.index), uuid), snapshot.gpus.gpu(uuid)
            found = tally.of((gpu.parent_uuid if gpu else "") or uuid, gpu.gpu_instance if gpu else None)
            counts += [((*card, label), found[label]) for label in names.XID_LABELS]
            for xid in snapshot.gpus.xids:
                if xid.concerns(gpu) if gpu else xid.uuid == uuid:
                    last[(*card, xid_label(xid.code))] = wall_s(snapshot, xid.at_s)
    if counts:
        yield names.XID_ERRORS, counts
    if last:
        yield names.XID_LAST, list(last.items())
