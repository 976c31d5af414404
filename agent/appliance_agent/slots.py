"""What the agent remembers of each slot and of the host: frozen values that only `reconcile` replaces."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from appliance_agent.spec import ContainerSpec, Release, SlotPlan
from appliance_agent.states import Action, Health, Reason, State


@dataclass(frozen=True, slots=True)
class Now:
    """One moment on both clocks: durations by the first, what people and files read by the second."""

    mono_s: float  # CLOCK_MONOTONIC
    wall_s: float  # seconds since the epoch


class Cause(Enum):
    """Why a slot is in quarantine."""

    BUDGET = "budget"  # too many restarts
    GPU = "gpu"  # lost, or the driver asks for a reset or a reboot
    UNKILLABLE = "unkillable"  # its container cannot be ended


@dataclass(frozen=True, slots=True)
class Quarantine:
    cause: Cause
    because: str
    since_s: float
    until_s: float  # when the probation begins, if nothing speaks against it then
    level: int  # how often in a row: each doubles the time


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a slot answers canaries under one release; medians of idle ones."""

    release: str  # hash
    tokens_per_s: float
    canaries: int  # how many it was learned from


@dataclass(frozen=True, slots=True)
class Slot:
    plan: SlotPlan
    state: State = State.ABSENT
    since_s: float = 0.0
    because: str = ""
    health: Health | None = None
    container_id: str = ""
    leaving: str = (
        ""  # the container that was asked to end, by this agent or the one before: that it is gone is no loss
    )
    pending: Action | None = None  # handed to a worker, not finished yet
    pending_since_s: float = 0.0
    created_s: float | None = None  # when its container was made, by this agent
    ready_since_s: float | None = None
    proven: bool = False  # enough good canaries since its container was made
    failures: tuple[float, ...] = ()  # when it was restarted because something was wrong, oldest first
    not_before_s: float = 0.0  # back-off
    reason: Reason = Reason.START  # why its container is to be made, or was
    cause: str = ""  # the same in words: what its last container was removed for
    quarantine: Quarantine | None = None
    quarantines: int = 0  # in a row, without a proven time between
    seen_xid_s: float = 0.0  # the newest XID that was acted on
    pace: Pace | None = None  # of the release it runs
    pace_before: Pace | None = None  # of the good release before
    learned_s: float = 0.0  # when the canary began that the pace was last learned from
    slowed_s: float = 0.0  # when its GPU was last slowed down by temperature or power: no pace of then counts
    drain_since_s: float | None = None
    host_wide: bool = False  # it is blocked by what would block every slot
    hold_until_s: float = 0.0  # nothing is done before: the last try ended in an error of the engine
    engine_epoch: int | None = None  # when its container was last seen to run; None: not yet by this agent
    restarts: Mapping[Reason, int] = field(default_factory=dict[Reason, int])  # containers made, by reason


@dataclass(frozen=True, slots=True)
class Decision:
    """One thing to do, and the sentence that says why: log line, status field and test in one."""

    action: Action
    slot: int | None  # None for the whole host
    because: str
    reason: Reason
    spec: ContainerSpec | None = None  # for CREATE
    container_id: str = ""  # for REMOVE
    grace_s: float = 0.0  # for REMOVE: how long it may take to end by itself
    evidence: str = ""  # facts behind `because`, one line


@dataclass(frozen=True, slots=True)
class Done:
    """How an action ended."""

    action: Action
    slot: int | None
    ok: bool
    error: str = ""
    hint: str = ""
    container_id: str = ""
    obstacle: bool = False  # a name, a port or a device that only a person can free
    host_wide: bool = False  # no other slot could start either
    release: bool = False  # the release asks for what this host does not have
    stuck: bool = False  # the container did not end, not even by SIGKILL


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the agent's own history, newest last in `Host.history`."""

    wall_s: float
    slot: int | None
    gpus: tuple[str, ...]
    action: str
    because: str
    evidence: str = ""


@dataclass(frozen=True, slots=True)
class Refused:
    """A release that was tried and rolled back. It stays refused until the configuration asks for another one."""

    release: str  # hash
    because: str
    wall_s: float


@dataclass(frozen=True, slots=True)
class Host:
    slots: tuple[Slot, ...] = ()
    wanted: Release | None = None  # what configuration and image ask for; None while the image is not known
    good: Release | None = None  # the last one that proved itself on some slot
    refused: Refused | None = None
    removing: tuple[str, ...] = ()  # left-over containers that a worker takes away
    removed: tuple[str, ...] = ()  # containers that are gone, though a listing may still show them; the last 64
    trial: int | None = None  # the slot that tries out a new release
    down: bool = False  # a person asked for all containers to be taken down
    pulling: bool = False  # a worker has it
    pull_due: bool = False  # `pull = "always"`: once after each start and reload
    pull_not_before_s: float = 0.0
    history: tuple[Entry, ...] = ()  # at most the last 200

    def slot(self, index: int) -> Slot | None:
        return next((slot for slot in self.slots if slot.plan.index == index), None)
