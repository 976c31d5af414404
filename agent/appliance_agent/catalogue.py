"""Every metric of the agent. Names are API. Data only; those of GPUs and of slots are in modules of their own.

Identity is in the `_info` metrics alone. A value that is not supported or not known has no series.
"""

from __future__ import annotations

from typing import Final

from appliance_agent.catalogue_gpu import GPU_METRICS
from appliance_agent.catalogue_slots import SLOT_METRICS
from appliance_agent.metric import counter, gauge, histogram

TICK_BUCKETS: Final = (0.001, 0.01, 0.1, 1.0, 10.0)

# the host
ENGINE_UP = gauge("engine_up", "Whether the Docker Engine answers.", "Docker")
ENGINE_INFO = gauge("engine_info", "Which Docker Engine it is, constant 1.", "Docker", "version")
NVML_UP = gauge("nvml_up", "Whether NVML answers within its deadline; absent where no GPU is wanted.", "NVML")
HOST_PROBLEMS = gauge("host_problems", "How many things stand in the way of the whole host.", "the agent")

# the agent itself
BUILD_INFO = gauge("build_info", "Which agent it is, constant 1.", "the agent", "version", "python_version")
RELOAD_SUCCESSFUL = gauge(
    "config_last_reload_successful", "Whether the configuration on disk is the one in force.", "the agent"
)
RELOAD_SUCCESS = gauge(
    "config_last_reload_success_timestamp_seconds", "When the configuration in force was read.", "the agent"
)
TICKS = counter("agent_ticks_total", "Ticks of the loop since the agent started.", "the agent")
LAST_TICK = gauge("agent_last_tick_timestamp_seconds", "When the last tick ended.", "the agent")
TICK_DURATION = histogram("agent_tick_duration_seconds", "How long ticks took.", "the agent", TICK_BUCKETS)
LOOP_LAG = histogram(
    "agent_loop_lag_seconds", "How much later than planned ticks began.", "the agent", TICK_BUCKETS
)  # fmt: skip

NVML_PROCESS_CPU = counter(
    "nvml_process_cpu_seconds_total", "CPU time of the process that asks NVML.", "that process, 10s"
)  # fmt: skip
NVML_PROCESS_MEMORY = gauge(
    "nvml_process_resident_memory_bytes", "Resident memory of the process that asks NVML.", "that process, 10s"
)  # fmt: skip

CATALOGUE: Final = (
    *SLOT_METRICS,
    *GPU_METRICS,
    ENGINE_UP, ENGINE_INFO, NVML_UP, HOST_PROBLEMS,
    BUILD_INFO, RELOAD_SUCCESSFUL, RELOAD_SUCCESS, TICKS, LAST_TICK, TICK_DURATION, LOOP_LAG, NVML_PROCESS_CPU,
    NVML_PROCESS_MEMORY,
)  # fmt: skip


def render_markdown() -> str:
    """The table of the documentation."""
    rows = ["| metric | type | labels | meaning | source |", "|---|---|---|---|---|"]
    for metric in CATALOGUE:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help} | {metric.source} |")
    return "\n".join(rows) + "\n"
