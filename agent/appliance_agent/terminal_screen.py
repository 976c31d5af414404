"""A terminal that belongs to one picture for a while: its own screen, keys without Enter, signals between two drawings."""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import termios
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from enum import Enum, auto
from types import FrameType
from typing import Final, TextIO

_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # another screen, no cursor, no automatic wrap
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_BEGIN, _END = "\x1b[?2026h\x1b[H", "\x1b[J\x1b[?2026l"  # shown in one go where the terminal knows how
_ERASE = "\x1b[K"  # before the text of a line: behind it, it would take the last character of a full one
_QUIT_KEYS: Final = frozenset(b"qQ")
_LEAVING: Final = frozenset({signal.SIGINT, signal.SIGTERM})
_HANDLED: Final = (*_LEAVING, signal.SIGHUP, signal.SIGWINCH, signal.SIGTSTP)


_Modes = int | list[bytes | int]


class Event(Enum):
    TIME = auto()
    RESIZED = auto()
    LEAVE = auto()
    GONE = auto()  # with the terminal


class LeaveError(Exception):
    """The person left while the program waited for somebody else."""


class Signals:
    """Arrive as bytes in a socket, so that none can break off a drawing half way; only what is `breakable` ends at once."""

    def __init__(self) -> None:
        self.receiver, self._sender = socket.socketpair()
        for each in (self.receiver, self._sender):
            each.setblocking(False)
        self._breakable = False

    @contextmanager
    def handled(self) -> Generator[None]:
        wakeup = signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        before = {number: signal.signal(number, self._received) for number in _HANDLED}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
            self.receiver.close()
            self._sender.close()

    @contextmanager
    def breakable(self) -> Generator[None]:
        """Raises LeaveError in the middle of it."""
        self._breakable = True
        try:
            yield
        finally:
            self._breakable = False

    def _received(self, number: int, _: FrameType | None) -> None:
        if self._breakable and number in (*_LEAVING, signal.SIGHUP):
            self._breakable = False
            raise LeaveError

    def fetch(self) -> set[int]:
        with suppress(BlockingIOError):
            return set(self.receiver.recv(4096))
        return set()


class Keyboard:
    """Of a terminal that this program has for itself; without one, no key ever comes."""

    def __init__(self) -> None:
        self.files: list[int] = []
        self._modes: list[list[_Modes]] = []  # as they were

    def open(self) -> None:
        """Keys come without Enter and are not shown."""
        with suppress(OSError, ValueError, AttributeError, termios.error):
            if os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():
                return  # in the background, whoever reads or changes it is stopped
            terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NONBLOCK)  # not stdin: it is shared with the shell
            self.files = [terminal]
            modes = termios.tcgetattr(terminal)
            self._modes = [list(modes)]
            modes[3] &= ~(termios.ICANON | termios.ECHO)
            termios.tcsetattr(terminal, termios.TCSANOW, modes)

    def close(self) -> None:
        """What was typed meanwhile is for nobody."""
        for terminal, modes in zip(self.files, self._modes, strict=False):
            with suppress(termios.error):
                termios.tcsetattr(terminal, termios.TCSAFLUSH, modes)
        self._forget()

    def quits(self) -> bool:
        """Never waits: a Ctrl-C throws away the keys before it, also those that `select` has just seen."""
        try:
            pressed = b"".join(os.read(terminal, 1024) for terminal in self.files)
        except BlockingIOError:
            return False
        except OSError:
            pressed = b""
        if not pressed:
            self._forget()  # it is gone
        return not _QUIT_KEYS.isdisjoint(pressed)

    def _forget(self) -> None:
        for terminal in self.files:
            os.close(terminal)
        self.files = []


class Screen:
    """`draw` and `wait`; where nothing can be drawn in place, one picture follows the other."""

    def __init__(self, out: TextIO, signals: Signals) -> None:
        self._out = out
        self._signals = signals
        self.in_place = out.isatty() and os.environ.get("TERM") != "dumb"
        self._keyboard = Keyboard()

    @contextmanager
    def entered(self) -> Generator[None]:
        self._enter()
        try:
            yield
        finally:
            with suppress(OSError):  # the terminal may be gone
                self._leave()

    def draw(self, text: str) -> None:
        if self.in_place:
            self._out.write(_BEGIN + "\n".join(_ERASE + line for line in text.splitlines()) + _END)
        else:
            self._out.write(f"{text}\n")
        self._out.flush()

    def wait(self, until_s: float) -> Event:
        """Until then, if nothing comes before."""
        while True:
            watched = [self._signals.receiver.fileno(), *self._keyboard.files]
            ready, _, _ = select.select(watched, [], [], max(until_s - time.monotonic(), 0.0))
            if not ready:
                return Event.TIME
            event = self._signalled(self._signals.fetch())
            if event is None and ready != watched[:1] and self._keyboard.quits():
                event = Event.LEAVE
            if event is not None:
                return event

    def _signalled(self, numbers: set[int]) -> Event | None:
        if signal.SIGHUP in numbers:
            return Event.GONE
        if numbers & _LEAVING:
            return Event.LEAVE
        if signal.SIGTSTP in numbers:
            self._suspend()
            return Event.TIME
        return Event.RESIZED if signal.SIGWINCH in numbers else None

    def _suspend(self) -> None:
        """Ctrl-Z: the shell gets its own screen back until `fg`."""
        self._leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._enter()

    def _enter(self) -> None:
        if self.in_place:
            self._keyboard.open()
            self._out.write(_ENTER)
            self._out.flush()

    def _leave(self) -> None:
        if self.in_place:
            self._keyboard.close()
            self._out.write(_LEAVE)
            self._out.flush()
