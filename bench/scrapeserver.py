"""The two servers beside each other, each in a process of its own: the agent's, and prometheus_client's default one.

Every 10 ms a new snapshot is published, a probe ends and a line of a log is counted, so that no scrape finds anything
that was made before, as none does that comes every 15 s.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Final

from scrapeload import Spread, cpu_of, in_parallel, pss_of, times_ms

KINDS: Final = ("agent", "client")
_SCRIPT: Final = Path(__file__).with_name("scrape.py")
_PERIOD_S: Final = 0.01  # between two snapshots
_PAUSE_S: Final = 0.02  # between two scrapes: longer, so that each finds another snapshot
_SETTLE_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Measured:
    times_ms: Spread
    cpu_ms: float  # of the server, for one scrape
    body_bytes: int
    pss_mib: float


def serve(kind: str, slots: int) -> None:
    """Until the parent closes our stdin. Says the port on stdout."""
    import snapshots  # noqa: PLC0415 - what the parent measures with must not load it
    import soundhost  # noqa: PLC0415 - what the parent measures with must not load it

    from appliance_agent.access_log import Result, Source  # noqa: PLC0415
    from appliance_agent.config import MetricsConfig  # noqa: PLC0415
    from appliance_agent.front import Front  # noqa: PLC0415

    base = snapshots.good_night(slots)
    front = Front(MetricsConfig("127.0.0.1", 0))
    front.publish(base)
    for slot in range(slots):
        front.events.canary(slot, soundhost.canary())
    if kind == "agent":
        front.open()
        port = front.port
    else:
        port = _serve_by_client(front)
    print(port, flush=True)
    ended = threading.Event()

    def wait_for_the_end() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    for tick in count():
        now = replace(base.now, mono_s=base.now.mono_s + tick, wall_s=base.now.wall_s + tick)
        front.publish(replace(base, now=now, ticks=tick))
        front.events.canary(tick % slots, soundhost.canary())
        front.events.traffic.line(Source.GIN, Result.MATCHED)
        if ended.wait(_PERIOD_S):
            return


def _serve_by_client(front: object) -> int:
    from prometheus_client import CollectorRegistry, ProcessCollector, metrics, start_http_server  # noqa: PLC0415

    from appliance_agent.exposition import MirrorCollector  # noqa: PLC0415
    from appliance_agent.front import Front  # noqa: PLC0415

    assert isinstance(front, Front)
    metrics._use_created = False  # noqa: SLF001 - what disable_created_metrics does, which has no types
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    mirrored = MirrorCollector(front.snapshot)
    for collector in (mirrored, front.events.traffic, front.events.probes, *front.events.ticks):
        registry.register(collector)
    server, _ = start_http_server(0, "127.0.0.1", registry)
    return int(server.server_port)


@contextmanager
def _served(kind: str, slots: int) -> Iterator[tuple[int, int]]:
    """Process and port."""
    words = [sys.executable, str(_SCRIPT), "--serve", kind, "--slots", str(slots)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        yield server.pid, int(server.stdout.readline())
        server.communicate("")


def measure(kind: str, *, scrapes: int, slots: int) -> Measured:
    with _served(kind, slots) as (pid, port):

        def dial() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), timeout=20)

        in_parallel(dial, lambda number: number < scrapes // 10, _PAUSE_S)  # warm
        idle_s = cpu_of(pid)
        time.sleep(_SETTLE_S)
        idle_share = (cpu_of(pid) - idle_s) / _SETTLE_S
        before_s, began_s = cpu_of(pid), time.monotonic()
        done = in_parallel(dial, lambda number: number < scrapes, _PAUSE_S)
        used_s = cpu_of(pid) - before_s - idle_share * (time.monotonic() - began_s)
        return Measured(times_ms(done), used_s / len(done) * 1e3, len(done[0].packed), pss_of(pid))
