"""When a server is to be asked next, and when users' traffic makes that needless. Pure."""

from __future__ import annotations

from typing import Final

from appliance_agent.config import HealthConfig
from appliance_agent.evidence import Canary, Evidence, Load, Outcome

YOUNG_S: Final = 2.0  # a request of ours is young for so long; one at a time on a host
AT_ONCE: Final = float("-inf")
_INTERVALS_LEFT_OUT: Final = 6
LEEWAY_S: Final = 0.5  # half of the time between two looks
_LEEWAY: Final = 0.05  # of the interval
_STARTING_S: Final = 0.5
_STARTING_FOR_S: Final = 60.0
_PATIENCE_S: Final = 60.0
_QUESTIONABLE_S: Final = 0.5
_FLOWS_S: Final = 3.0
_SAME_S: Final = 1.5  # the last bytes of an answer and its line; later bytes are those of another answer


def due_s(evidence: Evidence, config: HealthConfig, *, asked_s: float | None, spread: float) -> float:
    """`asked_s` is when we last stopped asking, `spread` a factor around one so that slots do not march in step."""
    load, canary = evidence.load, evidence.last_canary
    if asked_s is None:
        return AT_ONCE
    if evidence.refused_since_s is not None:
        starting = asked_s - evidence.refused_since_s < _STARTING_FOR_S
        return asked_s + (_STARTING_S if starting else config.canary_interval_s / 4)
    if load and load.ended_s is not None and _is_newer(load, canary):
        return AT_ONCE if load.outcome is Outcome.OK else load.ended_s + config.canary_interval_s
    if canary is None:
        return asked_s + 2 * _STARTING_S
    if is_troubled(evidence, config):
        return asked_s + config.canary_interval_s / 4
    return canary.started_s + config.canary_interval_s * spread


def leeway_s(evidence: Evidence, config: HealthConfig) -> float:
    """By how much its turn may be earlier or later: of one that answers in good time."""
    return min(LEEWAY_S, _LEEWAY * config.canary_interval_s) if _is_well(evidence, config) else 0.0


def _is_well(evidence: Evidence, config: HealthConfig) -> bool:
    load, canary = evidence.load, evidence.last_canary
    if canary is None or evidence.refused_since_s is not None or is_troubled(evidence, config):
        return False
    return load is None or not _is_newer(load, canary)


def _is_newer(load: Load, canary: Canary | None) -> bool:
    return load.ended_s is None or canary is None or canary.started_s < load.ended_s


def is_quiet(evidence: Evidence, config: HealthConfig, now_s: float) -> bool:
    """Nobody is served, asked or waited for, and the model is where it belongs."""
    if evidence.canary is not None or evidence.on_gpu is False or not _is_well(evidence, config):
        return False
    return evidence.flow_s is None or now_s - evidence.flow_s > _FLOWS_S


def is_troubled(evidence: Evidence, config: HealthConfig) -> bool:
    canary = evidence.last_canary
    if canary is None:
        return False
    late = canary.first_token_s is not None and canary.first_token_s > config.first_token_s / 2
    return canary.outcome is not Outcome.OK or late


def is_left_out(evidence: Evidence, config: HealthConfig, now_s: float) -> bool:
    """Whether users' traffic speaks for the server: a finished request for a while, bytes only as long as they flow,
    because bytes that stop without an end are what a hang looks like. A server that fails us is asked all the same."""
    canary = evidence.last_canary
    if canary is None or canary.outcome not in (Outcome.OK, Outcome.SERVER_BUSY):
        return False
    if now_s - canary.started_s >= _INTERVALS_LEFT_OUT * config.canary_interval_s:
        return False
    answered_s, flow_s = evidence.answer_line_s, evidence.flow_s
    if flow_s is not None and now_s - flow_s <= min(_FLOWS_S, config.fresh_s):
        return True
    if answered_s is None or now_s - answered_s > config.fresh_s:
        return False
    return flow_s is None or flow_s - answered_s <= _SAME_S


def is_hopeless(evidence: Evidence, config: HealthConfig, now_s: float) -> bool:
    """Whether a canary has waited for so long that it is to be given up; never while a load goes on."""
    running = evidence.canary
    if running is None:
        return False
    moved_s = max(running.started_s, running.last_token_s or 0.0, evidence.progress_s or 0.0)
    return now_s - moved_s > config.silent_s + _PATIENCE_S


def is_questionable(evidence: Evidence, now_s: float) -> bool:
    """Our own request gets nothing: whether anybody else does is then worth a dear look, unless bytes say it already."""
    running, last = evidence.canary, evidence.last_canary
    if evidence.flow_s is not None and now_s - evidence.flow_s < _FLOWS_S:
        return False
    if running is None:
        return last is not None and last.outcome is Outcome.SERVER_BUSY
    heard_s = running.started_s if running.last_token_s is None else running.last_token_s
    return now_s - heard_s > _QUESTIONABLE_S


def was_alone(evidence: Evidence, canary: Canary) -> bool:
    """Nobody else was served while the canary was."""
    moments = (evidence.flow_s, evidence.answer_line_s)
    return all(moment is None or moment < canary.started_s - _QUESTIONABLE_S for moment in moments)
