"""Asks the Docker Engine with a handful of plain GET requests, and tells how far it got. Changes nothing, raises nothing."""

from __future__ import annotations

import grp
import http.client
import json
import os
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from appliance_agent import check_host, engine_json
from appliance_agent.cdi_files import cdi_names
from appliance_agent.check_facts import ContainerThere, EngineState, Reach
from appliance_agent.containers import EngineFacts
from appliance_agent.engine_json import Json
from appliance_agent.engine_socket import EngineError, dial

_MAX_BYTES: Final = 64 * 1024 * 1024
_CONTAINERD: Final = "/var/lib/containerd"


class EngineUnseenError(Exception):
    def __init__(self, reach: Reach, detail: str = "") -> None:
        super().__init__(detail)
        self.reach = reach
        self.detail = detail


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    value: Any  # the JSON

    @property
    def message(self) -> str:
        try:
            return str(self.value["message"])
        except (TypeError, KeyError):
            return f"status {self.status}"


class EngineDoor:
    """One connection for each request, and for each the same time to answer."""

    def __init__(self, path: str, *, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s

    def get(self, path: str, headers: dict[str, str] | None = None, *, timeout_s: float | None = None) -> Reply:
        """Raises EngineUnseenError."""
        status, body = self._ask(path, headers or {}, self._timeout_s if timeout_s is None else timeout_s)
        try:
            return Reply(status, json.loads(body) if body.strip() else None)
        except ValueError as error:
            raise _broken(error) from error

    def ping(self) -> None:
        """Raises EngineUnseenError."""
        self._ask("/_ping", {}, self._timeout_s)

    def _ask(self, path: str, headers: dict[str, str], timeout_s: float) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("localhost")
        connection.sock = self._connect(timeout_s)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(_MAX_BYTES)
        except TimeoutError as error:
            raise EngineUnseenError(Reach.FROZEN, f"no answer to GET {path.partition('?')[0]}") from error
        except (http.client.HTTPException, ValueError) as error:
            raise _broken(error) from error
        except OSError as error:
            raise EngineUnseenError(Reach.REFUSED, error.strerror or str(error)) from error
        finally:
            connection.close()

    def peer(self) -> int | None:
        """The process that listens, if it can be seen from here."""
        try:
            connection = self._connect(self._timeout_s)
        except EngineUnseenError:
            return None
        with connection:
            pid: int = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
        return pid or None

    def _connect(self, timeout_s: float) -> socket.socket:
        try:
            return dial(self._path, timeout_s=timeout_s)
        except EngineError as error:
            reason = error.__cause__
            detail = reason.strerror if isinstance(reason, OSError) and reason.strerror else error.message
            raise EngineUnseenError(_reach(reason), detail) from error


def _reach(reason: BaseException | None) -> Reach:
    match reason:
        case FileNotFoundError():
            return Reach.NO_SOCKET
        case PermissionError():
            return Reach.FORBIDDEN
        case TimeoutError() | BlockingIOError():
            return Reach.FROZEN  # its queue of connections is full
        case _:
            return Reach.REFUSED


def _broken(error: Exception) -> EngineUnseenError:
    return EngineUnseenError(Reach.BROKEN, f"{type(error).__name__}: {str(error)[:100]}")


def engine_state(door: EngineDoor, path: str, *, slow_s: float, info_s: float) -> EngineState:
    """After `slow_s` its answer to `/info` is slow, and for `info_s` it is waited for; it may take long where all else is quick."""
    group = socket_group(path)
    try:
        door.ping()
        version, asked_s = door.get("/version"), time.monotonic()
        if (information := _information(door, info_s)) is None:
            return EngineState(Reach.UP, socket_group=group, slow=f"has not answered `docker info` within {info_s:g} s")
        took_s = time.monotonic() - asked_s
        if version.status != 200 or information.status != 200:
            problem = version.message if version.status != 200 else information.message
            return EngineState(Reach.UP, problem, socket_group=group)
        directories: Sequence[str] = information.value.get("CDISpecDirs") or ()
        facts = engine_json.parse_facts(version.value, information.value, cdi_names(directories))
    except EngineUnseenError as silent:
        return EngineState(silent.reach, silent.detail, socket_group=group)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        return EngineState(Reach.BROKEN, f"{type(error).__name__}: {error}", socket_group=group)
    state = _state_of(facts, information.value)
    return replace(state, socket_group=group, slow=f"took {took_s:.0f} s for `docker info`" if took_s > slow_s else "")


def _information(door: EngineDoor, limit_s: float) -> Reply | None:
    try:
        return door.get("/info", timeout_s=limit_s)
    except EngineUnseenError as silent:
        if silent.reach is Reach.FROZEN:
            return None
        raise


def _state_of(facts: EngineFacts, information: Json) -> EngineState:
    places = _image_places(facts.root, information)
    free = {place: room for place in places if (room := _free_bytes(place)) is not None}
    tightest = min(free, key=lambda place: free[place], default=facts.root)
    return EngineState(
        Reach.UP,
        facts=facts,
        snap=facts.root.startswith("/var/snap/"),
        rootless="name=rootless" in str(information.get("SecurityOptions")),
        free_bytes=free.get(tightest),
        images_root=tightest,
    )


def engine_process(door: EngineDoor) -> int | None:
    """dockerd itself: behind a socket of systemd's, the one process of that name."""
    pid = door.peer()
    if pid is not None and check_host.process_name(pid) == "dockerd":
        return pid
    candidates = check_host.processes("dockerd")
    return candidates[0] if len(candidates) == 1 else None


def containers(door: EngineDoor, name_prefix: str) -> tuple[ContainerThere, ...]:
    """Raises EngineUnseenError."""
    reply = door.get("/containers/json?all=1")
    if reply.status != 200:
        raise EngineUnseenError(Reach.BROKEN, reply.message)
    return tuple(_container(value, name_prefix) for value in reply.value)


def _container(row: Json, name_prefix: str) -> ContainerThere:
    seen = engine_json.parse_row(row, None)
    ports: Sequence[Json] = row.get("Ports") or ()
    labels: Mapping[str, str] = row.get("Labels") or {}
    return ContainerThere(
        id=seen.id,
        name=seen.name,
        mine=engine_json.managed_by(labels, name_prefix),
        slot=None if seen.slot == engine_json.NO_SLOT else seen.slot,
        gpus=seen.gpus,
        running=seen.status in ("running", "paused", "restarting"),
        ports=tuple(
            (str(port.get("IP", "0.0.0.0")), int(port["PublicPort"])) for port in ports if "PublicPort" in port
        ),
    )


def _image_places(root: str, information: Json) -> list[str]:
    store = "io.containerd.snapshotter" in str(information.get("DriverStatus"))
    own = Path(root, "containerd", "daemon").is_dir()
    return [root, _CONTAINERD] if store and not own else [root]


def _free_bytes(place: str) -> int | None:
    try:
        state = os.statvfs(place)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def socket_group(path: str) -> str:
    try:
        gid = Path(path).stat().st_gid
    except OSError:
        return ""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)


def image_path(reference: str) -> str:
    return quote(reference, safe="/:@")
