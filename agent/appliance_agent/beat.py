"""Whoever wakes up now and then does so when the others do: at whole seconds of CLOCK_MONOTONIC, which all processes share.

After a second of sleep the processor's caches hold nothing of the agent any more, and what runs then takes several
times as long. Who is woken right after somebody else finds them warm. Pure.
"""

from __future__ import annotations


def beat(at_s: float, period_s: float = 1.0) -> float:
    """The beat nearest to a moment."""
    return round(at_s / period_s) * period_s
