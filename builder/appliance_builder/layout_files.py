"""Where a layout's files lie: in a directory, or in a tar that is indexed once and read in place. Knows names and bytes."""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from appliance_builder.ports import CHUNK_BYTES, Content
from appliance_image.errors import ApplianceError

_COMPRESSED: Final = {
    b"\x1f\x8b": "gunzip -k",
    b"\x28\xb5\x2f\xfd": "zstd -d",
    b"BZh": "bunzip2 -k",
    b"\xfd7zXZ\0": "unxz -k",
}
_LINKS_MAX: Final = 8


class LayoutError(ApplianceError):
    def __init__(self, message: str, *, hint: str = "it may be incomplete: copy or save the image again") -> None:
        super().__init__(message, hint=hint)


class Files(Protocol):
    label: str

    def find(self, name: str) -> Content | None: ...

    def close(self) -> None: ...


def read_file(files: Files, name: str, *, limit_bytes: int) -> bytes | None:
    content = files.find(name)
    if content is None:
        return None
    if content.size > limit_bytes:
        raise LayoutError(f"`{name}` in {files.label} has {content.size} bytes, more than any document of an image")
    return b"".join(content.read())


class Directory:
    def __init__(self, path: Path) -> None:
        self.label = str(path)
        self._path = path

    def find(self, name: str) -> Content | None:
        path = self._path / name
        with _readable(path):
            if not path.is_file():
                return None
            return _FileContent(path, path.stat().st_size)

    def close(self) -> None:
        """Files are opened when they are read."""


class Archive:
    """Owns `file` from here on."""

    def __init__(self, file: BinaryIO, label: str) -> None:
        self.label = label
        self._file = file
        try:
            with _readable(Path(label)):
                _refuse_compressed(os.pread(file.fileno(), 8, 0), label)
                self._entries, self._links = _entries(file, label)
        except BaseException:
            file.close()
            raise

    def find(self, name: str) -> Content | None:
        for _ in range(_LINKS_MAX):
            if name not in self._links:
                break
            name = self._links[name]
        entry = self._entries.get(name)
        return _EntryContent(self._file, self.label, *entry) if entry else None

    def close(self) -> None:
        self._file.close()


def open_file(path: Path) -> BinaryIO:
    with _readable(path):
        return path.open("rb")


@dataclass(frozen=True, slots=True)
class _FileContent:
    path: Path
    size: int

    def read(self, offset: int = 0) -> Iterator[bytes]:
        with _readable(self.path), self.path.open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            yield from _chunks(file, offset, self.size, str(self.path))


@dataclass(frozen=True, slots=True)
class _EntryContent:
    file: BinaryIO
    label: str
    start: int
    size: int

    def read(self, offset: int = 0) -> Iterator[bytes]:
        with _readable(Path(self.label)):
            yield from _chunks(self.file, self.start + offset, self.start + self.size, self.label)


def _chunks(file: BinaryIO, position: int, end: int, label: str) -> Iterator[bytes]:
    """By position, so that several threads may read one file."""
    while position < end:
        chunk = os.pread(file.fileno(), min(CHUNK_BYTES, end - position), position)
        if not chunk:
            raise LayoutError(f"{label} ended at byte {position}: it was cut while it was read")
        position += len(chunk)
        yield chunk


def _entries(file: BinaryIO, label: str) -> tuple[dict[str, tuple[int, int]], dict[str, str]]:
    """Where each file begins and how long it is, and which names stand for others."""
    entries: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for entry in archive:
                name = posixpath.normpath(entry.name)
                if entry.issym():
                    links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.linkname))
                elif entry.islnk():
                    links[name] = posixpath.normpath(entry.linkname)
                elif entry.isreg() and not entry.issparse():
                    entries[name] = (entry.offset_data, entry.size)
    except tarfile.TarError as error:
        raise LayoutError(f"{label} is not a whole tar archive: {error}") from error
    size = os.fstat(file.fileno()).st_size
    if any(start + length > size for start, length in entries.values()):
        raise LayoutError(f"{label} is not a whole tar archive: it ends inside a file")
    return entries, links


def _refuse_compressed(head: bytes, label: str) -> None:
    for magic, command in _COMPRESSED.items():
        if head.startswith(magic):
            raise LayoutError(
                f"{label} is compressed", hint=f"`{command} {label}` first: blobs are read in place, from any offset"
            )


@contextmanager
def _readable(path: Path) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise LayoutError(f"no such file: {path}", hint="check the path") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise LayoutError(f"cannot read {path}: {reason}", hint="check the path and its permissions") from error
