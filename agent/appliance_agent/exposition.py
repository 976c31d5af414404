"""The body of `/metrics`: the text format 0.0.4 of Prometheus, made when it is asked for and only as far as it is new.

Half of the text are histograms and counters of probes, which change a few times a minute: they are rendered when they
did. What mirrors the snapshot is rendered for each snapshot once, however many ask for it.
"""

from __future__ import annotations

import platform
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from prometheus_client import Metric as ClientMetric
from prometheus_client import ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from appliance_agent.events import Events
from appliance_agent.metric import Kind
from appliance_agent.metrics import Family, Labels, XidTally, families
from appliance_agent.snapshot import Snapshot

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_FRESH_S = 1.0  # the same body is given again for so long while there is no new snapshot
_GZIP = 16 + zlib.MAX_WBITS

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


@dataclass(slots=True)
class _Made:
    snapshot: Snapshot | None
    at_s: float
    plain: bytes
    gzip: bytes = b""  # made for the first one who asks for it


class Exposition:
    def __init__(self, snapshots: Snapshots, events: Events, mono_s: Callable[[], float] = time.monotonic) -> None:
        self._snapshots = snapshots
        self._events = events
        self._mono_s = mono_s
        self._mirror = MirrorCollector(snapshots)
        self._process = ProcessCollector(registry=None)
        self._lock = threading.Lock()
        self._made: _Made | None = None
        self._probes = (-1, "")  # the change that it is the text of
        self._beginnings: dict[str, dict[Labels, str]] = {}

    def body(self, *, gzip: bool) -> bytes:
        """Two that ask at the same time get the same one."""
        with self._lock:
            snapshot, now_s = self._snapshots(), self._mono_s()
            made = self._made
            if made is None or made.snapshot is not snapshot or now_s - made.at_s >= _FRESH_S:
                made = self._made = _Made(snapshot, now_s, self._render(snapshot).encode())
            if gzip and not made.gzip:
                made.gzip = _gzip(made.plain)
            return made.gzip if gzip else made.plain

    def _render(self, snapshot: Snapshot | None) -> str:
        parts: list[str] = []
        if snapshot:
            self._events.keep(slot.plan.index for slot in snapshot.host.slots)
            parts += [self._family(family) for family in self._mirror.families(snapshot)]
        parts.append(self._probe_text())
        parts.append(_client_text([*self._events.ticks, self._process]))
        return "".join(parts)

    def _probe_text(self) -> str:
        changes = self._events.changes
        if self._probes[0] != changes:
            self._probes = (changes, _client_text(self._events.probes))
        return self._probes[1]

    def _family(self, family: Family) -> str:
        metric = family.metric
        known, used = self._beginnings.get(metric.name, {}), dict[Labels, str]()
        lines = [_head(metric.name, metric.help, metric.kind.value)]
        for labels, value in family.rows:
            beginning = known.get(labels) or _beginning(metric.name, metric.labels, labels)
            used[labels] = beginning
            lines.append(f"{beginning} {_number(value)}\n")
        self._beginnings[metric.name] = used
        return "".join(lines)


def _client_text(collectors: Iterable[_Collects]) -> str:
    lines: list[str] = []
    for collector in collectors:
        for metric in collector.collect():
            name = metric.name + ("_total" if metric.type == "counter" else "")
            lines.append(_head(name, metric.documentation, metric.type))
            for sample in metric.samples:
                if not sample.name.endswith("_created"):
                    beginning = _beginning(sample.name, tuple(sample.labels), tuple(sample.labels.values()))
                    lines.append(f"{beginning} {_number(sample.value)}\n")
    return "".join(lines)


def _head(name: str, meaning: str, kind: str) -> str:
    escaped = meaning.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {escaped}\n# TYPE {name} {kind}\n"


def _beginning(name: str, keys: tuple[str, ...], values: Labels) -> str:
    if not keys:
        return name
    pairs = ",".join(f'{key}="{_escaped(value)}"' for key, value in zip(keys, values, strict=True))
    return f"{name}{{{pairs}}}"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if value == 0:
        return "0"
    return "1" if value == 1 else repr(value)


def _gzip(plain: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return packer.compress(plain) + packer.flush()
