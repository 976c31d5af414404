"""The words of the agent: states, verdicts, actions, reasons and causes. Numbers and texts are exported and never reused."""

from __future__ import annotations

from enum import Enum, IntEnum


class State(IntEnum):
    """Of a slot. The numbers stand in metrics and in the state file."""

    ABSENT = 0  # no container, none wanted at this moment
    WAITING = 1  # for the back-off, the image, the engine, or its turn
    STARTING = 2  # its container is being made
    LOADING = 3  # its container runs, no token yet
    READY = 4  # proved by tokens
    DEGRADED = 5  # gives tokens, but not as it should
    DRAINING = 6  # finishes what it has, to be replaced
    STOPPING = 7  # its container is being taken away
    FAILED = 8  # does not work; what is done about it stands in `because`
    QUARANTINED = 9  # left alone until its probation
    BLOCKED = 10  # cannot run until a person changes something
    STOPPED = 11  # taken down on purpose


_ANY_END = frozenset({State.STOPPED, State.QUARANTINED, State.BLOCKED, State.STOPPING, State.FAILED, State.WAITING})
# From a state to those that can follow. A container that is adopted or that somebody removes explains most of the jumps.
TRANSITIONS = {
    State.ABSENT: frozenset(State),
    State.WAITING: _ANY_END | {State.STARTING, State.LOADING, State.READY, State.DEGRADED},
    State.STARTING: _ANY_END | {State.LOADING, State.READY, State.DEGRADED},
    State.LOADING: _ANY_END | {State.READY, State.DEGRADED, State.DRAINING, State.STARTING},
    State.READY: _ANY_END | {State.DEGRADED, State.DRAINING, State.LOADING, State.STARTING},
    State.DEGRADED: _ANY_END | {State.READY, State.DRAINING, State.LOADING, State.STARTING},
    State.DRAINING: _ANY_END | {State.READY, State.DEGRADED, State.LOADING, State.STARTING},
    State.STOPPING: _ANY_END | {State.STARTING, State.LOADING, State.READY, State.DEGRADED},
    State.FAILED: _ANY_END | {State.STARTING, State.LOADING, State.READY, State.DEGRADED},
    State.QUARANTINED: _ANY_END | {State.STARTING, State.LOADING, State.READY, State.DEGRADED},
    State.BLOCKED: _ANY_END | {State.STARTING, State.LOADING, State.READY, State.DEGRADED},
    State.STOPPED: _ANY_END | {State.STARTING, State.LOADING, State.READY, State.DEGRADED},
}

SERVING = frozenset({State.READY, State.DEGRADED, State.DRAINING})


class Health(Enum):
    """What the evidence says of a running container."""

    STARTING = "starting"  # the server does not answer yet
    LOADING = "loading"  # the model is on its way into memory
    READY = "ready"
    BUSY = "busy"  # the canary waits, tokens flow
    SLOW = "slow"  # tokens, but far fewer than this slot gave before
    STALLED = "stalled"  # tokens stopped in the middle of an answer
    WEDGED = "wedged"  # requests wait, nothing moves
    FAILING = "failing"  # answers with errors
    ON_CPU = "on CPU"  # tokens, but not from the GPU
    GONE = "gone"  # no server behind the port
    UNKNOWN = "unknown"  # not enough evidence, for example after the agent was stopped for a while


SOUND = frozenset({Health.READY, Health.BUSY, Health.SLOW})
SICK = frozenset({Health.STALLED, Health.WEDGED, Health.FAILING, Health.ON_CPU, Health.GONE})


class Action(Enum):
    PULL = "pull"  # fetch the image
    CREATE = "create"  # make and start the slot's container
    REMOVE = "remove"  # stop the slot's container and take it away


class Reason(Enum):
    """Why a container was replaced or removed: the label of the restart counter."""

    START = "start"  # there was none
    EXIT = "exit"
    OOM = "oom"
    WEDGED = "wedged"
    STALLED = "stalled"
    FAILING = "failing"
    ON_CPU = "on_cpu"
    GONE = "gone"
    SLOW = "slow"
    LOAD = "load"  # the model did not load
    XID = "xid"
    GPU_LOST = "gpu_lost"
    GPU_RESET = "gpu_reset"  # the driver asks for a reset or a reboot
    ENGINE = "engine_restart"
    DRIFT = "config"  # another image or configuration is wanted
    ROLLBACK = "rollback"
    ORPHAN = "orphan"
    DOWN = "down"  # a person asked for it


# A running container was judged, not seen to end.
SICK_REASONS = frozenset({Reason.WEDGED, Reason.STALLED, Reason.FAILING, Reason.ON_CPU, Reason.GONE, Reason.SLOW})


class Reaction(Enum):
    """What an XID asks for."""

    OBSERVE = "observe"
    RESTART_SLOT = "restart"
    RESET_GPU = "reset"
    REBOOT = "reboot"
