"""An HTTP/1.1 proxy before one server, which does to chosen exchanges what networks, proxies and registries do.

    proxy.add(Cut(after=1000), method="GET", path=r"/blobs/", nth=1)
    proxy.add(Answer(429, headers={"Retry-After": "1"}), path=r"/blobs/uploads/", times=2)
    proxy.add(DropResponse(), method="PUT")          # carried out, but the client never learns

All rules that match apply together; bodies stream through. Every exchange is in `requests()`.
"""

import contextlib
import re
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from urllib.parse import urlsplit

from faults import Answer, CutError, DropResponse, Fault, How, IgnoreRange, Side, Stall, changed_head, faulty
from httpwire import (
    BAD_REQUEST,
    Head,
    WireError,
    framed,
    read_body,
    read_head,
    reader,
    request_framing,
    response_framing,
)

_TLS_HANDSHAKE = b"\x16"
_NOT_TLS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTPS request to an HTTP server.\n"


@dataclass(slots=True)
class Rule:
    fault: Fault
    method: str
    path: re.Pattern[str]
    host: re.Pattern[str]
    nth: int | None
    times: int | None
    seen: int = 0
    hits: int = 0

    def takes(self, head: Head) -> bool:
        """Whether this request gets the fault; counts it."""
        if (self.method and self.method != head.method) or not self.path.search(head.target):
            return False
        if not self.host.search(head.get("Host")) or (self.times is not None and self.hits >= self.times):
            return False
        self.seen += 1
        if self.nth is not None and self.seen != self.nth:
            return False
        self.hits += 1
        return True


@dataclass(slots=True)
class Exchange:
    """What went through; header names in lower case. `request_bytes` reached the server, `response_bytes` the client."""

    method: str
    path: str
    query: str
    host: str
    headers: dict[str, str]
    faults: tuple[Fault, ...]
    status: int = 0
    request_bytes: int = 0
    response_bytes: int = 0
    response_headers: dict[str, str] = field(default_factory=dict)
    error: str = ""
    finished: bool = False


class FaultProxy:
    def __init__(self, upstream: tuple[str, int], *, tls: ssl.SSLContext | None = None) -> None:
        self._upstream = upstream
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"{'https' if tls else 'http'}://{self.host}"
        self._changed = threading.Condition()
        self._rules: list[Rule] = []
        self._log: list[Exchange] = []
        self._clients: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def start(self) -> "FaultProxy":
        self._spawn(self._accept)
        return self

    def close(self) -> None:
        self.clear()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        with self._changed:
            clients, threads = list(self._clients), list(self._threads)
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(timeout=10)
        self._listener.close()

    def add(
        self,
        fault: Fault,
        *,
        method: str = "",
        path: str = "",
        host: str = "",
        nth: int | None = None,
        times: int | None = None,
    ) -> Rule:
        """`path` and `host` are searched for as regular expressions, `path` in the target with its query."""
        rule = Rule(fault, method, re.compile(path), re.compile(host), nth, times)
        with self._changed:
            self._rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        with self._changed:
            self._rules.remove(rule)
        if isinstance(rule.fault, Stall):
            rule.fault.release()

    def clear(self) -> None:
        """No more rules; whatever stalls goes on."""
        for rule in list(self._rules):
            self.remove(rule)

    def requests(self, method: str = "", path: str = "") -> list[Exchange]:
        with self._changed:
            return [each for each in self._log if (not method or each.method == method) and re.search(path, each.path)]

    def forget(self) -> None:
        with self._changed:
            self._log.clear()

    def wait_for(self, seen: Callable[[list[Exchange]], bool], *, timeout_s: float = 30) -> None:
        """Until `seen`, asked after each piece of each body, says yes of the log."""
        with self._changed:
            if not self._changed.wait_for(lambda: seen(self._log), timeout_s):
                raise TimeoutError(f"not seen within {timeout_s:g} s")

    def _spawn(self, work: Callable[[], None]) -> None:
        thread = threading.Thread(target=work, daemon=True)
        with self._changed:
            self._threads = [each for each in self._threads if each.is_alive() or not each.ident]
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._spawn(lambda client=client: self._converse(client))  # type: ignore[misc]  # a default binds the loop's value

    def _converse(self, plain: socket.socket) -> None:
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(plain)
            try:
                if self._tls:
                    client = stack.enter_context(self._tls.wrap_socket(plain, server_side=True))
                with self._changed:
                    self._clients.add(client)
                stream = stack.enter_context(reader(client))
                if stream.peek(1)[:1] == _TLS_HANDSHAKE:
                    client.sendall(_NOT_TLS)  # as Go's servers do; a client that tries TLS first learns from it
                    return
                while (head := _next_head(client, stream)) and self._handle(client, stream, head):
                    pass
            except CutError as cut:
                _end(client, cut.how)
            except (OSError, WireError):
                pass  # noted in the log; the client, if it is still there, sees the connection end
            finally:
                with self._changed:
                    self._clients.discard(client)

    def _handle(self, client: socket.socket, stream: BufferedReader, head: Head) -> bool:
        """One exchange; whether the connection can carry another."""
        target = urlsplit(head.target)
        with self._changed:
            faults = tuple(rule.fault for rule in self._rules if rule.takes(head))
            entry = Exchange(head.method, target.path, target.query, head.get("Host"), _lowered(head), faults)
            self._log.append(entry)
        try:
            return _Carrier(self, entry, client, stream).carry(head)
        except (OSError, WireError, CutError) as error:
            entry.error = f"{type(error).__name__}: {error}"
            raise
        finally:
            entry.finished = True
            self.note()

    def note(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def dial(self) -> socket.socket:
        upstream = socket.create_connection(self._upstream)
        upstream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return upstream

    @property
    def scheme(self) -> str:
        return "https" if self._tls else "http"


class _Carrier:
    """One exchange on its way through the proxy."""

    def __init__(self, proxy: FaultProxy, entry: Exchange, client: socket.socket, stream: BufferedReader) -> None:
        self._proxy = proxy
        self._entry = entry
        self._client = client
        self._stream = stream

    def carry(self, head: Head) -> bool:
        answer = next((fault for fault in self._entry.faults if isinstance(fault, Answer)), None)
        if answer and answer.early:
            self._reply(answer)
            _end(self._client, "fin")
            return False
        if head.get("Expect"):
            self._client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        framing = request_framing(head)
        body = self._through(read_body(self._stream, head, framing), "request")
        if answer and not answer.carry_out:
            for _ in body:
                pass
            self._reply(answer)
            return True
        with self._proxy.dial() as upstream, reader(upstream) as back:
            whole = self._send_request(upstream, head, framed(body, framing))
            response = read_head(back)
            while response and response.status < 200:
                response = read_head(back)
            if response is None:
                raise WireError("the server ended the connection without an answer")
            again = self._send_response(response, back, answer)
        if not whole:
            _end(self._client, "fin")
        return whole and again

    def _send_request(self, upstream: socket.socket, head: Head, wire: Iterator[bytes]) -> bool:
        """False if the server answered before it had everything."""
        head = head.without("Connection", "Keep-Alive", "Proxy-Connection", "Expect")
        if any(isinstance(fault, IgnoreRange) for fault in self._entry.faults):
            head = head.without("Range")
        head = head.with_field("Connection", "close").with_field("X-Forwarded-Proto", self._proxy.scheme)
        upstream.sendall(head.encode())
        return all(_send_unless_answered(upstream, piece) for piece in wire)

    def _send_response(self, head: Head, back: BufferedReader, answer: Answer | None) -> bool:
        entry = self._entry
        framing = response_framing(head, entry.method)
        body = read_body(back, head, framing)
        dropped = next((fault for fault in entry.faults if isinstance(fault, DropResponse)), None)
        if answer or dropped:
            for _ in body:
                pass
            if dropped:
                raise CutError(dropped.how)
        if answer:
            self._reply(answer)
            return True
        head, framing = changed_head(head, framing, entry.faults)
        entry.status = head.status
        entry.response_headers = _lowered(head)
        self._client.sendall(head.encode())
        for piece in framed(self._through(body, "response"), framing):
            self._client.sendall(piece)
        return True

    def _reply(self, answer: Answer) -> None:
        entry = self._entry
        body = b"" if entry.method == "HEAD" else answer.body
        fields = {"Content-Length": str(len(answer.body)), **answer.headers}
        if answer.early:
            fields["Connection"] = "close"
        head = Head(f"HTTP/1.1 {answer.status} Fault", tuple(fields.items()))
        entry.status, entry.response_headers, entry.response_bytes = answer.status, _lowered(head), len(body)
        self._client.sendall(head.encode() + body)

    def _through(self, pieces: Iterator[bytes], side: Side) -> Iterator[bytes]:
        for fault in self._entry.faults:
            pieces = faulty(pieces, fault, side)
        for piece in pieces:
            if side == "request":
                self._entry.request_bytes += len(piece)
            else:
                self._entry.response_bytes += len(piece)
            self._proxy.note()
            yield piece


def _next_head(client: socket.socket, stream: BufferedReader) -> Head | None:
    try:
        return read_head(stream)
    except WireError:
        # An engine that tries TLS first takes the hint from such an answer, as it would from Go's servers.
        client.sendall(BAD_REQUEST)
        _end(client, "fin")
        return None


def _lowered(head: Head) -> dict[str, str]:
    return {name.lower(): value for name, value in head.fields}


def _send_unless_answered(upstream: socket.socket, piece: bytes) -> bool:
    view = memoryview(piece)
    while view:
        readable, _, _ = select.select([upstream], [upstream], [])
        if readable:
            return False
        view = view[upstream.send(view, socket.MSG_DONTWAIT) :]
    return True


def _end(client: socket.socket, how: How) -> None:
    if how == "rst":
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return  # whoever closes it now sends the reset
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        client.settimeout(10)
        # Unread bytes would turn the close into a reset.
        while client.recv(256 * 1024):
            pass
