"""Downloaded blobs on disk: complete ones, and partial ones with their journals. Knows no network.

    sha256-<hex>            complete: its whole digest was confirmed once, after that it is trusted
    sha256-<hex>.partial    sparse, of the full size
    sha256-<hex>.journal    which segments of it are on disk for good; also the lock of the blob, and kept beside a
                            complete one, so that a damaged disk costs the damaged segments and not the blob

Segments named in a journal are believed without reading them again: each was flushed before it was named, and whoever
reads the blob compares the whole digest anyway. Only when that fails, `reject` reads them again.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Generator, Iterable
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from appliance_builder.journal import SEGMENT_BYTES, Journal, Segments, parse_journal
from appliance_builder.partial import CacheError, PartialBlob, disk_trouble, flush_directory
from appliance_builder.ports import CHUNK_BYTES
from appliance_builder.progress import render_size
from appliance_image.digest import Digest, DigestError

_PARTIAL = ".partial"
_JOURNAL = ".journal"


@dataclass(frozen=True, slots=True)
class KeptBlob:
    digest: Digest
    size: int
    kept_bytes: int
    complete: bool
    in_use: bool
    changed: float  # seconds since the epoch


@dataclass(frozen=True, slots=True)
class Cleared:
    blobs: int
    bytes: int
    in_use: int  # left alone


class BlobCache:
    """Every method may be called while other processes use the same directory."""

    def __init__(self, directory: Path, *, segment_bytes: int = SEGMENT_BYTES) -> None:
        self.directory = directory
        self._segment_bytes = segment_bytes  # of new downloads; a journal knows its own

    def complete(self, digest: Digest, size: int) -> Path | None:
        path = self._path(digest)
        status = _status(path)
        return path if status and status.st_size == size else None

    def missing_bytes(self, digest: Digest, size: int) -> int:
        """What a download would still fetch. A look, not a promise: another process may be at it."""
        if self.complete(digest, size):
            return 0
        partial, journal = _status(self._path(digest, _PARTIAL)), self._journal_as_seen(digest)
        here = partial and journal and partial.st_size == journal.segments.size == size
        return size - journal.present_bytes if journal and here else size

    def require_space(self, blobs: Iterable[tuple[Digest, int]]) -> None:
        """Raise, before the first byte, what would stop these downloads in the middle."""
        missing = sum(self._space(digest, size) for digest, size in dict.fromkeys(blobs))
        if missing <= 0:
            return
        self._make_directory()
        disk = os.statvfs(self.directory)
        free = disk.f_bavail * disk.f_frsize
        if free < missing:
            raise CacheError(
                f"not enough room in {self.directory}: {render_size(missing)} to download, {render_size(free)} free",
                hint="make room there, for example with `appliance cache clear`, or take another disk with `--cache DIR`",
            )

    def claim(self, digest: Digest, size: int) -> Path | PartialBlob | None:
        """The complete blob, or the right to write it until it is closed; None while someone else has that right."""
        if path := self.complete(digest, size):
            return path
        self._make_directory()
        with self._locked(digest) as lock:
            if lock is None:
                return None
            path = self._path(digest)
            if not path.exists():
                return PartialBlob(self._path(digest, _PARTIAL), os.dup(lock), self.segments(size))
            if path.stat().st_size == size:  # confirmed by someone else a moment ago
                return path
            raise CacheError(
                f"blob {digest.short} has {path.stat().st_size} bytes, not {size} as the manifest says",
                hint="the manifest is damaged; take another source",
            )

    def open(self, digest: Digest) -> int:
        """A descriptor to read from, of a blob that is complete or on its way; becoming complete does not disturb it."""
        for suffix in (_PARTIAL, "", _PARTIAL):  # renamed between two looks: there, or back
            with suppress(FileNotFoundError):
                return os.open(self._path(digest, suffix), os.O_RDONLY | os.O_CLOEXEC)
        raise CacheError(f"blob {digest.short} was cleared away", hint="run the command again")

    def journal_bytes(self, digest: Digest) -> int:
        """How much of a blob that someone else is downloading is there."""
        journal = self._journal_as_seen(digest)
        return journal.present_bytes if journal else 0

    def confirm(self, digest: Digest) -> bool:
        """The whole blob was read and had its digest: it is complete from now on. False: not now, someone else is at it."""
        with self._locked(digest) as lock:
            if lock is None:
                return False
            final, partial = self._path(digest), self._path(digest, _PARTIAL)
            if final.exists():
                return True
            journal = self._journal_as_seen(digest)
            if not journal or not journal.complete or not partial.exists():  # cleared away
                return False
            partial.rename(final)
            flush_directory(self.directory)
            return True

    def reject(self, digest: Digest) -> int:
        """The whole blob was read and had another digest: drop what is damaged. Returns how many bytes are to be fetched again.

        Segments that differ from their journal were damaged on this disk. If none does, the bytes came that way, and
        nothing of them can be trusted.
        """
        with self._locked(digest) as lock:
            if lock is None:
                return 0
            final, partial = self._path(digest), self._path(digest, _PARTIAL)
            journal = self._journal_as_seen(digest)
            if final.exists():
                if _hash(final, 0, final.stat().st_size) == digest:
                    return 0
                final.rename(partial)
                flush_directory(self.directory)
            if not journal or not partial.exists():
                return self._drop(digest, lock)
            damaged = [index for index, kept in journal.present.items() if _differs(partial, journal, index, kept)]
            if not damaged:
                return self._drop(digest, lock)
            with PartialBlob(partial, os.dup(lock), journal.segments) as blob:
                return sum(map(blob.drop, damaged))

    def kept(self) -> list[KeptBlob]:
        return sorted(
            (blob for digest in self._digests() if (blob := self._describe(digest))),
            key=lambda blob: (-blob.changed, blob.digest),
        )

    def clear(self, *, older_than_s: float = 0, now_s: float | None = None) -> Cleared:
        """Delete what nobody downloads at the moment; a blob that is being read stays readable for its reader."""
        blobs = size = in_use = 0
        for blob in self.kept():
            if now_s is not None and now_s - blob.changed < older_than_s:
                continue
            with self._locked(blob.digest) as lock:
                if lock is None:
                    in_use += 1
                    continue
                self._drop(blob.digest, lock)
                self._path(blob.digest, _JOURNAL).unlink(missing_ok=True)
            blobs, size = blobs + 1, size + blob.kept_bytes
        return Cleared(blobs, size, in_use)

    def _path(self, digest: Digest, suffix: str = "") -> Path:
        return self.directory / (digest.file_name + suffix)

    def segments(self, size: int) -> Segments:
        return Segments(size, self._segment_bytes)

    def _space(self, digest: Digest, size: int) -> int:
        """What the disk still has to give; a segment that was broken off has its room already."""
        status = _status(self._path(digest)) or _status(self._path(digest, _PARTIAL))
        return max(0, size - status.st_blocks * 512) if status else size

    def _make_directory(self) -> None:
        with disk_trouble(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)

    def _digests(self) -> set[Digest]:
        digests: set[Digest] = set()
        for path in self.directory.glob("sha256-*") if self.directory.is_dir() else ():
            try:
                digests.add(Digest.parse(path.name.removesuffix(_PARTIAL).removesuffix(_JOURNAL)))
            except DigestError:
                continue  # not ours
        return digests

    def _describe(self, digest: Digest) -> KeptBlob | None:
        complete, partial = _status(self._path(digest)), _status(self._path(digest, _PARTIAL))
        status = complete or partial or _status(self._path(digest, _JOURNAL))
        if status is None:
            return None
        size = (complete or partial or status).st_size
        kept_bytes = status.st_size if complete else status.st_blocks * 512
        return KeptBlob(digest, size, kept_bytes, complete is not None, self._in_use(digest), status.st_mtime)

    def _in_use(self, digest: Digest) -> bool:
        try:
            journal = os.open(self._path(digest, _JOURNAL), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(journal)
        return False

    def _drop(self, digest: Digest, lock: int) -> int:
        """Returns how many bytes are gone."""
        os.ftruncate(lock, 0)
        status = _status(self._path(digest)) or _status(self._path(digest, _PARTIAL))
        for suffix in ("", _PARTIAL):
            self._path(digest, suffix).unlink(missing_ok=True)
        return status.st_size if status else 0

    def _journal_as_seen(self, digest: Digest) -> Journal | None:
        try:
            parsed = parse_journal(self._path(digest, _JOURNAL).read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            return None
        return parsed[0] if parsed else None

    @contextmanager
    def _locked(self, digest: Digest) -> Generator[int | None, None, None]:
        lock = self._lock(digest)
        try:
            yield lock
        finally:
            if lock is not None:
                os.close(lock)

    def _lock(self, digest: Digest) -> int | None:
        """The blob's journal, opened and locked; the kernel unlocks it when the last copy is closed, however that happens."""
        path = self._path(digest, _JOURNAL)
        while True:
            with disk_trouble(self.directory), ExitStack() as undo:
                lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
                undo.callback(os.close, lock)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    return None
                now = _status(path)
                if now and os.path.samestat(os.fstat(lock), now):  # else cleared away between opening and locking
                    undo.pop_all()
                    return lock


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def _hash(path: Path, start: int, end: int) -> Digest:
    found = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < end and (chunk := file.read(min(CHUNK_BYTES, end - start))):
            found.update(chunk)
            start += len(chunk)
    return Digest(found.hexdigest())


def _differs(path: Path, journal: Journal, index: int, kept: Digest) -> bool:
    return _hash(path, *journal.segments.span(index)) != kept
