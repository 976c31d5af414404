"""GPUs as values: who they are, what NVML read from them last, and the XIDs that the driver reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum


@dataclass(frozen=True, slots=True)
class Gpu:
    """A whole GPU or a MIG device; `uuid` is what slots, CDI and NVML have in common."""

    uuid: str  # "GPU-…" or "MIG-…"
    index: int  # NVML's, in PCI order; a MIG device has its parent's
    minor: int | None  # of /dev/nvidiaN
    name: str
    memory_bytes: int
    pci_bus_id: str = ""
    parent_uuid: str = ""  # of a MIG device
    gpu_instance: int | None = None  # of a MIG device
    compute_instance: int | None = None

    @property
    def is_mig(self) -> bool:
        return bool(self.parent_uuid)


class RecoveryAction(Enum):
    """NVML field 230, `NVML_FI_DEV_GET_GPU_RECOVERY_ACTION`: what the driver itself asks for."""

    NONE = 0
    GPU_RESET = 1
    NODE_REBOOT = 2
    DRAIN_P2P = 3
    DRAIN_AND_RESET = 4
    OTHER = -1  # a newer driver's


@dataclass(frozen=True, slots=True)
class GpuProcess:
    pid: int  # in the host's process namespace
    memory_bytes: int | None  # None where the driver does not tell


# Of NVML's clock event reasons those that no user asks for: slowed down by the hardware, by temperature, by the power supply.
SLOWDOWNS = 0x8 | 0x20 | 0x40 | 0x80


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One look at one GPU. None: the card, the driver or the mode does not support it, which is not zero."""

    at_s: float  # CLOCK_MONOTONIC
    lost: bool = False  # NVML says GPU_IS_LOST
    reset_required: bool = False  # NVML says RESET_REQUIRED
    error: str = ""  # of the call that failed otherwise
    utilization_ratio: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    temperature_c: float | None = None
    power_w: float | None = None
    power_limit_w: float | None = None
    energy_j: float | None = None  # since the driver was loaded
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    clock_event_reasons: int | None = None  # NVML's bit mask
    uncorrected_ecc_errors: int | None = None  # since the driver was loaded
    recovery_action: RecoveryAction | None = None
    persistence: bool | None = None
    mig_enabled: bool | None = None
    processes: tuple[GpuProcess, ...] | None = None

    @property
    def sound(self) -> bool:
        return not (self.lost or self.reset_required or self.error)

    @property
    def slowed_down(self) -> bool:
        return bool((self.clock_event_reasons or 0) & SLOWDOWNS)


@dataclass(frozen=True, slots=True)
class Xid:
    """One report of the driver, from NVML's event set or from the kernel's log; a report that both give is one."""

    uuid: str  # of the GPU, not of a MIG device
    code: int
    at_s: float  # CLOCK_MONOTONIC


@dataclass(frozen=True, slots=True)
class GpuSnapshot:
    """What is known of all GPUs of the host. `gpus` and `readings` keep their last content while NVML is down."""

    at_s: float  # CLOCK_MONOTONIC of the newest complete look
    up: bool  # NVML answers within its deadline
    because: str = ""  # why it is not up, in words for a person
    driver_version: str = ""
    cuda_version: str = ""
    gpus: tuple[Gpu, ...] = ()  # in NVML's order, MIG devices behind their parent
    readings: Mapping[str, GpuReading] = field(default_factory=dict[str, GpuReading])  # by UUID
    xids: tuple[Xid, ...] = ()  # since the agent started, oldest first; at most the last 200

    def gpu(self, uuid: str) -> Gpu | None:
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)


NO_GPUS = GpuSnapshot(at_s=0.0, up=False, because="NVML was not asked yet")
