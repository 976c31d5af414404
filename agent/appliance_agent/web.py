"""A small HTTP server for a handful of readers: a thread each, a deadline for everything, no one can stall another.

Knows sockets and deadlines; what is answered is `pages`' business. Plain TCP today: `_Connection` is made from a socket
that is already accepted, so a TLS handshake belongs to the beginning of its `serve`, within the request's deadline.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import selectors
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Final

from appliance_agent import http_head
from appliance_agent.http_head import Answer, RefusedRequest, Request
from appliance_image.errors import ApplianceError

CONNECTIONS: Final = 16
_REFUSALS = 8  # beyond CONNECTIONS: told 503; beyond that: closed without a word
_REQUEST_S = 5.0  # from the first moment to the end of the head
_REFUSAL_S = 1.0
_SILENT_S = 1.0  # a newcomer that has said nothing for so long makes room for others
_IDLE_S = 75.0  # a kept connection without a new request; it makes room for newcomers before that
_ANSWER_S = 10.0
_LINGER_S = 0.5  # for the peer to read an error before the connection is reset
_PAUSE_S = 0.2  # after an error of accept, when there are no descriptors left
_BUSY = Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"too many connections\n", headers={"Retry-After": "1"})

_LOG = logging.getLogger(__name__)

Pages = Callable[[Request, str], Answer]  # the second word is the own address that the client reached


class WebError(ApplianceError):
    pass


class WebServer:
    def __init__(self, address: str, port: int, pages: Pages) -> None:
        self._address = address
        self._port = port
        self._pages = pages
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._open: dict[_Connection, None] = {}  # oldest first
        self._closing = threading.Event()

    @property
    def port(self) -> int:
        """What was bound: the port of the configuration, or the one that the kernel chose for 0."""
        return int(self._listener.getsockname()[1]) if self._listener else self._port

    def open(self) -> None:
        """Bound when this returns. Raises WebError."""
        self._listener = _listen(self._address, self._port)
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), name="web", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        self._closing.set()
        if self._listener and self._acceptor:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the selector
            self._acceptor.join()
            self._listener.close()
        with self._lock:
            connections = list(self._open)
        for connection in connections:
            connection.cut()
        for connection in connections:
            connection.thread.join()

    def _accept(self, listener: socket.socket) -> None:
        with selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            while not self._closing.is_set():
                selector.select()
                try:
                    peer, _ = listener.accept()
                except BlockingIOError:
                    continue
                except OSError as error:
                    if not self._closing.wait(_PAUSE_S):
                        _LOG.warning("accepting a connection: %s", error)
                    continue
                self._take(peer)

    def _take(self, peer: socket.socket) -> None:
        with self._lock:
            count = len(self._open)
            idle = next((known for known in self._open if known.idle), None) if count >= CONNECTIONS else None
            if count >= CONNECTIONS + _REFUSALS:
                peer.close()
                return
            connection = _Connection(peer, self._pages, refuse=count >= CONNECTIONS and idle is None, ended=self._ended)
            self._open[connection] = None
        if idle:
            idle.cut()
        try:
            connection.thread.start()
        except RuntimeError:  # no more threads
            self._ended(connection)
            peer.close()

    def _ended(self, connection: _Connection) -> None:
        with self._lock:
            self._open.pop(connection, None)


class _Connection:
    """One peer, from accept to close, in its own thread."""

    def __init__(
        self, peer: socket.socket, pages: Pages, *, refuse: bool, ended: Callable[[_Connection], None]
    ) -> None:
        self._peer = peer
        self._pages = pages
        self._refuse = refuse
        self._ended = ended
        self._received = b""
        self._kept = False  # it has had an answer
        self._waits_since_s: float | None = None  # for the first byte of a request
        self.thread = threading.Thread(target=self._run, name="web-peer", daemon=True)

    @property
    def idle(self) -> bool:
        since_s = self._waits_since_s
        return since_s is not None and (self._kept or time.monotonic() - since_s > _SILENT_S)

    def cut(self) -> None:
        """From another thread: the reads and writes of this connection end at once."""
        self._waits_since_s = None
        with suppress(OSError):
            self._peer.shutdown(socket.SHUT_RDWR)

    def _run(self) -> None:
        try:
            with self._peer:
                self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._serve()
        except OSError:
            pass  # the peer left
        finally:
            self._ended(self)

    def _serve(self) -> None:
        deadline_s = time.monotonic() + (_REFUSAL_S if self._refuse else _REQUEST_S)
        keep_alive = True
        while keep_alive:
            try:
                request = self._next(deadline_s)
            except RefusedRequest as refused:
                self._refused(refused)
                return
            if request is None:
                return
            answer = _BUSY if self._refuse else self._answer(request)
            keep_alive = request.keep_alive and not self._refuse
            self._send(answer, body=request.method != "HEAD", keep_alive=keep_alive)
            self._kept = True
            deadline_s = time.monotonic() + _IDLE_S
        self._linger()

    def _next(self, deadline_s: float) -> Request | None:
        """None when the peer closed the connection, or kept it without a word. Raises RefusedRequest."""
        if self._received:
            deadline_s = time.monotonic() + _REQUEST_S
        while (taken := http_head.take(self._received)) is None:
            self._waits_since_s = None if self._received else time.monotonic()
            try:
                more = self._receive(deadline_s)
            except TimeoutError:
                if not self._received:
                    return None
                raise RefusedRequest(HTTPStatus.REQUEST_TIMEOUT, "the request did not end in time") from None
            finally:
                self._waits_since_s = None
            if not more:
                return None
            if not self._received:
                deadline_s = min(deadline_s, time.monotonic() + _REQUEST_S)
            self._received = (self._received + more).lstrip(b"\r\n")
        request, self._received = taken
        return request

    def _answer(self, request: Request) -> Answer:
        try:
            return self._pages(request, _own_address(self._peer))
        except Exception:  # noqa: BLE001 - one page that fails does not end the connection, and its log line has the traceback
            _LOG.exception("answering %s", request.path)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"this is a bug, the log of the agent has it\n")

    def _refused(self, refused: RefusedRequest) -> None:
        allow = {"Allow": "GET, HEAD"} if refused.status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        answer = Answer(refused.status, f"{refused.reason}\n".encode(), headers=allow)
        self._send(answer, body=True, keep_alive=False)
        self._linger()

    def _send(self, answer: Answer, *, body: bool, keep_alive: bool) -> None:
        head = http_head.render(answer, keep_alive=keep_alive, date=formatdate(usegmt=True))
        rest = memoryview(head + answer.body if body else head)
        deadline_s = time.monotonic() + _ANSWER_S
        while rest:
            self._peer.settimeout(_left(deadline_s))
            rest = rest[self._peer.send(rest) :]

    def _receive(self, deadline_s: float) -> bytes:
        self._peer.settimeout(_left(deadline_s))
        return self._peer.recv(http_head.HEAD_BYTES)

    def _linger(self) -> None:
        """A socket that is closed with unread bytes is reset, and the answer is lost with it."""
        self._peer.shutdown(socket.SHUT_WR)
        deadline_s = time.monotonic() + _LINGER_S
        with suppress(TimeoutError):
            while self._receive(deadline_s):
                pass


def _left(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s


def _own_address(peer: socket.socket) -> str:
    """`192.0.2.7:9440` or `[2001:db8::7]:9440`: where the peer reached this server."""
    host, port = peer.getsockname()[:2]
    address = ipaddress.ip_address(str(host).partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        mapped = address.ipv4_mapped
        return f"{mapped}:{port}" if mapped else f"[{address}]:{port}"
    return f"{address}:{port}"


def _listen(address: str, port: int) -> socket.socket:
    with ExitStack() as stack:
        try:
            listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM)
            stack.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if listener.family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)  # `::` is every address of the host
            listener.bind((address, port))
            listener.listen(64)
            listener.setblocking(False)
        except OSError as error:
            raise _told(error, address, port) from error
        stack.pop_all()
    return listener


def _told(error: OSError, address: str, port: int) -> WebError:
    where = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
    match error.errno:
        case errno.EADDRINUSE:
            hint = f"`ss -ltnp 'sport = :{port}'` names the program; or choose another `port` in [metrics]"
            return WebError(f"cannot serve metrics on {where}: the port is in use", hint=hint)
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            hint = "`ip address` lists the addresses of this host; `0.0.0.0` in [metrics] is all of them"
            return WebError(f"cannot serve metrics on {where}: not an address of this host", hint=hint)
        case errno.EACCES | errno.EPERM:
            hint = "choose a `port` from 1024 on in [metrics]"
            return WebError(f"cannot serve metrics on {where}: not allowed", hint=hint)
        case _:
            hint = "see `address` and `port` in [metrics] of the configuration"
            return WebError(f"cannot serve metrics on {where}: {error.strerror}", hint=hint)
