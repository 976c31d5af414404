"""The page of one GPU, for when the overview has said which one it is. Data only."""

from __future__ import annotations

from typing import Final

from dashboard_overview import MARKS, VARIABLES
from dashboard_queries import (
    STATE_WORDS,
    highest,
    increase,
    rate,
    series,
    state_number,
    steps,
    total,
)
from dashboard_values import Board, Colour, Column, Look, Panel, Query, Row, Variable, Word

_ASKED: Final = (Word(0, "no", Colour.GOOD), Word(1, "yes", Colour.BAD))
_DOWN: Final = (Word(0, "no", Colour.AWAY), Word(1, "yes", Colour.WARNING))

_WHO: Final = Row(
    "Who it is, and how it is",
    (
        Panel(
            title="State", look=Look.NUMBER, width=4, height=4, words=STATE_WORDS,
            text="What its slot is doing now; `ollama-agent status` gives the reason in a sentence.",
            queries=(Query(state_number()),), runbooks=("BackendNotReady",),
        ),
        Panel(
            title="Up", look=Look.NUMBER, width=4, height=4, words=(Word(0, "no", Colour.BAD), Word(1, "yes", Colour.GOOD)),
            text="Whether the driver answers for it and it is sound; if not, its users are with the other GPUs until a person comes.",
            queries=(Query(highest(series("gpu_up"))),), runbooks=("GpuLost",),
        ),
        Panel(
            title="Up to its slowdown", look=Look.NUMBER, width=4, height=4, unit="celsius",
            text="How much warmer it may get before clocks go down; below 5 look at fans and airflow.",
            queries=(Query(f"min by (instance, gpu) ({series('gpu_thermal_margin_celsius')})"),),
            steps=steps(Colour.BAD, (2, Colour.WARNING), (8, Colour.GOOD)), runbooks=("ThrottledThermal",),
        ),
        Panel(
            title="Container runs for", look=Look.NUMBER, width=4, height=4, unit="s",
            text="Time since its container was started; short again and again means that something ends it.",
            queries=(Query(f"time() - {highest(series('backend_start_time_seconds'))}"),), steps=steps(Colour.CALM),
            runbooks=("BackendFlapping",),
        ),
        Panel(
            title="Row remap", look=Look.NUMBER, width=4, height=4,
            words=(Word(0, "none", Colour.GOOD), Word(1, "waits for a reset", Colour.WARNING), Word(2, "failed", Colour.BAD)),
            text="Whether bad memory waits for a reset to be replaced by spare rows, or could not be: then NVIDIA replaces the card.",
            queries=(Query(highest(f"({series('gpu_row_remap_pending')}) or 2 * {series('gpu_row_remap_failed')}")),),
            runbooks=("RowRemapPending", "RowRemapFailed"),
        ),
        Panel(
            title="Performance state", look=Look.NUMBER, width=4, height=4,
            text="0 is the fastest and 15 the slowest; a high number under load is a card that is held down.",
            queries=(Query(highest(series("gpu_performance_state"))),), steps=steps(Colour.CALM),
        ),
        Panel(
            title="The card", look=Look.TABLE, width=24, height=4,
            text="What to tell the vendor: name, address, driver and firmware.",
            columns=(Column("", series("gpu_info")),),
        ),
    ),
)  # fmt: skip

_HISTORY: Final = Row(
    "What happened to it",
    (
        Panel(
            title="State of its slot", look=Look.STATES, width=24, height=4, words=STATE_WORDS,
            text="What its slot was doing when.", queries=(Query(state_number(), "GPU {{gpu}}"),), runbooks=("BackendFlapping",),
        ),
        Panel(
            title="What the driver asks for", look=Look.STATES, width=12, words=_ASKED,
            text="Actions that the driver wants; a reset needs the slot drained, a reboot the host: see the runbook.",
            queries=(Query(highest(series("gpu_recovery_action_required"), "action"), "{{action}}"),),
            runbooks=("GpuRecoveryAction",),
        ),
        Panel(
            title="Why clocks are held down", look=Look.STATES, width=12, words=_DOWN,
            text="Reasons at each moment; idle and a power cap are normal, heat and brakes are faults of the machine.",
            queries=(Query(highest(series("gpu_clock_event_active"), "reason"), "{{reason}}"),),
            runbooks=("ThrottledHardware", "ThrottledThermal"),
        ),
        Panel(
            title="XIDs", bars=True, width=12, nothing="none",
            text="Errors that the driver reported, by number; look the number up in the runbook.",
            queries=(Query(total(increase("gpu_xid_errors_total"), "xid") + " > 0", "XID {{xid}}"),),
            runbooks=("XidCritical", "XidWarning"),
        ),
        Panel(
            title="Containers replaced", bars=True, width=12, nothing="none",
            text="New containers of its slot by what ended the one before.",
            queries=(Query(total(increase("backend_restarts_total"), "reason") + " > 0", "{{reason}}"),),
            runbooks=("BackendFlapping",),
        ),
    ),
)  # fmt: skip

_WORK: Final = Row(
    "What it does",
    (
        Panel(
            title="How busy its parts are", unit="percentunit", most=1,
            text="Shares of time or of the peak; bandwidth near 70 % while it writes is a card at its limit (Hopper and newer).",
            queries=(
                Query(rate("gpu_busy_seconds_total"), "kernels"),
                Query(series("gpu_memory_activity_ratio"), "memory accesses"),
                Query(series("gpu_sm_active_ratio"), "multiprocessors"),
                Query(series("gpu_tensor_active_ratio"), "tensor cores"),
                Query(series("gpu_dram_active_ratio"), "memory bandwidth"),
            ),
        ),
        Panel(
            title="Tokens", unit="suffix:tokens/s",
            text="Tokens written each second, for users and for our probes; probes alone mean that no user comes here.",
            queries=(
                Query(total(rate("generated_tokens_total")), "users"),
                Query(total(rate("probe_generated_tokens_total")), "probes"),
            ),
        ),
        Panel(
            title="First token of probes, all of them", unit="s", look=Look.HEAT,
            text="How many probes waited how long for their first token; a rising band is a card or a model that gets slower.",
            queries=(Query(total(increase("probe_time_to_first_token_seconds_bucket"), "le"), "{{le}}"),),
            runbooks=("ProbeSlow",),
        ),
        Panel(
            title="Memory by owner", unit="bytes",
            text="What compute processes hold: the slot's own container, and foreign ones, which do not belong here.",
            queries=(
                Query(total(series("gpu_process_memory_bytes"), "owner"), "{{owner}}"),
                Query(total(series("gpu_memory_total_bytes")), "there is"),
            ),
            runbooks=("ForeignProcess",),
        ),
        Panel(
            title="Processes by owner", decimals=0,
            text="Compute processes on it; any foreign one takes memory and time from users.",
            queries=(Query(total(series("gpu_processes"), "owner"), "{{owner}}"),), runbooks=("ForeignProcess",),
        ),
        Panel(
            title="PCIe traffic", unit="Bps",
            text="Bytes between card and host; much of it while answers are written means that the model is not whole on the GPU.",
            queries=(
                Query(rate("gpu_pcie_receive_bytes_total"), "to the GPU"),
                Query(rate("gpu_pcie_transmit_bytes_total"), "from the GPU"),
            ),
            runbooks=("ModelOnCpu",),
        ),
    ),
)  # fmt: skip

_HARDWARE: Final = Row(
    "How it is built and cooled",
    (
        Panel(
            title="Power", unit="watt", text="Draw and limit; a draw at the limit is a power cap at work.",
            queries=(Query(series("gpu_power_watts"), "draw"), Query(series("gpu_power_limit_watts"), "limit")),
        ),
        Panel(
            title="Temperature", unit="celsius", least=None,
            text="By sensor; above the orange line clocks go down: look at fans and airflow.",
            queries=(Query(series("gpu_temperature_celsius"), "{{sensor}}"),),
            steps=steps(Colour.GOOD, (80, Colour.WARNING), (88, Colour.BAD)), runbooks=("ThrottledThermal",),
        ),
        Panel(
            title="Clocks", unit="hertz", text="By domain, with the highest there can be; the charts above say why they are lower.",
            queries=(
                Query(series("gpu_clock_hertz"), "{{domain}}"),
                Query(series("gpu_clock_max_hertz"), "{{domain}}, highest"),
            ),
        ),
        Panel(
            title="Clocks held down", unit="percentunit", text="Share of time for which clocks were held down, by reason.",
            queries=(Query(rate("gpu_clock_event_seconds_total"), "{{reason}}"),),
            runbooks=("ThrottledHardware", "ThrottledThermal"),
        ),
        Panel(
            title="PCIe link", decimals=0,
            text="Generation and lanes; lanes below what there can be, or a low generation under load, is a bad seat or riser.",
            queries=(
                Query(series("gpu_pcie_link_generation"), "generation"),
                Query(series("gpu_pcie_link_generation_max"), "generation, highest"),
                Query(series("gpu_pcie_link_lanes"), "lanes"),
                Query(series("gpu_pcie_link_lanes_max"), "lanes, most"),
            ),
            runbooks=("PcieLinkDegraded",),
        ),
        Panel(
            title="Errors of memory and bus", bars=True,
            text="Corrected and uncorrected ECC errors, replaced rows and repeated PCIe packets; only uncorrected ones hurt at once.",
            queries=(
                Query(total(increase("gpu_ecc_errors_total"), "error"), "ECC {{error}}"),
                Query(total(increase("gpu_remapped_rows_total"), "cause"), "rows {{cause}}"),
                Query(total(increase("gpu_pcie_replays_total")), "PCIe replays"),
            ),
            runbooks=("EccUncorrected",),
        ),
    ),
)  # fmt: skip

_JOB, _INSTANCE, _GPU = VARIABLES
ONE_GPU: Final = Board(
    uid="ollama-appliance-gpu",
    title="Ollama appliance / One GPU",
    text="Everything of one GPU and of its slot, for when the overview has said which one it is.",
    rows=(_WHO, _HISTORY, _WORK, _HARDWARE),
    variables=(
        _JOB,
        Variable(_INSTANCE.name, _INSTANCE.label, _INSTANCE.query, many=False),
        Variable(_GPU.name, _GPU.label, _GPU.query, many=False),
    ),
    marks=MARKS,
)
