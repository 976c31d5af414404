"""What promtool, old and new, says of the agent's metrics."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import snapshots
from promtools import KINDS, promtool
from scraped import Scraped, probed

from appliance_agent.scrape_format import Format
from appliance_agent.snapshot import Snapshot


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["good_night", "bad_night", "without_gpus", "unknown", "in_groups", "mig"])
def test_promtool_finds_nothing(name: str, kind: str) -> None:
    make: Callable[[], Snapshot] = getattr(snapshots, name)

    assert promtool(kind, "check", "metrics", text=probed(Scraped(make())).text()) == (0, "")


@pytest.mark.parametrize("kind", KINDS)
def test_eight_gpus_are_fewer_than_three_thousand_series(kind: str) -> None:
    text = probed(Scraped(snapshots.good_night(8))).text()
    status, table = promtool(kind, "check", "metrics", "--extended", text=text)

    name, count, _ = table.splitlines()[-1].split()
    assert (status, name) == (0, "Total")
    assert 1000 < int(count) < 3000


@pytest.mark.parametrize("kind", KINDS)
def test_prometheus_stores_what_it_reads_in_openmetrics(kind: str, tmp_path: Path) -> None:
    """Its own reader of OpenMetrics, which is a stricter one than that of scrapes: each sample needs a time."""
    body = probed(Scraped(snapshots.bad_night())).exposition.body(Format.OPENMETRICS, gzip=False).decode()
    lines = [line if line.startswith("#") else f"{line} 1795867391" for line in body.splitlines()]
    samples = sum(not line.startswith("#") for line in lines)

    (tmp_path / "body").write_text("\n".join(lines) + "\n")
    status, told = promtool(kind, "tsdb", "create-blocks-from", "openmetrics", tmp_path / "body", tmp_path / "data")

    assert status == 0, told
    assert f" {samples} " in f" {' '.join(told.split())} "
