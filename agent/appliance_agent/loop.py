"""The loop: observe, reconcile, remember, hand out, publish, tell systemd. The one thread that changes the agent's memory."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from appliance_agent.beat import beat
from appliance_agent.config import Config
from appliance_agent.config_file import load
from appliance_agent.due import is_questionable
from appliance_agent.evidence import Evidence
from appliance_agent.journal import Journal
from appliance_agent.notify import Notifier
from appliance_agent.observe import News, observe, targets, watched_closely
from appliance_agent.ports import EngineSource, GpuSource, Hands, HealthSource
from appliance_agent.reconcile import reconcile
from appliance_agent.slots import Cause, Decision, Done, Entry, Host, Now, Slot
from appliance_agent.snapshot import Snapshot
from appliance_agent.state_store import StateStore
from appliance_agent.states import SERVING, Action, State
from appliance_image.errors import ApplianceError

TICK_S: Final = 1.0
CALM_S: Final = 5.0  # while all slots are well; whatever happens wakes the loop
_WATCHDOG_S: Final = 3.0
_TOLD_AGAIN_S: Final = 10.0
_FIRST_LOOK_S: Final = 15.0  # how long the neighbours may take to say anything at all


def now() -> Now:
    return Now(time.monotonic(), time.time())


@dataclass(frozen=True, slots=True)
class Neighbours:
    engine: EngineSource
    gpus: GpuSource
    health: HealthSource
    hands: Hands


class Loop:
    """`wake`, `reload` and `stop` may be called from any thread, a signal handler included."""

    def __init__(
        self,
        config: Config,
        *,
        path: Path,
        version: str,
        neighbours: Callable[[Callable[[], None]], Neighbours],
        store: StateStore,
        journal: Journal,
        notifier: Notifier,
        publish: Callable[[Snapshot], None],
        configure: Callable[[Config], None],
        clock: Callable[[], Now] = now,
    ) -> None:
        self._config = config
        self._path = path
        self._make = neighbours
        self._store = store
        self._journal = journal
        self._notifier = notifier
        self._publish = publish
        self._configure = configure
        self._clock = clock
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._reload = threading.Event()
        self._done: queue.SimpleQueue[Done] = queue.SimpleQueue()
        self._host = Host()
        self._trusted_s = 0.0
        self._told_s = float("-inf")  # that it stood still
        self._due_s = 0.0  # the next tick, unless something happens before
        self._watchdog_s = 0.0
        started = clock()
        self._snapshot = Snapshot(
            started,
            version,
            started.wall_s,
            config,
            str(path),
            reloaded_wall_s=started.wall_s,
            hostname=socket.gethostname(),
        )

    def wake(self) -> None:
        self._wake.set()

    def reload(self) -> None:
        self._reload.set()
        self._wake.set()

    def stop(self) -> None:
        self._stop.set()
        self._wake.set()

    def down(self) -> None:
        """Take all containers down; `run` ends when they are gone. Before `run` only."""
        self._host = replace(self._host, down=True)

    def run(self) -> None:
        self._remember()
        self._neighbours = self._make(self.wake)
        self._neighbours.engine.want_image(self._config.image)
        self._first_look()
        ready = False
        while not self._stop.is_set():
            self._wake.clear()
            self._tick()
            if not ready:
                ready = self._notifier.ready()
            if self._host.down and all(slot.state is State.STOPPED for slot in self._host.slots):
                return
            self._wait()
        self._notifier.stopping()

    def _remember(self) -> None:
        moment = self._clock()
        host, problem = self._store.load(moment, self._config.healing)
        if problem:
            self._journal.warning(problem)
        self._host = replace(host, down=self._host.down, pull_due=self._config.pull == "always")
        self._trusted_s = self._due_s = moment.mono_s

    def _first_look(self) -> None:
        """Wait until engine and driver have said something, so that the first decisions are made with open eyes."""
        until_s = time.monotonic() + _FIRST_LOOK_S
        while time.monotonic() < until_s and not self._stop.is_set():
            engine, gpus = self._neighbours.engine.seen(), self._neighbours.gpus.snapshot()
            spoken = (engine.at_s > 0 or engine.since_s > 0) and (gpus.at_s > 0 or self._config.gpus == "none")
            if spoken:
                return
            self._wake.wait(0.05)
            self._wake.clear()

    def _wait(self) -> None:
        """Until then, or until there is news."""
        left_s = self._due_s - self._clock().mono_s
        if left_s > 0:
            self._wake.wait(left_s)

    def _tick(self) -> None:
        moment = self._clock()
        late_s = moment.mono_s - self._due_s
        self._look_at_itself(moment)
        if self._reload.is_set():
            self._reload.clear()
            self._read_again(moment)
        news = self._news()
        observed = observe(self._config, self._host, news)
        before = self._host
        self._host, decisions = reconcile(self._config, before, observed.seen, moment)
        problems = (*observed.problems, *filter(None, (self._store.save(self._host, moment),)))
        self._tell(before, decisions)
        for decision in decisions:
            self._hand_out(decision)
        if self._host.trial != before.trial or self._host.refused != before.refused:
            self._wake.set()
        self._neighbours.engine.expect(observed.seen.plans)
        there = news.engine.containers
        self._neighbours.health.watch(targets(self._host, there), watched_closely(self._host, there))
        calm = _is_calm(self._host, news.evidence.values(), moment.mono_s)
        self._due_s = beat(moment.mono_s + (CALM_S if calm else TICK_S))
        self._announce(moment, news, problems, late_s)

    def _look_at_itself(self, moment: Now) -> None:
        since_s = self._neighbours.health.trusted_since_s(moment.mono_s)
        if since_s <= self._trusted_s:
            return
        self._trusted_s = since_s
        if since_s - self._told_s > _TOLD_AGAIN_S:
            self._told_s = since_s
            self._journal.warning("the agent itself stood still: what it knew is not trusted")

    def _news(self) -> News:
        done: list[Done] = []
        while not self._done.empty():
            done.append(self._done.get_nowait())
            if done[-1].action is Action.PULL and not done[-1].ok:
                self._journal.warning(done[-1].error, hint=done[-1].hint)
        neighbours = self._neighbours
        return News(
            engine=neighbours.engine.seen(),
            gpus=neighbours.gpus.snapshot(),
            evidence=neighbours.health.evidence(),
            done=tuple(done),
            trusted_since_s=self._trusted_s,
        )

    def _hand_out(self, decision: Decision) -> None:
        def work() -> None:
            self._done.put(self._neighbours.hands.act(decision))
            self._wake.set()

        threading.Thread(target=work, name=f"act-{decision.action.value}-{decision.slot}", daemon=True).start()

    def _tell(self, before: Host, decisions: Iterable[Decision]) -> None:
        reasons = {(decision.slot, decision.action.value): decision.reason.value for decision in decisions}
        for entry in _newer(before.history, self._host.history):
            self._journal.entry(entry, reason=reasons.get((entry.slot, entry.action), ""))
        for slot in self._host.slots:
            old = before.slot(slot.plan.index)
            if old is None or old.state is not slot.state:
                self._journal.info(
                    f"slot {slot.plan.index} is {slot.state.name.lower()}: {slot.because}",
                    slot=slot.plan.index,
                    gpu=",".join(slot.plan.gpus),
                    state=slot.state.name.lower(),
                )

    def _announce(self, moment: Now, news: News, problems: tuple[str, ...], late_s: float) -> None:
        self._snapshot = replace(
            self._snapshot,
            now=moment,
            config=self._config,
            host=self._host,
            engine=news.engine,
            gpus=news.gpus,
            evidence=news.evidence,
            problems=problems,
            rolling=_rolling(self._host),
            tick_s=self._clock().mono_s - moment.mono_s,
            late_s=max(late_s, 0.0),
            ticks=self._snapshot.ticks + 1,
        )
        self._publish(self._snapshot)
        if moment.mono_s - self._watchdog_s >= _WATCHDOG_S:
            self._watchdog_s = moment.mono_s
            self._notifier.watchdog()
            reload_problem = self._snapshot.reload_problem
            self._notifier.status(_status_line(self._host, (*filter(None, (reload_problem,)), *problems)))

    def _read_again(self, moment: Now) -> None:
        self._notifier.reloading()
        try:
            config = load(self._path)
        except ApplianceError as error:
            problem = f"the old configuration stays in force: {error.message}"
            self._journal.error(problem, hint=error.hint)
            self._snapshot = replace(self._snapshot, reload_problem=problem)
        else:
            for text in _needs_restart(self._config, config):
                self._journal.warning(text)
            self._config = config
            self._configure(config)
            self._neighbours.engine.want_image(config.image)
            self._host = _given_a_chance(self._host, moment, pull_due=config.pull == "always")
            self._snapshot = replace(self._snapshot, reload_problem="", reloaded_wall_s=moment.wall_s)
            self._journal.info(f"configuration {self._path} is in force")
        self._notifier.ready()


def _newer(before: tuple[Entry, ...], after: tuple[Entry, ...]) -> list[Entry]:
    newer: list[Entry] = []
    for entry in reversed(after):
        if before and entry is before[-1]:
            break
        newer.append(entry)
    return newer[::-1]


def _is_calm(host: Host, evidence: Iterable[Evidence], now_s: float) -> bool:
    """What only time makes worse is looked at every second: a request that gets no answer, a model that is on no GPU."""
    changes = host.down or host.pulling or host.trial is not None
    well = all(slot.state is State.READY and slot.pending is None for slot in host.slots)
    waits = any(is_questionable(each, now_s) or each.refused_since_s or each.on_gpu is False for each in evidence)
    return well and not changes and not waits


def _given_a_chance(host: Host, moment: Now, *, pull_due: bool) -> Host:
    """Somebody has changed something: slots that had used up their budget may try again."""
    slots = tuple(_try_again(slot, moment) for slot in host.slots)
    return replace(host, slots=slots, pull_due=pull_due, pull_not_before_s=0.0)


def _try_again(slot: Slot, moment: Now) -> Slot:
    quarantine = slot.quarantine
    if quarantine and quarantine.cause is Cause.BUDGET:
        quarantine = replace(quarantine, until_s=moment.mono_s)
    pending = slot.pending is not None
    return slot if pending else replace(slot, quarantine=quarantine, not_before_s=0.0, hold_until_s=0.0)


def _needs_restart(old: Config, new: Config) -> list[str]:
    changed = [
        name
        for name, before, after in (
            ("[engine]", old.engine, new.engine),
            ("[metrics]", old.metrics, new.metrics),
            ("container.name_prefix", old.container.name_prefix, new.container.name_prefix),
        )
        if before != after
    ]
    return [f"{name} has changed, which takes effect with `systemctl restart ollama-agent`" for name in changed]


def _rolling(host: Host) -> str:
    changing = [slot.plan.index for slot in host.slots if slot.state is State.DRAINING]
    if host.trial is not None:
        return f"slot {host.trial} tries the new release"
    return f"slot {changing[0]} is to be replaced, and waits for its answers to end" if changing else ""


def _status_line(host: Host, problems: tuple[str, ...]) -> str:
    serving = sum(slot.state in SERVING for slot in host.slots)
    parts = [f"{serving}/{len(host.slots)} ready", *problems[:1]]
    odd = (State.QUARANTINED, State.BLOCKED, State.FAILED, State.DEGRADED)
    parts += [
        f"slot {slot.plan.index} {slot.state.name.lower()}: {slot.because}" for slot in host.slots if slot.state in odd
    ]
    return "; ".join(parts)
