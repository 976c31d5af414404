"""Follows containers' logs through the engine, over all ends of the connection. Knows no line's meaning.

Every line carries the engine's time, so that a new connection goes on where the last one ended.
"""

from __future__ import annotations

import calendar
import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from appliance_agent.engine_socket import EngineError, dial
from appliance_agent.http_answer import HttpAnswer, HttpAnswerError

_PAUSES_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_RECEIVE_BYTES: Final = 64 * 1024
_LINE_BYTES_MAX: Final = 64 * 1024
_FRAME_BYTES_MAX: Final = 16 * 1024 * 1024
_CONTAINERS_MAX: Final = 64  # that are remembered
_STAMP = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?Z ?")

Stamp = bytes  # 2026-11-23T18:14:26.123456789, which sorts as it should
Sink = Callable[[bytes], None]


class FrameError(Exception):
    """The bytes are not the engine's multiplexed stream."""


class Frames:
    """Sans I/O: the engine's stream in, (1 for stdout or 2 for stderr, payload) out, chunk boundaries irrelevant."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, chunk: bytes) -> Iterator[tuple[int, bytes]]:
        """Raises FrameError."""
        data, start = self._rest + chunk, 0
        while len(data) - start >= 8:
            size = int.from_bytes(data[start + 4 : start + 8])
            if data[start] > 3 or data[start + 1 : start + 4] != b"\0\0\0" or size > _FRAME_BYTES_MAX:
                raise FrameError(f"not a frame: {data[start : start + 8]!r}")
            if len(data) - start - 8 < size:
                break
            yield data[start], data[start + 8 : start + 8 + size]
            start += 8 + size
        self._rest = data[start:]


class Lines:
    """Sans I/O: frames in, whole lines out, none of them twice. The engine cuts long lines into several frames, each
    with a time of its own."""

    def __init__(self, since: Stamp) -> None:
        self.newest = since
        self._seen = since
        self._parts: dict[int, bytes] = {}

    def begin(self, now: Stamp) -> Stamp:
        """A new connection: what was begun will not be finished. Returns from when on it should read."""
        self._parts = {}
        self._seen = min(self.newest, now)  # a clock that was set back must not hide what comes
        return self._seen

    def feed(self, stream: int, payload: bytes) -> Iterator[bytes]:
        if match := _STAMP.match(payload):
            stamp = match[1] + b"." + (match[2] or b"").ljust(9, b"0")
            if stamp <= self._seen:
                return
            self.newest = max(stamp, self.newest)
            payload = payload[match.end() :]
        *lines, rest = (self._parts.pop(stream, b"") + payload).split(b"\n")
        yield from lines
        if rest:
            self._parts[stream] = rest[:_LINE_BYTES_MAX]


class LogTail:
    """`since` is before the first line; None: from now on."""

    def __init__(
        self, socket_path: str, container_id: str, sink: Sink, *, since: Stamp | None = None, connect_s: float = 10.0
    ) -> None:
        self._socket_path = socket_path
        self._container_id = container_id
        self._sink = sink
        self._connect_s = connect_s
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self._lines = Lines(since or _now())
        self._thread = threading.Thread(target=self._follow, name=f"log {container_id[:12]}", daemon=True)

    @property
    def newest(self) -> Stamp:
        """Of the lines that were read."""
        return self._lines.newest

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        with self._lock:
            if self._link is not None:
                with contextlib.suppress(OSError):
                    self._link.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(10)

    def _follow(self) -> None:
        attempt = 0
        while not self._closed.is_set():
            newest = self._lines.newest
            with contextlib.suppress(OSError, EngineError, HttpAnswerError, FrameError):
                self._read()
            attempt = 0 if self._lines.newest != newest else attempt + 1
            self._closed.wait(_PAUSES_S[min(attempt, len(_PAUSES_S) - 1)])

    def _read(self) -> None:
        """Until the stream ends. Raises OSError, EngineError, HttpAnswerError and FrameError."""
        with dial(self._socket_path, timeout_s=self._connect_s) as link:
            if self._holds(link):
                path = self._path(self._lines.begin(_now()))
                link.sendall(f"GET {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n\r\n".encode())
                self._take(link)
            self._holds(None)

    def _holds(self, link: socket.socket | None) -> bool:
        with self._lock:
            self._link = link
            return not self._closed.is_set()

    def _take(self, link: socket.socket) -> None:
        answer, frames = HttpAnswer(), Frames()
        while not answer.ended:
            data = link.recv(_RECEIVE_BYTES)
            if not data:
                answer.close()
            chunk = answer.feed(data)
            if answer.status not in (0, 200):
                return
            if answer.status and link.gettimeout():
                link.settimeout(None)
            for stream, payload in frames.feed(chunk):
                for line in self._lines.feed(stream, payload):
                    self._sink(line)

    def _path(self, since: Stamp) -> str:
        """A container's log in the engine's API, from a moment on."""
        seconds = calendar.timegm(time.strptime(since[:19].decode(), "%Y-%m-%dT%H:%M:%S"))
        query = f"follow=1&stdout=1&stderr=1&timestamps=1&since={seconds}.{since[20:].decode()}"
        return f"/containers/{self._container_id}/logs?{query}"


class LogFollower:
    """Of one engine. A container that is followed again, as after a restart of it, is read on from where that ended; one
    that is new from when the agent began, so that nothing is lost between its first line and its first look."""

    def __init__(self, socket_path: str) -> None:
        self._socket_path = socket_path
        self._began = _now()
        self._tails: dict[str, LogTail] = {}  # by container, the oldest first

    def __call__(self, container_id: str, sink: Sink) -> LogTail:
        before = self._tails.pop(container_id, None)
        tail = LogTail(self._socket_path, container_id, sink, since=before.newest if before else self._began)
        self._tails[container_id] = tail
        while len(self._tails) > _CONTAINERS_MAX:
            del self._tails[next(iter(self._tails))]
        tail.start()
        return tail


def _now() -> Stamp:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{nanoseconds:09d}".encode()
