"""The columns that only somebody who watches can have: what the last minutes were like. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance_agent.amounts import age, amount
from appliance_agent.sparkline import round_top, sparkline
from appliance_agent.status import SlotStatus
from appliance_agent.table_layout import Column
from appliance_agent.terminal_text import Piece
from appliance_agent.trends import Trends

_LEAST_TOKENS, _LEAST_BYTES = 10.0, 1000.0  # per second, that a scale ends with
_STEPS: Final = ((160, 24), (100, 16), (76, 12), (0, 8))  # in a window of at least so many columns


@dataclass(frozen=True, slots=True)
class TrendColumns:
    trends: Trends
    columns: int  # of the window
    blocks: bool = True  # False: the terminal has digits only

    def utilization(self, slots: Sequence[SlotStatus]) -> Column:
        title = f"UTIL {age(self._steps * self.trends.step_s)}"
        rows = [self.trends.utilization(slot.slot, self._steps) for slot in slots]
        return self._column(title, 99, rows, top=1.0)

    def users(self, slots: Sequence[SlotStatus]) -> Column:
        """What users get: tokens, or where no Ollama tells them, bytes. All slots on one scale, to be compared."""
        if self.trends.tells_tokens:
            top = round_top(self.trends.most_tokens(self._steps), least=_LEAST_TOKENS)
            return self._scaled("USERS", "tok/s", [self.trends.tokens(slot.slot, self._steps) for slot in slots], top)
        top = round_top(self.trends.most_sent(self._steps), least=_LEAST_BYTES)
        return self._scaled("SENT", "B/s", [self.trends.sent(slot.slot, self._steps) for slot in slots], top)

    @property
    def _steps(self) -> int:
        return next(steps for columns, steps in _STEPS if self.columns >= columns)

    def _scaled(self, name: str, unit: str, rows: Sequence[Sequence[float | None]], top: float) -> Column:
        scale = f"0-{amount(top, whole=True).replace(' ', '')}{unit}"
        narrow = self._steps == _STEPS[-1][1]
        title = f"{name} {age(self._steps * self.trends.step_s) if narrow else scale}"
        return self._column(title, 97, rows, top=top)

    def _column(self, title: str, keep: int, rows: Sequence[Sequence[float | None]], *, top: float) -> Column:
        cells = tuple(Piece(sparkline(row, top=top, blocks=self.blocks)) for row in rows)
        return Column(title, keep, cells, right=True)
