"""The rules of the host: what slots want to do at the same time, and what of it may be done now. Pure.

Nothing while the engine is silent, and nothing for a slot whose GPU CUDA cannot open yet; few models load at a time; a
planned change touches one slot at a time; and where many slots fall ill together, the cause is not in the slots: one is
treated, and the others wait for how it fares.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from appliance_agent import rollout
from appliance_agent.config import Config
from appliance_agent.slot_step import Step
from appliance_agent.slot_view import Seen
from appliance_agent.slots import Decision, Host, Slot
from appliance_agent.states import SERVING, SICK_REASONS, Action, Reason, State

_PLANNED = frozenset({Reason.DRIFT})
_ASKED = frozenset({Reason.GPU_LOST, Reason.GPU_RESET, Reason.ORPHAN, Reason.DOWN})  # by the driver or a person
_ASIDE = frozenset({State.QUARANTINED, State.BLOCKED, State.STOPPED})
_COMING = frozenset({State.STARTING, State.LOADING})


@dataclass(frozen=True, slots=True)
class Gate:
    engine_problem: str  # "" while it answers
    change_problem: str  # why nothing that works may be taken away for something new, "" if it may
    misfits: Mapping[int, str]
    unready: Mapping[int, str]
    room: int  # models that may begin to load
    epidemic: bool  # so many slots are sick at once, or were a moment ago, that the host is to blame
    treated: tuple[int, ...]  # slots that were restarted because they were sick, and do not serve yet
    unsettled: tuple[int, ...]  # slots that a planned change has to wait for
    trial: int | None
    down: bool

    @classmethod
    def open(cls, config: Config, host: Host, seen: Seen, steps: Mapping[int, Step]) -> Gate:
        slots = [each.slot for each in steps.values()]
        sick = [each for each in steps.values() if each.sick]
        treated = tuple(slot.plan.index for slot in slots if _is_treated(slot))
        ill, running = len(sick) + len(treated), sum(_is_running(slot) for slot in slots)
        loading = sum(slot.state in _COMING or slot.pending is Action.CREATE for slot in slots)
        engine = seen.engine
        return cls(
            engine_problem="" if engine.up else engine.because or "the Docker Engine does not answer",
            change_problem=_change_problem(host, seen),
            misfits=seen.misfits,
            unready=seen.unready,
            room=config.rollout.parallel_loads - loading,
            epidemic=ill >= 2 and 2 * ill >= running + len(treated),
            treated=treated,
            unsettled=tuple(slot.plan.index for slot in slots if not _is_settled(slot, steps[slot.plan.index])),
            trial=host.trial if rollout.on_trial(host) else None,
            down=host.down,
        )

    def held(self, wish: Step) -> str:
        """Why the slot has to wait; empty if it need not."""
        decision = wish.decision
        if decision is None:
            return ""
        if self.engine_problem:
            return f"waits: {self.engine_problem}"
        if decision.slot is not None and decision.slot in self.unready and decision.reason not in _ASKED:
            return self.unready[decision.slot]  # and nothing could take the place of what runs
        if decision.action is Action.CREATE:
            return "" if self.room > 0 else "waits for its turn: other models are loading"
        if wish.sick:
            return self._held_sick(decision)
        return self.held_drain(decision.slot) if decision.reason in _PLANNED else ""

    def held_drain(self, index: int | None) -> str:
        if self.down:
            return ""
        if self.change_problem:
            return f"waits: {self.change_problem}"
        if index is not None and index in self.misfits:
            return f"waits: {self.misfits[index]}"
        if index is not None and index in self.unready:
            return self.unready[index]
        if index == self.trial:
            return ""
        others = [other for other in self.unsettled if other != index]
        return f"waits until slot {others[0]} is proved" if others else ""

    def after(self, wish: Step) -> Gate:
        decision = wish.decision
        if decision is None or decision.slot is None:
            return self
        if decision.action is Action.CREATE:
            return replace(self, room=self.room - 1)
        if wish.sick:
            return replace(self, treated=(*self.treated, decision.slot))
        return self.after_drain(decision.slot) if decision.reason in _PLANNED else self

    def after_drain(self, index: int) -> Gate:
        return replace(self, unsettled=(*self.unsettled, index))

    def _held_sick(self, decision: Decision) -> str:
        others = [other for other in self.treated if other != decision.slot]
        if not self.epidemic or not others:
            return ""
        return f"held back, for many slots are ill at once: slot {others[0]} was restarted first and does not serve yet"


def _change_problem(host: Host, seen: Seen) -> str:
    if seen.wanted is None:
        return seen.waiting_for or "the image is not known yet"
    wants_gpus = any(slot.plan.gpus for slot in host.slots)
    return seen.gpus.because if wants_gpus and not seen.gpus.up else ""


def _is_running(slot: Slot) -> bool:
    return slot.state in SERVING or slot.state is State.FAILED


def _is_treated(slot: Slot) -> bool:
    """A slot that is put aside is no longer waited for, unless what blocks it would block the others, too."""
    return slot.reason in SICK_REASONS and not _is_running(slot) and not _is_aside(slot)


def _is_aside(slot: Slot) -> bool:
    return slot.state in _ASIDE and not slot.host_wide


def _is_settled(slot: Slot, wish: Step) -> bool:
    """Serving what it should and proved, waiting for its own change, or put aside."""
    if _is_aside(slot):
        return True
    if slot.pending is not None or slot.state is State.DRAINING:
        return False
    waits_for_change = wish.drain is not None or (wish.decision is not None and wish.decision.reason in _PLANNED)
    return slot.state in SERVING and (slot.proven or waits_for_change)
