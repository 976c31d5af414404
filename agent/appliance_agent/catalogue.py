"""Every metric of the agent: name, type, labels, meaning and where it comes from. Names are API. Data only.

`gpu` is the slot's index, which stays when a card drops off the bus; `uuid` stands beside it where a GPU is meant.
Identity is in the `_info` metrics alone. A value that is not supported or not known has no series.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

PREFIX: Final = "appliance_"


class Kind(Enum):
    GAUGE = "gauge"
    COUNTER = "counter"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Metric:
    name: str
    kind: Kind
    help: str
    source: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()  # of a histogram


_SLOT = ("gpu",)
_GPU = ("gpu", "uuid")


def _gauge(name: str, meaning: str, source: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, Kind.GAUGE, meaning, source, labels)


def _counter(name: str, meaning: str, source: str, *labels: str) -> Metric:
    return Metric(PREFIX + name, Kind.COUNTER, meaning, source, labels)


def _histogram(name: str, meaning: str, source: str, buckets: tuple[float, ...], *labels: str) -> Metric:
    return Metric(PREFIX + name, Kind.HISTOGRAM, meaning, source, labels, buckets)


XIDS: Final = ("48", "62", "64", "74", "79", "94", "95", "119", "120")  # with a series of their own
OTHER_XID: Final = "other"
XID_LABELS: Final = (*XIDS, OTHER_XID)

# MLPerf's limits of conversational and interactive use are among the bounds
FIRST_TOKEN_BUCKETS: Final = (
    0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
OUTPUT_TOKEN_BUCKETS: Final = (
    0.005, 0.01, 0.015, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
TICK_BUCKETS: Final = (0.001, 0.01, 0.1, 1.0, 10.0)

# slots and their containers
BACKEND_INFO = _gauge(
    "backend_info", "What the slot's container runs, constant 1.", "Docker, /api/version",
    *_SLOT, "container", "image", "image_id", "model", "ollama_version",
)  # fmt: skip
BACKEND_STATE = _gauge(
    "backend_state", "Whether the slot is in this state; one of its states is 1.", "the agent", *_SLOT, "state"
)
BACKEND_START = _gauge(
    "backend_start_time_seconds", "When the slot's container was started, since the epoch.", "Docker", *_SLOT
)
BACKEND_RESTARTS = _counter(
    "backend_restarts_total",
    "Containers made for the slot, by what ended the one before; start: there was none.",
    "the agent", *_SLOT, "reason",
)  # fmt: skip

# probes: short streaming chats
PROBE_ATTEMPTS = _counter("probe_attempts_total", "Probes that have ended.", "probe", *_SLOT)
PROBE_FAILURES = _counter("probe_failures_total", "Probes that gave no complete answer.", "probe", *_SLOT, "reason")
PROBE_SUCCESS = _gauge("probe_success", "Whether the last probe gave a complete answer.", "probe", *_SLOT)
PROBE_LAST_SUCCESS = _gauge(
    "probe_last_success_timestamp_seconds", "When the last complete answer of a probe ended.", "probe", *_SLOT
)
PROBE_FIRST_TOKEN = _histogram(
    "probe_time_to_first_token_seconds",
    "From the request of a probe to the first piece of its answer, thinking included.",
    "probe", FIRST_TOKEN_BUCKETS, *_SLOT,
)  # fmt: skip
PROBE_OUTPUT_TOKEN = _histogram(
    "probe_time_per_output_token_seconds", "Mean time for a token of a probe's answer.",
    "probe", OUTPUT_TOKEN_BUCKETS, *_SLOT,
)  # fmt: skip
PROBE_TOKENS = _counter(
    "probe_generated_tokens_total", "Tokens that probes made the slot generate.", "probe", *_SLOT
)  # fmt: skip

# GPUs
GPU_INFO = _gauge(
    "gpu_info", "Who the GPU is, constant 1.", "NVML",
    *_GPU, "index", "name", "pci_bus_id", "parent_uuid", "driver_version", "cuda_version",
)  # fmt: skip
GPU_UP = _gauge("gpu_up", "Whether NVML answers for this GPU, and it is sound.", "NVML", *_GPU)
GPU_UTILIZATION = _gauge(
    "gpu_utilization_ratio", "Share of the driver's last sample period in which a kernel ran.", "NVML", *_GPU
)
GPU_MEMORY_TOTAL = _gauge("gpu_memory_total_bytes", "Memory of the GPU.", "NVML", *_GPU)
GPU_MEMORY_USED = _gauge("gpu_memory_used_bytes", "Memory in use, without the driver's reserve.", "NVML", *_GPU)
GPU_TEMPERATURE = _gauge("gpu_temperature_celsius", "Temperature by sensor.", "NVML", *_GPU, "sensor")
GPU_POWER = _gauge("gpu_power_watts", "Power draw.", "NVML", *_GPU)
GPU_POWER_LIMIT = _gauge("gpu_power_limit_watts", "Power limit in force.", "NVML", *_GPU)
GPU_ENERGY = _counter("gpu_energy_joules_total", "Energy used since the driver was loaded.", "NVML", *_GPU)
GPU_RECOVERY = _gauge(
    "gpu_recovery_action_required", "Whether the driver asks for this action.", "NVML field 230", *_GPU, "action"
)
GPU_XIDS = _counter(
    "gpu_xid_errors_total", "XIDs that the driver reported since the agent started.", "NVML events", *_GPU, "xid"
)
GPU_XID_LAST = _gauge(
    "gpu_xid_last_timestamp_seconds", "When this XID was last reported; absent until then.", "NVML events", *_GPU, "xid"
)
GPU_COLLECTED = _gauge(
    "gpu_last_collect_timestamp_seconds", "When NVML last answered for this GPU; it is asked every second.",
    "NVML", *_GPU,
)  # fmt: skip

# the host
ENGINE_UP = _gauge("engine_up", "Whether the Docker Engine answers.", "Docker")
ENGINE_INFO = _gauge("engine_info", "Which Docker Engine it is, constant 1.", "Docker", "version")
NVML_UP = _gauge("nvml_up", "Whether NVML answers within its deadline; absent where no GPU is wanted.", "NVML")
HOST_PROBLEMS = _gauge("host_problems", "How many things stand in the way of the whole host.", "the agent")

# the agent itself
BUILD_INFO = _gauge("build_info", "Which agent it is, constant 1.", "the agent", "version", "python_version")
RELOAD_SUCCESSFUL = _gauge(
    "config_last_reload_successful", "Whether the configuration on disk is the one in force.", "the agent"
)
RELOAD_SUCCESS = _gauge(
    "config_last_reload_success_timestamp_seconds", "When the configuration in force was read.", "the agent"
)
TICKS = _counter("agent_ticks_total", "Ticks of the loop since the agent started.", "the agent")
LAST_TICK = _gauge("agent_last_tick_timestamp_seconds", "When the last tick ended.", "the agent")
TICK_DURATION = _histogram("agent_tick_duration_seconds", "How long ticks took.", "the agent", TICK_BUCKETS)
LOOP_LAG = _histogram(
    "agent_loop_lag_seconds", "How much later than planned ticks began.", "the agent", TICK_BUCKETS
)  # fmt: skip

CATALOGUE: Final = (
    BACKEND_INFO, BACKEND_STATE, BACKEND_START, BACKEND_RESTARTS,
    PROBE_ATTEMPTS, PROBE_FAILURES, PROBE_SUCCESS, PROBE_LAST_SUCCESS, PROBE_FIRST_TOKEN, PROBE_OUTPUT_TOKEN, PROBE_TOKENS,
    GPU_INFO, GPU_UP, GPU_UTILIZATION, GPU_MEMORY_TOTAL, GPU_MEMORY_USED, GPU_TEMPERATURE, GPU_POWER, GPU_POWER_LIMIT,
    GPU_ENERGY, GPU_RECOVERY, GPU_XIDS, GPU_XID_LAST, GPU_COLLECTED,
    ENGINE_UP, ENGINE_INFO, NVML_UP, HOST_PROBLEMS,
    BUILD_INFO, RELOAD_SUCCESSFUL, RELOAD_SUCCESS, TICKS, LAST_TICK, TICK_DURATION, LOOP_LAG,
)  # fmt: skip


def render_markdown() -> str:
    """The table of the documentation."""
    rows = ["| metric | type | labels | meaning | source |", "|---|---|---|---|---|"]
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} | {metric.source} |")
    return "\n".join(rows) + "\n"
