"""Metrics of what happens between two scrapes: counted here as it happens, from any thread."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import Histogram

from appliance_agent import catalogue as names
from appliance_agent.evidence import Canary
from appliance_agent.metric import Metric
from appliance_agent.probes import Probes
from appliance_agent.traffic import Traffic

if TYPE_CHECKING:
    from prometheus_client.metrics import MetricWrapperBase


class Events:
    def __init__(self, wall_s: Callable[[], float] = time.time, mono_s: Callable[[], float] = time.monotonic) -> None:
        self.probes = Probes(wall_s, mono_s)
        self.traffic = Traffic()
        self._tick_duration = _histogram(names.TICK_DURATION)
        self._loop_lag = _histogram(names.LOOP_LAG)

    @property
    def ticks(self) -> tuple[MetricWrapperBase, ...]:
        return (self._tick_duration, self._loop_lag)

    def canary(self, slot: int, canary: Canary) -> None:
        self.probes.canary(slot, canary)

    def tick(self, duration_s: float, lag_s: float) -> None:
        self._tick_duration.observe(duration_s)
        self._loop_lag.observe(max(lag_s, 0.0))

    def keep(self, slots: Iterable[int]) -> None:
        """These slots have series, from the first moment on; no others have."""
        wanted = frozenset(slots)
        self.probes.keep(wanted)
        self.traffic.keep(wanted)


def _histogram(metric: Metric) -> Histogram:
    return Histogram(metric.name, metric.help, metric.labels, registry=None, buckets=metric.buckets)
