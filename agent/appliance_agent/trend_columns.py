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

_LEAST_TOP = 1000.0  # bytes per second
_STEPS: Final = ((160, 24), (100, 16), (76, 12), (0, 8))  # in a window of at least so many columns


@dataclass(frozen=True, slots=True)
class TrendColumns:
    trends: Trends
    columns: int  # of the window
    blocks: bool = True  # False: the terminal has digits only

    def utilization(self, slots: Sequence[SlotStatus]) -> Column:
        count = self._steps()
        title = f"UTIL {age(count * self.trends.step_s)}"
        rows = [self.trends.utilization(slot.slot, count) for slot in slots]
        return self._column(title, 99, rows, top=1.0)

    def sent(self, slots: Sequence[SlotStatus]) -> Column:
        """All slots on one scale, so that they can be compared."""
        count = self._steps()
        top = round_top(self.trends.most_sent(count), least=_LEAST_TOP)
        scale = f"0-{amount(top, whole=True).replace(' ', '')}B/s"
        title = f"SENT {age(count * self.trends.step_s) if count == _STEPS[-1][1] else scale}"
        rows = [self.trends.sent(slot.slot, count) for slot in slots]
        return self._column(title, 97, rows, top=top)

    def _steps(self) -> int:
        return next(steps for columns, steps in _STEPS if self.columns >= columns)

    def _column(self, title: str, keep: int, rows: Sequence[Sequence[float | None]], *, top: float) -> Column:
        cells = tuple(Piece(sparkline(row, top=top, blocks=self.blocks)) for row in rows)
        return Column(title, keep, cells, right=True)
