"""Scrapers as Prometheus is one, and what their answers say: times, series, the age of samples."""

from __future__ import annotations

import http.client
import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Final

SCRAPERS: Final = 2
_HEADERS: Final = {  # of Prometheus 2.42
    "Accept": "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
    "Accept-Encoding": "gzip",
}
_COLLECTED = re.compile(r'^appliance_gpu_last_collect_timestamp_seconds\{[^}]*interval="1s"\} (\S+)$', re.MULTILINE)

Dial = Callable[[], socket.socket]


@dataclass(frozen=True, slots=True)
class Scrape:
    wall_s: float  # when the answer was there
    taken_s: float
    packed: bytes

    @property
    def text(self) -> str:
        return zlib.decompress(self.packed, 16 + zlib.MAX_WBITS).decode()


@dataclass(frozen=True, slots=True)
class Spread:
    p50: float
    p99: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        cuts = quantiles(values, n=100)
        return cls(cuts[49], cuts[98], max(values))


class _Connection(http.client.HTTPConnection):
    def __init__(self, dial: Dial) -> None:
        super().__init__("127.0.0.1")
        self._dial = dial

    def connect(self) -> None:
        self.sock = self._dial()


class Scraper:
    """One connection, kept as long as the server keeps it."""

    def __init__(self, dial: Dial) -> None:
        self._connection = _Connection(dial)

    def close(self) -> None:
        self._connection.close()

    def scrape(self) -> Scrape:
        began_s = time.perf_counter()
        self._connection.request("GET", "/metrics", headers=_HEADERS)
        answer = self._connection.getresponse()
        body = answer.read()
        taken_s = time.perf_counter() - began_s
        assert answer.status == 200, answer.status
        return Scrape(time.time(), taken_s, body)


def scrape(dial: Dial, goes_on: Callable[[int], bool], pause_s: float) -> list[Scrape]:
    """As long as `goes_on` says so of the number of scrapes; nothing is looked at meanwhile, which would cost the other."""
    found: list[Scrape] = []
    with closing(Scraper(dial)) as scraper:
        while goes_on(len(found)):
            found.append(scraper.scrape())
            time.sleep(pause_s)
    return found


def in_parallel(dial: Dial, goes_on: Callable[[int], bool], pause_s: float) -> list[Scrape]:
    with ThreadPoolExecutor(SCRAPERS) as pool:
        runs = list(pool.map(lambda _: scrape(dial, goes_on, pause_s), range(SCRAPERS)))
    return [each for run in runs for each in run]


def for_seconds(seconds: float) -> Callable[[int], bool]:
    until_s = time.monotonic() + seconds
    return lambda _: time.monotonic() < until_s


def times_ms(scrapes: Sequence[Scrape]) -> Spread:
    return Spread.of([each.taken_s * 1e3 for each in scrapes])


def ages_s(scrapes: Sequence[Scrape]) -> Spread:
    """Of the oldest GPU's samples, where it is read."""
    return Spread.of([each.wall_s - min(map(float, _COLLECTED.findall(each.text))) for each in scrapes])


def series_of(text: str) -> int:
    return sum(1 for line in text.splitlines() if line and not line.startswith("#"))


class EachSeconds:
    """A scraper that comes this often, in a thread of its own."""

    def __init__(self, dial: Dial, interval_s: float) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(dial, interval_s), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self, dial: Dial, interval_s: float) -> None:
        with closing(Scraper(dial)) as scraper:
            while not self._over.is_set():
                scraper.scrape()
                self._over.wait(interval_s)


def cpu_of(pid: int) -> float:
    """Seconds, threads that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss_of(pid: int) -> float:
    """MiB."""
    line = next(line for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() if line.startswith("Pss:"))
    return int(line.split()[1]) / 1024
