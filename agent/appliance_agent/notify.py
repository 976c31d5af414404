"""What the agent tells systemd, over `sdnotify`: one key a datagram, ASCII only, and failures that are counted.

`sdnotify` loses a text that is not Latin-1, and never finds out that the socket behind its path is another one by now.
"""

from __future__ import annotations

import os
import socket
import time
import unicodedata
from collections.abc import Mapping, MutableMapping
from typing import Final

import sdnotify

_SOCKET: Final = "NOTIFY_SOCKET"
_WATCHDOG: Final = "WATCHDOG_USEC"
_WATCHDOG_PID: Final = "WATCHDOG_PID"
_SEND_S: Final = 0.5  # the loop tells it: a stuck process 1 must not hold it up
_TEXT_MAX: Final = 2000  # systemd ignores datagrams beyond 4096 bytes
_PLAIN: Final = str.maketrans(
    {"→": "->", "←": "<-", "—": "-", "–": "-", "…": "...", "‘": "'", "’": "'", "“": '"', "”": '"', "≥": ">=", "≤": "<=",
     "×": "x", "·": "-", "•": "*", "°": " deg ", "✓": "ok", "✗": "failed", "ß": "ss", "µ": "u"}
)  # fmt: skip


class Notifier:
    """Does nothing, successfully, where no socket is named: then it was not systemd who started the agent."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._connection: _Connection | None = None
        self.failures = 0  # datagrams that did not arrive
        self.error = ""  # of the last one

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> Notifier:
        """The programs that the agent starts do not find the socket any more."""
        return cls(environ.pop(_SOCKET, ""))

    def ready(self) -> bool:
        return self._send("READY=1")

    def status(self, text: str) -> bool:
        return self._send(f"STATUS={plain(text)}")

    def reloading(self) -> bool:
        """`ready` ends it. The two keys share a datagram: `Type=notify-reload` would not know them otherwise."""
        return self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> bool:
        return self._send("STOPPING=1")

    def watchdog(self) -> bool:
        return self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Of the start, the reload or the stop that is under way: `seconds` from now on."""
        return self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1_000_000)}")

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _send(self, datagram: str) -> bool:
        if not self._address:
            return True
        try:
            try:
                self._connected().notify(datagram)
            except TimeoutError:  # a second try would be as late
                raise
            except OSError:  # the path may belong to another socket by now
                self.close()
                self._connected().notify(datagram)
        except OSError as error:
            self.failures += 1
            self.error = str(error)
            return False
        return True

    def _connected(self) -> _Connection:
        if self._connection is None:
            self._connection = _Connection(self._address)
        return self._connection


class _Connection(sdnotify.SystemdNotifier):
    """The original's constructor reads the environment itself, and leaves a socket open where it fails."""

    def __init__(self, address: str) -> None:
        self.debug = True  # `notify` raises instead of hiding what went wrong
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            self.socket.settimeout(_SEND_S)
            self.socket.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError:
            self.socket.close()
            raise

    def close(self) -> None:
        self.socket.close()


def watchdog_interval_s(environ: Mapping[str, str]) -> float | None:
    """How often systemd should be told, half of its patience; None where it does not watch, or another process."""
    microseconds = environ.get(_WATCHDOG, "")
    watched = environ.get(_WATCHDOG_PID, "") in ("", str(os.getpid()))
    if not (watched and microseconds.isascii() and microseconds.isdecimal() and int(microseconds)):
        return None
    return int(microseconds) / 2_000_000


def plain(text: str) -> str:
    """One line of printable ASCII that a person still understands."""
    folded = unicodedata.normalize("NFKD", text.translate(_PLAIN))
    kept = "".join(char for char in folded if not unicodedata.combining(char))
    line = " ".join(kept.encode("ascii", "replace").decode().split())
    return "".join(char if char.isprintable() else "?" for char in line)[:_TEXT_MAX]
