"""Where the agent's log goes: to the journal as native fields, or as plain lines to stderr if that leads elsewhere.

So `journalctl -u ollama-agent SLOT=3 ACTION=create` answers.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Final, TextIO

from appliance_agent.logline import Line, Priority, line, line_of, render_line, render_native
from appliance_agent.slots import Entry

SOCKET: Final = "/run/systemd/journal/socket"
_IDENTIFIER: Final = "ollama-agent"
_SEND_S: Final = 0.5  # a stuck journald must not hold the loop up
_SEALS: Final = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_Value = str | int | None


class Journal:
    """For any thread. Never raises: a log that cannot be written is no reason to leave containers alone."""

    def __init__(self, stderr: TextIO, *, path: str = "", clock: Callable[[], float] = time.time) -> None:
        self._stderr = stderr
        self._path = path  # of the journal's socket, or ""
        self._clock = clock
        self._lock = threading.Lock()
        self._last: dict[_Value, Line] = {}
        self.failures = 0  # lines that the journal did not take; they went to stderr

    @classmethod
    def find(cls, environ: Mapping[str, str], *, stderr: TextIO | None = None, path: str = SOCKET) -> Journal:
        """Speaks to the journal if `stderr` leads there, which is what systemd promises in JOURNAL_STREAM."""
        to = sys.stderr if stderr is None else stderr
        return cls(to, path=path if _leads_to_journal(environ.get("JOURNAL_STREAM", ""), to) else "")

    def entry(self, entry: Entry, *, reason: str = "", priority: Priority = Priority.NOTICE) -> None:
        """Something that was done: told as often as it was done."""
        with self._lock:
            self._last.pop(entry.slot, None)
            self._write(line_of(entry, reason=reason, priority=priority))

    def error(self, message: str, **fields: _Value) -> None:
        self._news(line(Priority.ERROR, message, fields), fields.get("slot"))

    def warning(self, message: str, **fields: _Value) -> None:
        self._news(line(Priority.WARNING, message, fields), fields.get("slot"))

    def info(self, message: str, **fields: _Value) -> None:
        self._news(line(Priority.INFO, message, fields), fields.get("slot"))

    def _news(self, what: Line, about: _Value) -> None:
        """Left out if it is what was said last about this slot, or about the host."""
        with self._lock:
            if self._last.get(about) != what:
                self._last[about] = what
                self._write(what)

    def _write(self, what: Line) -> None:
        if self._path:
            try:
                _send(self._path, render_native(what, identifier=_IDENTIFIER))
            except OSError:
                self.failures += 1
            else:
                return
        at = datetime.fromtimestamp(self._clock()).astimezone().isoformat(timespec="milliseconds")
        level = f"{what.priority.name.lower()}: " if what.priority <= Priority.WARNING else ""
        with contextlib.suppress(OSError):
            self._stderr.write(f"{at} {level}{render_line(what)}\n")
            self._stderr.flush()


def _leads_to_journal(stream: str, stderr: TextIO) -> bool:
    """The variable may be inherited from somebody whose stderr it was: device and inode tell."""
    try:
        status = os.fstat(stderr.fileno())
    except (OSError, ValueError):
        return False
    return stream == f"{status.st_dev}:{status.st_ino}"


def _send(path: str, content: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.settimeout(_SEND_S)
        try:
            connection.sendto(content, path)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            connection.connect(path)
            _send_as_file(connection, content)


def _send_as_file(connection: socket.socket, content: bytes) -> None:
    """What no datagram holds goes as an open file that nobody can change any more."""
    descriptor = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(descriptor, "wb") as file:  # noqa: PTH123 - a descriptor, not a path
        file.write(content)
        file.flush()
        fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
        socket.send_fds(connection, [b""], [descriptor])
