"""A registry with the manners of registry.ollama.ai: manifests here, blobs behind links that run out on another host.

    front = start_front(StoreSource(store), Manners(link_uses=1))
    appliance build 127.0.0.1:PORT/library/deepseek-r1:32b          # front.host

The registry is 127.0.0.1, the blob host is `localhost`: Ollama follows a link only to another host *name*. Both stand
behind a `FaultProxy` (`front.proxy`, `front.blob_proxy`), so both count and can be made to misbehave.
"""

import json
import re
import secrets
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal
from urllib.parse import parse_qs, quote, urlsplit

from blobsources import BlobSource
from faultproxy import Exchange, FaultProxy
from tokenserver import basic

USER = "builder"
PASSWORD = "open-sesame"
_MANIFEST = re.compile(r"/v2/(?P<name>.+)/manifests/(?P<tag>[^/]+)")
_BLOB = re.compile(r"/v2/(?P<name>.+)/blobs/(?P<digest>sha256:[0-9a-f]{64})")
_RANGE = re.compile(r"bytes=(\d*)-(\d*)")


@dataclass(frozen=True, slots=True)
class Manners:
    """How the front behaves. The defaults are those of the public library."""

    auth: Literal["none", "basic", "bearer"] = "none"
    token_needs_password: bool = False
    redirect: bool = True  # False: 200 with the body, as a plain OCI registry answers
    head_of_blob: Literal["answer", "redirect", "refuse"] = "answer"
    head_of_manifest: bool = True
    manifest_length: bool = False
    link_lifetime_s: float = 1200
    link_uses: int | None = None


@dataclass(slots=True)
class _Link:
    name: str
    digest: str
    ends_s: float
    uses_left: int | None


class OllamaFront:
    def __init__(self, source: BlobSource, manners: Manners, tls: ssl.SSLContext | None) -> None:
        self.source = source
        self.manners = manners
        self.violations: list[str] = []
        self._links: dict[str, _Link] = {}
        self._tokens: set[str] = set()
        self._lock = threading.Lock()
        self._servers = [_Server(self, _RegistryHandler), _Server(self, _BlobHandler)]
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True) for server in self._servers
        ]
        self.proxy, self.blob_proxy = (
            FaultProxy(("127.0.0.1", server.server_address[1]), tls=tls) for server in self._servers
        )

    @property
    def host(self) -> str:
        return self.proxy.host

    @property
    def url(self) -> str:
        return self.proxy.url

    @property
    def blob_host(self) -> str:
        return f"localhost:{self.blob_proxy.port}"

    @property
    def ports(self) -> tuple[int, ...]:
        return (self.proxy.port, self.blob_proxy.port)

    def requests(self, method: str = "", path: str = "") -> list[Exchange]:
        return self.proxy.requests(method, path)

    def blob_requests(self, method: str = "", path: str = "") -> list[Exchange]:
        return self.blob_proxy.requests(method, path)

    def start(self) -> "OllamaFront":
        for thread in self._threads:
            thread.start()
        self.proxy.start()
        self.blob_proxy.start()
        return self

    def close(self) -> None:
        self.proxy.close()
        self.blob_proxy.close()
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def expire_links(self) -> None:
        """Every link handed out so far is answered with 403 from now on."""
        with self._lock:
            self._links.clear()

    def link(self, name: str, digest: str) -> str:
        signature = secrets.token_hex(16)
        lifetime_s = self.manners.link_lifetime_s
        with self._lock:
            self._links[signature] = _Link(name, digest, time.monotonic() + lifetime_s, self.manners.link_uses)
        scheme = self.url.partition(":")[0]
        date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        query = f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Date={date}&X-Amz-Expires={lifetime_s:.0f}"
        return f"{scheme}://{self.blob_host}/data/{quote(digest, safe='')}?{query}&X-Amz-Signature={signature}"

    def follow(self, signature: str) -> _Link | None:
        with self._lock:
            link = self._links.get(signature)
            if link is None or time.monotonic() > link.ends_s or link.uses_left == 0:
                return None
            if link.uses_left is not None:
                link.uses_left -= 1
            return link

    def token(self, authorization: str) -> str | None:
        if self.manners.token_needs_password and authorization != basic(USER, PASSWORD):
            return None
        token = secrets.token_urlsafe(24)
        with self._lock:
            self._tokens.add(token)
        return token

    def admits(self, authorization: str) -> bool:
        match self.manners.auth:
            case "none":
                return True
            case "basic":
                return authorization == basic(USER, PASSWORD)
            case "bearer":
                with self._lock:
                    return authorization.removeprefix("Bearer ") in self._tokens

    def revoke_tokens(self) -> None:
        with self._lock:
            self._tokens.clear()


def start_front(
    source: BlobSource, manners: Manners | None = None, *, tls: ssl.SSLContext | None = None
) -> OllamaFront:
    """A running front. Call `close` in the end, and look at `violations`."""
    return OllamaFront(source, manners or Manners(), tls).start()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def __init__(self, front: OllamaFront, handler: "type[_Handler]") -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.front = front


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """The proxy before this server keeps the log."""

    def answer(self, status: int, body: bytes, kind: str, **fields: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **fields}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, status: int, code: str, **fields: str) -> None:
        text = code.replace("_", " ").lower()
        body = json.dumps({"errors": [{"code": code, "message": text, "detail": None}]}).encode()
        self.answer(status, body, "application/json; charset=utf-8", **fields)

    def stream(self, name: str, digest: str, size: int) -> None:
        """The blob, or the range of it that was asked for."""
        start, stop = _wanted(self.headers.get("Range", ""), size)
        if start >= stop and size > 0:
            self.answer(416, b"", "text/plain", Content_Range=f"bytes */{size}")
            return
        partial = "Range" in self.headers
        self.send_response(206 if partial else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(stop - start))
        self.send_header("ETag", f'"{digest.removeprefix("sha256:")[:32]}"')
        if partial:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{size}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self._send(self.server.front.source.read(name, digest, start=start, stop=stop))

    def _send(self, pieces: Iterator[bytes]) -> None:
        try:
            for piece in pieces:
                self.wfile.write(piece)
        except ConnectionError:
            self.close_connection = True


class _RegistryHandler(_Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        front = self.server.front
        path = urlsplit(self.path).path
        if path == "/token":
            self._token()
            return
        manifest, blob = _MANIFEST.fullmatch(path), _BLOB.fullmatch(path)
        if not (manifest or blob):
            self.answer(404, b"404 page not found\n", "text/plain; charset=utf-8")
            return
        if not front.admits(self.headers.get("Authorization", "")):
            self.error(401, "UNAUTHORIZED", WWW_Authenticate=self._challenge(path))
        elif manifest:
            self._manifest(manifest["name"], manifest["tag"])
        elif blob:
            self._blob(blob["name"], blob["digest"])

    def _challenge(self, path: str) -> str:
        front = self.server.front
        if front.manners.auth == "basic":
            return 'Basic realm="models"'
        name = "/".join(path.split("/")[2:-2])
        return f'Bearer realm="{front.url}/token",service="{front.host}",scope="repository:{name}:pull"'

    def _token(self) -> None:
        token = self.server.front.token(self.headers.get("Authorization", ""))
        if token is None:
            self.error(401, "UNAUTHORIZED")
            return
        self.answer(200, json.dumps({"token": token}).encode(), "application/json")

    def _manifest(self, name: str, tag: str) -> None:
        front = self.server.front
        if self.command == "HEAD" and not front.manners.head_of_manifest:
            self.answer(405, b"", "text/plain", Allow="GET")
            return
        body = front.source.manifest(name, tag)
        if body is None:
            self.error(404, "MANIFEST_UNKNOWN")
            return
        kind = "text/plain; charset=utf-8"
        if front.manners.manifest_length:
            self.answer(200, body, kind)
            return
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    def _blob(self, name: str, digest: str) -> None:
        front = self.server.front
        size = front.source.blob_bytes(name, digest)
        if size is None:
            self.error(404, "BLOB_UNKNOWN")
        elif self.command == "HEAD" and front.manners.head_of_blob == "refuse":
            self.answer(405, b"", "text/plain", Allow="GET")
        elif (self.command == "HEAD" and front.manners.head_of_blob == "answer") or not front.manners.redirect:
            self.stream(name, digest, size)
        else:
            link = front.link(name, digest)
            self.answer(307, f'<a href="{link}">Temporary Redirect</a>.\n\n'.encode(), "text/html", Location=link)


class _BlobHandler(_Handler):
    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        front = self.server.front
        if self.headers.get("Authorization"):
            front.violations.append(f"Authorization was sent to the blob host: {self.command} {self.path}")
            self._refuse(400, "InvalidArgument", "Only one auth mechanism allowed")
            return
        if self.command == "HEAD" and front.manners.head_of_blob != "redirect":
            self._refuse(403, "SignatureDoesNotMatch", "The link was signed for GET")
            return
        link = front.follow(parse_qs(urlsplit(self.path).query).get("X-Amz-Signature", [""])[0])
        if link is None:
            self._refuse(403, "AccessDenied", "Request has expired")
            return
        size = front.source.blob_bytes(link.name, link.digest)
        if size is None:
            self._refuse(404, "NoSuchKey", "The specified key does not exist.")
            return
        self.stream(link.name, link.digest, size)

    def _refuse(self, status: int, code: str, message: str) -> None:
        body = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        self.answer(status, f'<?xml version="1.0" encoding="UTF-8"?>\n{body}'.encode(), "application/xml")


def _wanted(text: str, size: int) -> tuple[int, int]:
    """First byte and the one behind the last; an empty span is one that cannot be served."""
    match = _RANGE.fullmatch(text)
    if match is None or not (match[1] or match[2]):
        return 0, size
    if not match[1]:
        return max(0, size - int(match[2])), size
    return int(match[1]), min(size, int(match[2]) + 1 if match[2] else size)
