"""Metrics of what happens between two scrapes: counted here as it happens, from any thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from prometheus_client import Counter, Gauge, Histogram

from appliance_agent import catalogue as names
from appliance_agent import catalogue_slots as of_slot
from appliance_agent.evidence import Canary, Outcome
from appliance_agent.metric import Metric
from appliance_agent.traffic import Traffic

if TYPE_CHECKING:
    from prometheus_client.metrics import MetricWrapperBase

_FAILURES = tuple(outcome.value for outcome in Outcome if outcome is not Outcome.OK)


class Events:
    def __init__(self, wall_s: Callable[[], float] = time.time, mono_s: Callable[[], float] = time.monotonic) -> None:
        self._wall_s = wall_s
        self._mono_s = mono_s
        self._lock = threading.Lock()
        self._slots: frozenset[int] = frozenset()
        self._changes = 0
        self.traffic = Traffic()
        self._attempts = _counter(of_slot.PROBE_ATTEMPTS)
        self._failures = _counter(of_slot.PROBE_FAILURES)
        self._success = _gauge(of_slot.PROBE_SUCCESS)
        self._last_success = _gauge(of_slot.PROBE_LAST_SUCCESS)
        self._first_token = _histogram(of_slot.PROBE_FIRST_TOKEN)
        self._output_token = _histogram(of_slot.PROBE_OUTPUT_TOKEN)
        self._tokens = _counter(of_slot.PROBE_TOKENS)
        self._tick_duration = _histogram(names.TICK_DURATION)
        self._loop_lag = _histogram(names.LOOP_LAG)

    @property
    def changes(self) -> int:
        """Another number: `probes` say something else."""
        return self._changes

    @property
    def probes(self) -> tuple[MetricWrapperBase, ...]:
        return (
            self._attempts,
            self._failures,
            self._success,
            self._last_success,
            self._first_token,
            self._output_token,
            self._tokens,
        )

    @property
    def ticks(self) -> tuple[MetricWrapperBase, ...]:
        return (self._tick_duration, self._loop_lag)

    def canary(self, slot: int, canary: Canary) -> None:
        with self._lock:
            if slot not in self._slots:
                self._begin(slot)
            self._count(str(slot), canary)
            self._changes += 1

    def tick(self, duration_s: float, lag_s: float) -> None:
        self._tick_duration.observe(duration_s)
        self._loop_lag.observe(max(lag_s, 0.0))

    def keep(self, slots: Iterable[int]) -> None:
        """These slots have series, from the first moment on; no others have."""
        wanted = frozenset(slots)
        self.traffic.keep(wanted)
        if wanted == self._slots:
            return
        with self._lock:
            for slot in self._slots - wanted:
                self._end(slot)
            for slot in wanted - self._slots:
                self._begin(slot)
            self._changes += 1

    def _count(self, slot: str, canary: Canary) -> None:
        good = canary.outcome is Outcome.OK
        self._attempts.labels(slot).inc()
        self._success.labels(slot).set(good)
        self._tokens.labels(slot).inc(canary.tokens)
        if canary.first_token_s is not None:
            self._first_token.labels(slot).observe(canary.first_token_s)
        if not good:
            self._failures.labels(slot, canary.outcome.value).inc()
            return
        self._last_success.labels(slot).set(round(self._wall_s() - (self._mono_s() - canary.ended_s), 3))
        if canary.tokens_per_s:
            self._output_token.labels(slot).observe(1 / canary.tokens_per_s)

    def _begin(self, slot: int) -> None:
        self._slots |= {slot}
        for metric in (self._attempts, self._first_token, self._output_token, self._tokens):
            metric.labels(str(slot))
        for reason in _FAILURES:
            self._failures.labels(str(slot), reason)

    def _end(self, slot: int) -> None:
        self._slots -= {slot}
        for metric in self.probes:
            if metric is not self._failures:
                metric.remove(str(slot))
        for reason in _FAILURES:
            self._failures.remove(str(slot), reason)


def _counter(metric: Metric) -> Counter:
    return Counter(metric.name, metric.help, metric.labels, registry=None)


def _gauge(metric: Metric) -> Gauge:
    return Gauge(metric.name, metric.help, metric.labels, registry=None)


def _histogram(metric: Metric) -> Histogram:
    return Histogram(metric.name, metric.help, metric.labels, registry=None, buckets=metric.buckets)
