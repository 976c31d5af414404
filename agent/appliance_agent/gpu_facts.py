"""What the GPUs' readings say of one container. Pure: who belongs to the container is an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from appliance_agent.gpus import GpuPids, GpuProcess, GpuSnapshot

FRESH_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """None: cannot be seen, which is not no."""

    on_gpu: bool | None = None
    memory_bytes: int | None = None
    utilization_ratio: float | None = None
    pids: GpuPids | None = None


def gpu_facts(
    snapshot: GpuSnapshot, uuids: tuple[str, ...], belongs: Callable[[int], bool | None], now_s: float
) -> GpuFacts:
    if not snapshot.up:
        return GpuFacts()
    readings = [snapshot.readings.get(uuid) for uuid in uuids]
    fresh = [reading for reading in readings if reading is not None and now_s - reading.at_s <= FRESH_S]
    used = [reading.utilization_ratio for reading in fresh if reading.utilization_ratio is not None]
    listed = [reading for reading in fresh if reading.processes is not None]
    processes = [process for reading in listed for process in reading.processes or ()]
    whose = [belongs(process.pid) for process in processes]
    on_gpu, memory_bytes = _placement(processes, whose)
    if on_gpu is False and len(listed) < len(uuids):
        on_gpu = None
    pids = _pids(processes, whose) if listed else None
    return GpuFacts(on_gpu if listed else None, memory_bytes, max(used, default=None), pids)


def _pids(processes: list[GpuProcess], whose: list[bool | None]) -> GpuPids:
    """Those whose owner cannot be seen are in neither."""
    told = [(process.pid, ours) for process, ours in zip(processes, whose, strict=True)]
    return GpuPids(frozenset(pid for pid, ours in told if ours), frozenset(pid for pid, ours in told if ours is False))


def _placement(processes: list[GpuProcess], whose: list[bool | None]) -> tuple[bool | None, int | None]:
    own = [process.memory_bytes for process, ours in zip(processes, whose, strict=True) if ours]
    known = [memory for memory in own if memory is not None]
    if own:
        return True, sum(known) if known else None
    return (None if None in whose else False), None
