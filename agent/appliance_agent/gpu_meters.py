"""Counters that NVML does not have: busy time from the driver's samples, and bytes from counters that wrap. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

_GAP_US: Final = 2_500_000  # the driver samples every sixth of a second to every second
_SILENT: Final = 3  # so many looks without a sample: its clock was set back
_PCIE_BYTES_PER_S: Final = 512e9  # more than any link of today and tomorrow


@dataclass(frozen=True, slots=True)
class Busy:
    """Each sample stands for the time since the one before. A gap that nobody sampled counts for nothing."""

    seconds: float = 0.0
    seen_us: int = 0  # the newest sample's time, 0 before the first
    silent: int = 0  # looks without a sample

    def after(self, samples: Iterable[tuple[int, int]]) -> Busy:
        """Of time in microseconds and percent, in any order; those that were seen before may be among them."""
        told = sorted(samples)
        if not self.seen_us and told:  # what was before is not ours to count
            return Busy(self.seconds, told[-1][0])
        seen_us, busy = self.seen_us, 0
        for at_us, percent in told:
            if at_us <= seen_us:
                continue
            if at_us - seen_us <= _GAP_US:
                busy += (at_us - seen_us) * min(percent, 100)
            seen_us = at_us
        if seen_us > self.seen_us:
            return Busy(self.seconds + busy / 100e6, seen_us)
        return self.quiet()

    def told(self, ratio: float, span_s: float) -> Busy:
        """By somebody who has measured it: no sample of that time counts as well."""
        return Busy(self.seconds + ratio * span_s)

    def quiet(self) -> Busy:
        if self.silent + 1 >= _SILENT:
            return Busy(self.seconds)
        return Busy(self.seconds, self.seen_us, self.silent + 1)


class Bytes(NamedTuple):
    """A counter of the driver that may wrap at its width, or begin anew when the card does."""

    total: int = 0
    last: int | None = None
    at_s: float = 0.0

    def after(self, now: int, *, bits: int, now_s: float) -> Bytes:
        if self.last is None:
            return Bytes(self.total, now, now_s)
        moved = (now - self.last) % (1 << bits)
        if moved > _PCIE_BYTES_PER_S * max(now_s - self.at_s, 0.001):
            moved = 0
        return Bytes(self.total + moved, now, now_s)
