"""Which GPUs CUDA cannot open yet, because Fabric Manager has not made them part of the NVSwitch fabric. Pure.

NVML answers for such a GPU as for any other; CUDA says 802, "system not yet initialized", and Ollama computes on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from appliance_agent.gpus import Gpu, GpuReading

COMPLETED: Final = 3
_PENDING: Final = {1: "not started", 2: "in progress"}


def pending(gpus: Iterable[Gpu], readings: Mapping[str, GpuReading]) -> str:
    """In words; empty if none of them waits. With MIG a GPU has no use for the fabric."""
    found: dict[str, list[str]] = {}
    for gpu in gpus:
        reading = readings.get(gpu.uuid)
        if reading is None or gpu.is_mig or reading.mig_enabled or reading.fabric_state not in _PENDING:
            continue
        found.setdefault(_PENDING[reading.fabric_state], []).append(str(gpu.index))
    if not found:
        return ""
    states = ", ".join(f"{state} for GPU {', '.join(indexes)}" for state, indexes in found.items())
    return f"waits for the NVSwitch fabric (Fabric Manager): {states}; see `systemctl status nvidia-fabricmanager`"


def failed(reading: GpuReading) -> bool:
    """It is done and is no success. CUDA works: one GPU can do without the others."""
    return reading.fabric_state == COMPLETED and bool(reading.fabric_status)
