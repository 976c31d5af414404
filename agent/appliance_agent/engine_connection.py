"""One life of the Docker Engine, as far as it is seen: its events and the questions that are asked. Knows no policy."""

from __future__ import annotations

import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, cast
from urllib.parse import quote

from appliance_agent.containers import ContainerSeen, ImageSeen
from appliance_agent.docker_door import DockerDoor
from appliance_agent.engine_json import Json, absent_image, managed_by, parse_container, parse_image
from appliance_agent.engine_settings import EngineSettings
from appliance_agent.engine_socket import EngineError, EngineStream, Pong
from appliance_agent.spec import LABEL_MANAGED

# `kill` comes first when an engine stops: a good moment to see whether it still takes questions.
_EVENTS: Final = ("create", "start", "kill", "oom", "die", "pause", "unpause", "rename", "destroy")
_GIVES_WAY: Final = frozenset({"die", "rename", "destroy"})  # a port, a name
_INSPECT_S: Final = 2.0  # while a container starts, the engine may hold a lock on it


@dataclass(frozen=True, slots=True)
class Happened:
    """Since events were last read."""

    ours: tuple[str, ...]  # the ids of our containers with which something happened
    gave_way: bool  # somebody else's container may have left a name or a port to us


class EngineConnection:
    def __init__(
        self,
        door: DockerDoor,
        stream: EngineStream,
        settings: EngineSettings,
        pong: Pong,
        *,
        prefix: str,
        timeout_s: float,
    ) -> None:
        self.settings = settings
        self._door = door
        self._stream = stream
        self._prefix = prefix
        self._timeout_s = timeout_s
        self._process = pong.process

    @classmethod
    def open(cls, path: str, pong: Pong, *, prefix: str, timeout_s: float) -> EngineConnection:
        """Events are listened to first, so that nothing is missed between them and a listing."""
        filters = json.dumps({"type": ["container"], "event": _EVENTS})
        stream = EngineStream.open(
            path,
            "GET",
            f"/v{pong.api_version}/events",
            doing="listening to the engine's events",
            timeout_s=timeout_s,
            filters=filters,
        )
        try:
            door = DockerDoor.open(path, timeout_s=timeout_s, pong=pong)
        except BaseException:
            stream.close()
            raise
        settings = EngineSettings(path, pong.api_version)
        return cls(door, stream, settings, pong, prefix=prefix, timeout_s=timeout_s)

    def is_same_life(self, other: EngineConnection) -> bool:
        """Where the process cannot be seen, an engine whose events broke off counts as another one."""
        return self is other or (self._process != "" and self._process == other._process)

    @property
    def socket(self) -> socket.socket:
        """Can be read when there are events."""
        return self._stream.socket

    def events(self) -> Happened:
        """Raises EngineAwayError when the engine ended."""
        ours: list[str] = []
        gave_way = False
        for event in self._stream.read(timeout_s=0):
            actor = cast("Json", event.get("Actor") or {})
            if managed_by(actor.get("Attributes") or {}, self._prefix):
                ours.append(str(actor["ID"]))
            elif event.get("Action") in _GIVES_WAY:
                gave_way = True
        return Happened(tuple(ours), gave_way)

    def ours(self) -> Sequence[Json]:
        return self._list(filters=json.dumps({"label": [f"{LABEL_MANAGED}={self._prefix}"]}))

    def everybodys(self) -> Sequence[Json]:
        return self._list()

    def inspect(self, container_id: str) -> ContainerSeen | None:
        """None if there is no such container, or none that is ours any more."""
        within_s = min(_INSPECT_S, self._timeout_s)
        try:
            body = self._door.ask(
                "GET", f"/containers/{container_id}/json", doing="inspecting a container", within_s=within_s
            )
        except EngineError as error:
            if error.status == 404:
                return None
            raise
        return parse_container(body)

    def image(self, reference: str) -> ImageSeen:
        return resolve(self._door, reference)

    def close(self) -> None:
        self.settings.close()
        self._stream.close()
        self._door.close()

    def _list(self, **parameters: str) -> Sequence[Json]:
        rows: Sequence[Json] = self._door.get("/containers/json", doing="listing containers", all="1", **parameters)
        return rows


def resolve(door: DockerDoor, reference: str) -> ImageSeen:
    """What the name means to the engine now."""
    try:
        return parse_image(
            reference, door.get(f"/images/{quote(reference, safe='/:@')}/json", doing="inspecting the image")
        )
    except EngineError as error:
        if error.status == 404:
            return absent_image(reference)
        raise
