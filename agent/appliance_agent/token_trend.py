"""Tokens per second for users, from counters that grow when an answer ends: its tokens came over the time that it took. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from appliance_agent.generated import Generated

_MOST_STEPS: Final = 120
_SHORTEST_S: Final = 0.1  # of an answer


@dataclass(slots=True)
class TokenTrend:
    step_s: float
    _counted: Generated | None = None
    _known_from_s: float = 0.0  # before, tokens came that nobody here can tell
    _seen_s: float = 0.0
    _ended_s: float = 0.0  # the last answer
    _tokens: dict[int, float] = field(default_factory=dict[int, float])  # by step

    @property
    def known(self) -> bool:
        return self._counted is not None

    def add(self, counted: Generated | None, now_s: float) -> None:
        more = counted.since(self._counted) if counted and self._counted else None
        if more is None:
            self._known_from_s, self._ended_s = now_s, now_s
            self._tokens.clear()
        elif more.answers:
            self._spread(more, now_s)
            self._ended_s = now_s
        self._counted = counted
        self._seen_s = now_s

    def rates(self, last: int, count: int, *, sending: list[bool]) -> list[float | None]:
        """One for each step. Where bytes flow and no answer has ended since, nobody knows yet."""
        steps = range(last - count + 1, last + 1)
        return [self._rate(step, sends=sends) for step, sends in zip(steps, sending, strict=True)]

    def _rate(self, step: int, *, sends: bool) -> float | None:
        begin_s = max(step * self.step_s, self._known_from_s)
        known_s = min((step + 1) * self.step_s, self._ended_s if sends else self._seen_s) - begin_s
        if self._counted is None or known_s <= 0:
            return None
        return self._tokens.get(step, 0.0) / known_s

    def _spread(self, more: Generated, now_s: float) -> None:
        took_s = max(more.seconds / more.answers, _SHORTEST_S)
        for step in range(int((now_s - took_s) // self.step_s), int(now_s // self.step_s) + 1):
            begin_s, end_s = max(step * self.step_s, now_s - took_s), min((step + 1) * self.step_s, now_s)
            here_s = end_s - max(begin_s, self._known_from_s)
            if here_s > 0:
                self._tokens[step] = self._tokens.get(step, 0.0) + more.tokens * here_s / took_s
        for step in [step for step in self._tokens if step <= now_s // self.step_s - _MOST_STEPS]:
            del self._tokens[step]
