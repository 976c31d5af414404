"""The heart: configuration, memory and one observation in; new memory and what to do out. Pure, level-triggered.

What is done must follow from what is seen, never from what was planned: killed at any point and started again, the
agent comes to the same decisions. The rules of the host, which no slot can know alone, are in `gate`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from appliance_agent import rollout
from appliance_agent.config import Config
from appliance_agent.containers import ContainerSeen
from appliance_agent.done_step import after, after_pull
from appliance_agent.gate import Gate
from appliance_agent.slot_step import Step, step
from appliance_agent.slot_view import Seen, View
from appliance_agent.slots import Decision, Done, Entry, Host, Now, Slot
from appliance_agent.spec import ContainerSpec, SlotPlan
from appliance_agent.states import Action, Reason, State
from appliance_agent.values import updated

_HISTORY: Final = 200
_REMOVED: Final = 64
_GRACE_S: Final = 30.0
_TOLD: Final = frozenset({State.READY, State.DEGRADED, State.QUARANTINED, State.BLOCKED, State.STOPPED})


def reconcile(config: Config, host: Host, seen: Seen, now: Now) -> tuple[Host, tuple[Decision, ...]]:
    before = {slot.plan.index: slot for slot in host.slots}
    host = _with_plans(host, seen.plans)
    host = _with_release(host, seen)
    host = _with_done(config, host, seen, now)
    containers, strays = _sorted(host, seen.engine.containers)
    host = rollout.choose_trial(host, containers, seen.misfits)
    steps = {
        slot.plan.index: step(View(config, host, slot, seen, now, containers.get(slot.plan.index), _spec(host, slot)))
        for slot in host.slots
    }
    host, decisions = _decided(config, host, seen, steps)
    host = _judged(host, steps, containers, seen, now)
    host, pull = _pull(config, host, seen, now)
    host, orphans = _orphans(host, strays, seen)
    decided = (*pull, *orphans, *decisions)
    return _with_history(host, before, decided, now), decided


def _with_plans(host: Host, plans: Iterable[SlotPlan]) -> Host:
    known = {slot.plan.index: slot for slot in host.slots}
    slots: list[Slot] = []
    for plan in plans:
        slot = known.get(plan.index)
        slots.append(Slot(plan) if slot is None or slot.plan.gpus != plan.gpus else updated(slot, plan=plan))
    return replace(host, slots=tuple(slots))


def _with_release(host: Host, seen: Seen) -> Host:
    if host.good is None and seen.wanted is not None:
        wanted = seen.wanted.hash
        others = Counter(
            each.release for each in seen.engine.containers if each.running and each.release_hash != wanted
        )
        del others[None]
        if others:  # the state file was lost: what most slots run is what was good
            host = replace(host, good=others.most_common(1)[0][0])
    return rollout.with_wanted(host, seen.wanted)


def _with_done(config: Config, host: Host, seen: Seen, now: Now) -> Host:
    for done in seen.done:
        if done.action is Action.PULL:
            host = after_pull(host, done, now)
            continue
        if done.action is Action.REMOVE:
            host = _with_removed(host, done)
        slot = host.slot(done.slot) if done.slot is not None else None
        if slot is None or slot.pending is not done.action:
            continue
        result = after(slot, done, seen, config, now)
        host = _with_slot(host, result.slot)
        if result.blame and host.trial == slot.plan.index and rollout.on_trial(host):
            host = _rolled_back(host, slot.plan.index, result.blame, now)
    return host


def _with_removed(host: Host, done: Done) -> Host:
    removing = tuple(each for each in host.removing if each != done.container_id)
    removed = (*host.removed, done.container_id)[-_REMOVED:] if done.ok else host.removed
    return replace(host, removing=removing, removed=removed)


def _rolled_back(host: Host, index: int, blame: str, now: Now) -> Host:
    host = rollout.refuse(host, blame, now)
    slot = host.slot(index)
    cause = f"back to the release before: {blame}"
    if slot is None:
        return host
    return _with_slot(host, replace(slot, reason=Reason.ROLLBACK, cause=cause, hold_until_s=0.0))


def _with_slot(host: Host, slot: Slot) -> Host:
    return replace(host, slots=tuple(slot if each.plan.index == slot.plan.index else each for each in host.slots))


def _sorted(
    host: Host, containers: Iterable[ContainerSeen]
) -> tuple[dict[int, ContainerSeen], tuple[ContainerSeen, ...]]:
    """Each slot's own container, and those that belong to none: of a slot that is gone, under another name."""
    own: dict[int, ContainerSeen] = {}
    strays: list[ContainerSeen] = []
    for container in containers:
        if container.id in host.removed:
            continue
        slot = host.slot(container.slot)
        if slot is not None and container.name == slot.plan.name and container.slot not in own:
            own[container.slot] = container
        else:
            strays.append(container)
    return own, tuple(strays)


def _spec(host: Host, slot: Slot) -> ContainerSpec | None:
    release = rollout.target(host, slot)
    return None if release is None else ContainerSpec(slot.plan, release)


def _decided(config: Config, host: Host, seen: Seen, steps: dict[int, Step]) -> tuple[Host, tuple[Decision, ...]]:
    """Each slot's wish against the rules of the host, in the slots' order, the trial first."""
    gate = Gate.open(config, host, seen, steps)
    decisions: list[Decision] = []
    slots: dict[int, Slot] = {}
    for index in sorted(steps, key=lambda index: (index != host.trial, index)):
        wish = steps[index]
        slot = wish.slot
        if wish.drain is not None:
            asked_by_driver = wish.drain.quarantine is not None
            if not asked_by_driver and (held := gate.held_drain(index)):
                slot = replace(slot, because=f"{slot.because}; {held}")
            else:
                slot, gate = wish.drain, gate.after_drain(index)
        elif wish.decision is not None and wish.taken is not None:
            if held := gate.held(wish):
                slot = replace(slot, because=f"{wish.decision.because}; {held}")
            else:
                slot, gate = wish.taken, gate.after(wish)
                decisions.append(wish.decision)
        slots[index] = slot
    return replace(host, slots=tuple(slots[each.plan.index] for each in host.slots)), tuple(decisions)


def _judged(host: Host, steps: dict[int, Step], containers: dict[int, ContainerSeen], seen: Seen, now: Now) -> Host:
    """What the trial says of the release: good, refused, or nothing yet, as where its GPU is not ready."""
    for index, wish in steps.items():
        container = containers.get(index)
        if container is None or host.wanted is None or container.release_hash != host.wanted.hash:
            continue
        if wish.proved:
            host = rollout.accept(host, container)
        elif wish.blame and index not in seen.unready and host.trial == index and rollout.on_trial(host):
            host = _rolled_back(host, index, wish.blame, now)
    return host


def _pull(config: Config, host: Host, seen: Seen, now: Now) -> tuple[Host, tuple[Decision, ...]]:
    image, engine = seen.engine.image, seen.engine
    if host.pulling or host.down or not engine.up or image is None or image.reference != config.image:
        return host, ()
    if config.pull == "never" or now.mono_s < host.pull_not_before_s or (image.id and not host.pull_due):
        return host, ()
    because = f"{config.image} is not here" if not image.id else "the configuration asks for the newest"
    decision = Decision(Action.PULL, None, because, Reason.START)
    return replace(host, pulling=True), (decision,)


def _orphans(host: Host, strays: Iterable[ContainerSeen], seen: Seen) -> tuple[Host, tuple[Decision, ...]]:
    if not (seen.engine.up and seen.plans_known):
        return host, ()
    left = [each for each in strays if each.id not in host.removing and each.status != "removing"]
    decisions = [
        Decision(
            Action.REMOVE,
            None,
            f"container {stray.name} is left over: {_why_left(host, stray)}",
            Reason.ORPHAN,
            container_id=stray.id,
            grace_s=_GRACE_S,
        )
        for stray in left
    ]
    return replace(host, removing=(*host.removing, *(each.id for each in left))), tuple(decisions)


def _why_left(host: Host, stray: ContainerSeen) -> str:
    slot = host.slot(stray.slot)
    return f"there is no slot {stray.slot}" if slot is None else f"slot {stray.slot} has another one"


def _with_history(host: Host, before: dict[int, Slot], decided: Iterable[Decision], now: Now) -> Host:
    last = {entry.slot: (entry.action, entry.because) for entry in host.history}
    entries = [
        Entry(now.wall_s, each.slot, _gpus(host, each.slot), each.action.value, each.because, each.evidence)
        for each in decided
        if not _is_another_try(each, host, before)
    ]
    for slot in host.slots:
        old, name = before.get(slot.plan.index), slot.state.name.lower()
        news = slot.state in _TOLD and (old is None or old.state is not slot.state)
        if news and last.get(slot.plan.index) != (name, slot.because):
            entries.append(Entry(now.wall_s, slot.plan.index, slot.plan.gpus, name, slot.because))
    return replace(host, history=(*host.history, *entries)[-_HISTORY:]) if entries else host


def _is_another_try(decision: Decision, host: Host, before: dict[int, Slot]) -> bool:
    """Of a pull that failed, or a start that something blocks: told once, not every time."""
    if decision.action is Action.PULL:
        return host.pull_not_before_s > 0
    old = None if decision.slot is None else before.get(decision.slot)
    return decision.action is Action.CREATE and old is not None and old.state is State.BLOCKED


def _gpus(host: Host, index: int | None) -> tuple[str, ...]:
    slot = host.slot(index) if index is not None else None
    return slot.plan.gpus if slot else ()
