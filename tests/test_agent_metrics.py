"""The text of /metrics: names are API, and it is what prometheus_client would render."""

from __future__ import annotations

import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import snapshots
import soundhost
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.registry import Collector
from scraped import Scraped, probed, series, with_probes, without_process

from appliance_agent.catalogue import CATALOGUE, render_markdown
from appliance_agent.evidence import Canary, Outcome
from appliance_agent.exposition import MirrorCollector
from appliance_agent.metric import Kind
from appliance_agent.snapshot import Snapshot

ROOT = Path(__file__).parent.parent
NOT_IDENTITY = {
    "gpu", "uuid", "state", "reason", "sensor", "action", "xid", "interval", "domain", "error", "cause", "owner", "model", "api",
    "code", "source", "result",
}  # fmt: skip
GOLDEN = ROOT / "tests" / "recordings" / "agent" / "metrics.txt"


def test_the_metrics_of_a_known_night_are_what_they_always_were() -> None:
    """Names and labels are API: whoever changes this file breaks dashboards and alerts, and says so in CHANGELOG."""
    assert without_process(with_probes().text()) == GOLDEN.read_text()


@pytest.mark.parametrize("name", ["good_night", "bad_night", "without_gpus", "unknown", "in_groups", "mig"])
def test_promtool_finds_nothing(name: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool: sudo apt-get install prometheus")
    make: Callable[[], Snapshot] = getattr(snapshots, name)
    scraped = with_probes()
    scraped.snapshot = make()

    checked = subprocess.run(
        [promtool, "check", "metrics"], input=scraped.text(), capture_output=True, text=True, check=False
    )

    assert (checked.returncode, checked.stdout + checked.stderr) == (0, "")


def _collectors(scraped: Scraped) -> list[Collector]:
    events = scraped.events
    return [MirrorCollector(lambda: scraped.snapshot), events.traffic, events.probes, *events.ticks]


@pytest.mark.parametrize("name", ["good_night", "bad_night", "without_gpus", "unknown", "in_groups", "mig"])
def test_prometheus_client_would_say_the_same(name: str) -> None:
    make: Callable[[], Snapshot] = getattr(snapshots, name)
    scraped = probed(Scraped(make()))
    ours = {key: value for key, value in scraped.series().items() if key[0].startswith("appliance_")}
    registry = CollectorRegistry()
    for collector in _collectors(scraped):
        registry.register(collector)

    theirs = {
        key: value for key, value in series(generate_latest(registry).decode()).items() if "_created" not in key[0]
    }

    assert ours == theirs


def test_help_and_type_are_said_once_and_are_the_catalogues() -> None:
    text = with_probes().text()
    kinds = {metric.name: metric.kind.value for metric in CATALOGUE}
    meanings = {metric.name: metric.help for metric in CATALOGUE}

    said_kinds = re.findall(r"^# TYPE (appliance_\S+) (\S+)$", text, re.MULTILINE)
    said_meanings = re.findall(r"^# HELP (appliance_\S+) (.+)$", text, re.MULTILINE)

    assert len(said_kinds) == len(dict(said_kinds)) == len(said_meanings)
    assert dict(said_kinds).items() <= kinds.items()
    assert dict(said_meanings).items() <= meanings.items()


def test_every_metric_of_the_catalogue_is_emitted() -> None:
    emitted = set(re.findall(r"^# TYPE appliance_(\S+)", with_probes().text(), re.MULTILINE))

    assert emitted == {metric.name.removeprefix("appliance_") for metric in CATALOGUE}


def test_labels_are_the_catalogues() -> None:
    known = {metric.name: set(metric.labels) for metric in CATALOGUE}
    for name, labels in with_probes().series():
        base = re.sub(r"_(bucket|sum|count)$", "", name)
        if base in known:
            assert {label for label, _ in labels} - {"le"} == known[base]


def test_identity_is_on_info_metrics_alone() -> None:
    for metric in CATALOGUE:
        if not metric.name.endswith("_info"):
            assert set(metric.labels) <= NOT_IDENTITY


def test_names_follow_the_conventions() -> None:
    assert len({metric.name for metric in CATALOGUE}) == len(CATALOGUE)
    for metric in CATALOGUE:
        assert re.fullmatch(r"appliance_[a-z0-9]+(_[a-z0-9]+)+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind is Kind.COUNTER)
        assert metric.help.endswith(".")
        assert metric.source
        assert list(metric.buckets) == sorted(set(metric.buckets))


def test_the_documentation_has_a_row_for_each_metric() -> None:
    rows = render_markdown().splitlines()

    assert len(rows) == len(CATALOGUE) + 2
    assert rows[2].startswith("| `appliance_backend_info` | gauge | `gpu`, `container`, ")
    assert render_markdown() in (ROOT / "agent" / "METRICS.md").read_text()


def test_odd_names_cannot_break_a_line() -> None:
    base = snapshots.good_night(1)
    odd = 'a"b\\c\nappliance_evil 1\u2028模型'
    card = replace(soundhost.gpu(0), name=odd)

    text = Scraped(replace(base, version=odd, gpus=replace(base.gpus, gpus=(card,)))).text()

    names = {dict(labels)["name"] for (name, labels) in series(text) if name == "appliance_gpu_info"}
    assert names == {odd}


def test_the_same_snapshot_is_rendered_once_within_a_second() -> None:
    scraped = with_probes()
    first = scraped.exposition.body(gzip=False)
    scraped.now_s += 0.9
    again = scraped.exposition.body(gzip=False)
    scraped.now_s += 0.2
    later = scraped.exposition.body(gzip=False)

    assert again is first
    assert later is not first


def test_a_new_snapshot_is_rendered_at_once() -> None:
    scraped = with_probes()
    scraped.exposition.body(gzip=False)
    scraped.snapshot = replace(snapshots.bad_night(), ticks=42)

    assert b"appliance_agent_ticks_total 42\n" in scraped.exposition.body(gzip=False)


def test_a_probe_shows_in_the_next_scrape_of_a_new_snapshot() -> None:
    scraped = with_probes()
    counts: list[float | None] = []
    for _ in range(3):
        scraped.events.canary(0, soundhost.canary())
        counts.append(scraped.value("probe_attempts_total", gpu="0"))

    assert counts == [2, 3, 4]


def test_scrapes_and_probes_at_the_same_time_lose_nothing() -> None:
    scraped = Scraped(snapshots.good_night())
    stop = threading.Event()

    def scrape() -> Iterator[None]:
        while not stop.is_set():
            series(scraped.text())
            yield

    def probe(slot: int) -> None:
        for _ in range(200):
            scraped.events.canary(slot, soundhost.canary())

    with ThreadPoolExecutor(6) as pool:
        scrapers = [pool.submit(lambda: list(scrape())) for _ in range(2)]
        probers = [pool.submit(probe, slot) for slot in (0, 1, 2, 2)]
        for prober in probers:
            prober.result()
        stop.set()
        for scraper in scrapers:
            scraper.result()

    counts = scraped.values("probe_attempts_total", "gpu")
    assert (counts["0"], counts["1"], counts["2"]) == (200, 200, 400)


def test_eight_gpus_are_fewer_than_three_thousand_series() -> None:
    assert len(with_probes().series()) < 3000


def test_a_canary_that_failed_after_its_first_token_still_tells_when_that_came() -> None:
    scraped = Scraped(snapshots.good_night(1))
    scraped.events.canary(0, Canary(1.0, 9.0, Outcome.STREAM_ERROR, first_token_s=0.3, tokens=3))

    assert scraped.value("probe_time_to_first_token_seconds_count", gpu="0") == 1
    assert scraped.value("probe_generated_tokens_total", gpu="0") == 3
    assert scraped.value("probe_failures_total", gpu="0", reason="stream_error") == 1
