"""The health source: watches containers and asks their servers now and then. One thread decides when; it never waits
for a server. Each log and each request under way has a thread of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from appliance_agent.access_log import Event, Result, Source
from appliance_agent.beat import beat
from appliance_agent.config import HealthConfig
from appliance_agent.evidence import Canary, Evidence
from appliance_agent.gpus import GpuSnapshot
from appliance_agent.log_tail import LogFollower
from appliance_agent.ports import Target, Wake
from appliance_agent.procfs import Processes
from appliance_agent.watched import Around, Follow, Watched

LOOK_S: Final = 1.0
_PAUSE_S: Final = 3.0  # between two turns: the agent was stopped, or had no processor
_ASKERS: Final = 64  # one for each slot, should all of them hang
_SPREAD: Final = 0.1


class Watch:
    """`random` gives numbers from 0 to 1. The callbacks are called from several threads and must not block."""

    def __init__(
        self,
        config: HealthConfig,
        *,
        follow: Follow,
        gpus: Callable[[], GpuSnapshot],
        wake: Wake,
        random: Callable[[], float],
        processes: Processes | None = None,
        server_port: int = 11434,
        on_canary: Callable[[int, Canary], None] | None = None,
        on_access: Callable[[int, Event], None] | None = None,
        on_line: Callable[[Source, Result], None] | None = None,
    ) -> None:
        self._config = config
        self._gpus = gpus
        self._random = random
        self._nudged = threading.Event()
        self._askers = ThreadPoolExecutor(_ASKERS, "ask")  # which begins a thread when none is free
        self._around = Around(
            follow,
            processes or Processes(),
            server_port,
            wake,
            self._askers.submit,
            self._asked,
            on_canary or _nothing,
            on_access or _nothing,
            on_line or _nothing,
        )
        self._targets: tuple[Target, ...] = ()
        self._closely: frozenset[int] = frozenset()
        self._followed: tuple[tuple[Target, ...], HealthConfig] = ((), config)
        self._watched: Mapping[int, Watched] = {}
        self._spreads: dict[int, tuple[float | None, float]] = {}
        self._look_s = float("-inf")  # the next one
        self._awake_s = self._trusted_s = time.monotonic()
        self._held = False  # somebody's turn is put off until another one was asked
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def watch(self, targets: tuple[Target, ...], closely: frozenset[int] = frozenset()) -> None:
        self._closely = closely
        if targets != self._targets:
            self._targets = targets
            self._nudged.set()

    def configure(self, config: HealthConfig) -> None:
        self._config = config
        self._nudged.set()

    def evidence(self) -> Mapping[int, Evidence]:
        return {slot: watched.evidence for slot, watched in self._watched.items()}

    def trusted_since_s(self, now_s: float) -> float:
        """Since when it has looked every second. One that was stopped a moment ago has seen nothing yet."""
        return self._trusted_s if now_s - self._awake_s <= _PAUSE_S else now_s

    def close(self) -> None:
        self._closed = True
        self._nudged.set()
        if self._thread.is_alive():
            self._thread.join(10)
        for watched in self._watched.values():
            watched.stop()
        for watched in self._watched.values():
            watched.close()
        self._askers.shutdown()

    def _run(self) -> None:
        while not self._closed:
            self._nudged.clear()
            self._follow_targets()
            now_s = time.monotonic()
            self._trusted_s, self._awake_s = self.trusted_since_s(now_s), now_s
            if now_s >= self._look_s:
                self._look_s = beat(now_s + LOOK_S)
                self._look(now_s)
            next_s = min(self._look_s, self._ask(now_s))
            self._nudged.wait(max(0.01, next_s - time.monotonic()))

    def _follow_targets(self) -> None:
        targets, config = self._targets, self._config
        if self._followed == (targets, config):  # the same objects, mostly
            return
        self._followed = (targets, config)
        wanted = {target.slot: target for target in targets}
        kept = {slot: watched for slot, watched in self._watched.items() if wanted.get(slot) == watched.target}
        gone = [watched for watched in self._watched.values() if watched not in kept.values()]
        new = [Watched(target, self._around, config) for slot, target in wanted.items() if slot not in kept]
        if gone or new:
            self._watched = {watched.target.slot: watched for watched in (*kept.values(), *new)}
        for watched in kept.values():
            watched.config = config
        for watched in gone:
            watched.stop()
            watched.close()
        for watched in new:
            watched.start()

    def _look(self, now_s: float) -> None:
        snapshot = self._gpus()
        for slot, watched in self._watched.items():
            watched.look(snapshot, now_s, closely=slot in self._closely)

    def _ask(self, now_s: float) -> float:
        """Asks whose turn it is; returns when the next turn may be. A look is a good moment for those near it."""
        young_until_s = max((watched.young_until_s() for watched in self._watched.values()), default=float("-inf"))
        next_s, held = float("inf"), False
        for due_s, slot in sorted((self._due_s(watched), slot) for slot, watched in self._watched.items()):
            watched = self._watched[slot]
            if not watched.may_ask(now_s):
                continue
            leeway_s = watched.leeway_s()
            due = due_s - leeway_s <= now_s
            if due and young_until_s <= now_s:
                watched.ask(now_s)
                young_until_s = watched.young_until_s()
                continue
            held = held or due
            next_s = min(next_s, max(due_s + leeway_s, young_until_s))
        self._held = held
        over = held and all(watched.young_until_s() <= now_s for watched in self._watched.values())
        return now_s if over else next_s  # who is waited for may have ended meanwhile

    def _asked(self, *, in_a_hurry: bool) -> None:
        """In the thread of a request that has ended."""
        if self._held or in_a_hurry:
            self._nudged.set()

    def _due_s(self, watched: Watched) -> float:
        return watched.due_s(self._spread(watched))

    def _spread(self, watched: Watched) -> float:
        """A new factor for each canary."""
        last = watched.evidence.last_canary
        key, slot = last.started_s if last else None, watched.target.slot
        if slot not in self._spreads or self._spreads[slot][0] != key:
            self._spreads[slot] = (key, 1 + _SPREAD * (2 * self._random() - 1))
        return self._spreads[slot][1]


def _nothing(_of: object, _what: object) -> None:
    pass


def log_follower(socket_path: str) -> Follow:
    """Of a Docker Engine."""
    return LogFollower(socket_path)
