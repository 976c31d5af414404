"""One verdict from all the evidence of a running container. Pure: facts, thresholds and a clock in, a verdict with its reason out.

No single probe decides. A canary that waits is a question; tokens that flow to users, a GPU that computes and the
connections to the port are the answer: busy, or wedged.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from appliance_agent.config import HealthConfig
from appliance_agent.evidence import Canary, Evidence, Outcome
from appliance_agent.slots import Pace
from appliance_agent.states import Health

_REFUSED_S: Final = 5.0  # connections fail for so long: nobody listens any more
_SILENT_S: Final = 60.0  # an Ollama that starts listens before it has looked at its store and the GPUs
_COMPUTED_S: Final = 3.0  # a look at the GPU each second may miss a short pause
_IN_MEMORY: Final = 0.95  # of the model; `size_vram` leaves small buffers out
_BASELINE_CANARIES: Final = 3


@dataclass(frozen=True, slots=True)
class Verdict:
    health: Health
    because: str


@dataclass(frozen=True, slots=True)
class Case:
    """What a verdict is made from. Time before `trusted_since_s` counts for nothing: the agent was not looking."""

    evidence: Evidence
    config: HealthConfig
    now_s: float
    trusted_since_s: float = 0.0
    pace: Pace | None = None

    def ago(self, *moments: float | None) -> float:
        """Seconds since the latest of these moments, as far as they can be trusted."""
        known = [moment for moment in moments if moment is not None]
        return self.now_s - max([*known, self.trusted_since_s, self.evidence.watched_since_s])

    def within(self, moment: float | None, seconds: float) -> bool:
        return moment is not None and self.now_s - moment <= seconds


def judge(case: Case) -> Verdict:
    """The first rule that applies, from the plainest fact to the finest."""
    rules = (_not_listening, _loading, _loading_anew, _on_cpu, _waiting, _rejected, _failing, _slow)
    for rule in rules:
        if verdict := rule(case):
            return verdict
    return Verdict(Health.READY, _ready_because(case))


def _not_listening(case: Case) -> Verdict | None:
    evidence = case.evidence
    if evidence.answered_s is None:
        waited_s = case.ago(evidence.progress_s)
        if evidence.silent_since_s is not None and case.ago(evidence.silent_since_s, evidence.progress_s) >= _SILENT_S:
            return Verdict(
                Health.WEDGED, f"the server takes connections, and has answered nothing for {waited_s:.0f} s"
            )
        if waited_s >= case.config.load_s:
            return Verdict(Health.GONE, f"the server has not begun to listen for {waited_s:.0f} s")
        return Verdict(Health.STARTING, "the server does not listen yet")
    if evidence.refused_since_s is None:
        return None
    refused_s = case.ago(evidence.refused_since_s)
    if refused_s < _REFUSED_S:
        return None
    return Verdict(Health.GONE, f"connections have failed for {refused_s:.0f} s: nobody listens on the port")


def _loading(case: Case) -> Verdict | None:
    load = case.evidence.load
    if load is None:
        was_there = case.evidence.canary is not None and case.evidence.loaded  # before the agent
        asked = was_there or case.evidence.canaries
        return None if asked else Verdict(Health.LOADING, "the model is not asked for yet")
    if load.ended_s is None:
        still_s = case.ago(load.started_s, case.evidence.progress_s)
        if still_s >= case.config.load_s:
            return Verdict(Health.WEDGED, f"the model has been loading without any progress for {still_s:.0f} s")
        return Verdict(Health.LOADING, f"the model has been loading for {case.now_s - load.started_s:.0f} s")
    failed = load.outcome in (Outcome.HTTP_ERROR, Outcome.STREAM_ERROR, Outcome.NO_TOKENS)
    if failed and not any(canary.started_s >= load.ended_s for canary in _good(case.evidence)):
        return Verdict(Health.FAILING, f"the model did not load: {load.detail}")
    return None


def _loading_anew(case: Case) -> Verdict | None:
    """A client's options made it so, or the runner had died. The canary waits for it like everybody, or is not sent."""
    evidence = case.evidence
    running, since_s = evidence.canary, evidence.loading_since_s
    waits = evidence.loaded is False if running is None else running.last_token_s is None
    if since_s is None or not waits:
        return None
    still_s = case.ago(since_s, evidence.progress_s)
    if still_s >= case.config.load_s:
        return Verdict(Health.WEDGED, f"the model has been loading anew without any progress for {still_s:.0f} s")
    return Verdict(Health.LOADING, f"the model has been loading anew for {case.now_s - since_s:.0f} s")


def _on_cpu(case: Case) -> Verdict | None:
    evidence = case.evidence
    if evidence.on_gpu is not False or evidence.loaded is not True or evidence.loading_since_s is not None:
        return None
    ended_s = evidence.load.ended_s if evidence.load else None
    since_s = case.ago(evidence.on_gpu_since_s, _latest(ended_s, evidence.loading_ended_s))
    if since_s < case.config.on_cpu_s:
        return None
    return Verdict(
        Health.ON_CPU, f"the model is loaded, and no process of the container has been on its GPU for {since_s:.0f} s"
    )


def _waiting(case: Case) -> Verdict | None:
    """The canary that runs now."""
    running = case.evidence.canary
    if running is None:
        return None
    if running.last_token_s is not None:
        gap_s = case.ago(running.last_token_s)
        if gap_s >= case.config.stall_s:
            return _silent(case, since_s=running.last_token_s, sick=Health.STALLED)
    elif case.ago(running.started_s) >= case.config.first_token_s:
        return _silent(case, since_s=running.started_s, sick=Health.WEDGED)
    return None


def _rejected(case: Case) -> Verdict | None:
    """The queue is full: proof of many requests, not of life."""
    evidence = case.evidence
    rejected = _trailing(evidence, Outcome.SERVER_BUSY)
    if not rejected or evidence.canary is not None:
        return None
    others_s = _latest(evidence.peers_s, evidence.flow_s, evidence.answer_line_s)
    if evidence.peers == 0 and others_s is not None and others_s >= rejected[-1].started_s:
        return Verdict(Health.BUSY, "the queue was full when the canary came, and all others have left since")
    return _silent(case, since_s=rejected[0].started_s, sick=Health.WEDGED)


def _silent(case: Case, *, since_s: float, sick: Health) -> Verdict:
    """Our own request gets nothing. Does anybody?"""
    evidence, config = case.evidence, case.config
    waited_s = case.ago(since_s)
    if case.within(evidence.answer_line_s, config.fresh_s):
        return Verdict(Health.BUSY, f"the canary has waited {waited_s:.0f} s, users' requests are finished meanwhile")
    if case.within(evidence.flow_s, config.stall_s) and evidence.peers != 0:
        return Verdict(Health.BUSY, f"the canary has waited {waited_s:.0f} s, tokens flow to users")
    what = f"no {'' if sick is Health.WEDGED else 'further '}token for {waited_s:.0f} s"
    if evidence.peers == 0:
        alone_s = case.ago(since_s, evidence.peers_s, evidence.flow_s, evidence.answer_line_s)
        if alone_s < config.first_token_s:  # a server may need a moment to see that they have left
            return Verdict(Health.BUSY, f"{what}, the others have left {alone_s:.0f} s ago")
        return Verdict(sick, f"{what}, and nobody else is connected")
    return _silent_to_all(case, since_s=since_s, sick=sick, what=what)


def _silent_to_all(case: Case, *, since_s: float, sick: Health, what: str) -> Verdict:
    """Somebody else is connected, and nobody gets anything. Does it compute?"""
    evidence, config = case.evidence, case.config
    others = "users" if evidence.peers is None else f"{evidence.peers} more connected"
    quiet_s = case.ago(since_s, evidence.answer_line_s, evidence.flow_s)
    if evidence.compute_ratio is None or case.within(evidence.compute_s, _COMPUTED_S):
        if quiet_s >= config.silent_s:
            return Verdict(sick, f"{what} with {others}, and not a byte to anybody in {quiet_s:.0f} s")
        return Verdict(Health.BUSY, f"{what} with {others}, but it computes")
    idle_s = case.ago(since_s, evidence.compute_s)
    if idle_s < config.first_token_s:
        return Verdict(Health.BUSY, f"{what} with {others}, it computed {idle_s:.0f} s ago")
    return Verdict(sick, f"{what} with {others}, and nothing computes")


def _failing(case: Case) -> Verdict | None:
    evidence = case.evidence
    failed = _trailing(
        evidence, Outcome.HTTP_ERROR, Outcome.STREAM_ERROR, Outcome.NO_TOKENS, Outcome.TIMEOUT, Outcome.REFUSED
    )
    if not failed:
        return None if evidence.canaries else Verdict(Health.LOADING, "no token yet")
    if evidence.answer_line_s is not None and evidence.answer_line_s > failed[-1].ended_s:
        return None
    if len(failed) >= case.config.failures:
        return Verdict(Health.FAILING, f"{len(failed)} canaries in a row failed: {failed[-1].detail}")
    if len(failed) == len(evidence.canaries):
        return Verdict(Health.LOADING, f"no good answer yet: {failed[-1].detail}")
    return None


def _slow(case: Case) -> Verdict | None:
    evidence = case.evidence
    if evidence.on_gpu and 0 < evidence.vram_bytes < _IN_MEMORY * evidence.model_bytes:
        share = evidence.vram_bytes / evidence.model_bytes
        return Verdict(Health.SLOW, f"only {share:.0%} of the model is in GPU memory, the rest is computed on the CPU")
    if case.pace is None or case.pace.canaries < _BASELINE_CANARIES:
        return None
    limit = case.config.slow_ratio * case.pace.tokens_per_s
    last = [canary.tokens_per_s for canary in _good(evidence) if canary.alone and canary.tokens_per_s is not None]
    last = last[-case.config.slow_canaries :]
    if len(last) < case.config.slow_canaries or not all(rate < limit for rate in last):
        return None
    return Verdict(
        Health.SLOW,
        f"{max(last):.1f} tokens/s at best in {len(last)} canaries, it used to be {case.pace.tokens_per_s:.1f}",
    )


def _ready_because(case: Case) -> str:
    last = case.evidence.last_canary
    if last is None or last.first_token_s is None:
        return "tokens flow to users"
    rate = "" if last.tokens_per_s is None else f", {last.tokens_per_s:.1f} tokens/s"
    return f"first token after {last.first_token_s:.2f} s{rate}"


def _good(evidence: Evidence) -> list[Canary]:
    return [canary for canary in evidence.canaries if canary.outcome is Outcome.OK]


def _trailing(evidence: Evidence, *outcomes: Outcome) -> list[Canary]:
    """The canaries at the end that all ended like this, oldest first."""
    found = takewhile(lambda canary: canary.outcome in outcomes, reversed(evidence.canaries))
    return list(found)[::-1]


def _latest(*moments: float | None) -> float | None:
    return max((moment for moment in moments if moment is not None), default=None)


def median(values: Iterable[float]) -> float:
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
