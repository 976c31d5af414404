"""A row of values as a row of characters, one each: nothing known, nothing, or how much. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import Final

UNKNOWN: Final = "."
_BLOCKS = "▁▂▃▄▅▆▇█"
_DIGITS = "0123456789"  # where there are no blocks: ninths, rounded up


def sparkline(values: Sequence[float | None], *, top: float, blocks: bool) -> str:
    """The lowest character means exactly 0: however little is more."""
    characters = _BLOCKS if blocks else _DIGITS
    most = len(characters) - 1
    return "".join(
        UNKNOWN if value is None else characters[min(max(ceil(value / top * most), 0), most)] for value in values
    )


def round_top(highest: float, *, least: float) -> float:
    """1, 2 or 5 times a power of ten, so that the scale does not change with every value."""
    if highest <= least:
        return least
    power: float = 10.0 ** floor(log10(highest))
    return next(factor * power for factor in (1, 2, 5, 10) if highest <= factor * power)
