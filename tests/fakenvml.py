"""GPUs that exist in a text file alone, under the real nvidia-ml-py: a C library answers from it, and so does `/dev/kmsg`.

world = World([FakeGpu("GPU-a"), FakeGpu("GPU-b", memory_gib=80)])
world.write(path)  # programs started with environment(library, path) now see two GPUs
world.gpus[0].lost = True
world.xid(world.gpus[0], 79)
world.write(path)  # and now one has fallen off the bus
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from appliance_agent.gpus import RecoveryAction

GIB = 1024**3
DRIVER_NOT_LOADED = 9
VERSION_MISMATCH = 18
NO_PERMISSION = 4
NOT_SUPPORTED = 3
UNKNOWN = 999
_SOURCE = Path(__file__).parent / "fakenvml" / "nvml.c"
# What has no value: the calls and fields that then say NOT_SUPPORTED.
_CALLS = {
    "utilization_ratio": ("nvmlDeviceGetUtilizationRates",),
    "samples": ("nvmlDeviceGetSamples",),
    "temperature_c": ("nvmlDeviceGetTemperature",),
    "memory_temperature_c": ("field:82",),
    "thermal_margin_c": ("nvmlDeviceGetMarginTemperature",),
    "slowdown_c": ("nvmlDeviceGetTemperatureThreshold",),
    "power_w": ("nvmlDeviceGetPowerUsage", "field:185"),
    "power_limit_w": ("nvmlDeviceGetEnforcedPowerLimit", "field:190"),
    "energy_j": ("nvmlDeviceGetTotalEnergyConsumption", "field:83"),
    "clock_event_reasons": ("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetCurrentClocksThrottleReasons"),
    "sw_power_cap_s": ("field:74",),
    "thermal_policy_s": ("field:75",),
    "sync_boost_s": ("field:76",),
    "sw_thermal_s": ("field:269",),
    "hw_thermal_s": ("field:270",),
    "hw_power_brake_s": ("field:271",),
    "performance_state": ("nvmlDeviceGetPerformanceState",),
    "corrected_ecc_errors": ("field:3", "nvmlDeviceGetTotalEccErrors"),
    "uncorrected_ecc_errors": ("field:4", "nvmlDeviceGetTotalEccErrors"),
    "corrected_ecc_errors_lifetime": ("field:5", "nvmlDeviceGetTotalEccErrors"),
    "uncorrected_ecc_errors_lifetime": ("field:6", "nvmlDeviceGetTotalEccErrors"),
    "remapped_rows": ("nvmlDeviceGetRemappedRows",),
    "retired_pages": ("nvmlDeviceGetRetiredPages", "nvmlDeviceGetRetiredPagesPendingStatus"),
    "recovery_action": ("field:230",),
    "pcie_generation": ("nvmlDeviceGetCurrPcieLinkGeneration", "nvmlDeviceGetMaxPcieLinkGeneration"),
    "pcie_lanes": ("nvmlDeviceGetCurrPcieLinkWidth", "nvmlDeviceGetMaxPcieLinkWidth"),
    "pcie_replays": ("field:94", "nvmlDeviceGetPcieReplayCounter"),
    "pcie_transmit_bytes": ("field:197",),
    "pcie_receive_bytes": ("field:198",),
    "sm_clock_max_mhz": ("nvmlDeviceGetMaxClockInfo",),
    "persistence": ("nvmlDeviceGetPersistenceMode",),
    "mig_enabled": ("nvmlDeviceGetMigMode",),
    "processes": ("nvmlDeviceGetComputeRunningProcesses_v3", "nvmlDeviceGetComputeRunningProcesses_v2"),
    "fabric": ("nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetGpuFabricInfo"),
    "nvlink": tuple(f"field:{number}" for number in (138, 139, 45, 52, 59, 161, 162, 163)),
}


class GccMissingError(Exception):
    pass


@dataclass
class FakeMig:
    uuid: str
    gpu_instance: int
    compute_instance: int = 0
    memory_gib: float = 10
    used_gib: float = 0
    name: str = "NVIDIA H100 MIG 1g.10gb"
    processes: list[tuple[int, int | None]] = field(default_factory=list[tuple[int, int | None]])
    gpm: tuple[float, float, float] = (0.0, 0.0, 0.0)  # as a GPU's
    leaks: bool = False  # tells its parent's temperature, power and the like as its own

    def lines(self) -> Iterator[str]:
        yield f"mig_device {self.uuid} {self.gpu_instance} {self.compute_instance}"
        yield f"name {self.name}"
        yield from _memory(self.memory_gib, self.used_gib, 0)
        yield from _processes(self.processes)
        yield f"leaks {int(self.leaks)}"
        yield from _gpm(self.gpm)


@dataclass
class FakeGpu:
    """None for what the card does not support. Its index is its place in the world's list."""

    uuid: str
    name: str = "NVIDIA H100 80GB HBM3"
    minor: int | None = None  # None: its place
    pci_bus_id: str = ""  # "": one made of its UUID
    memory_gib: float = 80
    used_gib: float = 0
    reserved_gib: float = 0.5
    architecture: int = 9
    compute_capability: tuple[int, int] = (9, 0)
    vbios: str = "96.00.74.00.01"
    utilization_ratio: float | None = 0.0
    memory_activity_ratio: float = 0.0
    samples: list[tuple[int, int]] | None = field(default_factory=list[tuple[int, int]])  # microseconds, percent
    generates_samples: bool = True  # beside those, one each sixth of a second
    temperature_c: int | None = 40
    memory_temperature_c: int | None = 45
    thermal_margin_c: int | None = 47
    slowdown_c: int | None = 90
    power_w: float | None = 70
    power_limit_w: float | None = 700
    energy_j: float | None = 1000
    sm_clock_mhz: int = 1980
    memory_clock_mhz: int = 2619
    sm_clock_max_mhz: int | None = 1995
    memory_clock_max_mhz: int = 2625
    clock_event_reasons: int | None = 1
    sw_power_cap_s: float | None = 1.5
    thermal_policy_s: float | None = 6.5
    sync_boost_s: float | None = 2.5
    sw_thermal_s: float | None = 3.5
    hw_thermal_s: float | None = 4.5
    hw_power_brake_s: float | None = 5.5
    performance_state: int | None = 8
    corrected_ecc_errors: int | None = 0
    uncorrected_ecc_errors: int | None = 0
    corrected_ecc_errors_lifetime: int | None = 0
    uncorrected_ecc_errors_lifetime: int | None = 0
    remapped_rows: tuple[int, int, bool, bool] | None = (
        0,
        0,
        False,
        False,
    )  # correctable, uncorrectable, pending, failed
    retired_pages: tuple[int, int, bool] | None = None
    recovery_action: RecoveryAction | int | None = RecoveryAction.NONE
    pcie_generation: int | None = 4
    pcie_generation_max: int = 5
    pcie_lanes: int | None = 8
    pcie_lanes_max: int = 16
    pcie_replays: int | None = 0
    pcie_transmit_bytes: int | None = 1000
    pcie_receive_bytes: int | None = 2000
    pcie_bits: int = 64
    gpm: tuple[float, float, float] | None = (0.0, 0.0, 0.0)  # multiprocessors, tensor cores, memory; ratios
    gpm_more: tuple[float, float, float] | None = None  # busy as a ratio, MiB a second from the card and to it
    nvlink: tuple[int, int, int, int, int] | None = (
        0,
        0,
        0,
        0,
        0,
    )  # KiB sent and received; errors: crc, replay, recovery
    fabric: tuple[int, int] | None = None  # state and status of the NVSwitch fabric, as NVML counts them
    persistence: bool | None = True
    mig_enabled: bool | None = False
    migs: list[FakeMig] = field(default_factory=list[FakeMig])
    processes: list[tuple[int, int | None]] | None = field(default_factory=list[tuple[int, int | None]])
    lost: bool = False
    reset_required: bool = False
    reports_xids: bool = True
    errors: dict[str, int] = field(default_factory=dict[str, int])  # function, "field:ID" or "*" -> return code
    hangs: set[str] = field(default_factory=set[str])  # functions, or "*"

    def __post_init__(self) -> None:
        self.pci_bus_id = self.pci_bus_id or f"00000000:{sum(self.uuid.encode()) % 255:02X}:00.0"

    def lines(self, index: int) -> Iterator[str]:
        yield f"gpu {self.uuid}"
        yield f"name {self.name}"
        yield f"minor {index if self.minor is None else self.minor}"
        yield f"pci {self.pci_bus_id}"
        yield from _memory(self.memory_gib, self.used_gib, self.reserved_gib)
        yield f"vbios {self.vbios}"
        yield from (f"{name} {round(value or 0)}" for name, value in self._numbers())
        yield from (f"sample {at_us} {percent}" for at_us, percent in self.samples or ())
        yield from _gpm(self.gpm or (0, 0, 0))
        yield from _gpm_more(self.gpm_more)
        yield f"lost {int(self.lost)}"
        yield f"reset_required {int(self.reset_required)}"
        yield f"events {8 if self.reports_xids else 0}"
        yield from _processes(self.processes or [])
        yield from (f"error {function} {code}" for function, code in self.errors.items())
        yield from (f"hang {function}" for function in self.hangs)
        for name, calls in _CALLS.items():
            if getattr(self, name) is None:
                yield from (f"error {call} {NOT_SUPPORTED}" for call in calls)
        for mig in self.migs:
            yield from mig.lines()

    def _numbers(self) -> Iterator[tuple[str, float | None]]:
        """As the library calls them, in NVML's units."""
        yield "architecture", self.architecture
        yield from zip(("capability_major", "capability_minor"), self.compute_capability, strict=True)
        yield "utilization", (self.utilization_ratio or 0) * 100
        yield "memory_activity", self.memory_activity_ratio * 100
        yield "generates_samples", self.generates_samples
        yield "temperature", self.temperature_c
        yield "memory_temperature", self.memory_temperature_c
        yield "margin", self.thermal_margin_c
        yield "slowdown", self.slowdown_c
        yield "power", (self.power_w or 0) * 1000
        yield "power_limit", (self.power_limit_w or 0) * 1000
        yield "energy", (self.energy_j or 0) * 1000
        yield from (("sm_clock", self.sm_clock_mhz), ("memory_clock", self.memory_clock_mhz))
        yield from (("sm_clock_max", self.sm_clock_max_mhz), ("memory_clock_max", self.memory_clock_max_mhz))
        yield "reasons", self.clock_event_reasons
        for name in ("sw_power_cap", "thermal_policy", "sync_boost", "sw_thermal", "hw_thermal", "hw_power_brake"):
            yield name, (getattr(self, f"{name}_s") or 0) * 1e9
        yield "pstate", self.performance_state
        yield from (("ecc_corrected", self.corrected_ecc_errors), ("ecc", self.uncorrected_ecc_errors))
        yield "ecc_corrected_lifetime", self.corrected_ecc_errors_lifetime
        yield "ecc_lifetime", self.uncorrected_ecc_errors_lifetime
        remapped = ("remapped_correctable", "remapped_uncorrectable", "remap_pending", "remap_failed")
        yield from zip(remapped, self.remapped_rows or (0, 0, 0, 0), strict=True)
        retired = ("retired_correctable", "retired_uncorrectable", "retired_pending")
        yield from zip(retired, self.retired_pages or (0, 0, 0), strict=True)
        yield "recovery", _recovery(self.recovery_action)
        yield from (("pcie_generation", self.pcie_generation), ("pcie_generation_max", self.pcie_generation_max))
        yield from (("pcie_lanes", self.pcie_lanes), ("pcie_lanes_max", self.pcie_lanes_max))
        yield from (("pcie_replays", self.pcie_replays), ("pcie_bits", self.pcie_bits))
        yield from (("pcie_transmit", self.pcie_transmit_bytes), ("pcie_receive", self.pcie_receive_bytes))
        yield "gpm", self.gpm is not None
        nvlink = ("nvlink_transmit", "nvlink_receive", "nvlink_crc", "nvlink_replay", "nvlink_recovery")
        yield from zip(nvlink, self.nvlink or (0, 0, 0, 0, 0), strict=True)
        yield from zip(("fabric_state", "fabric_status"), self.fabric or (0, 0), strict=True)
        yield from (("persistence", self.persistence), ("mig", self.mig_enabled))


@dataclass
class World:
    """What the driver of the host says. Change it, then `write` it."""

    gpus: list[FakeGpu] = field(default_factory=list[FakeGpu])
    driver: str = "570.124.06"
    cuda: int = 12080
    init_error: int = 0  # for example DRIVER_NOT_LOADED or VERSION_MISMATCH
    init_delay_ms: int = 0
    hangs: bool = False  # every call of every GPU, and init
    hanging: set[str] = field(default_factory=set[str])  # calls about the host
    errors: dict[str, int] = field(default_factory=dict[str, int])  # of calls about the host
    xids: list[tuple[str, int, int | None]] = field(default_factory=list[tuple[str, int, int | None]])

    def xid(self, gpu: FakeGpu, code: int, *, instance: int | None = None) -> None:
        """In a GPU instance of MIG, if it is given."""
        self.xids.append((gpu.uuid, code, instance))

    def write(self, path: Path) -> None:
        """At once or not at all, whoever reads meanwhile."""
        new = path.with_name(path.name + ".new")
        new.write_text("\n".join(self.lines()) + "\n")
        new.replace(path)

    def lines(self) -> Iterator[str]:
        yield f"driver {self.driver}"
        yield f"version 12.{self.driver}"
        yield f"cuda {self.cuda}"
        if self.init_error:
            yield f"error nvmlInitWithFlags {self.init_error}"
            yield f"error * {self.init_error}"
        if self.init_delay_ms:
            yield f"delay nvmlInitWithFlags {self.init_delay_ms}"
        if self.hangs:
            yield "hang *"
        yield from (f"hang {function}" for function in self.hanging)
        yield from (f"error {function} {code}" for function, code in self.errors.items())
        for number, (uuid, code, instance) in enumerate(self.xids, 1):
            yield f"xid {number} {uuid} {code} {2**32 - 1 if instance is None else instance}"
        for index, gpu in enumerate(self.gpus):
            yield from gpu.lines(index)


def build(directory: Path) -> Path:
    """Compiles libnvidia-ml.so.1 into the directory. Raises GccMissingError."""
    if not shutil.which("gcc"):
        raise GccMissingError("gcc is not installed: try `sudo apt-get install gcc libc6-dev`")
    library = directory / "libnvidia-ml.so.1"
    options = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-pthread"]
    subprocess.run(["gcc", *options, "-o", library, _SOURCE], check=True, timeout=120)
    return library


def environment(library: Path, world: Path) -> Mapping[str, str]:
    """To be added to that of a program that shall see the GPUs of the world."""
    return {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_FILE": str(world)}


def kernel_line(gpu: FakeGpu, code: int, text: str = "pid=1234, name=ollama", *, instance: int | None = None) -> str:
    """What the driver writes into the kernel's log for an XID, as a record of /dev/kmsg."""
    part = "" if instance is None else f" GPU-I:{instance:02}"
    _, bus, device = gpu.pci_bus_id.lower().partition(".")[0].split(":")
    return f"4,1234,5678901234,-;NVRM: Xid (PCI:0000:{bus}:{device}{part}): {code}, {text}\n"


def _memory(total_gib: float, used_gib: float, reserved_gib: float) -> Iterator[str]:
    yield f"memory {total_gib * GIB:.0f}"
    yield f"used {used_gib * GIB:.0f}"
    yield f"reserved {reserved_gib * GIB:.0f}"


def _processes(processes: list[tuple[int, int | None]]) -> Iterator[str]:
    for pid, memory_bytes in processes:
        yield f"process {pid} {2**64 - 1 if memory_bytes is None else memory_bytes}"


def _gpm(ratios: tuple[float, float, float]) -> Iterator[str]:
    for name, ratio in zip(("gpm_sm", "gpm_tensor", "gpm_dram"), ratios, strict=True):
        yield f"{name} {ratio * 10000:.0f}"


def _gpm_more(rates: tuple[float, float, float] | None) -> Iterator[str]:
    busy, sent, received = rates or (0, 0, 0)
    yield f"gpm_more {int(rates is not None)}"
    yield f"gpm_graphics {busy * 10000:.0f}"
    yield f"gpm_transmit {sent * 100:.0f}"
    yield f"gpm_receive {received * 100:.0f}"


def _recovery(action: RecoveryAction | int | None) -> int:
    return action.value if isinstance(action, RecoveryAction) else action or 0
