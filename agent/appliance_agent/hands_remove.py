"""Ends a container and takes it away: asked first, killed then, and given up when the kernel does not let it go."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Final

from appliance_agent.docker_door import DockerDoor
from appliance_agent.engine_json import Json, parse_container
from appliance_agent.engine_socket import EngineAwayError, EngineError, EngineSilentError
from appliance_agent.slots import Decision, Done
from appliance_agent.states import Action

KILL_S: Final = 30.0  # after SIGKILL
_LOOK_S: Final = 5.0
_DELETE_S: Final = 60.0
_STUCK_HINT: Final = (
    "its processes hang in the kernel, most likely in the GPU driver (`ps -eo pid,stat,wchan:32,cmd | grep ' D'`): "
    "reset the GPU or `reboot`"
)


def remove(door: DockerDoor, decision: Decision, *, clock: Callable[[], float], kill_s: float = KILL_S) -> Done:
    """It is gone already: so be it."""
    id_ = decision.container_id
    if _is_running(door, id_):
        _stop(door, id_, grace_s=decision.grace_s)
        if _is_running(door, id_) and not _killed(door, id_, until_s=clock() + kill_s, clock=clock):
            error = f"container {id_[:12]} did not end within {kill_s:.0f} s after SIGKILL"
            return _done(decision, error=error, hint=_STUCK_HINT, stuck=True)
    _delete(door, id_)
    return _done(decision)


def _stop(door: DockerDoor, id_: str, *, grace_s: float) -> None:
    """Engines send SIGKILL themselves when the time is over; some then wait for ever, so they are not waited for."""
    seconds = math.ceil(grace_s)
    try:
        door.ask(
            "POST",
            f"/containers/{id_}/stop",
            doing=f"stopping container {id_[:12]}",
            within_s=seconds + _LOOK_S,
            parameters={"t": str(seconds)},
        )
    except EngineAwayError:
        raise
    except EngineError:
        return  # whether it ended is asked next


def _killed(door: DockerDoor, id_: str, *, until_s: float, clock: Callable[[], float]) -> bool:
    while True:
        try:
            door.ask("POST", f"/containers/{id_}/kill", doing=f"killing container {id_[:12]}", within_s=_LOOK_S)
        except EngineAwayError:
            raise
        except EngineError:
            pass  # not running any more, or not dying: asked next
        if _ended(door, id_, within_s=min(_LOOK_S, max(0.5, until_s - clock()))):
            return True
        if clock() >= until_s:
            return not _is_running(door, id_)


def _ended(door: DockerDoor, id_: str, *, within_s: float) -> bool:
    try:
        door.ask("POST", f"/containers/{id_}/wait", doing=f"waiting for container {id_[:12]}", within_s=within_s)
    except EngineSilentError:
        return False
    except EngineError as error:
        return error.status == 404
    return True


def _is_running(door: DockerDoor, id_: str) -> bool:
    """Raises when the engine does not answer: then nobody can say that the container is stuck."""
    doing = f"inspecting container {id_[:12]}"
    try:
        body: Json = door.ask("GET", f"/containers/{id_}/json", doing=doing, within_s=_LOOK_S)
    except EngineSilentError:
        return _is_listed_as_running(door, id_)  # an action that hangs may hold the container's lock
    except EngineError as error:
        if error.status == 404:
            return False
        raise
    return parse_container(body).pid != 0


def _is_listed_as_running(door: DockerDoor, id_: str) -> bool:
    filters = json.dumps({"id": [id_]})
    rows: Sequence[Json] = door.get("/containers/json", doing="listing containers", all="1", filters=filters)
    return any(row.get("State") in ("running", "paused", "restarting") for row in rows)


def _delete(door: DockerDoor, id_: str) -> None:
    doing = f"removing container {id_[:12]}"
    try:
        door.ask("DELETE", f"/containers/{id_}", doing=doing, within_s=_DELETE_S, parameters={"v": "1"})
    except EngineError as error:
        if error.status == 404:
            return
        if error.status == 409 and _disappears(door, id_):  # somebody else removes it
            return
        raise


def _disappears(door: DockerDoor, id_: str) -> bool:
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
