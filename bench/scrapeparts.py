"""Scrapes of a whole agent on an engine of its own: in peace, while all its neighbours hang, and when an XID comes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from typing import Final

from agenthost import METRICS_PORT, AgentHost
from benchhost import Bench, Row
from benchload import children
from scrapeload import (
    Dial,
    EachSeconds,
    Scraper,
    Spread,
    ages_s,
    cpu_of,
    for_seconds,
    in_parallel,
    pss_of,
    series_of,
    times_ms,
)

DCGM: Final = "dcgm-exporter"
TARGET_MS: Final = 10.0
_PEACE_S: Final = 25.0
_PAUSE_S: Final = 0.05
_XIDS: Final = 24
_BETWEEN_XIDS_S: Final = 0.23  # so that no GPU tells the same within a second, which is taken for one error
_XID_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.02
_HANG: Final = "hang_before_first_token"
_SCRAPE_EACH_S: Final = 15.0

Hang = Callable[[Bench, AgentHost, ExitStack], None]


def in_peace(bench: Bench) -> list[Row]:
    dial = _dial(bench)
    done = in_parallel(dial, for_seconds(_PEACE_S), _PAUSE_S)
    count, ages = series_of(done[-1].text), ages_s(done)
    return [
        _times("scrape of a whole agent, 8 slots", times_ms(done), len(done)),
        Row("series, 8 slots", f"{count}", {}, "3,000", count <= 3000),
        Row(
            "age of GPU samples when scraped",
            f"p50 {ages.p50:.1f} s, p99 {ages.p99:.1f} s",
            {DCGM: "up to 30 s: its default interval"},
            "p99 2 s",
            ages.p99 <= 2,
        ),
    ]


def xid(bench: Bench, host: AgentHost) -> list[Row]:
    """From the driver's word to the answer that has it; XID 43 is an application's fault, and nobody is restarted."""
    waited: list[float] = []
    with closing(Scraper(_dial(bench))) as scraper:
        for number in range(_XIDS):
            before = _xids(scraper)
            with host.graphics.changing() as world:
                world.xid(world.gpus[number % len(world.gpus)], 43)
            began_s = time.monotonic()
            while _xids(scraper) == before:
                if time.monotonic() - began_s > _XID_TIMEOUT_S:
                    break
                time.sleep(_POLL_S)
            waited.append(time.monotonic() - began_s)
            time.sleep(_BETWEEN_XIDS_S)
    told = Spread.of(waited)
    ours = f"p50 {told.p50:.2f} s, max {told.most:.2f} s (n={len(waited)})"
    return [Row("an XID shows in /metrics", ours, {DCGM: "the last one, each 30 s"}, "1 s", told.most <= 1)]


def _xids(scraper: Scraper) -> float:
    lines = scraper.scrape().text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith("appliance_gpu_xid_errors_total{"))


def hangs(bench: Bench, host: AgentHost, seconds: float, *, apart: bool) -> list[Row]:
    kinds: dict[str, Hang] = {"a model": _model, "NVML": _nvml, "the Docker Engine": _engine}
    together: list[tuple[str, Sequence[Hang]]] = [("NVML, the Docker Engine and a model", list(kinds.values()))]
    rows: list[Row] = []
    for name, parts in [(name, [hang]) for name, hang in kinds.items()] if apart else together:
        with ExitStack() as stack:
            for hang in parts:
                hang(bench, host, stack)
            done = in_parallel(_dial(bench), for_seconds(seconds), _PAUSE_S)
        rows.append(_times(f"the same while {name} hang{'s' * apart} for {seconds:.0f} s", times_ms(done), len(done)))
        host.wait_ready(timeout_s=120)
    return rows


def _nvml(_bench: Bench, host: AgentHost, stack: ExitStack) -> None:
    @contextmanager
    def hanging() -> Iterator[None]:
        with host.graphics.changing() as world:
            world.hangs = True
        yield
        with host.graphics.changing() as world:
            world.hangs = False

    stack.enter_context(hanging())


def _engine(bench: Bench, _host: AgentHost, stack: ExitStack) -> None:
    stack.enter_context(bench.engine.frozen())


def _model(_bench: Bench, host: AgentHost, _stack: ExitStack) -> None:
    """Until its container is replaced, which a frozen engine does not do."""
    host.fault(0, _HANG)


def footprint(bench: Bench, host: AgentHost, seconds: float) -> list[Row]:
    with closing(EachSeconds(_dial(bench), _SCRAPE_EACH_S)):
        time.sleep(5)
        pids = [host.pid, *children(host.pid)]
        before, began_s = sum(map(cpu_of, pids)), time.monotonic()
        time.sleep(seconds)
        share = 100 * (sum(map(cpu_of, pids)) - before) / (time.monotonic() - began_s)
        mib = sum(map(pss_of, pids))
    return [
        Row("CPU, scraped every 15 s", f"{share:.2f} % of a core", {}, "0.5 %", share <= 0.5),
        Row("memory, scraped every 15 s", f"{mib:.1f} MiB PSS", {}, "60 MiB", mib <= 60),
    ]


def _dial(bench: Bench) -> Dial:
    return lambda: bench.engine.connect(METRICS_PORT, timeout_s=20)


def _times(what: str, told: Spread, count: int) -> Row:
    ours = f"p50 {told.p50:.1f} ms, p99 {told.p99:.1f} ms, max {told.most:.0f} ms (n={count})"
    return Row(what, ours, {}, f"p99 {TARGET_MS:.0f} ms", told.p99 <= TARGET_MS)
