"""What one slot needs next: its state, and at most one thing to do, with the sentence that says why. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from appliance_agent import healing, rollout
from appliance_agent.containers import ContainerSeen
from appliance_agent.slot_verdict import verdict_of
from appliance_agent.slot_view import View
from appliance_agent.slots import Cause, Decision, Slot
from appliance_agent.spec import ContainerSpec
from appliance_agent.states import SERVING, SICK, Action, Health, Reason, State
from appliance_agent.values import updated
from appliance_agent.verdict import Verdict

_GRACE_S: Final = 5.0  # for what hangs anyway
_IDLE_S: Final = 5.0
_UNKILLABLE_S: Final = 60.0  # between two tries to end it
_STATES: Final = {
    Health.STARTING: State.LOADING,
    Health.LOADING: State.LOADING,
    Health.READY: State.READY,
    Health.BUSY: State.READY,
    Health.SLOW: State.DEGRADED,
}
_REASONS: Final = {
    Health.STALLED: Reason.STALLED,
    Health.WEDGED: Reason.WEDGED,
    Health.FAILING: Reason.FAILING,
    Health.ON_CPU: Reason.ON_CPU,
    Health.GONE: Reason.GONE,
    Health.SLOW: Reason.SLOW,
}


@dataclass(frozen=True, slots=True)
class Step:
    slot: Slot
    decision: Decision | None = None
    taken: Slot | None = None  # what the slot becomes if the decision is taken, not only proposed
    drain: Slot | None = None  # what it becomes if it may begin to drain
    sick: bool = False  # the decision heals a running container: never many of those at once
    blame: str = ""  # what speaks against the release, if it is on trial here
    proved: bool = False


def step(view: View) -> Step:
    slot, now_s = view.slot, view.now.mono_s
    if slot.pending is not None or now_s < slot.hold_until_s:
        return Step(slot)
    if not view.seen.engine.at_s:
        return Step(_never_listed(view))
    if view.host.down:
        return _taken_down(view)
    if trouble := healing.gpu_trouble(slot, view.seen.gpus, view.config.healing):
        return _gpu_trouble(view, trouble)
    if slot.quarantine is not None:
        if waiting := _quarantined(view):
            return waiting
        view = replace(view, slot=healing.on_probation(slot, now_s))
    return _with_what_is_there(view)


def _with_what_is_there(view: View) -> Step:
    if view.container is None:
        return _without_container(view)
    if view.container.running:
        return _running(view, view.container)
    return _not_running(view, view.container)


def moved(slot: Slot, state: State, because: str, now_s: float) -> Slot:
    serves = state in SERVING
    ready_since_s = (slot.ready_since_s if slot.ready_since_s is not None else now_s) if serves else None
    since_s = slot.since_s if slot.state is state else now_s
    drain_since_s = slot.drain_since_s if state is State.DRAINING else None
    return updated(
        slot, state=state, because=because, since_s=since_s, ready_since_s=ready_since_s, drain_since_s=drain_since_s
    )


def _never_listed(view: View) -> Slot:
    """The agent has started while the engine is silent: what it remembers may still be so, that it sees nothing is no news."""
    slot = view.slot
    return moved(slot, State.WAITING, view.seen.engine.because, view.now.mono_s) if slot.state is State.ABSENT else slot


def _taken_down(view: View) -> Step:
    if view.container is None:
        return Step(moved(view.slot, State.STOPPED, "taken down on request", view.now.mono_s))
    return _drain(view, view.container, Reason.DOWN, "taken down on request")


def _gpu_trouble(view: View, trouble: healing.GpuTrouble) -> Step:
    slot, container = view.slot, view.container
    if trouble.reason is Reason.XID:
        slot = replace(slot, seen_xid_s=trouble.xid_s)
        if container is None or not container.running:
            return _with_what_is_there(replace(view, slot=slot))
        return _remove(replace(view, slot=slot), container, Reason.XID, trouble.because, failed=True)
    slot = healing.in_quarantine(slot, trouble, view.config.healing, view.now.mono_s)
    slot = moved(slot, State.QUARANTINED, trouble.because, view.now.mono_s)
    if container is None:
        return Step(slot)
    if trouble.may_finish and view.slot.state in SERVING:
        kept = replace(view.slot, quarantine=slot.quarantine)
        return _drain(replace(view, slot=kept), container, trouble.reason, trouble.because)
    return _remove(replace(view, slot=slot), container, trouble.reason, trouble.because, failed=False)


def _quarantined(view: View) -> Step | None:
    """None when its time is over."""
    slot, now_s = view.slot, view.now.mono_s
    quarantine = slot.quarantine
    if quarantine is None:
        return None
    if quarantine.cause is Cause.UNKILLABLE and view.container is None:
        return None
    ended = view.container is not None and view.container.status in ("exited", "dead")
    if now_s < quarantine.until_s and not (quarantine.cause is Cause.UNKILLABLE and ended):
        left = healing.span(quarantine.until_s - now_s)
        slot = moved(slot, State.QUARANTINED, f"{quarantine.because}; next try in {left}", now_s)
        if view.container is None or quarantine.cause is Cause.UNKILLABLE:
            return Step(slot)
        return _remove(replace(view, slot=slot), view.container, Reason.GPU_RESET, quarantine.because, failed=False)
    if quarantine.cause is not Cause.UNKILLABLE or view.container is None:
        return None
    slot = replace(slot, quarantine=replace(quarantine, until_s=now_s + _UNKILLABLE_S))
    return _remove(replace(view, slot=slot), view.container, slot.reason, quarantine.because, failed=False)


def _without_container(view: View) -> Step:
    slot, now_s, index = view.slot, view.now.mono_s, view.slot.plan.index
    if slot.created_s is not None and slot.container_id and view.seen.engine.at_s <= slot.created_s:
        return Step(slot)  # made a moment ago: no listing can show it yet
    if slot.container_id and slot.container_id != slot.leaving:
        slot = _lost(view)
    slot = replace(slot, container_id="", health=None, proven=False)
    obstacle = next((each for each in view.seen.engine.obstacles if each.slot == index), None)
    if obstacle is not None:
        text = f"{obstacle.what} is taken by the container `{obstacle.container}`, which is not the agent's"
        return Step(moved(slot, State.BLOCKED, text, now_s))
    if index in view.seen.misfits:
        return Step(moved(slot, State.BLOCKED, view.seen.misfits[index], now_s))
    if view.spec is None:
        return Step(moved(slot, State.WAITING, view.seen.waiting_for or "the image is not known yet", now_s))
    if slot.quarantine is not None:
        return Step(moved(slot, State.QUARANTINED, slot.quarantine.because, now_s))
    return _wanting(replace(view, slot=slot), view.spec)


def _lost(view: View) -> Slot:
    """Its container was there and is no more, and the agent has not taken it away."""
    because = "its container was removed by somebody else"
    slot = replace(view.slot, reason=Reason.GONE, cause=because)
    return healing.with_failure(slot, because, view.config.healing, view.now.mono_s)


def _wanting(view: View, spec: ContainerSpec) -> Step:
    slot, now_s = view.slot, view.now.mono_s
    because = f"no container for {_gpus(slot)}" if slot.reason is Reason.START else slot.cause
    if now_s < slot.not_before_s:
        left = healing.span(slot.not_before_s - now_s)
        return Step(moved(slot, State.WAITING, f"{because}; next start in {left}", now_s))
    decision = Decision(Action.CREATE, slot.plan.index, because, slot.reason, spec=spec)
    taken = replace(moved(slot, State.STARTING, because, now_s), pending=Action.CREATE, pending_since_s=now_s)
    return Step(moved(slot, State.WAITING, because, now_s), decision, taken)


def _gpus(slot: Slot) -> str:
    return "the CPU slot" if not slot.plan.gpus else " and ".join(slot.plan.gpus)


def _not_running(view: View, container: ContainerSeen) -> Step:
    slot, engine = view.slot, view.seen.engine
    if container.status in ("paused", "restarting"):
        text = f"its container is {container.status}, which the agent never asks for: `docker unpause {container.name}`"
        return Step(moved(slot, State.BLOCKED, text, view.now.mono_s))
    if container.status == "removing":
        return Step(moved(slot, State.STOPPING, "the engine removes its container", view.now.mono_s))
    if container.status == "created":
        return _never_started(view, container)
    if slot.engine_epoch is None:
        return _remove(view, container, Reason.START, f"found {_ended(container)}", failed=False)
    if engine.epoch != slot.engine_epoch:
        return _remove(view, container, Reason.ENGINE, "ended when the Docker Engine did", failed=False)
    reason = Reason.OOM if container.oom_killed else Reason.EXIT
    return _remove(view, container, reason, _ended(container), failed=True, blame=True)


def _never_started(view: View, container: ContainerSeen) -> Step:
    """An agent that was killed, or an engine that fell silent, between the two. Asked to make it, hands start it."""
    if view.spec is not None and view.spec.hash == container.spec_hash and view.slot.quarantine is None:
        return _wanting(view, view.spec)
    return _remove(view, container, Reason.START, "its container was made and never started", failed=False)


def _ended(container: ContainerSeen) -> str:
    if container.oom_killed:
        return "killed by the kernel: out of memory"
    error = f", {container.error}" if container.error else ""
    return f"ended with exit status {container.exit_code}{error}"


def _running(view: View, container: ContainerSeen) -> Step:
    slot = updated(view.slot, engine_epoch=view.seen.engine.epoch)
    if slot.container_id != container.id:
        slot = replace(slot, container_id=container.id, proven=False)
    if healing.is_slowed_down(slot, view.seen.gpus):
        slot = replace(slot, slowed_s=view.now.mono_s)
    verdict = verdict_of(view, slot)
    slot = rollout.learned(slot, container.release_hash, view.evidence)
    if slot is not view.slot:
        view = replace(view, slot=slot)
    if rollout.is_drifted(view.host, slot, container, view.spec.hash if view.spec else None):
        return _drifted(view, container, verdict)
    if verdict.health in SICK:
        slot = replace(moved(slot, State.FAILED, verdict.because, view.now.mono_s), health=verdict.health)
        reason = _REASONS[verdict.health]
        return _remove(replace(view, slot=slot), container, reason, verdict.because, failed=True, sick=True, blame=True)
    if verdict.health is Health.UNKNOWN:
        return Step(updated(slot, health=verdict.health))
    slot = updated(moved(slot, _STATES[verdict.health], verdict.because, view.now.mono_s), health=verdict.health)
    slot = healing.after_good_time(slot, view.config.healing, view.now.mono_s)
    if verdict.health is Health.SLOW and view.config.healing.restart_slow and not slot.failures:
        return _remove(replace(view, slot=slot), container, Reason.SLOW, verdict.because, failed=True, sick=True)
    return _proof(view, slot)


def _proof(view: View, slot: Slot) -> Step:
    if slot.state not in SERVING or slot.proven:
        return Step(slot, proved=slot.proven)
    on_trial = rollout.on_trial(view.host) and view.host.trial == slot.plan.index
    since_s = slot.slowed_s if on_trial else 0.0
    if len(rollout.good_canaries(view.evidence, since_s=since_s)) < view.config.rollout.canaries:
        slowed = since_s == view.now.mono_s
        proof = "; that proves no release while its GPU is slowed down by temperature or power" if slowed else ""
        return Step(replace(slot, because=slot.because + proof))
    if loss := rollout.too_slow(slot, view.config.rollout):
        return Step(slot, blame=loss)
    return Step(replace(slot, proven=True), proved=True)


def _drifted(view: View, container: ContainerSeen, verdict: Verdict) -> Step:
    refused, slot = view.host.refused, view.slot
    reason, because = Reason.DRIFT, "another image or configuration is wanted"
    if refused is not None and container.release_hash == refused.release:
        reason, because = Reason.ROLLBACK, f"back to the release before: {refused.because}"
    if verdict.health in SICK:
        return _remove(view, container, reason, because, failed=False)
    if verdict.health in _STATES and slot.state is not State.DRAINING:
        slot = replace(moved(slot, _STATES[verdict.health], verdict.because, view.now.mono_s), health=verdict.health)
    return _drain(replace(view, slot=slot), container, reason, because)


def _drain(view: View, container: ContainerSeen, reason: Reason, because: str) -> Step:
    """Wait until nobody is served, then take it away."""
    slot, now_s = view.slot, view.now.mono_s
    if slot.state not in SERVING or _idle(view):
        return _remove(view, container, reason, because, failed=False)
    since_s = now_s if slot.drain_since_s is None else slot.drain_since_s
    if now_s - since_s >= view.config.rollout.drain_s:
        return _remove(view, container, reason, f"{because}; still busy after {now_s - since_s:.0f} s", failed=False)
    draining = replace(
        moved(slot, State.DRAINING, f"{because}; waits for answers to end", now_s), drain_since_s=since_s
    )
    return Step(draining) if slot.drain_since_s is not None else Step(slot, drain=draining)


def _idle(view: View) -> bool:
    evidence, now_s = view.evidence, view.now.mono_s
    if evidence is None:
        return view.container is None or not view.container.running
    if evidence.peers == 0:
        return True
    moments = (evidence.watched_since_s, evidence.flow_s, evidence.compute_s, evidence.answer_line_s)
    return all(moment is None or now_s - moment > _IDLE_S for moment in moments)


def _remove(
    view: View,
    container: ContainerSeen,
    reason: Reason,
    because: str,
    *,
    failed: bool,
    sick: bool = False,
    blame: bool = False,
) -> Step:
    slot, now_s = view.slot, view.now.mono_s
    planned = reason in (Reason.DRIFT, Reason.ROLLBACK, Reason.DOWN)
    grace_s = float(view.config.container.stop_timeout_s) if planned else _GRACE_S
    decision = Decision(
        Action.REMOVE,
        slot.plan.index,
        because,
        reason,
        container_id=container.id,
        grace_s=grace_s,
        evidence=_facts(view),
    )
    new = slot.leaving != container.id  # else it could not be removed before: one failure, another try
    taken = healing.with_failure(slot, because, view.config.healing, now_s) if failed and new else slot
    state = State.QUARANTINED if taken.quarantine else State.STOPPING
    taken = replace(
        moved(taken, state, because, now_s),
        reason=reason,
        cause=because,
        leaving=container.id,
        pending=Action.REMOVE,
        pending_since_s=now_s,
        proven=False,
    )
    return Step(slot, decision, taken, sick=sick, blame=because if blame else "")


def _facts(view: View) -> str:
    """The evidence in one line, for the journal."""
    evidence, container, now_s = view.evidence, view.container, view.now.mono_s
    facts: dict[str, object] = {}
    if container is not None and not container.running:
        facts |= {"exit": container.exit_code, "oom": container.oom_killed}
    if evidence is not None:
        last = evidence.last_canary
        facts |= {
            "watched_s": round(now_s - evidence.watched_since_s),
            "canary": "none" if last is None else last.outcome.value,
            "canary_waits_s": None if evidence.canary is None else round(now_s - evidence.canary.started_s, 1),
            "tokens_flowed_s_ago": None if evidence.flow_s is None else round(now_s - evidence.flow_s, 1),
            "peers": evidence.peers,
            "compute": None if evidence.compute_ratio is None else round(evidence.compute_ratio, 2),
            "on_gpu": evidence.on_gpu,
            "loaded": evidence.loaded,
        }
    return " ".join(f"{name}={value}" for name, value in facts.items() if value is not None)
