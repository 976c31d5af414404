"""The bytes of one layer: put together from blobs, and checked against every digest they promise."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Protocol

from appliance_builder.ports import Content
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.layer import Blob, LayerPlan


class CorruptBlobError(ApplianceError):
    """The bytes are not what their digest promised. `digest` is the promise that was broken."""

    def __init__(self, digest: Digest, found: Digest, what: str) -> None:
        super().__init__(
            f"{what} is damaged: expected {digest}, found {found}",
            hint="nothing was stored under a name; run the command again, a damaged download is fetched anew, "
            "a damaged store is mended with `ollama pull`",
        )
        self.digest = digest


class LayerContent:
    """The bytes of a planned layer, its blobs read from their sources as they are needed."""

    def __init__(self, plan: LayerPlan, blobs: Mapping[Digest, Content]) -> None:
        self._plan = plan
        self._blobs = blobs
        self.size = plan.size

    def read(self, offset: int = 0) -> Iterator[bytes]:
        start = 0
        for part in self._plan.parts:
            size = len(part) if isinstance(part, bytes) else part.size
            skip = max(0, offset - start)
            start += size
            if skip >= size:
                continue
            if isinstance(part, bytes):
                yield part[skip:]
            else:
                yield from self._blobs[part.digest].read(skip)


class Check(Protocol):
    def feed(self, chunk: bytes) -> None: ...


class BlobCheck:
    """Follows the layer's bytes and compares every blob inside with its digest."""

    def __init__(self, plan: LayerPlan) -> None:
        self._parts = iter(plan.parts)
        self._left = 0
        self._blob: Blob | None = None
        self._hash = hashlib.sha256()

    def feed(self, chunk: bytes) -> None:
        view = memoryview(chunk)
        while view:
            while self._left == 0:
                self._next()
                self.finish()
            size = min(self._left, len(view))
            if self._blob:
                self._hash.update(view[:size])
            self._left -= size
            view = view[size:]
            if self._left == 0:
                self.finish()

    def _next(self) -> None:
        part = next(self._parts, None)
        if part is None:
            raise ApplianceError("a source delivered more bytes than it promised", hint="run the command again")
        self._blob = None if isinstance(part, bytes) else part
        self._left = len(part) if isinstance(part, bytes) else part.size
        self._hash = hashlib.sha256()

    def finish(self) -> None:
        if self._blob and self._left == 0:
            found, expected = Digest(self._hash.hexdigest()), self._blob.digest
            self._blob = None
            if found != expected:
                raise CorruptBlobError(expected, found, "a blob of the model")


class LayerCheck:
    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def feed(self, chunk: bytes) -> None:
        self._hash.update(chunk)

    def digest(self) -> Digest:
        return Digest(self._hash.hexdigest())
