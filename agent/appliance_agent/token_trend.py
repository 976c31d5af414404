"""Tokens per second for users, from counters that grow when an answer ends: its tokens came over the time that it took. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from appliance_agent.generated import Generated

_MOST_STEPS: Final = 120
_SHORTEST_S: Final = 0.1  # of an answer


@dataclass(slots=True)
class TokenTrend:
    step_s: float
    _counted: Generated | None = None
    _counted_from_s: float = 0.0  # of an answer that began before, part came when nobody here looked
    _seen_s: float = 0.0
    _ended_s: float = 0.0  # the last answer
    _tokens: dict[int, float] = field(default_factory=dict[int, float])  # by step
    _known_s: dict[int, float] = field(default_factory=dict[int, float])  # how much of a step was counted

    @property
    def known(self) -> bool:
        return self._counted is not None

    def add(self, counted: Generated | None, now_s: float) -> None:
        """None while a slot's server does not say whether it tells: what was counted stays, and goes on later."""
        if counted is None:
            return
        more = counted.since(self._counted) if self._counted else None
        if more is None:
            self._counted_from_s, self._ended_s = now_s, now_s
        else:
            self._note(self._known_s, 1.0, self._seen_s, now_s)
        if more and more.answers:
            took_s = max(more.seconds / more.answers, _SHORTEST_S)
            self._note(self._tokens, more.tokens / took_s, max(now_s - took_s, self._counted_from_s), now_s)
            self._ended_s = now_s
        self._counted = counted
        self._seen_s = now_s
        self._forget()

    def rates(self, last: int, count: int, *, sending: Sequence[bool]) -> list[float | None]:
        """One for each step. Where bytes flow and no answer has ended since, nobody knows yet."""
        steps = range(last - count + 1, last + 1)
        return [self._rate(step, sends=sends) for step, sends in zip(steps, sending, strict=True)]

    def _rate(self, step: int, *, sends: bool) -> float | None:
        known_s = self._known_s.get(step, 0.0)
        if sends:
            known_s = min(known_s, self._ended_s - step * self.step_s)
        return self._tokens.get(step, 0.0) / known_s if known_s > 0 else None

    def _note(self, steps: dict[int, float], per_second: float, begin_s: float, end_s: float) -> None:
        for step in range(int(begin_s // self.step_s), int(end_s // self.step_s) + 1):
            here_s = min((step + 1) * self.step_s, end_s) - max(step * self.step_s, begin_s)
            if here_s > 0:
                steps[step] = steps.get(step, 0.0) + per_second * here_s

    def _forget(self) -> None:
        oldest = self._seen_s // self.step_s - _MOST_STEPS
        for steps in (self._tokens, self._known_s):
            for step in [step for step in steps if step < oldest]:
                del steps[step]
