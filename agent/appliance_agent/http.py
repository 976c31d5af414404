"""Requests to the model servers over httpx, which no other module of the agent imports. A status is never an error.

Measured: httpx costs 11 MiB of memory beside the Docker client and 3 ms of CPU time for a canary with its `/api/ps`
(http.client: 1 ms). Who finds that too much has this one file to change.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import httpx

CONNECT_S: Final = 5.0
_HEAD_BYTES: Final = 170  # a status line and headers of Ollama's, about
_FRAME_BYTES: Final = 8  # around a chunk


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

    def url(self, path: str) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{self.port}{path}"


class Answer:
    """A response whose body is still on the wire."""

    def __init__(self, response: httpx.Response, meter: Meter) -> None:
        self.status: int = response.status_code
        self._response = response
        self._meter = meter

    def chunks(self) -> Iterator[bytes]:
        for chunk in self._response.iter_raw():
            self._meter.received_bytes += len(chunk) + _FRAME_BYTES
            yield chunk

    def body(self, *, limit_bytes: int = 1024 * 1024) -> bytes:
        """What is beyond the limit stays unread."""
        found = b""
        for chunk in self.chunks():
            found += chunk
            if len(found) > limit_bytes:
                break
        return found[:limit_bytes]


class Http:
    """One connection for each request, none kept. Safe to use from many threads; opens nothing before it is asked."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._transport: httpx.HTTPTransport | None = None

    @contextlib.contextmanager
    def exchange(
        self,
        server: Server,
        path: str,
        body: Mapping[str, object] | None = None,
        *,
        cancel: Cancel,
        silence_s: float | None,
    ) -> Generator[Answer]:
        """GET, or POST with a body. `silence_s` bounds every wait for bytes, None waits for ever. Raises ExchangeError."""
        import httpx  # noqa: PLC0415 - 11 MiB, and `ollama-agent status` needs none of it

        request = httpx.Request(
            "GET" if body is None else "POST",
            server.url(path),
            content=None if body is None else json.dumps(body).encode(),
            headers={"User-Agent": "ollama-agent", "Content-Type": "application/json", "Connection": "close"},
            extensions={
                "timeout": {"connect": CONNECT_S, "read": silence_s, "write": CONNECT_S, "pool": None},
                "trace": _tell(cancel),
            },
        )
        server.meter.connections += 1
        answer: Answer | None = None
        try:
            response = self._opened().handle_request(request)
            server.meter.received_bytes += _HEAD_BYTES
            answer = Answer(response, server.meter)
            with contextlib.closing(response):
                yield answer
        except httpx.TransportError as error:
            raise _exchange_error(error, cancel, answered=answer is not None) from error
        finally:
            server.meter.connections -= 1

    def close(self) -> None:
        with self._lock:
            if self._transport is not None:
                self._transport.close()
                self._transport = None

    def _opened(self) -> httpx.HTTPTransport:
        import httpx  # noqa: PLC0415 - as above

        with self._lock:
            if self._transport is None:
                limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
                self._transport = httpx.HTTPTransport(verify=False, trust_env=False, limits=limits)
            return self._transport


def _tell(cancel: Cancel) -> Callable[[str, Mapping[str, Any]], None]:
    """httpcore tells every step of an exchange; with the connection's socket a waiting read can be ended."""

    def trace(event: str, info: Mapping[str, Any]) -> None:
        if event == "connection.connect_tcp.complete":
            link = info["return_value"].get_extra_info("socket")
            if isinstance(link, socket.socket):
                cancel.hold(link)

    return trace


def _exchange_error(error: httpx.TransportError, cancel: Cancel, *, answered: bool) -> ExchangeError:
    import httpx  # noqa: PLC0415 - as above

    detail = str(error) or type(error).__name__
    if cancel.is_set:
        return ExchangeError(Broken.CANCELLED, "given up by the agent")
    if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout):
        return ExchangeError(Broken.TIMEOUT, "no answer in time")
    return ExchangeError(Broken.CUT if answered else Broken.REFUSED, detail)
