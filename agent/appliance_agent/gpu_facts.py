"""What the GPUs' readings say of one container. Pure: who belongs to the container is an argument."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from appliance_agent.gpus import GpuReading, GpuSnapshot

FRESH_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class GpuFacts:
    """None: cannot be seen, which is not no."""

    on_gpu: bool | None = None
    memory_bytes: int | None = None
    utilization_ratio: float | None = None


def gpu_facts(
    snapshot: GpuSnapshot, uuids: tuple[str, ...], belongs: Callable[[int], bool | None], now_s: float
) -> GpuFacts:
    if not snapshot.up:
        return GpuFacts()
    readings = [snapshot.readings.get(uuid) for uuid in uuids]
    fresh = [reading for reading in readings if reading is not None and now_s - reading.at_s <= FRESH_S]
    used = [reading.utilization_ratio for reading in fresh if reading.utilization_ratio is not None]
    listed = [reading for reading in fresh if reading.processes is not None]
    on_gpu, memory_bytes = _placement(listed, belongs)
    if on_gpu is False and len(listed) < len(uuids):
        on_gpu = None
    return GpuFacts(on_gpu if listed else None, memory_bytes, max(used, default=None))


def _placement(readings: list[GpuReading], belongs: Callable[[int], bool | None]) -> tuple[bool | None, int | None]:
    processes = [process for reading in readings for process in reading.processes or ()]
    whose = [belongs(process.pid) for process in processes]
    own = [process.memory_bytes for process, ours in zip(processes, whose, strict=True) if ours]
    known = [memory for memory in own if memory is not None]
    if own:
        return True, sum(known) if known else None
    return (None if None in whose else False), None
