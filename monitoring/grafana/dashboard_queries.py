"""The words of the dashboards' queries: selections by the variables of the page, rates, quantiles. Text only."""

from __future__ import annotations

from typing import Final

from dashboard_values import Colour, Step, Word

from appliance_agent.states import State

HOSTS: Final = 'job=~"$job", instance=~"$instance"'
GPUS: Final = f'{HOSTS}, gpu=~"$gpu"'
RATE: Final = "$__rate_interval"
SLOT: Final = "instance, gpu"
LEGEND: Final = "{{instance}} GPU {{gpu}}"
QUANTILES: Final = ((0.5, "p50"), (0.95, "p95"), (0.99, "p99"))
STATE_WORDS: Final = tuple(
    Word(state.value, state.name.lower(), colour)
    for state, colour in {
        State.ABSENT: Colour.AWAY,
        State.WAITING: Colour.NOTICE,
        State.STARTING: Colour.SOON,
        State.LOADING: Colour.CALM,
        State.READY: Colour.GOOD,
        State.DEGRADED: Colour.WARNING,
        State.DRAINING: Colour.LEAVING,
        State.STOPPING: Colour.LEAVING,
        State.FAILED: Colour.BAD,
        State.QUARANTINED: Colour.WORST,
        State.BLOCKED: Colour.WORST,
        State.STOPPED: Colour.AWAY,
    }.items()
)
YES_NO: Final = (Word(0, "no", Colour.BAD), Word(1, "yes", Colour.GOOD))


def steps(first: Colour, *others: tuple[float, Colour]) -> tuple[Step, ...]:
    return (Step(first), *(Step(colour, value) for value, colour in others))


def series(metric: str, *more: str, of: str = GPUS) -> str:
    return f"appliance_{metric}{{{', '.join([of, *more])}}}"


def rate(metric: str, *more: str, of: str = GPUS, window: str = RATE) -> str:
    return f"rate({series(metric, *more, of=of)}[{window}])"


def increase(metric: str, *more: str, of: str = GPUS, window: str = RATE) -> str:
    return f"increase({series(metric, *more, of=of)}[{window}])"


def total(expr: str, by: str = "") -> str:
    return f"sum{f' by ({by}) ' if by else ''}({expr})"


def highest(expr: str, by: str = SLOT) -> str:
    return f"max by ({by}) ({expr})"


def quantile(share: float, metric: str, *, by: str = "", of: str = GPUS, window: str = RATE) -> str:
    buckets = rate(f"{metric}_bucket", of=of, window=window)
    return f"histogram_quantile({share}, sum by ({f'{by}, ' if by else ''}le) ({buckets}))"


def mean(metric: str, *, by: str = SLOT, window: str = RATE) -> str:
    """Of what a histogram saw."""
    return f"{total(rate(f'{metric}_sum', window=window), by)} / {total(rate(f'{metric}_count', window=window), by)}"


def in_state(state: State) -> str:
    return series("backend_state", f'state="{state.name.lower()}"')


def state_number() -> str:
    """The number of the one state that each slot is in."""
    named = [f"{state.value} * {in_state(state)}" for state in State]
    return highest(" or ".join(named))


def share_of_errors(window: str) -> str:
    errors = total(rate("requests_total", 'code=~"5.."', window=window))
    return f"{errors} / {total(rate('requests_total', window=window))}"


def in_trouble() -> str:
    """1 for a GPU that is lost, that the driver wants something done about, or that had an XID within 15 minutes."""
    lost = f"{series('gpu_up')} == bool 0"
    wanted = series("gpu_recovery_action_required")
    struck = f"time() - {series('gpu_xid_last_timestamp_seconds')} < bool 900"
    return highest(f"({lost}) or ({wanted}) or ({struck})")
