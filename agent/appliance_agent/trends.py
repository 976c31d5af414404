"""How slots did over the last minutes, as somebody saw it who asked again and again: in steps of some seconds. Pure.

The agent keeps nothing of this. A step in which nothing was seen is a gap and never zero.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from appliance_agent.status import SlotStatus, Status
from appliance_agent.token_trend import TokenTrend

STEP_S: Final = 5.0
_MOST_STEPS = 120
_STREAM_BYTES_PER_S = 50.0  # less is no stream of tokens


@dataclass(slots=True)
class _Step:
    number: int
    sum: float = 0.0
    count: int = 0


@dataclass(slots=True)
class _Trend:
    steps: deque[_Step] = field(default_factory=lambda: deque[_Step](maxlen=_MOST_STEPS))

    def add(self, number: int, value: float) -> None:
        if not self.steps or self.steps[-1].number != number:
            self.steps.append(_Step(number))
        self.steps[-1].sum += value
        self.steps[-1].count += 1

    def means(self, last: int, count: int) -> list[float | None]:
        seen = {step.number: step.sum / step.count for step in self.steps}
        return [seen.get(number) for number in range(last - count + 1, last + 1)]


class Trends:
    """Oldest first; the newest step goes on still."""

    def __init__(self, *, period_s: float) -> None:
        """With one look per period: two of them make a step, so that a late one leaves no gap."""
        self.step_s = max(STEP_S, 2 * period_s)
        self._utilization: dict[int, _Trend] = {}
        self._sent: dict[int, _Trend] = {}
        self._tokens: dict[int, TokenTrend] = {}
        self._last = 0

    def add(self, status: Status, now_s: float) -> None:
        self.go_on(now_s)
        for slot in status.slots:
            self._note(self._utilization, slot, slot.utilization_ratio)
            self._note(self._sent, slot, slot.sent_bytes_per_second)
            self._tokens.setdefault(slot.slot, TokenTrend(self.step_s)).add(slot.generated, now_s)

    def go_on(self, now_s: float) -> None:
        """Time that passes without an answer is a gap."""
        self._last = int(now_s // self.step_s)

    def utilization(self, slot: int, count: int) -> list[float | None]:
        return self._utilization.get(slot, _Trend()).means(self._last, count)

    def sent(self, slot: int, count: int) -> list[float | None]:
        """Bytes per second."""
        return self._sent.get(slot, _Trend()).means(self._last, count)

    def most_sent(self, count: int) -> float:
        """Of any slot, in any of the steps."""
        seen = [value for trend in self._sent.values() for value in trend.means(self._last, count)]
        return max((value for value in seen if value is not None), default=0.0)

    @property
    def tells_tokens(self) -> bool:
        """Of any slot."""
        return any(trend.known for trend in self._tokens.values())

    def tokens(self, slot: int, count: int) -> list[float | None]:
        """Per second, for users."""
        sending = [(rate or 0.0) >= _STREAM_BYTES_PER_S for rate in self.sent(slot, count)]
        return self._tokens.get(slot, TokenTrend(self.step_s)).rates(self._last, count, sending=sending)

    def most_tokens(self, count: int) -> float:
        """Of any slot, in any of the steps."""
        seen = [rate for slot in self._tokens for rate in self.tokens(slot, count)]
        return max((rate for rate in seen if rate is not None), default=0.0)

    def _note(self, trends: dict[int, _Trend], slot: SlotStatus, value: float | None) -> None:
        if value is not None:
            trends.setdefault(slot.slot, _Trend()).add(self._last, value)
