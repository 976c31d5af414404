"""GPUs as values: who they are, what NVML read from them last, and the XIDs that the driver reported."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


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
    architecture: str = ""
    compute_capability: str = ""
    vbios_version: str = ""

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


class GpuProcess(NamedTuple):
    pid: int  # in the host's process namespace
    memory_bytes: int | None  # None where the driver does not tell


@dataclass(frozen=True, slots=True)
class GpuPids:
    """Processes on the GPUs of a slot, by whether they belong to its container."""

    own: frozenset[int]
    foreign: frozenset[int]


# Of NVML's clock event reasons those that no user asks for: slowed down by the hardware, by temperature, by the power supply.
SLOWDOWNS = 0x8 | 0x20 | 0x40 | 0x80


class GpuReading(NamedTuple):
    """One look at one GPU. None: the card, the driver or the mode does not support it, which is not zero.

    What costs the driver little is read every second, the rest is as old as `tens_at_s` and `thirties_at_s` say. The
    fields stand in groups by how often they change; the NVML process sends a group when it is not as it was, and names
    the beginnings: `lost`, these two and `sm_clock_max_hz`. A tuple, because eight are made and compared every second.
    """

    at_s: float  # CLOCK_MONOTONIC
    look_s: float | None = None  # how long this look took
    power_w: float | None = None
    temperature_c: float | None = None
    memory_temperature_c: float | None = None
    # seldom another one on a quiet card
    lost: bool = False  # NVML says GPU_IS_LOST
    reset_required: bool = False  # NVML says RESET_REQUIRED
    error: str = ""  # of the call that failed otherwise
    failed_calls: int | None = None  # since the NVML process began, those left out that are not supported
    utilization_ratio: float | None = None
    memory_activity_ratio: float | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    sm_clock_hz: float | None = None
    memory_clock_hz: float | None = None
    clock_event_reasons: int | None = None  # NVML's bit mask
    performance_state: int | None = None
    recovery_action: RecoveryAction | None = None
    pcie_transmit_bytes: int | None = None  # since the NVML process began
    pcie_receive_bytes: int | None = None
    mig_enabled: bool | None = None
    processes: tuple[GpuProcess, ...] | None = None
    # every ten seconds
    tens_at_s: float | None = None
    busy_s: float | None = None  # since the NVML process began
    thermal_margin_c: float | None = None  # to the nearest threshold of a slowdown
    sw_power_cap_s: float | None = None  # for how long clocks were held down, since the driver was loaded
    sync_boost_s: float | None = None
    sw_thermal_s: float | None = None
    hw_thermal_s: float | None = None
    hw_power_brake_s: float | None = None
    power_limit_w: float | None = None
    corrected_ecc_errors: int | None = None  # since the driver was loaded
    uncorrected_ecc_errors: int | None = None
    corrected_ecc_errors_lifetime: int | None = None
    uncorrected_ecc_errors_lifetime: int | None = None
    pcie_generation: int | None = None
    pcie_lanes: int | None = None
    pcie_replays: int | None = None
    persistence: bool | None = None
    sm_active_ratio: float | None = None  # GPM, over the last ten seconds
    tensor_active_ratio: float | None = None
    dram_active_ratio: float | None = None
    nvlink_transmit_bytes: int | None = None
    nvlink_receive_bytes: int | None = None
    nvlink_crc_errors: int | None = None
    nvlink_replay_errors: int | None = None
    nvlink_recovery_errors: int | None = None
    # every thirty seconds
    thirties_at_s: float | None = None
    energy_j: float | None = None  # since the driver was loaded
    correctable_remapped_rows: int | None = None
    uncorrectable_remapped_rows: int | None = None
    row_remap_pending: bool | None = None
    row_remap_failed: bool | None = None
    correctable_retired_pages: int | None = None
    uncorrectable_retired_pages: int | None = None
    retired_pages_pending: bool | None = None
    fabric_state: int | None = None  # NVML's: 1 not started, 2 in progress, 3 completed; None: this GPU waits for none
    fabric_status: int | None = None  # NVML's return code of it, once it is completed
    # once
    sm_clock_max_hz: float | None = None
    memory_clock_max_hz: float | None = None
    pcie_generation_max: int | None = None
    pcie_lanes_max: int | None = None

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
    instance: int | None = None  # the GPU instance of MIG that it happened in; None: it may be all of the card

    def concerns(self, gpu: Gpu) -> bool:
        """Whether it happened on that GPU, or in the part of it that a MIG device is of."""
        if self.uuid != (gpu.parent_uuid or gpu.uuid):
            return False
        return self.instance is None or gpu.gpu_instance in (None, self.instance)


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
    process_cpu_s: float | None = None  # of the process that asks NVML
    process_memory_bytes: int | None = None
    xids: tuple[Xid, ...] = ()  # since the agent started, oldest first; at most the last 200

    def gpu(self, uuid: str) -> Gpu | None:
        return next((gpu for gpu in self.gpus if gpu.uuid == uuid), None)


NO_GPUS = GpuSnapshot(at_s=0.0, up=False, because="NVML was not asked yet")
