"""Ctrl-C and its like: one is enough to end the demo, and what takes things down is not interrupted."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def raise_on_signals() -> None:
    for which in SIGNALS:
        signal.signal(which, _interrupt)


def ignore_signals() -> None:
    for which in SIGNALS:
        signal.signal(which, signal.SIG_IGN)


@contextlib.contextmanager
def signals_held() -> Iterator[None]:
    """One that comes meanwhile takes effect at the end."""
    come: list[int] = []
    before = {which: signal.signal(which, lambda number, _: come.append(number)) for which in SIGNALS}
    try:
        yield
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
        if come:
            signal.raise_signal(come[0])


def _interrupt(number: int, frame: FrameType | None) -> None:
    del number, frame
    ignore_signals()
    raise KeyboardInterrupt
