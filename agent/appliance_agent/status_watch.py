"""`status --watch`: the table drawn anew each second, in place, until the person leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TextIO

from appliance_agent.status import Status
from appliance_agent.status_client import Told
from appliance_agent.status_columns import age
from appliance_agent.status_json import parse
from appliance_agent.status_table import Window, render_table
from appliance_image.errors import ApplianceError

_PERIOD_S = 1.0
_ENTER = "\x1b[?1049h\x1b[?25l\x1b[?7l"  # another screen, no cursor, no automatic wrap
_LEAVE = "\x1b[?7h\x1b[?25h\x1b[?1049l"
_BEGIN, _END = "\x1b[?2026h\x1b[H", "\x1b[J\x1b[?2026l"  # shown in one go where the terminal knows how
_ERASE = "\x1b[K"  # before the text of a line: behind it, it would take the last character of a full one
_LEAVING = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_HANDLED = _LEAVING | {signal.SIGWINCH, signal.SIGTSTP}

Ask = Callable[[], Told]


def watch(ask: Ask, window: Callable[[], Window], out: TextIO) -> None:
    """Returns when the person interrupts it; the last table stays on the screen. Raises when the first answer fails."""
    view = _View(ask, window)
    shown = view.next()
    if not out.isatty():
        _print_for_ever(view, shown, out)
        return
    with _screen(out):
        while True:
            lines = (_ERASE + line for line in shown.splitlines())
            out.write(_BEGIN + "\n".join(lines) + _END)
            out.flush()
            match _waited_for(_PERIOD_S):
                case signal.SIGHUP:
                    return
                case signal.SIGINT | signal.SIGTERM:
                    break
                case signal.SIGTSTP:
                    _suspend(out)
                case _:
                    pass  # time is over, or the window has another size
            shown = view.next()
    out.write(view.last())
    out.flush()


class _View:
    """The last answer and how long ago it came."""

    def __init__(self, ask: Ask, window: Callable[[], Window]) -> None:
        self._ask = ask
        self._window = window
        self._shown: tuple[Status, Window] | None = None
        self._answered_s = 0.0

    def next(self) -> str:
        """What is shown now. Raises as long as there was no answer at all."""
        try:
            told = self._ask()
            status, window = parse(told.text), replace(self._window(), age_s=told.age_s)
            self._answered_s = time.monotonic()
        except ApplianceError as error:
            if self._shown is None:
                raise
            silent_s = time.monotonic() - self._answered_s
            status, window = self._shown[0], self._window()
            window = replace(window, silence=f"no answer for {age(silent_s)}: {error.message}")
        self._shown = (status, window)
        return render_table(status, window)

    def last(self) -> str:
        """The same once more, in full length."""
        return render_table(self._shown[0], replace(self._shown[1], lines=None)) if self._shown else ""


def _print_for_ever(view: _View, shown: str, out: TextIO) -> None:
    with _quiet_signals():
        while True:
            out.write(f"{shown}\n")
            out.flush()
            if _waited_for(_PERIOD_S) in _LEAVING:
                return
            shown = view.next()


@contextmanager
def _screen(out: TextIO) -> Generator[None]:
    with _quiet_signals():
        out.write(_ENTER)
        try:
            yield
        finally:
            with suppress(OSError):  # the terminal may be gone
                out.write(_LEAVE)
                out.flush()


def _suspend(out: TextIO) -> None:
    """Ctrl-Z: the shell gets its own screen back until `fg`."""
    out.write(_LEAVE)
    out.flush()
    os.kill(os.getpid(), signal.SIGSTOP)
    out.write(_ENTER)


@contextmanager
def _quiet_signals() -> Generator[None]:
    """Signals wait for `_waited_for` to fetch them, so that none can break off a drawing half way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _waited_for(seconds: float) -> int | None:
    """Until that time is over or a signal came: a resized window is drawn at once."""
    received = signal.sigtimedwait(_HANDLED, seconds)
    return received.si_signo if received else None
