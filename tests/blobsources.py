"""Where the stand-in for registry.ollama.ai gets manifests and blobs: an Ollama store, or a real OCI registry."""

import http.client
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PIECE_BYTES = 256 * 1024


class BlobSource(Protocol):
    """`name` is namespace and model, as in a URL; `digest` is sha256:<hex>."""

    def manifest(self, name: str, tag: str) -> bytes | None: ...

    def blob_bytes(self, name: str, digest: str) -> int | None: ...

    def read(self, name: str, digest: str, *, start: int, stop: int) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class StoreSource:
    """A directory as `ollama pull` leaves it; the host part of a manifest's path does not matter."""

    store: Path

    def manifest(self, name: str, tag: str) -> bytes | None:
        for host in sorted((self.store / "manifests").iterdir()):
            path = host / name / tag
            if ".." not in path.parts and path.is_file():
                return path.read_bytes()
        return None

    def blob_bytes(self, name: str, digest: str) -> int | None:
        path = self._path(digest)
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str, digest: str, *, start: int, stop: int) -> Iterator[bytes]:
        with self._path(digest).open("rb") as file:
            file.seek(start)
            while start < stop and (piece := file.read(min(PIECE_BYTES, stop - start))):
                start += len(piece)
                yield piece

    def _path(self, digest: str) -> Path:
        return self.store / "blobs" / digest.replace(":", "-").replace("/", "-")


@dataclass(frozen=True, slots=True)
class RegistrySource:
    """A registry that an Ollama model was pushed to; plain HTTP, no credentials."""

    host: str

    def manifest(self, name: str, tag: str) -> bytes | None:
        connection = http.client.HTTPConnection(self.host)
        accept = {"Accept": "application/vnd.docker.distribution.manifest.v2+json"}
        try:
            connection.request("GET", f"/v2/{name}/manifests/{tag}", headers=accept)
            response = connection.getresponse()
            body = response.read()
            return body if response.status == 200 else None
        finally:
            connection.close()

    def blob_bytes(self, name: str, digest: str) -> int | None:
        connection = http.client.HTTPConnection(self.host)
        try:
            connection.request("HEAD", f"/v2/{name}/blobs/{digest}")
            response = connection.getresponse()
            return int(response.headers["Content-Length"]) if response.status == 200 else None
        finally:
            connection.close()

    def read(self, name: str, digest: str, *, start: int, stop: int) -> Iterator[bytes]:
        connection = http.client.HTTPConnection(self.host)
        wanted = {"Range": f"bytes={start}-{stop - 1}"} if stop > start else {}
        try:
            connection.request("GET", f"/v2/{name}/blobs/{digest}", headers=wanted)
            response = connection.getresponse()
            while piece := response.read(PIECE_BYTES):
                yield piece
        finally:
            connection.close()
