"""The token service of a registry: Basic credentials in, a signed token for the scopes asked for out."""

import base64
import json
import threading
import time
import uuid
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from authority import TokenSigner

SERVICE = "test registry"
ISSUER = "test token service"
# docker-registry accepts a token for a minute after its end.
REGISTRY_LEEWAY_S = 60


@dataclass(frozen=True, slots=True)
class TokenRequest:
    scopes: tuple[str, ...]
    user: str
    granted: bool


class TokenServer:
    """`lifetime_s` is the time after which the registry really refuses a token; `reported_s` what `expires_in` says."""

    def __init__(self, signer: TokenSigner, *, user: str, password: str, lifetime_s: int = 300) -> None:
        self.lifetime_s = lifetime_s
        self.reported_s: int | None = None
        self.anonymous_pull = False
        self.oauth = False
        self.asked: list[TokenRequest] = []
        self._signer = signer
        self._user = user
        self._expected = basic(user, password)
        self._server = _Server(self)
        self.port: int = self._server.server_address[1]
        self.realm = f"http://127.0.0.1:{self.port}/token"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> "TokenServer":
        self._thread.start()
        return self

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def change_password(self, password: str) -> None:
        self._expected = basic(self._user, password)

    def answer(self, query: dict[str, list[str]], authorization: str) -> tuple[int, dict[str, object]]:
        scopes = tuple(scope for text in query.get("scope", []) for scope in text.split())
        known = authorization == self._expected
        granted = known or (self.anonymous_pull and not authorization)
        self.asked.append(TokenRequest(scopes, self._user if known else "", granted))
        if not granted:
            return 401, {"errors": [{"code": "UNAUTHORIZED", "message": "wrong user or password"}]}
        allowed = {"pull", "push", "delete", "*"} if known else {"pull"}
        now_s = int(time.time())
        claims = {
            "iss": ISSUER,
            "sub": self._user if known else "",
            "aud": SERVICE,
            "iat": now_s,
            "nbf": now_s - REGISTRY_LEEWAY_S - 10,
            "exp": now_s + self.lifetime_s - REGISTRY_LEEWAY_S,
            "jti": uuid.uuid4().hex,
            "access": [_access(scope, allowed) for scope in scopes],
        }
        reported_s = self.lifetime_s if self.reported_s is None else self.reported_s
        token = self._signer.sign(claims)
        return 200, {"token": token, "access_token": token, "expires_in": reported_s}


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def _access(scope: str, allowed: set[str]) -> dict[str, object]:
    kind, _, rest = scope.partition(":")
    name, _, actions = rest.rpartition(":")
    return {"type": kind, "name": name, "actions": [action for action in actions.split(",") if action in allowed]}


class _Server(ThreadingHTTPServer):
    def __init__(self, tokens: TokenServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.tokens = tokens


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self._answer(query, self.headers.get("Authorization", ""))

    def do_POST(self) -> None:
        """OAuth 2's password grant. Not every token server has it; clients that try it first then ask with GET."""
        form = parse_qs(self.rfile.read(int(self.headers.get("Content-Length", "0"))).decode())
        if self.server.tokens.oauth:
            self._answer(form, basic(form.get("username", [""])[0], form.get("password", [""])[0]))
            return
        self.send_response(405)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _answer(self, query: dict[str, list[str]], authorization: str) -> None:
        status, answer = self.server.tokens.answer(query, authorization)
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """The test reads `asked`."""
