"""A small HTTP server for a handful of readers: a thread each, a deadline for everything, no one can stall another.

Knows sockets and deadlines; what is answered is `pages`' business, who may ask the `door`'s. A TLS handshake is the
beginning of a connection's own thread, within the deadline of its first request.
"""

from __future__ import annotations

import logging
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from email.utils import formatdate
from http import HTTPStatus
from typing import Final, Protocol

from appliance_agent import http_head
from appliance_agent.http_head import Answer, RefusedRequest, Request
from appliance_agent.web_listen import Place, own_address

CONNECTIONS: Final = 16
_REFUSALS = 8  # beyond CONNECTIONS: told 503; beyond that: closed without a word
_REQUEST_S = 5.0  # from the first moment to the end of the head
_REFUSAL_S = 1.0
_SILENT_S = 1.0  # a newcomer that has said nothing for so long makes room for others
_IDLE_S = 75.0  # a kept connection without a new request; it makes room for newcomers before that
_ANSWER_S = 10.0
_LINGER_S = 0.5  # for the peer to read an error before the connection is reset
_PAUSE_S = 0.2  # after an error of accept, when there are no descriptors left
_TLS_HANDSHAKE = b"\x16"  # the first byte of whoever speaks TLS
_BUSY = Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"too many connections\n", headers={"Retry-After": "1"})
_NOT_TLS = Answer(HTTPStatus.BAD_REQUEST, b"this port speaks TLS: ask https://\n")

_LOG = logging.getLogger(__name__)

Pages = Callable[[Request, str], Answer]  # the second word is the own URL that the client reached


class Door(Protocol):
    """Each method says what is in force at that moment."""

    def tls(self) -> ssl.SSLContext | None: ...

    def refusal(self, request: Request) -> Answer | None:
        """None for whoever may ask."""
        ...

    def headers(self) -> Mapping[str, str]:
        """Of every answer."""
        ...


class WebServer:
    def __init__(self, place: Place, pages: Pages, door: Door | None = None) -> None:
        self._place = place
        self._pages = pages
        self._door = door
        self._listener: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        self._lock = threading.Lock()
        self._open: dict[_Connection, None] = {}  # oldest first
        self._closing = threading.Event()

    @property
    def port(self) -> int:
        """The one that was bound; 0 before that."""
        return int(self._listener.getsockname()[1]) if self._listener else 0

    def open(self) -> None:
        """Bound when this returns. Raises WebError."""
        self._listener = self._place.listen()
        self._acceptor = threading.Thread(target=self._accept, args=(self._listener,), name="web", daemon=True)
        self._acceptor.start()

    def close(self) -> None:
        self._closing.set()
        if self._listener and self._acceptor:
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # wakes the selector
            self._acceptor.join()
            self._listener.close()
            self._place.leave()
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
            refuse = count >= CONNECTIONS and idle is None
            connection = _Connection(peer, self._pages, self._door, refuse=refuse, ended=self._ended)
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
        self,
        peer: socket.socket,
        pages: Pages,
        door: Door | None,
        *,
        refuse: bool,
        ended: Callable[[_Connection], None],
    ) -> None:
        self._peer = peer
        self._pages = pages
        self._door = door
        self._scheme = "http"
        self._cut = False
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
        self._cut = True
        with suppress(OSError):
            socket.socket.shutdown(self._peer, socket.SHUT_RDWR)  # not that of TLS, which may be in use there

    def _run(self) -> None:
        try:
            if self._peer.family != socket.AF_UNIX:
                self._peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._serve()
        except OSError:
            pass  # the peer left
        finally:
            self._peer.close()
            self._ended(self)

    def _serve(self) -> None:
        deadline_s = time.monotonic() + (_REFUSAL_S if self._refuse else _REQUEST_S)
        context = self._door.tls() if self._door else None
        keep_alive = context is None or self._shakes_hands(context, deadline_s)
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
        if self._kept:
            self._linger()

    def _shakes_hands(self, context: ssl.SSLContext, deadline_s: float) -> bool:
        """False when the peer wants no TLS."""
        self._waits_since_s = time.monotonic()  # one that is slow with this makes room for others
        self._peer.settimeout(_left(deadline_s))
        first = self._peer.recv(1, socket.MSG_PEEK)
        if first != _TLS_HANDSHAKE:
            if first:
                self._send(_NOT_TLS, body=True, keep_alive=False)
                self._linger()
            return False
        self._peer = peer = context.wrap_socket(self._peer, server_side=True, do_handshake_on_connect=False)
        if self._cut:  # while it changed hands
            return False
        peer.settimeout(_left(deadline_s))
        peer.do_handshake()
        self._scheme, self._waits_since_s = "https", None
        return True

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
            refusal = self._door.refusal(request) if self._door else None
            return refusal or self._pages(request, f"{self._scheme}://{own_address(self._peer)}")
        except Exception:  # noqa: BLE001 - one page that fails does not end the connection, and its log line has the traceback
            _LOG.exception("answering %s", request.path)
            return Answer(HTTPStatus.INTERNAL_SERVER_ERROR, b"this is a bug, the log of the agent has it\n")

    def _refused(self, refused: RefusedRequest) -> None:
        allow = {"Allow": "GET, HEAD"} if refused.status is HTTPStatus.METHOD_NOT_ALLOWED else {}
        answer = Answer(refused.status, f"{refused.reason}\n".encode(), headers=allow)
        self._send(answer, body=True, keep_alive=False)
        self._linger()

    def _send(self, answer: Answer, *, body: bool, keep_alive: bool) -> None:
        more: Mapping[str, str] = self._door.headers() if self._door else {}
        head = http_head.render(answer, more, keep_alive=keep_alive, date=formatdate(usegmt=True))
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
        deadline_s = time.monotonic() + _LINGER_S
        if isinstance(self._peer, ssl.SSLSocket):  # whose own farewell says that nothing was cut off
            self._peer.settimeout(_LINGER_S)
            with suppress(OSError, ValueError):
                self._peer.unwrap()
        self._peer.shutdown(socket.SHUT_WR)
        with suppress(TimeoutError):
            while self._receive(deadline_s):
                pass


def _left(deadline_s: float) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    return left_s
