"""One partial blob while this process has the right to write it: bytes first, flushed, and only then the journal."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance_builder.journal import Journal, Segments, parse_journal, render_dropped, render_header, render_present
from appliance_builder.progress import render_size
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError


class CacheError(ApplianceError):
    pass


class PartialBlob:
    """Safe to use from many threads. Owns `lock`, the open and locked journal: whoever has it is the only writer."""

    def __init__(self, path: Path, lock: int, segments: Segments) -> None:
        self.path = path
        self._journal_file = lock
        self._flushing = threading.Lock()
        with disk_trouble(path.parent), ExitStack() as undo:
            undo.callback(os.close, lock)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            undo.callback(os.close, self._file)
            journal = self._resumed(segments) or self._begun(segments)
            undo.pop_all()
        self.segments = journal.segments
        self._present = dict(journal.present)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        os.close(self._file)
        os.close(self._journal_file)

    @property
    def journal(self) -> Journal:
        with self._flushing:
            return Journal(self.segments, dict(self._present))

    @property
    def missing_bytes(self) -> int:
        return self.segments.size - self.journal.present_bytes

    def write(self, offset: int, chunk: bytes | memoryview) -> None:
        view = memoryview(chunk)
        try:
            while view:
                written = os.pwrite(self._file, view, offset)
                view, offset = view[written:], offset + written
        except OSError as error:
            raise disk_error(error, self.path.parent, missing=self.missing_bytes) from error

    def record(self, index: int, digest: Digest) -> None:
        """All bytes of the segment were written: make them last, then say so."""
        try:
            with self._flushing:
                os.fdatasync(self._file)
                self._append(render_present(index, digest))
                self._present[index] = digest
        except OSError as error:
            raise disk_error(error, self.path.parent, missing=self.missing_bytes) from error

    def drop(self, index: int) -> int:
        """Forget a segment; returns its size."""
        with disk_trouble(self.path.parent), self._flushing:
            self._append(render_dropped(index))
            self._present.pop(index, None)
        start, end = self.segments.span(index)
        return end - start

    def _append(self, line: bytes) -> None:
        """All of the line or nothing of it, so that the next line never ends up behind half a one."""
        before = os.fstat(self._journal_file).st_size
        if os.write(self._journal_file, line) < len(line):
            os.ftruncate(self._journal_file, before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(self._journal_file)

    def _resumed(self, wanted: Segments) -> Journal | None:
        parsed = parse_journal(os.pread(self._journal_file, os.fstat(self._journal_file).st_size, 0))
        if not parsed or parsed[0].segments.size != wanted.size or os.fstat(self._file).st_size != wanted.size:
            return None
        journal, taken = parsed
        os.ftruncate(self._journal_file, taken)
        return journal

    def _begun(self, wanted: Segments) -> Journal:
        """An empty blob. The journal is emptied first: it must never speak of bytes that are gone."""
        os.ftruncate(self._journal_file, 0)
        os.fdatasync(self._journal_file)
        os.ftruncate(self._file, 0)
        os.ftruncate(self._file, wanted.size)
        self._append(render_header(wanted))
        flush_directory(self.path.parent)
        return Journal(wanted)


def flush_directory(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_trouble(directory: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error, directory) from error


def disk_error(error: OSError, directory: Path, *, missing: int = 0) -> CacheError:
    """`missing`: how many bytes are still to be written there."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        need = f"{render_size(missing)} are still to come; " if missing else ""
        return CacheError(
            f"the disk of {directory} is full",
            hint=f"{need}make room there, for example with `appliance cache clear`, or take another disk with "
            "`--cache DIR`; what is downloaded stays, the next run goes on from there",
        )
    if error.errno == errno.EFBIG:
        return CacheError(
            f"the file system of {directory} cannot hold a file of this size",
            hint="take another one with `--cache DIR`",
        )
    reason = (error.strerror or str(error)).lower()
    return CacheError(f"cannot write to {directory}: {reason}", hint="take another directory with `--cache DIR`")
