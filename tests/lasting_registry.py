"""An OCI registry in memory that keeps what arrived of a broken upload, as distribution 3 does and Debian's 2.8 does
not, and that can have the manners of hosted registries. Blobs only."""

import hashlib
import json
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

_UPLOADS = re.compile(r"/v2/(.+)/blobs/uploads/(\w*)")
_BLOB = re.compile(r"/v2/(.+)/blobs/(sha256:\w{64})")


@dataclass(frozen=True, slots=True)
class Manners:
    chunk_least: int | None = None
    sized_patch_most: int | None = None  # beyond it 416, as GitHub
    request_most: int | None = None  # beyond it 413, as nginx
    ends_with_first_patch: bool = False  # 201 and no more, as Amazon
    absolute_locations: bool = False
    no_patch: bool = False


@dataclass(slots=True)
class Patched:
    content_range: str
    size: int | None


@dataclass(slots=True)
class Store:
    manners: Manners
    uploads: dict[str, bytearray] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    blobs: dict[str, bytes] = field(default_factory=dict)
    patches: list[Patched] = field(default_factory=list)
    begun: int = 0
    receiving: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)


class LastingRegistry:
    def __init__(self, manners: Manners | None = None) -> None:
        self.store = Store(manners or Manners())
        self._server = _Server(self.store)
        self.port: int = self._server.server_address[1]
        self.host = f"127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> "LastingRegistry":
        self._thread.start()
        return self

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def wait_for_bytes(self, size: int) -> None:
        self._wait(lambda: any(len(upload) >= size for upload in self.store.uploads.values()), f"{size} bytes")

    def wait_until_idle(self) -> None:
        """Until what was under way when a connection ended is stored."""
        self._wait(lambda: self.store.receiving == 0, "an end of the receiving")

    def _wait(self, seen: Callable[[], bool], what: str, *, timeout_s: float = 30) -> None:
        with self.store.changed:
            if not self.store.changed.wait_for(seen, timeout_s):
                raise TimeoutError(f"{what} not seen within {timeout_s:g} s")


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, store: Store) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.store = store

    def handle_error(self, request: object, client_address: object) -> None:
        """Cut connections are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_POST(self) -> None:
        store = self.server.store
        store.begun += 1
        name = f"u{store.begun}"
        store.uploads[name] = bytearray()
        least = store.manners.chunk_least
        extra = {"OCI-Chunk-Min-Length": str(least)} if least else {}
        self._reply(202, {"Location": self._location(name), "Range": "0-0", **extra})

    def do_PATCH(self) -> None:
        store, manners = self.server.store, self.server.store.manners
        upload = store.uploads.get(self._upload_name())
        length = self.headers.get("Content-Length")
        size = int(length) if length else None
        content_range = self.headers.get("Content-Range", "")
        store.patches.append(Patched(content_range, size))
        if manners.no_patch:
            return self._refuse(405, "UNSUPPORTED")
        if size is not None and manners.request_most is not None and size > manners.request_most:
            return self._refuse(413, "")
        if upload is None or self._upload_name() in store.ended:
            return self._refuse(404, "BLOB_UPLOAD_UNKNOWN")
        begins_here = not content_range or int(content_range.partition("-")[0]) == len(upload)
        too_large = size is not None and manners.sized_patch_most is not None and size > manners.sized_patch_most
        if too_large or not begins_here:
            return self._refuse(416, "RANGE_INVALID")
        self._receive(upload)
        if manners.ends_with_first_patch:
            store.ended.add(self._upload_name())
            store.blobs[f"sha256:{hashlib.sha256(upload).hexdigest()}"] = bytes(upload)
            return self._reply(201, {})
        return self._reply(202, self._progress(upload))

    def do_GET(self) -> None:
        upload = self.server.store.uploads.get(self._upload_name())
        if upload is None:
            return self._refuse(404, "BLOB_UPLOAD_UNKNOWN")
        return self._reply(204, self._progress(upload))

    def do_PUT(self) -> None:
        store = self.server.store
        upload = store.uploads.get(self._upload_name())
        if upload is None or self._upload_name() in store.ended:
            return self._refuse(404, "BLOB_UPLOAD_UNKNOWN")
        self._receive(upload)
        digest = parse_qs(urlsplit(self.path).query)["digest"][0]
        if digest != f"sha256:{hashlib.sha256(upload).hexdigest()}":
            return self._refuse(400, "DIGEST_INVALID")
        store.blobs[digest] = bytes(upload)
        del store.uploads[self._upload_name()]
        return self._reply(201, {"Docker-Content-Digest": digest})

    def do_DELETE(self) -> None:
        known = self.server.store.uploads.pop(self._upload_name(), None) is not None
        self._reply(204 if known else 404, {})

    def do_HEAD(self) -> None:
        match = _BLOB.fullmatch(urlsplit(self.path).path)
        blob = self.server.store.blobs.get(match[2]) if match else None
        self._reply(404 if blob is None else 200, {"Content-Length": str(len(blob or b""))})

    def _receive(self, upload: bytearray) -> None:
        store = self.server.store
        with store.changed:
            store.receiving += 1
        try:
            self._take(upload)
        finally:
            with store.changed:
                store.receiving -= 1
                store.changed.notify_all()

    def _take(self, upload: bytearray) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                self._append(upload, size)
                self.rfile.readline()
            self.rfile.readline()
        else:
            self._append(upload, int(self.headers.get("Content-Length", "0")))

    def _append(self, upload: bytearray, size: int) -> None:
        while size:
            piece = self.rfile.read1(min(size, 65536))
            if not piece:
                raise ConnectionResetError
            size -= len(piece)
            with self.server.store.changed:
                upload += piece
                self.server.store.changed.notify_all()

    def _upload_name(self) -> str:
        match = _UPLOADS.fullmatch(urlsplit(self.path).path)
        return match[2] if match else ""

    def _progress(self, upload: bytearray) -> dict[str, str]:
        return {"Location": self._location(self._upload_name()), "Range": f"0-{max(0, len(upload) - 1)}"}

    def _location(self, name: str) -> str:
        match = _UPLOADS.match(urlsplit(self.path).path)
        path = f"/v2/{match[1] if match else ''}/blobs/uploads/{name}"
        return f"http://{self.headers['Host']}{path}?state=1" if self.server.store.manners.absolute_locations else path

    def _refuse(self, status: int, code: str) -> None:
        self.close_connection = True
        body = json.dumps({"errors": [{"code": code, "message": "as told"}]}).encode() if code else b""
        self._reply(status, {"Connection": "close"}, body)

    def _reply(self, status: int, headers: dict[str, str], body: bytes = b"") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """Tests read the store."""
