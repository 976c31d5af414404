"""Requests to the model servers. A status is never an error.

An agent at rest spends most of its processor time here, so this is done with a socket and `HttpAnswer`: a canary with its
`/api/ps` takes 0.6 of what it did with http.client, and a fifth of httpx'.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

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


class Cancel:
    """Ends an exchange from another thread, at once; the next ones that hold it, too."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._link: socket.socket | None = None
        self.is_set = False

    def __call__(self) -> None:
        with self._lock:
            self.is_set = True
            self._shut()

    def hold(self, link: socket.socket) -> None:
        with self._lock:
            self._link = link
            if self.is_set:
                self._shut()

    def _shut(self) -> None:
        if self._link is not None:
            with contextlib.suppress(OSError):
                self._link.shutdown(socket.SHUT_RDWR)


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


@contextlib.contextmanager
def exchange(
    server: Server,
    path: str,
    body: Mapping[str, object] | None = None,
    *,
    cancel: Cancel,
    silence_s: float | None,
) -> Generator[Answer]:
    """GET, or POST with a body. `silence_s` bounds every wait for bytes, None waits for ever. Raises ExchangeError.

    One connection for each, none kept; safe to use from many threads.
    """
    server.meter.connections += 1
    answer: Answer | None = None
    try:
        with _connected(server) as link:
            cancel.hold(link)
            link.sendall(_request(server, path, body))
            link.settimeout(silence_s)
            answer = Answer(link, server.meter)
            answer.begin()
            yield answer
    except (OSError, HttpAnswerError) as error:
        raise _exchange_error(error, cancel, answered=answer is not None and answer.status > 0) from error
    finally:
        server.meter.connections -= 1


def _connected(server: Server) -> socket.socket:
    try:
        return socket.create_connection((server.address, server.port), CONNECT_S)
    except TimeoutError as error:
        raise ConnectionRefusedError("no connection in time") from error


def _request(server: Server, path: str, body: Mapping[str, object] | None) -> bytes:
    host = f"[{server.address}]" if ":" in server.address else server.address
    content = b"" if body is None else json.dumps(body).encode()
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", f"Host: {host}:{server.port}"]
    if content:
        lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
    lines += ["User-Agent: ollama-agent", "Accept-Encoding: identity", "Connection: close", "", ""]
    return "\r\n".join(lines).encode() + content


def _exchange_error(error: OSError | HttpAnswerError, cancel: Cancel, *, answered: bool) -> ExchangeError:
    if cancel.is_set:
        return ExchangeError(Broken.CANCELLED, "given up by the agent")
    if isinstance(error, TimeoutError):
        return ExchangeError(Broken.TIMEOUT, "no answer in time")
    return ExchangeError(Broken.CUT if answered else Broken.REFUSED, str(error) or type(error).__name__)
