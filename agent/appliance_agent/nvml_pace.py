"""How often the NVML process asks for what, and when a whole session is begun anew. Data only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final


class Interval(Enum):
    SECOND = "1s"
    TENS = "10s"
    THIRTIES = "30s"
    ONCE = "once"

    __hash__ = object.__hash__  # Enum's is Python, and this is the key of many a dict every second


@dataclass(frozen=True, slots=True)
class Pace:
    enumerate_s: float = 10.0  # names, indexes and MIG devices are looked at again
    reopen_s: float = 60.0  # while a GPU is unsound: some only come back to an NVML that is initialised anew
    return_s: float = 10.0  # after one came back: its handle and its events may be those of the time before
    tens_s: float = 10.0
    thirties_s: float = 30.0

    def faster(self, factor: float) -> Pace:
        return Pace(
            self.enumerate_s / factor,
            self.reopen_s / factor,
            self.return_s / factor,
            self.tens_s / factor,
            self.thirties_s / factor,
        )

    def interval_s(self, interval: Interval) -> float:
        return {Interval.TENS: self.tens_s, Interval.THIRTIES: self.thirties_s, Interval.ONCE: _NEVER}.get(
            interval, 0.0
        )


_NEVER: Final = float("inf")
USUAL: Final = Pace()
