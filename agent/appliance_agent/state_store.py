"""Keeps the agent's memory in a directory, and the lock that lets only one agent of it run.

What was decided is on the disk before it is done, unless the disk does not answer: then it is done all the same.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import Final

from appliance_agent.config import HealingConfig
from appliance_agent.memory_file import MemoryError_, lasting, parse, render
from appliance_agent.newest import Newest
from appliance_agent.slots import Host, Now
from appliance_image.errors import ApplianceError

_PATIENCE_S: Final = 3.0  # systemd's watchdog allows a tick 30
_LAST_PATIENCE_S: Final = 10.0  # of a stop, which may take 30


class StateError(ApplianceError):
    pass


class StateStore:
    """`open` takes the lock; `save` writes only what changed, whole or not at all; `close` what is not written yet."""

    def __init__(
        self, directory: Path, *, patience_s: float = _PATIENCE_S, last_patience_s: float = _LAST_PATIENCE_S
    ) -> None:
        self._file = directory / "state.json"
        self._lock = directory / "lock"
        self._handle: int | None = None
        self._patience_s = patience_s
        self._last_patience_s = last_patience_s
        self._writer = Newest(self._write, name="state")
        self._kept: object = None  # what is in the file
        self._given: object = None  # what is being written
        self._overdue = False
        self._glance: object = None

    def open(self) -> None:
        directory = self._file.parent
        try:
            directory.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)
            _give_to_owner(handle, directory)
        except OSError as error:
            raise StateError(
                f"the state directory {directory} cannot be used: {error.strerror}",
                hint="run as the service does, or give another one with --state",
            ) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(handle)
            raise StateError(
                f"another agent uses {directory}", hint="look at it: `systemctl status ollama-agent`"
            ) from error
        self._handle = handle

    def close(self) -> None:
        self._writer.wait(self._last_patience_s)
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def load(self, now: Now, healing: HealingConfig) -> tuple[Host, str]:
        """The memory, and what was wrong with it: a file that cannot be read is kept aside, and all begins anew."""
        try:
            text = self._file.read_text("utf-8")
            host = parse(text, now, healing)
        except FileNotFoundError:
            return Host(), ""
        except (OSError, UnicodeDecodeError, MemoryError_) as error:
            aside = self._file.with_suffix(".unreadable")
            try:
                self._file.replace(aside)
            except OSError:
                aside = self._file
            return Host(), f"the state file could not be read and is kept as {aside}: {error}"
        self._kept = lasting(host)
        return host, ""

    def save(self, host: Host, now: Now) -> str:
        """What went wrong, in words, or nothing: neither a full disk nor one that hangs may stop the healing."""
        glance = (host.slots, host.good, host.refused, host.trial, host.history)
        if glance == self._glance and self._given is None:
            return ""  # most ticks; the rest below is dear
        key = lasting(host)
        if key == self._kept:
            self._glance = glance
            return ""
        if not self._is_written(key, host, now):
            return f"the state is not saved: the disk below {self._file.parent} does not answer"
        if error := self._writer.error:
            return f"the state cannot be saved in {self._file.parent}: {error.strerror}"
        self._kept, self._glance = key, glance
        return ""

    def _is_written(self, key: object, host: Host, now: Now) -> bool:
        """Or has failed. Once it took too long, nobody waits until all that is on its way has arrived."""
        if self._overdue:
            self._overdue = not self._writer.wait(0)
        if key != self._given:
            self._given, self._kept = key, None
            self._writer.put(render(host, now).encode())
        self._overdue = not self._writer.wait(0 if self._overdue else self._patience_s)
        if not self._overdue:
            self._given = None
        return not self._overdue

    def _write(self, content: bytes) -> None:
        temporary = self._file.with_suffix(".new")
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            _give_to_owner(file.fileno(), self._file.parent)
        if self._handle is not None:  # else, closed meanwhile, it may be another agent's by now
            temporary.replace(self._file)


def _give_to_owner(handle: int, directory: Path) -> None:
    """`ollama-agent down` may be root's; the service, which is not, has to read what that leaves."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(handle, owner.st_uid, owner.st_gid)
