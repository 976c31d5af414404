"""What a finished action means for its slot. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from appliance_agent import healing
from appliance_agent.config import Config
from appliance_agent.slot_step import moved
from appliance_agent.slot_view import Seen
from appliance_agent.slots import Cause, Done, Host, Now, Quarantine, Slot
from appliance_agent.states import Action, Reason, State

_PAUSE_S: Final = 5.0  # after an error of the engine
_OBSTACLE_S: Final = 15.0  # between two looks whether it is gone
_UNKILLABLE_S: Final = 60.0
_PULL_PAUSE_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class After:
    slot: Slot
    blame: str = ""  # speaks against the release, if it is on trial here


def after(slot: Slot, done: Done, seen: Seen, config: Config, now: Now) -> After:
    slot = replace(slot, pending=None, host_wide=False)
    if done.action is Action.CREATE:
        return _created(slot, done, seen, config, now)
    return After(_removed(slot, done, now))


def _created(slot: Slot, done: Done, seen: Seen, config: Config, now: Now) -> After:
    if done.ok:
        slot = replace(
            slot,
            container_id=done.container_id,
            created_s=now.mono_s,
            seen_xid_s=healing.newest_xid_s(slot, seen.gpus),
            engine_epoch=seen.engine.epoch,
            proven=False,
            restarts={**slot.restarts, slot.reason: slot.restarts.get(slot.reason, 0) + 1},
        )
        return After(moved(slot, State.LOADING, "its container has started", now.mono_s))
    text = f"{done.error}: {done.hint}" if done.hint else done.error
    if done.obstacle:
        slot = replace(slot, hold_until_s=now.mono_s + _OBSTACLE_S, host_wide=done.host_wide)
        return After(moved(slot, State.BLOCKED, text, now.mono_s), blame=text if done.release else "")
    if not seen.engine.up:
        return After(moved(slot, State.WAITING, text, now.mono_s))
    if slot.plan.gpus and not seen.gpus.up:  # without a driver nothing starts, whichever slot or release it is
        slot = replace(slot, hold_until_s=now.mono_s + _OBSTACLE_S)
        return After(moved(slot, State.WAITING, f"{seen.gpus.because}; {text}", now.mono_s))
    slot = replace(slot, reason=Reason.EXIT, cause=text)
    failed = healing.with_failure(slot, text, config.healing, now.mono_s)
    state = State.QUARANTINED if failed.quarantine else State.WAITING
    return After(moved(failed, state, text, now.mono_s), blame=f"it does not start: {text}")


def _removed(slot: Slot, done: Done, now: Now) -> Slot:
    if done.ok:
        if slot.quarantine and slot.quarantine.cause is Cause.UNKILLABLE:
            slot = replace(slot, quarantine=None)
        state = State.QUARANTINED if slot.quarantine else State.WAITING
        return moved(replace(slot, container_id="", created_s=None), state, slot.cause, now.mono_s)
    if done.stuck:
        text = f"its container cannot be ended ({slot.cause}): {done.hint or 'reboot the host'}"
        since_s = slot.quarantine.since_s if slot.quarantine else now.mono_s
        quarantine = Quarantine(Cause.UNKILLABLE, text, since_s, now.mono_s + _UNKILLABLE_S, slot.quarantines)
        return moved(replace(slot, quarantine=quarantine), State.QUARANTINED, text, now.mono_s)
    slot = replace(slot, hold_until_s=now.mono_s + _PAUSE_S)
    return moved(slot, State.FAILED, f"could not be removed: {done.error}", now.mono_s)


def after_pull(host: Host, done: Done, now: Now) -> Host:
    """A pull that failed stays due: the registry will be back."""
    not_before_s = 0.0 if done.ok else now.mono_s + _PULL_PAUSE_S
    return replace(host, pulling=False, pull_due=host.pull_due and not done.ok, pull_not_before_s=not_before_s)
