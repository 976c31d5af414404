"""What is done about trouble: back-off, budget, quarantine, and what a GPU's state and XIDs ask for. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from appliance_agent.config import HealingConfig
from appliance_agent.gpus import Gpu, GpuReading, GpuSnapshot, RecoveryAction, Xid
from appliance_agent.slots import Cause, Quarantine, Slot
from appliance_agent.states import Reaction, Reason
from appliance_agent.xids import describe, reaction

_SETTLED_S: Final = 10.0  # a GPU must look sound for so long before its slot is tried again
_DAY_S: Final = 86400.0
_DOUBLINGS: Final = 17  # of a second, which then is more than a day
# A GPU in use cannot be reset, and the agent's own look at it is a use; the other slots go on serving meanwhile.
_RESET: Final = (
    "`sudo systemctl stop ollama-agent && sudo nvidia-smi --gpu-reset -i {index}; sudo systemctl start ollama-agent`"
)
_RESETS: Final = frozenset({RecoveryAction.GPU_RESET, RecoveryAction.DRAIN_AND_RESET})


@dataclass(frozen=True, slots=True)
class GpuTrouble:
    reason: Reason
    because: str
    seen_by_driver: bool = True  # it will be seen to end, too
    may_finish: bool = False  # running answers may end first
    xid_s: float = 0.0


def gpu_trouble(slot: Slot, gpus: GpuSnapshot, config: HealingConfig) -> GpuTrouble | None:
    """The worst thing known of the slot's GPUs; nothing while NVML does not answer, for then nothing is known."""
    if not gpus.up:
        return None
    for uuid in slot.plan.gpus:
        if trouble := _state_trouble(uuid, gpus):
            return trouble
    return _xid_trouble(slot, gpus, config)


def _state_trouble(uuid: str, gpus: GpuSnapshot) -> GpuTrouble | None:
    gpu = gpus.gpu(uuid)
    if gpu is None:
        return GpuTrouble(Reason.GPU_LOST, f"{uuid} is not there: it fell off the bus, or was taken out")
    name = f"GPU {gpu.index} ({uuid})"
    reading = _reading(gpu, gpus)
    if reading.lost:
        return GpuTrouble(Reason.GPU_LOST, f"{name} is lost: the driver cannot reach it; reboot the host")
    if reading.recovery_action is RecoveryAction.NODE_REBOOT:
        return GpuTrouble(Reason.GPU_RESET, f"the driver asks for a reboot of the host because of {name}")
    if reading.reset_required or reading.recovery_action in _RESETS:
        command = _RESET.format(index=gpu.index)
        may_finish = reading.recovery_action is RecoveryAction.DRAIN_AND_RESET and not reading.reset_required
        return GpuTrouble(Reason.GPU_RESET, f"the driver asks for a reset of {name}: {command}", may_finish=may_finish)
    return None


def _reading(gpu: Gpu, gpus: GpuSnapshot) -> GpuReading:
    return gpus.readings.get(gpu.parent_uuid or gpu.uuid) or gpus.readings.get(gpu.uuid) or GpuReading(at_s=0.0)


def is_slowed_down(slot: Slot, gpus: GpuSnapshot) -> bool:
    """By temperature or power: no pace that is measured now says anything of the release."""
    return any(_reading(gpu, gpus).slowed_down for uuid in slot.plan.gpus if gpus.up and (gpu := gpus.gpu(uuid)))


def _xid_trouble(slot: Slot, gpus: GpuSnapshot, config: HealingConfig) -> GpuTrouble | None:
    """A card is reset as a whole; what asks for no more than a restart may be a neighbour's, in his instance of MIG."""
    fresh = [xid for xid in gpus.xids if xid.at_s > slot.seen_xid_s and xid.uuid in _parents(slot, gpus)]
    severe = (Reaction.REBOOT, Reaction.RESET_GPU, Reaction.RESTART_SLOT)
    for wanted in severe:
        for xid in reversed(fresh):
            concerns = wanted is not Reaction.RESTART_SLOT or _concerns(xid, slot, gpus)
            if concerns and reaction(xid.code, config.xids) is wanted:
                return _of_xid(xid, wanted, newest_s=max(xid.at_s for xid in fresh), gpus=gpus)
    return None


def _concerns(xid: Xid, slot: Slot, gpus: GpuSnapshot) -> bool:
    return any(xid.concerns(gpu) for uuid in slot.plan.gpus if (gpu := gpus.gpu(uuid)))


def _of_xid(xid: Xid, wanted: Reaction, *, newest_s: float, gpus: GpuSnapshot) -> GpuTrouble:
    reading = gpus.readings.get(xid.uuid)
    told = reading is not None and reading.recovery_action is not None
    text = f"{describe(xid.code)} ({xid.uuid})"
    if wanted is Reaction.RESTART_SLOT:
        return GpuTrouble(Reason.XID, text, xid_s=newest_s)
    gpu = gpus.gpu(xid.uuid)
    reset = f"it needs a reset: {_RESET.format(index=gpu.index if gpu else xid.uuid)}"
    advice = "reboot the host" if wanted is Reaction.REBOOT else reset
    return GpuTrouble(Reason.GPU_RESET, f"{text}; {advice}", seen_by_driver=told, xid_s=newest_s)


def _parents(slot: Slot, gpus: GpuSnapshot) -> set[str]:
    """XIDs name the GPU, also where the slot has only a MIG device of it."""
    found = {uuid: gpus.gpu(uuid) for uuid in slot.plan.gpus}
    return {gpu.parent_uuid or uuid if gpu else uuid for uuid, gpu in found.items()}


def newest_xid_s(slot: Slot, gpus: GpuSnapshot) -> float:
    """For a container that is new: what happened before it does not concern it."""
    return max((xid.at_s for xid in gpus.xids if xid.uuid in _parents(slot, gpus)), default=slot.seen_xid_s)


def in_quarantine(slot: Slot, trouble: GpuTrouble, config: HealingConfig, now_s: float) -> Slot:
    """Enter the quarantine of a GPU, or stay in it: its end moves on while the trouble lasts."""
    wait_s = _SETTLED_S if trouble.seen_by_driver else config.probation_s
    since_s = slot.quarantine.since_s if slot.quarantine else now_s
    quarantine = Quarantine(Cause.GPU, trouble.because, since_s, now_s + wait_s, level=slot.quarantines)
    return replace(slot, quarantine=quarantine, seen_xid_s=max(slot.seen_xid_s, trouble.xid_s))


def with_failure(slot: Slot, because: str, config: HealingConfig, now_s: float) -> Slot:
    """Remember that the slot failed: when it may be started again, or that its budget is used up."""
    recent = tuple(at_s for at_s in slot.failures if now_s - at_s < config.budget_window_s)
    failures = (*recent, now_s)
    slot = replace(slot, failures=failures, not_before_s=now_s + backoff_s(len(failures), config))
    if len(failures) < (config.budget if slot.quarantines == 0 else 1):
        return slot
    wait_s = _longest_s(Cause.BUDGET, slot.quarantines, config)
    again = f"failed again on probation: {because}"
    text = (
        again if slot.quarantines else f"failed {len(failures)} times in {span(now_s - failures[0])}, lastly: {because}"
    )
    quarantine = Quarantine(Cause.BUDGET, text, now_s, now_s + wait_s, level=slot.quarantines)
    return replace(slot, quarantine=quarantine, quarantines=slot.quarantines + 1)


def backoff_s(failures: int, config: HealingConfig) -> float:
    """The first restart is immediate, then the pauses double."""
    if failures <= 1:
        return 0.0
    return min(config.backoff_s * 2.0 ** (failures - 2), config.backoff_max_s)


def _longest_s(cause: Cause, level: int, config: HealingConfig) -> float:
    """How long a quarantine may last from now on."""
    if cause is Cause.BUDGET:
        return min(config.probation_s * 2.0 ** min(level, _DOUBLINGS), _DAY_S)
    return max(_SETTLED_S, config.probation_s)


def as_remembered(slot: Slot, config: HealingConfig, now_s: float) -> Slot:
    """Of the file, whose times are right only if the clock was at both moments: a dead battery or a BIOS in local time
    must not make a pause of minutes one of hours or years."""
    quarantine = slot.quarantine
    if quarantine is not None:
        until_s = min(quarantine.until_s, now_s + _longest_s(quarantine.cause, quarantine.level, config))
        quarantine = replace(quarantine, since_s=min(quarantine.since_s, now_s), until_s=until_s)
    return replace(
        slot,
        since_s=min(slot.since_s, now_s),
        failures=tuple(min(at_s, now_s) for at_s in slot.failures),
        not_before_s=min(slot.not_before_s, now_s + config.backoff_max_s),
        ready_since_s=None if slot.ready_since_s is None else min(slot.ready_since_s, now_s),
        quarantine=quarantine,
    )


def on_probation(slot: Slot, now_s: float) -> Slot:
    """Out of quarantine with one try: the next failure brings it back, for twice as long."""
    because = f"on probation: {slot.quarantine.because}" if slot.quarantine else slot.cause
    return replace(slot, quarantine=None, failures=(), not_before_s=now_s, cause=because, because=because)


def after_good_time(slot: Slot, config: HealingConfig, now_s: float) -> Slot:
    """A slot that has worked for long enough is forgiven."""
    worked = slot.ready_since_s is not None and now_s - slot.ready_since_s >= config.proven_s
    if not worked or not (slot.failures or slot.quarantines):
        return slot
    return replace(slot, failures=(), quarantines=0, not_before_s=0.0)


def span(seconds: float) -> str:
    """A duration for people: `4 s`, `12 min`, `3 h`, `2 d`."""
    for unit, size in (("d", _DAY_S), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
