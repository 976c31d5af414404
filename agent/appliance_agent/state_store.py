"""Keeps the agent's memory in a directory, and the lock that lets only one agent of it run."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from appliance_agent.config import HealingConfig
from appliance_agent.memory_file import MemoryError_, lasting, parse, render
from appliance_agent.slots import Host, Now
from appliance_image.errors import ApplianceError


class StateError(ApplianceError):
    pass


class StateStore:
    """`open` takes the lock; `save` writes only what changed, whole or not at all."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "state.json"
        self._lock = directory / "lock"
        self._handle: int | None = None
        self._kept: object = None
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
        """What went wrong, in words, or nothing: a full disk must not stop the healing."""
        glance = (host.slots, host.good, host.refused, host.trial, host.history)
        if glance == self._glance:
            return ""  # most ticks; the rest below is dear
        key = lasting(host)
        if key == self._kept:
            self._glance = glance
            return ""
        temporary = self._file.with_suffix(".new")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                file.write(render(host, now))
                file.flush()
                os.fsync(file.fileno())
                _give_to_owner(file.fileno(), self._file.parent)
            temporary.replace(self._file)
        except OSError as error:
            return f"the state cannot be saved in {self._file.parent}: {error.strerror}"
        self._kept, self._glance = key, glance
        return ""


def _give_to_owner(handle: int, directory: Path) -> None:
    """`ollama-agent down` may be root's; the service, which is not, has to read what that leaves."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.fchown(handle, owner.st_uid, owner.st_gid)
