"""The page that is kept open: can users work, which GPU is the problem, what did the agent do about it. Data only."""

from __future__ import annotations

from typing import Final

from dashboard_queries import (
    HOSTS,
    LEGEND,
    SLOT,
    STATE_WORDS,
    highest,
    in_state,
    in_trouble,
    increase,
    mean,
    quantile,
    rate,
    series,
    share_of_errors,
    state_number,
    steps,
    total,
)
from dashboard_rows_gpus import AGENT, AGENT_ACTS, GPU_HEALTH
from dashboard_rows_use import PROBES, TOKENS, TRAFFIC
from dashboard_values import Board, Colour, Column, Look, Marks, Panel, Query, Row, Variable, Word

from appliance_agent.states import State

JOB: Final = "ollama-agent"
VARIABLES: Final = (
    Variable("job", "Job", "label_values(appliance_build_info, job)", current=JOB),
    Variable("instance", "Host", 'label_values(appliance_build_info{job=~"$job"}, instance)'),
    Variable("gpu", "GPU", f"label_values(appliance_backend_state{{{HOSTS}}}, gpu)"),
)
MARKS: Final = (
    Marks("Containers started", f"{series('backend_start_time_seconds')} * 1000", LEGEND, Colour.CALM),
    Marks("XIDs", f"{series('gpu_xid_last_timestamp_seconds')} * 1000", f"{LEGEND}: XID {{{{xid}}}}", Colour.BAD),
)

_NUMBERS: Final = (
    Panel(
        title="Slots ready", look=Look.NUMBER, width=4, height=4, unit="percentunit", decimals=0, most=1,
        text="Share of the slots that have proved by tokens that they answer; below 100 % the table says which is missing.",
        queries=(Query(f"avg({in_state(State.READY)})"),),
        steps=steps(Colour.BAD, (0.5, Colour.WARNING), (1, Colour.GOOD)),
        runbooks=("BackendNotReady", "CapacityLow"),
    ),
    Panel(
        title="Errors (30 m)", look=Look.NUMBER, width=4, height=4, unit="percentunit", decimals=1, nothing="no requests",
        text="Share of users' requests that ended with a status of 500 or more; above 1 % look at the log of the container.",
        queries=(Query(share_of_errors("30m")),),
        steps=steps(Colour.GOOD, (0.01, Colour.WARNING), (0.05, Colour.BAD)),
        runbooks=("ErrorBudgetBurn",),
    ),
    Panel(
        title="First token (30 m)", look=Look.NUMBER, width=4, height=4, unit="s", nothing="no probe yet",
        text="95 of 100 probes had their first token sooner; above 2 s a chat feels slow, and the probes' row says where.",
        queries=(Query(quantile(0.95, "probe_time_to_first_token_seconds", window="30m")),),
        steps=steps(Colour.GOOD, (2, Colour.WARNING), (5, Colour.BAD)),
        runbooks=("ProbeSlow",),
    ),
    Panel(
        title="Requests", look=Look.NUMBER, width=4, height=4, unit="reqps",
        text="Users' requests that ended, each second; none in working hours means that users cannot reach the hosts.",
        queries=(Query(total(rate("requests_total"))),),
        steps=steps(Colour.CALM),
    ),
    Panel(
        title="Tokens", look=Look.NUMBER, width=4, height=4, unit="suffix:tokens/s",
        text="Tokens written for users each second on all GPUs (Ollama 0.30 and newer); compare it with other days.",
        queries=(Query(total(rate("generated_tokens_total"))),),
        steps=steps(Colour.CALM),
    ),
    Panel(
        title="GPUs in trouble", look=Look.NUMBER, width=4, height=4, decimals=0,
        text="GPUs that are lost, that the driver wants reset, or that had an XID within 15 minutes; the table names them.",
        queries=(Query(total(in_trouble())),),
        steps=steps(Colour.GOOD, (1, Colour.BAD)),
        runbooks=("GpuLost", "GpuRecoveryAction", "XidCritical"),
    ),
)  # fmt: skip

_TABLE: Final = Panel(
    title="Every GPU", look=Look.TABLE, width=24, height=7, by_gpu=True,
    text="One line for each GPU, what is wrong in colour; a click on its number opens the page of that GPU.",
    columns=(
        Column("State", state_number(), words=STATE_WORDS),
        Column("In trouble", in_trouble(), words=(Word(0, "no", Colour.GOOD), Word(1, "yes", Colour.BAD))),
        Column("First token of probes (10 m)", mean("probe_time_to_first_token_seconds", window="10m"), "s",
               steps=steps(Colour.GOOD, (2, Colour.WARNING), (5, Colour.BAD))),
        Column("Tokens", total(rate("generated_tokens_total"), SLOT), "suffix:tokens/s", 0),
        Column("Busy", total(rate("gpu_busy_seconds_total"), SLOT), "percentunit", 0),
        Column("Memory", f"{total(series('gpu_memory_used_bytes'), SLOT)} / {total(series('gpu_memory_total_bytes'), SLOT)}",
               "percentunit", 0, steps=steps(Colour.GOOD, (0.97, Colour.WARNING))),
        Column("Hottest", highest(series("gpu_temperature_celsius")), "celsius", 0,
               steps=steps(Colour.GOOD, (80, Colour.WARNING), (88, Colour.BAD))),
        Column("Held down", highest(rate("gpu_clock_event_seconds_total", 'reason=~"sw_thermal|hw_.*"')),
               "percentunit", 0, steps=steps(Colour.GOOD, (0.1, Colour.WARNING), (0.5, Colour.BAD))),
        Column("XIDs (24 h)", total(increase("gpu_xid_errors_total", window="24h"), SLOT), "short", 0,
               steps=steps(Colour.GOOD, (0.5, Colour.BAD))),
        Column("Restarts (24 h)", total(increase("backend_restarts_total", 'reason!~"start|config"', window="24h"), SLOT),
               "short", 0, steps=steps(Colour.GOOD, (0.5, Colour.WARNING), (3.5, Colour.BAD))),
    ),
)  # fmt: skip

_TIMELINE: Final = Panel(
    title="State of each slot", look=Look.STATES, width=24, height=7, words=STATE_WORDS, by_gpu=True,
    text="What each slot was doing when; all but green is time in which its users were served by others or not at all.",
    queries=(Query(state_number(), LEGEND),),
    runbooks=("BackendNotReady", "BackendFlapping"),
)  # fmt: skip

OVERVIEW: Final = Board(
    uid="ollama-appliance-overview",
    title="Ollama appliance / Overview",
    text="Whether users can work, which GPU is the problem, and what the agent did about it.",
    rows=(
        Row("Can users work?", (*_NUMBERS, _TABLE, _TIMELINE)),
        TRAFFIC,
        TOKENS,
        PROBES,
        GPU_HEALTH,
        AGENT_ACTS,
        AGENT,
    ),
    variables=VARIABLES,
    marks=MARKS,
)
