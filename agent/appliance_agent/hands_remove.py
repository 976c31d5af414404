"""Ends a container and takes it away: asked first, killed then, and given up when the kernel does not let it go."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Final

from appliance_agent.docker_door import DockerDoor
from appliance_agent.engine_json import Json, parse_container
from appliance_agent.engine_socket import EngineAwayError, EngineError, EngineSilentError
from appliance_agent.slots import Decision, Done
from appliance_agent.states import Action

KILL_S: Final = 30.0  # after SIGKILL
_LOOK_S: Final = 5.0
_LEAST_S: Final = 0.5
_ALIVE: Final = frozenset({"running", "paused", "restarting"})
_DELETE_S: Final = 60.0
_STUCK_HINT: Final = (
    "its processes hang in the kernel, most likely in the GPU driver (`ps -eo pid,stat,wchan:32,cmd | grep ' D'`): "
    "reset the GPU or `reboot`"
)


def remove(door: DockerDoor, decision: Decision, *, clock: Callable[[], float], kill_s: float = KILL_S) -> Done:
    """It is gone already: so be it."""
    id_ = decision.container_id
    status = _status(door, id_)
    if status in _ALIVE:
        if status == "paused":
            _ask(door, f"/containers/{id_}/unpause", f"waking container {id_[:12]}")
        _signal(door, id_, "SIGTERM")
        asked = decision.grace_s > 0 and _ends(door, id_, until_s=clock() + decision.grace_s, clock=clock)
        if not asked and not _killed(door, id_, until_s=clock() + kill_s, clock=clock):
            error = f"container {id_[:12]} did not end within {kill_s:.0f} s after SIGKILL"
            return _done(decision, error=error, hint=_STUCK_HINT, stuck=True)
    _delete(door, id_)
    return _done(decision)


def _killed(door: DockerDoor, id_: str, *, until_s: float, clock: Callable[[], float]) -> bool:
    while True:
        _signal(door, id_, "SIGKILL")
        if _ends(door, id_, until_s=min(until_s, clock() + _LOOK_S), clock=clock):
            return True
        if clock() >= until_s:
            return False


def _signal(door: DockerDoor, id_: str, name: str) -> None:
    """What came of it is asked next. Engines wait after SIGKILL, some for ever, so they are not waited for."""
    _ask(door, f"/containers/{id_}/kill", f"ending container {id_[:12]}", signal=name)


def _ask(door: DockerDoor, path: str, doing: str, **parameters: str) -> None:
    """Whether it worked is seen afterwards."""
    try:
        door.ask("POST", path, doing=doing, within_s=_LOOK_S, parameters=parameters)
    except EngineAwayError:
        raise
    except EngineError:
        return


def _ends(door: DockerDoor, id_: str, *, until_s: float, clock: Callable[[], float]) -> bool:
    while True:
        if _ended(door, id_, within_s=min(_LOOK_S, max(_LEAST_S, until_s - clock()))):
            return True
        if _status(door, id_) not in _ALIVE:
            return True
        if clock() >= until_s:
            return False


def _ended(door: DockerDoor, id_: str, *, within_s: float) -> bool:
    try:
        door.ask("POST", f"/containers/{id_}/wait", doing=f"waiting for container {id_[:12]}", within_s=within_s)
    except EngineSilentError:
        return False
    except EngineError as error:
        return error.status == 404
    return True


def _status(door: DockerDoor, id_: str) -> str:
    """As the engine calls it, "" for gone. Raises when it does not answer: then nobody can say that it is stuck."""
    doing = f"inspecting container {id_[:12]}"
    try:
        body: Json = door.ask("GET", f"/containers/{id_}/json", doing=doing, within_s=_LOOK_S)
    except EngineSilentError:
        return _listed_status(door, id_)  # an action that hangs may hold the container's lock
    except EngineError as error:
        if error.status == 404:
            return ""
        raise
    return parse_container(body).status


def _listed_status(door: DockerDoor, id_: str) -> str:
    filters = json.dumps({"id": [id_]})
    rows: Sequence[Json] = door.get("/containers/json", doing="listing containers", all="1", filters=filters)
    return next((str(row.get("State", "")) for row in rows), "")


def _delete(door: DockerDoor, id_: str) -> None:
    doing = f"removing container {id_[:12]}"
    try:
        door.ask("DELETE", f"/containers/{id_}", doing=doing, within_s=_DELETE_S, parameters={"v": "1"})
    except EngineError as error:
        if error.status == 404:
            return
        if error.status == 409 and disappears(door, id_):  # somebody else removes it
            return
        raise


def disappears(door: DockerDoor, id_: str) -> bool:
    """Whether a removal that is under way comes to its end."""
    parameters = {"condition": "removed"}
    try:
        doing = f"waiting for container {id_[:12]} to be removed"
        door.ask("POST", f"/containers/{id_}/wait", doing=doing, within_s=KILL_S, parameters=parameters)
    except EngineSilentError:
        return False
    except EngineError as error:
        return error.status == 404
    return True


def _done(decision: Decision, *, error: str = "", hint: str = "", stuck: bool = False) -> Done:
    return Done(
        Action.REMOVE,
        decision.slot,
        ok=not error,
        error=error,
        hint=hint,
        container_id=decision.container_id,
        stuck=stuck,
    )
