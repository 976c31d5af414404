"""What sources, sinks and renderers of progress have in common. Types only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Protocol

from appliance_builder.built import Built, LayerOutline
from appliance_image.digest import Digest

CHUNK_BYTES = 1024 * 1024


class Content(Protocol):
    """Bytes that can be read again from any place. Chunks are at most a few MiB; a short read is an error, not an end."""

    @property
    def size(self) -> int: ...

    def read(self, offset: int = 0) -> Iterator[bytes]: ...


class Payload(Content, Protocol):
    """Content on its way through the one pass: its digest may still have to be earned."""

    @property
    def known_digest(self) -> Digest | None:
        """The digest, where it is known before the bytes were read."""
        ...

    @property
    def identity(self) -> str | None:
        """What tells these very bytes from all others before they were read: what they are put together from, or their
        digest. A promise, to be checked like any."""
        ...

    def earned_digest(self) -> Digest:
        """Wait until every byte was read and checked against what was promised; raises what the source raised."""
        ...


class Transfer(Protocol):
    """One bar of progress."""

    def advance(self, size: int) -> None: ...

    def restart(self, done: int) -> None:
        """Go back to `done` bytes: a connection was lost and a part has to be sent or fetched again."""
        ...

    def note(self, text: str) -> None:
        """A few words beside the bar, for example why it waits."""
        ...


class Reporter(Protocol):
    """Progress for people or programs; safe to call from any thread."""

    def step(self, message: str) -> None: ...

    def warning(self, message: str, *, hint: str) -> None: ...

    def transfer(self, name: str, *, size: int) -> AbstractContextManager[Transfer]: ...


class Sink(Protocol):
    """Where an image goes. Calls come from one thread, layers bottom first, then `commit` or `abort`."""

    @property
    def label(self) -> str:
        """For progress and errors: `push registry.example.com/ai/x:32b`, `load`, `oci:DIR`."""
        ...

    @property
    def digests_first(self) -> bool:
        """Whether a layer's digest must be known before its first byte can be taken."""
        ...

    def preflight(self, total_bytes: int) -> None:
        """Raise what would stop a transfer of `total_bytes` before it begins: rights, disk, reachability."""
        ...

    def finished(self, built: Built) -> str | None:
        """What `commit` would return, if this very image is there under its name already."""
        ...

    def has(self, layer: LayerOutline) -> bool:
        """Whether this layer needs no bytes: it is there, or is not for this sink's platform. Changes nothing."""
        ...

    def adopt(self, layer: LayerOutline) -> bool:
        """Try to get a layer that is not there without its bytes: mounted from another repository of the registry."""
        ...

    def write(self, payload: Payload, media_type: str, transfer: Transfer) -> None:
        """Take all bytes of one layer. Must not give the layer a name before `payload.earned_digest()` returned."""
        ...

    def commit(self, built: Built) -> str:
        """Store configuration and manifests, then the name, last. Returns what to print: `repository@sha256:…` or a path."""
        ...

    def abort(self) -> None:
        """Leave nothing that looks like a finished image; keep what a second run can go on from."""
        ...
