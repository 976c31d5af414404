"""Tallies of slots as families: their text for the exposition, and the same for a registry of prometheus_client."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Generic, Protocol, TypeVar

from prometheus_client import Metric as ClientMetric
from prometheus_client.registry import Collector

from appliance_agent.metric import Metric
from appliance_agent.tallies import Tally


class Tallied(Protocol):
    @property
    def tallies(self) -> tuple[Tally, ...]:
        """The same metrics in the same order for each slot."""
        ...


_S = TypeVar("_S", bound=Tallied)


class SlotTallies(Collector, Generic[_S]):
    """From any thread."""

    def __init__(self, make: Callable[[int], _S]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._slots: dict[int, _S] = {}
        self._texts: tuple[tuple[Metric, str], ...] | None = None

    def keep(self, slots: Iterable[int]) -> None:
        """These slots have series, from the first moment on; no others have."""
        wanted = frozenset(slots)
        with self._lock:
            if wanted == self._slots.keys():
                return
            self._slots = {slot: counted for slot, counted in self._slots.items() if slot in wanted}
            for slot in wanted - self._slots.keys():
                self._begin(slot)
            self._texts = None

    def texts(self) -> tuple[tuple[Metric, str], ...]:
        """The samples of each family, for the exposition: without a detour by prometheus_client's objects."""
        with self._lock:
            if self._texts is None:
                found = ((metric, "".join(tally.text() for tally in tallies)) for metric, tallies in self._families())
                self._texts = tuple((metric, text) for metric, text in found if text)
            return self._texts

    def collect(self) -> Iterator[ClientMetric]:
        with self._lock:
            made = [_client_metric(metric, tallies) for metric, tallies in self._families()]
        yield from (metric for metric in made if metric.samples)

    def _count(self, slot: int, count: Callable[[_S], None]) -> None:
        with self._lock:
            if slot not in self._slots:
                self._begin(slot)
            count(self._slots[slot])
            self._texts = None

    def _begin(self, slot: int) -> None:
        self._slots = dict(sorted([*self._slots.items(), (slot, self._make(slot))]))

    def _families(self) -> Iterator[tuple[Metric, tuple[Tally, ...]]]:
        columns = zip(*(slot.tallies for slot in self._slots.values()), strict=True)
        yield from ((column[0].metric, column) for column in columns)


def _client_metric(metric: Metric, tallies: Iterable[Tally]) -> ClientMetric:
    made = ClientMetric(metric.name.removesuffix("_total"), metric.help, metric.kind.value)
    for tally in tallies:
        for name, labels, value in tally.samples():
            made.add_sample(name, dict(labels), value)
    return made
