"""Rows of the overview about the machine: GPUs, what the agent did, and the agent itself. Data only."""

from __future__ import annotations

from typing import Final

from dashboard_queries import (
    HOSTS,
    LEGEND,
    SLOT,
    YES_NO,
    highest,
    increase,
    quantile,
    rate,
    series,
    steps,
    total,
)
from dashboard_values import Colour, Look, Panel, Query, Row

_HOST: Final = "{{instance}}"
_JOULES: Final = total(rate("gpu_energy_joules_total", window="5m"), "instance")
_TOKENS: Final = total(rate("generated_tokens_total", window="5m"), "instance")
_UNCORRECTED: Final = total(increase("gpu_ecc_errors_total", 'error="uncorrected"'), SLOT)
_KNOWN: Final = series("backend_info", 'ollama_version!=""')
_RELEASES: Final = f"count by (image, ollama_version) ({_KNOWN})"

GPU_HEALTH: Final = Row(
    "GPUs",
    (
        Panel(
            title="Busy", unit="percentunit", most=1, by_gpu=True,
            text="Share of time in which a kernel ran, no sample lost; idle while its equals are busy means that it gets no work.",
            queries=(Query(rate("gpu_busy_seconds_total"), LEGEND),),
        ),
        Panel(
            title="Memory bandwidth", unit="percentunit", most=1, by_gpu=True,
            text="Share of the memory bandwidth in use (Hopper and newer), which limits the speed of answers; near 70 % the card is full.",
            queries=(Query(series("gpu_dram_active_ratio"), LEGEND),),
        ),
        Panel(
            title="Memory used", unit="percentunit", most=1, by_gpu=True,
            text="Share of the GPU's memory in use; near 100 % the next load fails or goes to the CPU.",
            queries=(Query(f"{series('gpu_memory_used_bytes')} / {series('gpu_memory_total_bytes')}", LEGEND),),
            steps=steps(Colour.GOOD, (0.97, Colour.WARNING)),
            runbooks=("ForeignProcess",),
        ),
        Panel(
            title="Power", unit="watt", by_gpu=True,
            text="Draw of each card, a mean over a second; far below its equals under load it is held down, see beside.",
            queries=(Query(series("gpu_power_watts"), LEGEND),),
        ),
        Panel(
            title="Temperature", unit="celsius", least=None, by_gpu=True,
            text="Of the hottest sensor of each card; above the orange line clocks go down: look at fans and airflow.",
            queries=(Query(highest(series("gpu_temperature_celsius")), LEGEND),),
            steps=steps(Colour.GOOD, (80, Colour.WARNING), (88, Colour.BAD)),
            runbooks=("ThrottledThermal",),
        ),
        Panel(
            title="Energy for a token (5 m)", unit="suffix:J/token",
            text="Joules of all GPUs of a host for each token written for users; what a token costs, and what an upgrade saves.",
            queries=(Query(f"{_JOULES} / ({_TOKENS} > 0)", _HOST),),
        ),
        Panel(
            title="Clocks held down", unit="percentunit", by_gpu=True,
            text="Share of time by reason; heat and power brakes are faults of the machine, a power cap is a setting.",
            queries=(Query(f"{rate('gpu_clock_event_seconds_total')} > 0", f"{LEGEND} {{{{reason}}}}"),),
            steps=steps(Colour.GOOD, (0.5, Colour.WARNING)),
            runbooks=("ThrottledHardware", "ThrottledThermal"),
        ),
        Panel(
            title="XIDs", bars=True, by_gpu=True,
            text="Errors that the driver reported, by number; 48, 62, 64, 74, 79, 95, 119 and 120 need a reset or a new card.",
            queries=(Query(total(increase("gpu_xid_errors_total"), f"{SLOT}, xid") + " > 0", f"{LEGEND} XID {{{{xid}}}}"),),
            nothing="none",
            runbooks=("XidCritical", "XidWarning"),
        ),
        Panel(
            title="Memory errors", bars=True, nothing="none", by_gpu=True,
            text="Uncorrected ECC errors and rows replaced by spare ones; either is a reason to watch the card, both to replace it.",
            queries=(
                Query(f"{_UNCORRECTED} > 0", f"{LEGEND} uncorrected"),
                Query(f"{total(increase('gpu_remapped_rows_total'), SLOT)} > 0", f"{LEGEND} rows"),
            ),
            runbooks=("EccUncorrected", "RowRemapPending", "RowRemapFailed"),
        ),
    ),
)  # fmt: skip

AGENT_ACTS: Final = Row(
    "What the agent did",
    (
        Panel(
            title="Containers replaced", bars=True,
            text="New containers by what ended the one before; the states above name the slot, `ollama-agent status --history 20` the reason.",
            queries=(
                Query(total(increase("backend_restarts_total", 'reason!="start"'), "reason") + " > 0", "{{reason}}"),
            ),
            nothing="none",
            runbooks=("BackendFlapping",),
        ),
        Panel(
            title="Slots by state", stacked=True,
            text="How many slots are in each state; a long time in any but ready wants a look at the reason in the status.",
            queries=(Query(total(series("backend_state"), "state") + " > 0", "{{state}}"),),
            colours=(
                ("ready", Colour.GOOD), ("degraded", Colour.WARNING), ("starting", Colour.SOON), ("loading", Colour.CALM),
                ("waiting", Colour.NOTICE), ("draining|stopping", Colour.LEAVING), ("failed", Colour.BAD),
                ("quarantined|blocked", Colour.WORST), ("absent|stopped", Colour.AWAY),
            ),
        ),
        Panel(
            title="Releases", stacked=True,
            text="How many slots run which image and which Ollama; two at a time is a rollout, for long one that was halted.",
            queries=(
                Query(_RELEASES, "{{image}} Ollama {{ollama_version}}"),
            ),
        ),
    ),
)  # fmt: skip


def _yes_or_no(title: str, metric: str, text: str, runbook: str) -> Panel:
    return Panel(
        title=title, look=Look.NUMBER, width=6, height=3, words=YES_NO, text=text, runbooks=(runbook,),
        queries=(Query(f"min({series(metric, of=HOSTS)})"),),
        steps=steps(Colour.BAD, (1, Colour.GOOD)),
    )  # fmt: skip


AGENT: Final = Row(
    "Agent",
    (
        Panel(
            title="Agents up", look=Look.NUMBER, width=6, height=3, unit="percentunit", decimals=0,
            text="Share of the agents that Prometheus can scrape; containers go on serving without one, but nobody heals them.",
            queries=(Query(f"avg(up{{{HOSTS}}})"),),
            steps=steps(Colour.BAD, (1, Colour.GOOD)),
            runbooks=("AgentDown",),
        ),
        _yes_or_no(
            "Docker answers", "engine_up",
            "Whether the Docker Engine of every host answers; without it containers go on, but none can be replaced.", "EngineDown",
        ),
        _yes_or_no(
            "Driver answers", "nvml_up",
            "Whether NVML of every host answers in time; if not, look at the kernel's log for the driver.", "NvmlDown",
        ),
        _yes_or_no(
            "Configuration in force", "config_last_reload_successful",
            "Whether what is on disk is what is in force; if not, `ollama-agent config check` says why.", "ConfigReloadFailed",
        ),
        Panel(
            title="Age of what is shown of GPUs", unit="s", width=6,
            text="How old values are, by how often they are asked for; one that grows means that the driver hangs.",
            queries=(
                Query(
                    f"max by (instance, interval) (time() - {series('gpu_last_collect_timestamp_seconds')})",
                    f"{_HOST} every {{{{interval}}}}",
                ),
            ),
            runbooks=("CollectStale",),
        ),
        Panel(
            title="Lag of the loop", unit="s", width=6,
            text="99 of 100 ticks began less late than this; seconds mean a machine without CPU time to spare.",
            queries=(Query(quantile(0.99, "agent_loop_lag_seconds", by="instance", of=HOSTS), _HOST),),
        ),
        Panel(
            title="CPU of the agent", unit="percentunit", width=6,
            text="Share of one core, the agent and its process that asks NVML; above 2 % something asks it too often.",
            queries=(
                Query(f"rate(process_cpu_seconds_total{{{HOSTS}}}[$__rate_interval])", f"{_HOST} agent"),
                Query(rate("nvml_process_cpu_seconds_total", of=HOSTS), f"{_HOST} NVML"),
            ),
        ),
        Panel(
            title="Memory of the agent", unit="bytes", width=6,
            text="Resident memory of the agent and of its process that asks NVML; report a bug if it grows day by day.",
            queries=(
                Query(f"process_resident_memory_bytes{{{HOSTS}}}", f"{_HOST} agent"),
                Query(series("nvml_process_resident_memory_bytes", of=HOSTS), f"{_HOST} NVML"),
            ),
        ),
    ),
)  # fmt: skip
