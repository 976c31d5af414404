"""An upload that a later process may go on with, in one small file. Best effort: what does not fit is no session.

One process at a time: while it sends, it holds a lock, and another one with the same bytes begins a session of its own.
"""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Final, cast

from appliance_builder.registry import Repository
from appliance_builder.upload_requests import Session

_VERSION: Final = 1


class UploadState:
    """`layer` names the very bytes; with other ones a session is of no use."""

    def __init__(self, file: Path, *, repository: Repository, layer: str) -> None:
        self._file = file
        self._key = {"version": _VERSION, "repository": f"{repository.host}/{repository.name}", "layer": layer}
        self._saved: Session | None = None
        self._lock: int | None = None

    def close(self) -> None:
        """Leave what was saved to whoever comes next."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def load(self) -> Session | None:
        if not self._is_ours():
            return None
        try:
            node = cast("object", json.loads(self._file.read_bytes()))
        except (OSError, ValueError):
            return None
        fields = cast("dict[str, object]", node) if isinstance(node, dict) else {}
        if any(fields.get(name) != value for name, value in self._key.items()):
            return None
        location, least, most = fields.get("location"), fields.get("chunk_least"), fields.get("chunk_most")
        if not isinstance(location, str):
            return None
        return Session(location, least if isinstance(least, int) else 0, most if isinstance(most, int) else None)

    def save(self, session: Session) -> None:
        """Readable by its owner alone, and whole whenever it is read."""
        if session == self._saved or not self._is_ours():
            return
        fields = {
            **self._key,
            "location": session.location,
            "chunk_least": session.chunk_least,
            "chunk_most": session.chunk_most,
        }
        with suppress(OSError):  # a full or read-only disk: then nobody goes on with it
            self._file.parent.mkdir(parents=True, exist_ok=True)
            unfinished = self._file.with_name(f"{self._file.name}.{os.getpid()}.unfinished")
            unfinished.unlink(missing_ok=True)
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump(fields, file)
            unfinished.replace(self._file)
        self._saved = session

    def clear(self) -> None:
        if not self._is_ours():
            return
        with suppress(OSError):
            self._file.unlink(missing_ok=True)
            self._lock_file.unlink(missing_ok=True)
        self._saved = None
        self.close()

    @property
    def _lock_file(self) -> Path:
        return self._file.with_name(f"{self._file.name}.lock")

    def _is_ours(self) -> bool:
        if self._lock is not None:
            return True
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lock = os.open(self._lock_file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(lock), self._lock_file.stat()):  # else cleared between opening and locking
                self._lock, lock = lock, -1
        except OSError:
            return False
        finally:
            if lock >= 0:
                os.close(lock)
        return self._lock is not None
