"""The metrics of GPUs. `gpu` is the slot's index, which stays when a card drops off the bus; `uuid` stands beside it.
A card that MIG divides belongs to no slot: its `gpu` is empty, and it has what is the whole card's.

A value that the card, the driver or the mode does not support has no series. How old a value may be is its interval:
what costs the driver nothing is asked every second, the rest every 10 or 30.
"""

from __future__ import annotations

from typing import Final

from appliance_agent.metric import GPU, counter, gauge

XIDS: Final = ("48", "62", "64", "74", "79", "94", "95", "119", "120")  # with a series of their own
OTHER_XID: Final = "other"
XID_LABELS: Final = (*XIDS, OTHER_XID)
INTERVALS: Final = ("1s", "10s", "30s")
CLOCK_EVENTS: Final = (  # NVML's bits, in their order
    "gpu_idle", "applications_clocks", "sw_power_cap", "hw_slowdown", "sync_boost", "sw_thermal", "hw_thermal",
    "hw_power_brake", "display_clocks",
)  # fmt: skip
COUNTED_CLOCK_EVENTS: Final = ("sw_power_cap", "sync_boost", "sw_thermal", "hw_thermal", "hw_power_brake")
OWNERS: Final = ("backend", "foreign")

INFO = gauge(
    "gpu_info", "Who the GPU is, constant 1.", "NVML",
    *GPU, "index", "name", "architecture", "compute_capability", "pci_bus_id", "parent_uuid", "driver_version",
    "cuda_version", "vbios_version",
)  # fmt: skip
UP = gauge("gpu_up", "Whether NVML answers for this GPU, and it is sound.", "NVML", *GPU)
UTILIZATION = gauge(
    "gpu_utilization_ratio", "Share of the driver's last sample period in which a kernel ran.", "NVML, 1s", *GPU
)
BUSY = counter(
    "gpu_busy_seconds_total",
    "Time in which a kernel ran, added up from every sample of the driver, so that none is lost between two scrapes.",
    "GPM, or all samples of the driver, 10s", *GPU,
)  # fmt: skip
MEMORY_ACTIVITY = gauge(
    "gpu_memory_activity_ratio", "Share of the driver's last sample period in which memory was read or written.",
    "NVML, 1s", *GPU,
)  # fmt: skip
MEMORY_TOTAL = gauge("gpu_memory_total_bytes", "Memory of the GPU.", "NVML, 1s", *GPU)
MEMORY_USED = gauge("gpu_memory_used_bytes", "Memory in use, without the driver's reserve.", "NVML, 1s", *GPU)
MEMORY_RESERVED = gauge("gpu_memory_reserved_bytes", "Memory that driver and firmware keep.", "NVML, 1s", *GPU)
TEMPERATURE = gauge("gpu_temperature_celsius", "Temperature by sensor: core, memory.", "NVML, 1s", *GPU, "sensor")
THERMAL_MARGIN = gauge(
    "gpu_thermal_margin_celsius", "How much warmer it may get before the nearest slowdown threshold.", "NVML, 10s", *GPU
)
POWER = gauge("gpu_power_watts", "Power draw, a mean over the last second.", "NVML, 1s", *GPU)
POWER_LIMIT = gauge("gpu_power_limit_watts", "Power limit in force.", "NVML, 10s", *GPU)
ENERGY = counter("gpu_energy_joules_total", "Energy used since the driver was loaded.", "NVML field 83, 30s", *GPU)
CLOCK = gauge("gpu_clock_hertz", "Clock now, by domain: sm, memory.", "NVML, 1s", *GPU, "domain")
CLOCK_MAX = gauge("gpu_clock_max_hertz", "Highest clock, by domain: sm, memory.", "NVML, once", *GPU, "domain")
CLOCK_EVENT = gauge(
    "gpu_clock_event_active", "Whether the clocks are held down for this reason.", "NVML, 1s", *GPU, "reason"
)
CLOCK_EVENT_SECONDS = counter(
    "gpu_clock_event_seconds_total", "Time for which clocks were held down, by reason; misses no short event.",
    "NVML fields 74, 76, 269 (older drivers: 75), 270 and 271, 10s", *GPU, "reason",
)  # fmt: skip
PERFORMANCE_STATE = gauge("gpu_performance_state", "P-state: 0 is the fastest, 15 the slowest.", "NVML, 1s", *GPU)
ECC = counter(
    "gpu_ecc_errors_total",
    "ECC errors since the driver was loaded: corrected, uncorrected.",
    "NVML, 10s",
    *GPU,
    "error",
)
ECC_LIFETIME = counter(
    "gpu_ecc_errors_lifetime_total", "ECC errors in the life of the card: corrected, uncorrected.",
    "NVML, 10s", *GPU, "error",
)  # fmt: skip
REMAPPED_ROWS = counter(
    "gpu_remapped_rows_total", "Memory rows that were replaced by spare ones: correctable, uncorrectable.",
    "NVML, 30s", *GPU, "cause",
)  # fmt: skip
ROW_REMAP_PENDING = gauge("gpu_row_remap_pending", "Whether a row remap waits for a reset.", "NVML, 30s", *GPU)
ROW_REMAP_FAILED = gauge(
    "gpu_row_remap_failed", "Whether a row remap has failed, for which NVIDIA replaces the card.", "NVML, 30s", *GPU
)
RETIRED_PAGES = counter(
    "gpu_retired_pages_total", "Memory pages taken out of use on cards before Ampere: correctable, uncorrectable.",
    "NVML, 30s", *GPU, "cause",
)  # fmt: skip
RETIRED_PAGES_PENDING = gauge(
    "gpu_retired_pages_pending", "Whether a page retirement waits for a reboot.", "NVML, 30s", *GPU
)
RECOVERY = gauge(
    "gpu_recovery_action_required", "Whether the driver asks for this action.", "NVML field 230, 1s", *GPU, "action"
)
XID_ERRORS = counter(
    "gpu_xid_errors_total", "XIDs that the driver reported since the agent started.", "NVML events", *GPU, "xid"
)
XID_LAST = gauge(
    "gpu_xid_last_timestamp_seconds", "When this XID was last reported; absent until then.", "NVML events", *GPU, "xid"
)
PCIE_GENERATION = gauge("gpu_pcie_link_generation", "PCIe generation now; low when idle.", "NVML, 10s", *GPU)
PCIE_GENERATION_MAX = gauge(
    "gpu_pcie_link_generation_max", "Highest PCIe generation of card and slot.", "NVML, once", *GPU
)
PCIE_LANES = gauge("gpu_pcie_link_lanes", "PCIe lanes now.", "NVML, 10s", *GPU)
PCIE_LANES_MAX = gauge("gpu_pcie_link_lanes_max", "Most PCIe lanes of card and slot.", "NVML, once", *GPU)
PCIE_REPLAYS = counter("gpu_pcie_replays_total", "PCIe packets that had to be sent again.", "NVML, 10s", *GPU)
PCIE_TRANSMIT = counter(
    "gpu_pcie_transmit_bytes_total",
    "Bytes from GPU to host since the NVML process began.",
    "GPM, 10s, or NVML field 197, 1s",
    *GPU,
)
PCIE_RECEIVE = counter(
    "gpu_pcie_receive_bytes_total",
    "Bytes from host to GPU since the NVML process began.",
    "GPM, 10s, or NVML field 198, 1s",
    *GPU,
)
PROCESSES = gauge(
    "gpu_processes", "Compute processes: backend is the slot's container, foreign anybody else.",
    "NVML, 1s", *GPU, "owner",
)  # fmt: skip
PROCESS_MEMORY = gauge(
    "gpu_process_memory_bytes", "Memory of the GPU that compute processes hold, by owner.", "NVML, 1s", *GPU, "owner"
)
PERSISTENCE = gauge("gpu_persistence_enabled", "Whether persistence mode is on.", "NVML, 10s", *GPU)
MIG = gauge("gpu_mig_enabled", "Whether MIG mode is on.", "NVML, 1s", *GPU)
SM_ACTIVE = gauge(
    "gpu_sm_active_ratio", "Share of multiprocessors with work (GPM, Hopper and newer).", "GPM, 10s", *GPU
)
TENSOR_ACTIVE = gauge("gpu_tensor_active_ratio", "Share of time in which tensor cores worked (GPM).", "GPM, 10s", *GPU)
DRAM_ACTIVE = gauge(
    "gpu_dram_active_ratio", "Share of the memory bandwidth in use (GPM): what limits the speed of answers.",
    "GPM, 10s", *GPU,
)  # fmt: skip
NVLINK_TRANSMIT = counter(
    "gpu_nvlink_transmit_bytes_total", "Bytes sent over NVLink; with metrics.nvlink.", "NVML field 138, 10s", *GPU
)
NVLINK_RECEIVE = counter(
    "gpu_nvlink_receive_bytes_total", "Bytes received over NVLink; with metrics.nvlink.", "NVML field 139, 10s", *GPU
)
NVLINK_ERRORS = counter(
    "gpu_nvlink_errors_total",
    "Errors of NVLink: crc, replay, recovery; with metrics.nvlink.",
    "NVML, 10s",
    *GPU,
    "error",
)
COLLECTED = gauge(
    "gpu_last_collect_timestamp_seconds",
    "When the values that are asked for at this interval were last read: the age of every sample.",
    "NVML", *GPU, "interval",
)  # fmt: skip
COLLECT_DURATION = gauge("gpu_collect_duration_seconds", "How long the last look at the GPU took.", "NVML, 1s", *GPU)
COLLECT_ERRORS = counter(
    "gpu_collect_errors_total", "Calls of NVML that failed, other than by not being supported.", "NVML, 1s", *GPU
)

GPU_METRICS: Final = (
    INFO, UP, UTILIZATION, BUSY, MEMORY_ACTIVITY, MEMORY_TOTAL, MEMORY_USED, MEMORY_RESERVED, TEMPERATURE,
    THERMAL_MARGIN, POWER, POWER_LIMIT, ENERGY, CLOCK, CLOCK_MAX, CLOCK_EVENT, CLOCK_EVENT_SECONDS, PERFORMANCE_STATE,
    ECC, ECC_LIFETIME, REMAPPED_ROWS, ROW_REMAP_PENDING, ROW_REMAP_FAILED, RETIRED_PAGES, RETIRED_PAGES_PENDING,
    RECOVERY, XID_ERRORS, XID_LAST, PCIE_GENERATION, PCIE_GENERATION_MAX, PCIE_LANES, PCIE_LANES_MAX, PCIE_REPLAYS,
    PCIE_TRANSMIT, PCIE_RECEIVE, PROCESSES, PROCESS_MEMORY, PERSISTENCE, MIG, SM_ACTIVE, TENSOR_ACTIVE, DRAM_ACTIVE,
    NVLINK_TRANSMIT, NVLINK_RECEIVE, NVLINK_ERRORS, COLLECTED, COLLECT_DURATION, COLLECT_ERRORS,
)  # fmt: skip
