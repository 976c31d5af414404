"""What a scrape of the agent says, as values."""

from __future__ import annotations

import re

import snapshots
import soundhost
from prometheus_client.parser import text_string_to_metric_families

from appliance_agent.access_log import Access, LoadFailed, ModelLoad, Offload, Result, Source, Timing, Truncated
from appliance_agent.events import Events
from appliance_agent.evidence import Outcome
from appliance_agent.exposition import Exposition
from appliance_agent.snapshot import Snapshot

TRAFFIC = (
    ModelLoad(7.25), Offload(64, 65), LoadFailed("no memory"), Truncated(5000, 4096),
    Access(200, 3.5, "10.0.0.7", "POST", "/api/chat"), Access(200, 0.75, "10.0.0.7", "POST", "/v1/chat/completions"),
    Access(503, 0.001, "10.0.0.7", "POST", "/api/chat"), Access(404, 0.001, "10.0.0.7", "POST", "/api/chat"),
    Access(418, 0.001, "10.0.0.7", "POST", "/api/embed"), Access(200, 0.001, "10.0.0.7", "GET", "/api/tags"),
    Timing(120, 0.5, 96, 2.375), Timing(5, 0.25, 1, 0.0),
)  # fmt: skip
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class Scraped:
    """An exposition over one snapshot that a test may exchange, and its clock."""

    def __init__(self, snapshot: Snapshot | None) -> None:
        self.snapshot = snapshot
        self.now_s = 1000.0
        self.events = Events(wall_s=lambda: soundhost.NOW.wall_s, mono_s=lambda: soundhost.NOW.mono_s)
        self.exposition = Exposition(lambda: self.snapshot, self.events, mono_s=lambda: self.now_s)

    def text(self) -> str:
        self.now_s += 2
        return self.exposition.body(gzip=False).decode()

    def series(self) -> Series:
        return series(self.text())

    def value(self, name: str, **labels: str) -> float | None:
        return self.series().get((f"appliance_{name}", tuple(sorted(labels.items()))))

    def values(self, name: str, label: str) -> dict[str, float]:
        found = self.series().items()
        return {dict(labels)[label]: value for (known, labels), value in found if known == f"appliance_{name}"}


def series(text: str) -> Series:
    found: Series = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def without_process(text: str) -> str:
    """What the process itself uses differs from run to run, and so does the version of Python."""
    lines = [line for line in text.splitlines(keepends=True) if not re.match(r"(# \w+ )?process_", line)]
    return re.sub(r'python_version="[^"]+"', 'python_version="3"', "".join(lines))


def with_probes() -> Scraped:
    return probed(Scraped(snapshots.bad_night()))


def probed(scraped: Scraped) -> Scraped:
    scraped.text()
    for slot in (0, 1):
        scraped.events.canary(slot, soundhost.canary(speed=41.5 - 20 * slot))
    scraped.events.canary(2, soundhost.canary(outcome=Outcome.TIMEOUT))
    for event in TRAFFIC:
        scraped.events.traffic.event(1, event)
    scraped.events.traffic.line(Source.GIN, Result.MATCHED)
    scraped.events.traffic.line(Source.RUNNER, Result.IGNORED)
    scraped.events.tick(0.002, 0.0)
    scraped.events.tick(0.3, 1.5)
    return scraped
