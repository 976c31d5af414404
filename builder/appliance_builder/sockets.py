"""TCP and TLS streams below the HTTP client: large reads, writes without copies, and an ear for an answer that comes
before the request's end. Knows no HTTP beyond that."""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager

import httpcore

_READ_BYTES = 512 * 1024  # the client's own 64 KiB cost a third of the throughput, more where bytes are hashed
_INFORMATIONAL = b"HTTP/1.1 1"

# A firewall or load balancer forgets a connection that was silent for minutes, as one that awaits a commit is. One that
# was forgotten ends after three minutes.
_ALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6))

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class SocketBackend(httpcore.NetworkBackend):
    def __init__(self) -> None:
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.NetworkStream:
        options = [*(socket_options or ()), *_keepalive()]
        return _Stream(self._plain.connect_tcp(host, port, timeout, local_address, options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream
        self._socket: socket.socket = stream.get_extra_info("socket")
        self._heard: list[bytes] = []  # read while sending

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ARG002  # the client's wish is too small
        if self._heard:
            return self._heard.pop(0)
        with _mapped(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(timeout)
            first = self._socket.recv(_READ_BYTES)
        if first and isinstance(self._socket, ssl.SSLSocket):
            return first + b"".join(self._records(self._socket, len(first)))
        return first

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        view = memoryview(buffer)
        with _mapped(httpcore.WriteTimeout, httpcore.WriteError):
            self._socket.settimeout(0)
            while view:
                if self._answered():
                    raise httpcore.WriteError("answered before the end of the request")
                try:
                    view = view[self._socket.send(view) :]
                except (BlockingIOError, ssl.SSLWantWriteError):
                    self._wait(select.POLLIN | select.POLLOUT, timeout)
                except ssl.SSLWantReadError:
                    self._wait(select.POLLIN, timeout)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, timeout)
        # TLS inside the TLS of a proxy has no socket of its own to read from.
        return _Stream(secured) if isinstance(secured.get_extra_info("socket"), ssl.SSLSocket) else secured

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)

    def _records(self, secured: ssl.SSLSocket, size: int) -> Iterator[bytes]:
        """What else has arrived; one TLS record holds 16 KiB at most."""
        secured.settimeout(0)
        while size < _READ_BYTES:
            try:
                record = secured.recv(_READ_BYTES)
            except OSError:  # nothing yet; what else is wrong shows at the next read
                return
            if not record:
                return
            size += len(record)
            yield record

    def _answered(self) -> bool:
        """Whether the other side spoke or hung up while it was still being sent to: the rest would be sent for nothing."""
        if not _ready(self._socket, select.POLLIN, 0):
            return False
        try:
            heard = self._socket.recv(_READ_BYTES)
        except (BlockingIOError, ssl.SSLWantReadError):  # a TLS session ticket, for example
            return False
        self._heard.append(heard)
        return not heard.startswith(_INFORMATIONAL)

    def _wait(self, events: int, timeout: float | None) -> None:
        if not _ready(self._socket, events, timeout):
            raise TimeoutError


def _keepalive() -> Iterator[SocketOption]:
    yield socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1
    for name, value in _ALIVE:
        if hasattr(socket, name):  # not every system has each
            yield socket.IPPROTO_TCP, getattr(socket, name), value


def _ready(sock: socket.socket, events: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(sock, events)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


@contextmanager
def _mapped(timed_out: type[Exception], broken: type[Exception]) -> Generator[None]:
    try:
        yield
    except TimeoutError as error:
        raise timed_out(str(error)) from error
    except OSError as error:
        raise broken(str(error)) from error
