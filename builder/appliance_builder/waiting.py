"""When to try again: full-jitter back-off, a server's own Retry-After, and a budget of time without progress."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Protocol

_FIRST_S = 0.5
_LONGEST_S = 20.0
TOLD_LIMIT_S = 300.0  # beyond this a server that says "later" means another run

Note = Callable[[str], None]


def silent(text: str) -> None:
    """For callers that have no bar to write beside."""
    del text


@dataclass(frozen=True, slots=True)
class Waiting:
    """`patience_s` is time without progress, not a number of attempts; an answer may take at least `answer_s` to begin.

    The rest is there to be replaced in tests.
    """

    patience_s: float = 120.0
    answer_s: float = 0.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    random: Callable[[], float] = random.random
    now: Callable[[], float] = time.time


class Failure(Protocol):
    """A NetworkError or a RegistryError."""

    message: str

    @property
    def retry_after_s(self) -> float | None: ...


class Patience:
    """The budget of one undertaking. A time that a server asked for is granted on top of it, up to a limit."""

    def __init__(self, waiting: Waiting, note: Note = silent, *, at_least_s: float = 0) -> None:
        self._waiting = waiting
        self._note = note
        self._budget_s = max(waiting.patience_s, at_least_s)
        self._since: float | None = None  # the first failure after progress: a slow source is no failure
        self._granted_s = 0.0
        self._tries = 0
        self._noted = False

    def progressed(self) -> None:
        self._since = None
        self._granted_s = 0.0
        self._tries = 0
        if self._noted:
            self._noted = False
            self._note("")

    def wait(self, failure: Failure, *, budget_s: float | None = None) -> bool:
        """False, at once, if the time is up."""
        told_s = failure.retry_after_s
        if self._since is None:
            self._since = self._waiting.clock()
        spent_s = self._waiting.clock() - self._since - self._granted_s
        left_s = (self._budget_s if budget_s is None else min(budget_s, self._budget_s)) - spent_s
        if left_s <= 0:
            return False
        delay_s = min(left_s, self._waiting.random() * min(_LONGEST_S, _FIRST_S * 2**self._tries))
        if told_s is not None:
            if self._granted_s + told_s > TOLD_LIMIT_S:
                return False
            self._granted_s += told_s
            delay_s = told_s + min(delay_s, 1.0)
        self._tries = min(self._tries + 1, 16)
        self._noted = True
        self._note(f"waiting {delay_s:.0f} s: {failure.message}")
        self._waiting.sleep(delay_s)
        return True

    def pause(self, tries: int) -> None:
        """Before looking again for what takes its time."""
        longest_s = min(_LONGEST_S, _FIRST_S * 2**tries)
        self._waiting.sleep(longest_s / 2 * (1 + self._waiting.random()))


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """The wait that a Retry-After header asks for, in seconds or as a date; None if there is none that makes sense."""
    text = headers.get("retry-after", "").strip()
    if text.isdecimal():
        return float(text[:12])
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(0.0, (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() - now)
