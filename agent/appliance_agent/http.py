"""Requests to the model servers. A status is never an error.

An agent at rest spends most of its processor time here, so this is done with a socket and `HttpAnswer`: a canary with its
`/api/ps` takes 0.4 of what it took with http.client, and that was a third of httpx'.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import socket
import sys
import termios
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, Self

from appliance_agent.http_answer import HttpAnswer, HttpAnswerError

CONNECT_S: Final = 5.0
_RECEIVE_BYTES: Final = 64 * 1024


class Broken(Enum):
    REFUSED = "refused"  # no connection, or closed before an answer
    TIMEOUT = "timeout"
    CUT = "cut"  # in the middle of the answer
    CANCELLED = "cancelled"


class ExchangeError(Exception):
    def __init__(self, how: Broken, detail: str) -> None:
        super().__init__(detail)
        self.how = how


@dataclass(slots=True)
class Meter:
    """What our own requests to one server took of its line. Written by one thread at a time."""

    received_bytes: int = 0
    connections: int = 0
    link: socket.socket | None = None  # the connection that there is

    def arrived_bytes(self) -> int:
        """With what waits to be read."""
        link, waiting = self.link, bytearray(4)
        if link is not None:
            with contextlib.suppress(OSError, ValueError):  # closed in between
                fcntl.ioctl(link, termios.FIONREAD, waiting)
        return self.received_bytes + int.from_bytes(waiting, sys.byteorder)


@dataclass(frozen=True, slots=True)
class Server:
    address: str
    port: int
    model: str
    meter: Meter


class Answer:
    """A response whose body is still on the wire."""

    def __init__(self, link: socket.socket, meter: Meter) -> None:
        self._link = link
        self._meter = meter
        self._http = HttpAnswer()
        self._first = b""

    def begin(self) -> None:
        """Waits for the head."""
        while not self._http.status:
            self._first = self._receive()

    @property
    def status(self) -> int:
        """0 while there is none."""
        return self._http.status

    @property
    def frees_connection(self) -> bool:
        return self._http.frees_connection

    def chunks(self) -> Iterator[bytes]:
        """As they come. A body that ends before its length raises, whether that was said at its head or in chunks."""
        if self._first:
            yield self._first
        while not self._http.ended:
            if chunk := self._receive():
                yield chunk

    def body(self, *, limit_bytes: int = 1024 * 1024) -> bytes:
        """What is beyond the limit stays unread."""
        found = b""
        for chunk in self.chunks():
            found += chunk
            if len(found) > limit_bytes:
                break
        return found[:limit_bytes]

    def _receive(self) -> bytes:
        data = self._link.recv(_RECEIVE_BYTES)
        self._meter.received_bytes += len(data)
        if data:
            return self._http.feed(data)
        self._http.close()
        return b""


class Link:
    """To one server, for one exchange after the other, over one connection as long as it serves."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.is_cancelled = False
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def cancel(self) -> None:
        """Ends the exchange under way from another thread, at once; all that come after it, too."""
        with self._lock:
            self.is_cancelled = True
            self._shut()

    @contextlib.contextmanager
    def exchange(
        self, path: str, body: Mapping[str, object] | None = None, *, silence_s: float | None
    ) -> Generator[Answer]:
        """GET, or POST with a body. `silence_s` bounds every wait for bytes, None waits for ever. Raises ExchangeError."""
        answer: Answer | None = None
        try:
            link = self._connected()
            link.sendall(_request(self.server, path, body))
            link.settimeout(silence_s)
            answer = Answer(link, self.server.meter)
            answer.begin()
            yield answer
        except (OSError, HttpAnswerError) as error:
            raise self._error(error, answered=answer is not None and answer.status > 0) from error
        finally:
            if answer is None or not answer.frees_connection:
                self.close()

    def close(self) -> None:
        with self._lock:
            link, self._socket = self._socket, None
        if link is not None:
            self.server.meter.connections -= 1
            self.server.meter.link = None
            link.close()

    def _connected(self) -> socket.socket:
        if self._socket is not None:
            return self._socket
        try:
            link = socket.create_connection((self.server.address, self.server.port), CONNECT_S)
        except TimeoutError as error:
            raise ConnectionRefusedError("no connection in time") from error
        self.server.meter.connections += 1
        self.server.meter.link = link
        with self._lock:
            self._socket = link
            if self.is_cancelled:
                self._shut()
        return link

    def _shut(self) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def _error(self, error: OSError | HttpAnswerError, *, answered: bool) -> ExchangeError:
        if self.is_cancelled:
            return ExchangeError(Broken.CANCELLED, "given up by the agent")
        if isinstance(error, TimeoutError):
            return ExchangeError(Broken.TIMEOUT, "no answer in time")
        return ExchangeError(Broken.CUT if answered else Broken.REFUSED, str(error) or type(error).__name__)


def _request(server: Server, path: str, body: Mapping[str, object] | None) -> bytes:
    host = f"[{server.address}]" if ":" in server.address else server.address
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: {host}:{server.port}"]
    if content:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    lines += ["User-Agent: ollama-agent", "Accept-Encoding: identity", "", ""]
    return "\r\n".join(lines).encode() + content
