"""The body of `/metrics`: Prometheus' text format 0.0.4 or OpenMetrics 1.0, made when it is asked for.

What is counted of probes and traffic keeps its own text until it changes. What mirrors the snapshot is rendered for each
snapshot once, however many ask for it and in whichever format: the two differ in the names that counters have in
comments, and in the last line.
"""

from __future__ import annotations

import platform
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol

from prometheus_client import Metric as ClientMetric
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from appliance_agent.events import Events
from appliance_agent.metric import Kind
from appliance_agent.metrics import Family, Row, families
from appliance_agent.metrics_gpu import XidTally
from appliance_agent.scrape_format import Format
from appliance_agent.snapshot import Snapshot
from appliance_agent.text_format import Labels, beginning, escaped, number

_FRESH_S = 1.0  # the same body is given again for so long while there is no new snapshot
_GZIP = 16 + zlib.MAX_WBITS
_END: Final = "# EOF\n"

Snapshots = Callable[[], Snapshot | None]


class _Collects(Protocol):
    def collect(self) -> Iterable[ClientMetric]: ...


class MirrorCollector(Collector):
    """The snapshot's metrics, for a registry of prometheus_client as well."""

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._tally = XidTally()
        self._python = platform.python_version()
        self._lock = threading.Lock()

    def families(self, snapshot: Snapshot) -> Iterator[Family]:
        with self._lock:
            self._tally = self._tally.after(snapshot.gpus.xids)
            return families(snapshot, self._tally, python=self._python)

    def collect(self) -> Iterator[ClientMetric]:
        snapshot = self._snapshots()
        for family in self.families(snapshot) if snapshot else ():
            metric = family.metric
            made = (CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily)(
                metric.name, metric.help, labels=metric.labels
            )
            for labels, value in family.rows:
                made.add_metric(labels, value)
            yield made


@dataclass(frozen=True, slots=True)
class _Rendered:
    """A family: its comments in both formats, and its samples, which are the same in both."""

    heads: tuple[str, str]  # TEXT, OPENMETRICS
    samples: str


@dataclass(slots=True)
class _Made:
    snapshot: Snapshot | None
    at_s: float
    parts: list[_Rendered]
    bodies: dict[tuple[Format, bool], bytes] = field(default_factory=dict[tuple[Format, bool], bytes])

    def body(self, form: Format, *, gzip: bool) -> bytes:
        """Made for the first one who asks for it."""
        known = self.bodies.get((form, gzip))
        if known is None:
            known = self.bodies[form, gzip] = _gzip(self.body(form, gzip=False)) if gzip else self._plain(form)
        return known

    def _plain(self, form: Format) -> bytes:
        which = 1 if form is Format.OPENMETRICS else 0
        pieces = [piece for part in self.parts for piece in (part.heads[which], part.samples)]
        return "".join([*pieces, _END] if which else pieces).encode(errors="replace")


class Exposition:
    def __init__(self, snapshots: Snapshots, events: Events, mono_s: Callable[[], float] = time.monotonic) -> None:
        self._snapshots = snapshots
        self._events = events
        self._mono_s = mono_s
        self._mirror = MirrorCollector(snapshots)
        self._process = ProcessCollector(registry=None)
        self._lock = threading.Lock()
        self._made: _Made | None = None
        self._heads: dict[str, tuple[str, str]] = {}
        self._beginnings: dict[str, dict[Labels, str]] = {}
        self._families: dict[str, tuple[list[Row], _Rendered]] = {}

    def body(self, form: Format = Format.TEXT, *, gzip: bool) -> bytes:
        """Two that ask at the same time get the same one."""
        with self._lock:
            snapshot, now_s = self._snapshots(), self._mono_s()
            made = self._made
            if made is None or made.snapshot is not snapshot or now_s - made.at_s >= _FRESH_S:
                made = self._made = _Made(snapshot, now_s, self._render(snapshot))
            return made.body(form, gzip=gzip)

    def _render(self, snapshot: Snapshot | None) -> list[_Rendered]:
        parts: list[_Rendered] = []
        if snapshot:
            self._events.keep(slot.plan.index for slot in snapshot.host.slots)
            parts += [self._family(family) for family in self._mirror.families(snapshot)]
        for counted in (self._events.probes, self._events.traffic):
            parts += [_Rendered(self._head(of.name, of.help, of.kind.value), text) for of, text in counted.texts()]
        parts += self._client_parts([*self._events.ticks, self._process])
        return parts

    def _family(self, family: Family) -> _Rendered:
        """Most families say what they said before: comparing is ten times as fast as writing."""
        metric = family.metric
        before = self._families.get(metric.name)
        if before and before[0] == family.rows:
            return before[1]
        known, used = self._beginnings.get(metric.name, {}), dict[Labels, str]()
        lines: list[str] = []
        for labels, value in family.rows:
            start = known.get(labels) or beginning(metric.name, metric.labels, labels)
            used[labels] = start
            lines.append(f"{start} {number(value)}\n")
        self._beginnings[metric.name] = used
        rendered = _Rendered(self._head(metric.name, metric.help, metric.kind.value), "".join(lines))
        self._families[metric.name] = (family.rows, rendered)
        return rendered

    def _client_parts(self, collectors: Iterable[_Collects]) -> Iterator[_Rendered]:
        for collector in collectors:
            for metric in collector.collect():
                name = metric.name + ("_total" if metric.type == "counter" else "")
                known, used = self._beginnings.get(name, {}), dict[Labels, str]()
                lines: list[str] = []
                for sample in metric.samples:
                    if sample.name.endswith("_created"):
                        continue
                    labels = (sample.name, *sample.labels.values())
                    start = known.get(labels) or beginning(sample.name, tuple(sample.labels), labels[1:])
                    used[labels] = start
                    lines.append(f"{start} {number(sample.value)}\n")
                self._beginnings[name] = used
                yield _Rendered(self._head(name, metric.documentation, metric.type), "".join(lines))

    def _head(self, name: str, meaning: str, kind: str) -> tuple[str, str]:
        heads = self._heads.get(name)
        if heads is None:
            heads = self._heads[name] = (_head(name, meaning, kind), _openmetrics_head(name, meaning, kind))
        return heads


def _head(name: str, meaning: str, kind: str) -> str:
    told = meaning.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {told}\n# TYPE {name} {kind}\n"


def _openmetrics_head(name: str, meaning: str, kind: str) -> str:
    """`_total` belongs to the sample there, not to the family."""
    base = name.removesuffix("_total") if kind == Kind.COUNTER.value else name
    return f"# HELP {base} {escaped(meaning)}\n# TYPE {base} {kind}\n"


def _gzip(plain: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return packer.compress(plain) + packer.flush()
