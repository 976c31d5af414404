"""Files that get their name only when they are whole, and what a full disk says. Knows nothing of images.

A file that is not finished lies beside its later place under a name of its own, locked as long as its writer lives:
so a later run can tell what a killed one left behind from what another one is writing.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

from appliance_builder.progress import render_size
from appliance_image.errors import ApplianceError

_FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class OutputError(ApplianceError):
    pass


class Output(Protocol):
    """Where a sink writes to, in order."""

    position: int

    def write(self, content: bytes) -> None: ...


class UnfinishedFile:
    """`prefix` says whose unfinished files these are: `sweep` takes only those."""

    def __init__(self, directory: Path, prefix: str) -> None:
        self.position = 0
        self._directory = directory
        with disk_errors(directory):
            self._path, self._file = _create_locked(directory, prefix)

    def write(self, content: bytes) -> None:
        self.write_at(self.position, content)
        self.position += len(content)

    def write_at(self, offset: int, content: bytes) -> None:
        """Does not move `position`."""
        with disk_errors(self._directory, written=self.position):
            rest = memoryview(content)
            while rest:
                done = os.pwrite(self._file, rest, offset)
                rest, offset = rest[done:], offset + done

    def finish(self, path: Path) -> None:
        """Flushed to the disk, then under its name, then the name on the disk."""
        with disk_errors(self._directory, written=self.position):
            os.fsync(self._file)
            self._path.replace(path)
            flush_directory(path.parent)
        os.close(self._file)

    def discard(self) -> None:
        with suppress(FileNotFoundError):
            self._path.unlink()
        os.close(self._file)


class Pipe:
    """A file descriptor that takes bytes in order: a pipe, or a file that a shell opened."""

    def __init__(self, file: int, label: str) -> None:
        self.position = 0
        self._file, self._label = file, label

    def write(self, content: bytes) -> None:
        try:
            rest = memoryview(content)
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except BrokenPipeError as error:
            raise OutputError(
                f"whoever read {self._label} stopped after {render_size(self.position)}",
                hint="look at what the program after the pipe said",
            ) from error
        except OSError as error:
            raise _told(error, Path(self._label), self.position) from error
        self.position += len(content)


def sweep(directory: Path, prefix: str) -> None:
    """Throw away unfinished files whose writer is dead."""
    for path in directory.glob(f"{prefix}*"):
        with suppress(OSError):  # taken away by another run, or on a file system without locks: then it stays
            file = os.open(path, os.O_RDWR | os.O_NOFOLLOW)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(file)


def write_whole(path: Path, content: bytes, *, directory: Path, prefix: str) -> None:
    """In place of what is there, at once; written in `directory`, which lies on the same file system."""
    file = UnfinishedFile(directory, prefix)
    try:
        file.write(content)
        file.finish(path)
    except BaseException:
        file.discard()
        raise


def flush_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def disk_errors(directory: Path, *, written: int = 0) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise _told(error, directory, written) from error


def check_space(directory: Path, needed: int) -> None:
    """`directory` need not exist yet."""
    there = next(parent for parent in (directory, *directory.absolute().parents) if os.path.isdir(parent))  # noqa: PTH112 - no error where nothing may be looked at
    with disk_errors(there):
        disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    if needed > free:
        raise OutputError(
            f"not enough disk for {directory}: {render_size(needed)} needed, {render_size(free)} free",
            hint=f"make room (`df -h {there}`), or write to another disk",
        )


def _create_locked(directory: Path, prefix: str) -> tuple[Path, int]:
    while True:
        path = directory / f"{prefix}{secrets.token_hex(6)}"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        if _locked(file):
            return path, file
        os.close(file)


def _locked(file: int) -> bool:
    """Unless another run took it for what a dead one left, and sweeps it or has swept it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # file systems without locks: nobody can sweep there either
        return True
    return os.fstat(file).st_nlink > 0


def _told(error: OSError, place: Path, written: int) -> OutputError:
    if error.errno in _FULL:
        return OutputError(
            f"no space left in {place} after {render_size(written)}",
            hint=f"make room (`df -h {place}`), or write to another disk",
        )
    if error.errno == errno.EFBIG:
        return OutputError(
            f"the file system of {place} cannot hold a file of this size", hint="write to another file system"
        )
    reason = (error.strerror or str(error)).lower()
    return OutputError(f"cannot write to {place}: {reason}", hint="check the path and its permissions")
