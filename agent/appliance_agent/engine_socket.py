"""The Docker Engine's socket without any library: who is there, does it answer, and answers that go on for long.

EngineError               the engine said no: `status`
├── EngineAwayError       nobody there: no socket, no permission, nobody listens, or the connection ended
└── EngineSilentError     somebody there who does not answer in time
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast
from urllib.parse import urlencode

from appliance_agent.http_answer import HttpAnswerError, HttpLines
from appliance_image.errors import ApplianceError

LOG_HINT: Final = "the engine's log tells more: `journalctl -u docker -n 50`"
START_HINT: Final = "`systemctl start docker`"
_RECEIVE_BYTES: Final = 65536


class EngineError(ApplianceError):
    def __init__(self, message: str, *, hint: str = LOG_HINT, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


class EngineAwayError(EngineError):
    pass


class EngineSilentError(EngineError):
    pass


@dataclass(frozen=True, slots=True)
class Pong:
    api_version: str
    process: str  # which process answers: another one is another engine; "" where that cannot be seen


class Ping:
    """`GET /_ping` without waiting: `begin`, wait until `socket` can be read, `finish`.

    One that is not answered stays open, so that a frozen engine finds one question and not hundreds.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._answer = b""
        self.socket: socket.socket | None = None

    def begin(self) -> None:
        self.close()
        sock = dial(self._path, timeout_s=0)
        try:
            sock.sendall(b"GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")
        except OSError as error:
            sock.close()
            raise EngineAwayError(_gone(error), hint=START_HINT) from error
        self.socket = sock

    def finish(self) -> Pong | None:
        """None while the answer is not complete."""
        if self.socket is None:
            raise EngineAwayError("the Docker Engine was not asked")
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return None
        except OSError as error:
            self.close()
            raise EngineAwayError(_gone(error), hint=START_HINT) from error
        self._answer += data
        if data and b"\r\n\r\n" not in self._answer:
            return None
        process = _process_behind(self.socket, self._path)
        answer = self._answer
        self.close()
        return _pong(answer, process)

    def close(self) -> None:
        if self.socket:
            self.socket.close()
        self.socket = None
        self._answer = b""


class EngineStream:
    """An answer in JSON lines that comes over time: events, or the progress of a pull."""

    def __init__(self, sock: socket.socket, doing: str) -> None:
        self.socket = sock
        self._doing = doing
        self._lines = HttpLines()
        self._waiting: list[bytes] = []

    @classmethod
    def open(
        cls,
        path: str,
        method: str,
        target: str,
        *,
        doing: str,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        **parameters: str,
    ) -> EngineStream:
        """`timeout_s` is for the head of the answer. A status that is no success is an error here."""
        stream = cls(dial(path, timeout_s=timeout_s), doing)
        try:
            stream._ask(method, f"{target}?{urlencode(parameters)}", headers or {})
            while not stream._lines.status:
                stream._receive(timeout_s)
            stream._check_status(timeout_s)
        except BaseException:
            stream.close()
            raise
        return stream

    @property
    def ended(self) -> bool:
        return self._lines.ended

    def read(self, *, timeout_s: float) -> list[dict[str, object]]:
        """What has come, at least something; raises EngineSilentError, or EngineAwayError at an improper end."""
        if not self._waiting:
            self._receive(timeout_s)
        lines, self._waiting = self._waiting, []
        return [found for line in lines if (found := _object(line)) is not None]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    def _ask(self, method: str, target: str, headers: Mapping[str, str]) -> None:
        more = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {target} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\nContent-Length: 0\r\n{more}\r\n"
        try:
            self.socket.sendall(head.encode())
        except OSError as error:
            raise EngineAwayError(f"{self._doing}: {_gone(error)}", hint=START_HINT) from error

    def _receive(self, timeout_s: float) -> None:
        self.socket.settimeout(timeout_s)
        try:
            data = self.socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, TimeoutError) as error:
            message = f"{self._doing}: the Docker Engine has said nothing for {timeout_s:.0f} s"
            raise EngineSilentError(message) from error
        except OSError as error:
            raise EngineAwayError(f"{self._doing}: {_gone(error)}", hint=START_HINT) from error
        if not data:
            raise EngineAwayError(f"{self._doing}: the Docker Engine ended the connection", hint=START_HINT)
        try:
            self._waiting += self._lines.feed(data)
        except HttpAnswerError as error:
            raise EngineError(f"{self._doing}: {error}") from error

    def _check_status(self, timeout_s: float) -> None:
        if self._lines.status < 400:
            return
        with contextlib.suppress(EngineError):
            while not self._lines.ended and not self._waiting:
                self._receive(timeout_s)
        said = _object(self._waiting[0] if self._waiting else self._lines.rest) or {}
        reason = str(said.get("message", "no reason given"))
        raise EngineError(f"{self._doing}: {reason}", status=self._lines.status)


def dial(path: str, *, timeout_s: float) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout_s)
    try:
        sock.connect(path)
    except OSError as error:
        sock.close()
        raise _unreachable(path, error) from error
    return sock


def _unreachable(path: str, error: OSError) -> EngineError:
    match error:
        case FileNotFoundError():
            return EngineAwayError(f"no Docker Engine here: there is no socket {path}", hint=START_HINT)
        case PermissionError():
            return EngineAwayError(
                f"no permission for the Docker Engine's socket {path}",
                hint="let the agent's user into the group: `usermod -aG docker USER`, then restart the agent",
            )
        case BlockingIOError() | TimeoutError():  # its queue is full
            return EngineSilentError("the Docker Engine takes no further connection")
        case ConnectionRefusedError():
            return EngineAwayError(f"no Docker Engine listens at {path}", hint=START_HINT)
        case _:
            return EngineAwayError(f"no Docker Engine at {path}: {_gone(error)}", hint=START_HINT)


def _gone(error: OSError) -> str:
    return (error.strerror or type(error).__name__).lower()


def _pong(answer: bytes, process: str) -> Pong:
    lines = HttpLines()
    try:
        lines.feed(answer)
    except HttpAnswerError as error:
        raise EngineError(f"what listens at the Docker Engine's socket does not speak HTTP: {error}") from error
    if not lines.status:
        raise EngineAwayError("the Docker Engine ended the connection", hint=START_HINT)
    if lines.status != 200:
        raise EngineError(f"the Docker Engine answers with status {lines.status}", status=lines.status)
    fields = (line.partition(b":") for line in answer.partition(b"\r\n\r\n")[0].split(b"\r\n"))
    versions = [value.strip().decode() for name, _, value in fields if name.lower() == b"api-version"]
    return Pong(versions[0] if versions else "1.41", process)


def _process_behind(sock: socket.socket, path: str) -> str:
    """The engine that listens. With socket activation that is systemd, so the engine's pid file is asked."""
    pid: int = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    try:
        if Path(f"/proc/{pid}/comm").read_text() == "dockerd\n":
            return _started(pid)
        return _started(int(Path(path).with_name("docker.pid").read_text()))
    except (OSError, ValueError):
        return ""


def _started(pid: int) -> str:
    """A later process with the same number is another one."""
    try:
        return f"{pid} {Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return ""


def _object(line: bytes) -> dict[str, object] | None:
    try:
        node = cast("object", json.loads(line))
    except ValueError:
        return None
    return cast("dict[str, object]", node) if isinstance(node, dict) else None
