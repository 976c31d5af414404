"""The HTTP side: routes, headers, framing and access lines as Go and gin write them."""

from __future__ import annotations

import ipaddress
import json
import random
import socket
import socketserver
import sys
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import standin_show
from standin_answers import Chat, Generate, OpenAi, compact, v1_error
from standin_chat import JSON, AnswerError, Conversation, Request, find, turns_of
from standin_engine import Engine, slog
from standin_speech import Turn
from standin_store import Store, as_list, as_object, go_json_error

if TYPE_CHECKING:
    from standin_settings import Settings

TEXT = "text/plain"
CHUNKED_FROM = 2048  # bytes of a plain answer from which on Go does not know its length any more


class GoneError(Exception):
    """The client closed the connection."""


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 256
    allow_reuse_address = True

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.address_family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        self.store = Store(settings.models, slog)
        self.engine = Engine(settings, slog)
        super().__init__((settings.host, settings.port), Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # without the name look-up of HTTPServer
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @property
    def is_local(self) -> bool:
        return ipaddress.ip_address(str(self.server_address[0])).is_loopback


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def _serve(self) -> None:
        self.started_ns = time.monotonic_ns()
        self._status = 0
        self.is_streaming = False
        path = self.path.partition("?")[0]
        try:
            self._body = self._read_body()
            self._route(path)
        except AnswerError as error:
            self.whole(error.status, JSON, compact({"error": error.text}))
        except (GoneError, ConnectionError):
            self._status = self._status or 499
            self.close_connection = True
            self.server.engine.counts["clients_gone"] += 1
        finally:
            if not path.startswith("/standin/"):
                self._log_access()

    # the names are http.server's
    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = _serve  # noqa: N815 - as above

    def _route(self, path: str) -> None:
        if self.server.is_local and not self._host_allowed():
            self._head(403, {"Content-Length": "0"})
            return
        if path == "/standin/fault" and not self.server.settings.control:
            path = ""
        methods = ROUTES.get(path)
        if methods is None:
            self.whole(404, TEXT, "404 page not found")
        elif self.command not in methods:
            old = self.server.settings.profile.old
            self.whole(404 if old else 405, TEXT, "404 page not found" if old else "405 method not allowed")
        else:
            methods[self.command](self)

    def _host_allowed(self) -> bool:
        host = self.headers.get("Host", "").lower()
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            own = {"", "localhost", socket.gethostname().lower()}
            return name in own or name.endswith((".localhost", ".local", ".internal"))
        return address.is_loopback or address.is_private or address.is_unspecified

    # --- plain answers -----------------------------------------------------------------------------------------------

    def root(self) -> None:
        self.whole(200, "text/plain; charset=utf-8", "Ollama is running")

    def version(self) -> None:
        self.whole(200, JSON, compact({"version": self.server.settings.profile.version}))

    def tags(self) -> None:
        self.whole(200, JSON, standin_show.tags(self.server.settings.profile, self.server.store.models()))

    def ps(self) -> None:
        engine = self.server.engine
        rows = [(runner, engine.video_bytes(runner)) for runner in engine.running()]
        self.whole(200, JSON, standin_show.running(self.server.settings.profile, rows, time.time_ns()))

    def v1_models(self) -> None:
        self.whole(200, "application/json", standin_show.v1_models(self.server.store.models()))

    def show(self) -> None:
        body = self._object()
        name = str(body.get("model") or body.get("name") or "")
        profile = self.server.settings.profile
        model = find(self.server.store, profile, name, chat=False)
        verbose = bool(body.get("verbose")) or profile.old
        self.whole(200, JSON, standin_show.show(profile, model, standin_show.voice(model, name), verbose=verbose))

    def refuse(self) -> None:
        raise AnswerError(501, "the stand-in does not change its store")

    def state(self) -> None:
        self.whole(200, JSON, self.server.engine.state())

    def fault(self) -> None:
        try:
            self.server.engine.faults.set(self._body.decode("utf-8"))
        except ValueError as error:
            raise AnswerError(400, str(error)) from error
        self.state()

    def chat(self) -> None:
        body = self._object()
        name, messages = str(body.get("model") or ""), body.get("messages") or []
        if not isinstance(messages, list):
            kind = {"str": "string", "dict": "object", "bool": "bool"}.get(type(messages).__name__, "number")
            field = "Go struct field ChatRequest.messages of type []api.Message"
            raise AnswerError(400, f"json: cannot unmarshal {kind} into {field}")
        if not name:
            raise AnswerError(400, "model is required")
        self._converse(Chat(self.server.settings.profile, name), body, turns_of(messages), chat=True)

    def generate(self) -> None:
        body = self._object()
        prompt = str(body.get("prompt") or "")
        dialect = Generate(self.server.settings.profile, str(body.get("model") or ""))
        self._converse(dialect, body, [Turn("user", prompt)] if prompt else [], chat=False)

    def v1_chat(self) -> None:
        try:
            body = self._object()
        except AnswerError as error:
            self.whole(400, JSON, v1_error(error.text, "invalid_request_error"))
            return
        turns = turns_of(as_list(body.get("messages")))
        if not turns:
            self.whole(400, JSON, v1_error("[] is too short - 'messages'", "invalid_request_error"))
            return
        usage = bool(as_object(body.get("stream_options")).get("include_usage"))
        name, number = str(body.get("model") or ""), random.randrange(1000)
        dialect = OpenAi(self.server.settings.profile, name, number, usage=usage)
        effort = body.get("reasoning_effort")
        same = {"stream": bool(body.get("stream")), "think": False if effort == "none" else effort}
        limit = {"num_predict": body["max_tokens"]} if "max_tokens" in body else {}
        try:
            self._converse(dialect, {**same, "options": limit}, turns, chat=True)
        except AnswerError as error:
            self.whole(error.status, dialect.media_type_whole, dialect.error(error.status, error.text))

    def _converse(self, dialect: Chat, body: dict[str, object], turns: list[Turn], *, chat: bool) -> None:
        num_ctx = self.server.settings.context_length
        request = Request.parse(dialect, body, turns, chat=chat, num_ctx=num_ctx)
        Conversation(self.server.store, self.server.engine, self).answer(request)

    # --- the wire ----------------------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Raises GoneError when the client has closed the connection."""
        try:
            gone = self.connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            gone = False
        if gone:
            raise GoneError

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().partition(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _object(self) -> dict[str, object]:
        text = self._body.decode("utf-8", "replace")
        if not text:
            raise AnswerError(400, "missing request body")
        try:
            return as_object(json.loads(text))
        except json.JSONDecodeError as error:
            raise AnswerError(400, go_json_error(text, error)) from error

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self._status = status
        reason = self.responses[status][0] if status in self.responses else ""
        kind = {"Content-Type": headers.pop("Content-Type")} if "Content-Type" in headers else {}
        lines = {**kind, "Date": formatdate(usegmt=True), **headers}
        text = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        self.wfile.write(f"HTTP/1.1 {status} {reason}\r\n{text}\r\n".encode())

    def whole(self, status: int, media_type: str, text: str) -> None:
        data = text.encode()
        if len(data) > CHUNKED_FROM and self.command != "HEAD":
            self._head(status, {"Content-Type": media_type, "Transfer-Encoding": "chunked"})
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(data), data))
            return
        self._head(status, {"Content-Type": media_type, "Content-Length": str(len(data))})
        self.wfile.write(b"" if self.command == "HEAD" else data)

    def chunk(self, media_type: str, text: str, *, ends: bool = False) -> None:
        """A piece of a stream. The headers go out with the first of them, not before."""
        if not self.is_streaming:
            self.is_streaming = True
            self._head(200, {"Content-Type": media_type, "Transfer-Encoding": "chunked"})
        data = text.encode()
        self.wfile.write((b"%x\r\n%s\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if ends else b""))

    def _log_access(self) -> None:
        taken = standin_show.go_duration(time.monotonic_ns() - self.started_ns)
        client = self.headers.get("X-Forwarded-For", "").partition(",")[0].strip() or self.client_address[0]
        stamp = time.strftime("%Y/%m/%d - %H:%M:%S")
        line = f'[GIN] {stamp} | {self._status:3d} | {taken:>13} | {client:>15} | {self.command:<7}  "{self.path}"'
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def log_message(self, *_: object) -> None:
        """The base class logs to stderr; `_log_access` has said it all."""


ROUTES = {
    "/": dict.fromkeys(("GET", "HEAD"), Handler.root),
    "/api/version": dict.fromkeys(("GET", "HEAD"), Handler.version),
    "/api/tags": dict.fromkeys(("GET", "HEAD"), Handler.tags),
    "/api/ps": {"GET": Handler.ps},
    "/api/show": {"POST": Handler.show},
    "/api/chat": {"POST": Handler.chat},
    "/api/generate": {"POST": Handler.generate},
    "/v1/chat/completions": {"POST": Handler.v1_chat},
    "/v1/models": {"GET": Handler.v1_models},
    "/api/pull": {"POST": Handler.refuse},
    "/api/create": {"POST": Handler.refuse},
    "/api/copy": {"POST": Handler.refuse},
    "/api/delete": {"DELETE": Handler.refuse},
    "/standin/state": {"GET": Handler.state},
    "/standin/fault": {"POST": Handler.fault},
}
