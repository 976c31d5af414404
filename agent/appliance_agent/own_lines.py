"""Which lines of a container's log are about our own requests. Pure.

Access lines show our mark. A timing names nobody, but the end of a canary's stream has the same figures in it, so the
one that is ours is known as soon as the canary has ended: until then all that could be it are held back. Their order
says nothing, because the log comes on a way of its own.

Where a canary ends without figures, given up or cut off, the server seldom writes a timing of it. The rule: of what was
held the newest is ours, or else the next one within two seconds; nothing is if it was refused, because then it never
ran. So at most one short answer of a user's is left out, and none of ours is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance_agent.access_log import MARK, Access, Event, Timing
from appliance_agent.evidence import Canary, Outcome

HELD_S: Final = 10.0  # our own timing is written when the answer ends: one that is older is somebody else's
_LATE_S: Final = 10.0
_GUESSED_S: Final = 2.0
_ROUNDED_S: Final = 6e-6  # the log has hundredths of a millisecond
_SLACK_S: Final = 0.25
_RAN: Final = (Outcome.TIMEOUT, Outcome.STREAM_ERROR)  # maybe


Told = tuple[float, Event]  # when the log said it


@dataclass(frozen=True, slots=True)
class _Missing:
    """A canary that has ended, and whose timing has not come."""

    until_s: float
    tokens: int
    figures: Canary | None


class OwnLines:
    def __init__(self) -> None:
        self._began_s: float | None = None  # the canary under way
        self._tokens = 0
        self._held: list[tuple[float, Timing]] = []  # by when the log said it
        self._missing: list[_Missing] = []

    @property
    def holds(self) -> bool:
        return bool(self._held)

    def began(self, now_s: float, tokens: int) -> None:
        self._began_s, self._tokens = now_s, tokens + 1  # the end counts as one

    def ended(self, canary: Canary) -> Sequence[Told]:
        """What was held and is users'."""
        held, self._held, self._began_s = self._held, [], None
        figures = canary if canary.answer_s is not None and canary.tokens else None
        if figures is None and canary.outcome not in _RAN:
            return held
        ours = [told for told in held if figures is None or _is_of(told[1], figures)]
        if ours:
            held.remove(ours[-1])
        else:
            late_s = _GUESSED_S if figures is None else _LATE_S
            self._forget(canary.ended_s)
            self._missing.append(_Missing(canary.ended_s + late_s, self._tokens, figures))
        return held

    def is_users(self, event: Event, now_s: float) -> bool:
        """Whether it is known to be about a user's request, or about nobody's."""
        if isinstance(event, Access):
            return event.query != MARK
        if not isinstance(event, Timing):
            return True
        self._forget(now_s)
        for missing in self._missing:
            if _is_of(event, missing.figures) if missing.figures else event.answer_tokens <= missing.tokens:
                self._missing.remove(missing)
                return False
        if self._may_be_ours(event, now_s):
            self._held.append((now_s, event))
            return False
        return True

    def overdue(self, now_s: float) -> Sequence[Told]:
        """What was held for so long that it cannot be ours."""
        free = [told for told in self._held if now_s - told[0] > HELD_S]
        self._held = self._held[len(free) :]
        return free

    def _forget(self, now_s: float) -> None:
        self._missing = [each for each in self._missing if now_s <= each.until_s]

    def _may_be_ours(self, timing: Timing, now_s: float) -> bool:
        if self._began_s is None or timing.answer_tokens > self._tokens:
            return False
        return now_s - timing.prompt_s - timing.answer_s >= self._began_s - _SLACK_S


def _is_of(timing: Timing, canary: Canary) -> bool:
    return (
        timing.answer_tokens == canary.tokens
        and abs(timing.answer_s - (canary.answer_s or 0.0)) <= _ROUNDED_S
        and (not timing.prompt_tokens or abs(timing.prompt_s - canary.prompt_s) <= _ROUNDED_S)
    )
