"""Puts the agent together, and takes it apart again: signals, neighbours, the loop in a thread of its own."""

from __future__ import annotations

import faulthandler
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final

import click

from appliance_agent.config import Config
from appliance_agent.config_file import load
from appliance_agent.engine_source import DockerSource
from appliance_agent.front import Front
from appliance_agent.gpu_switch import GpuSwitch
from appliance_agent.hands import DockerHands
from appliance_agent.journal import Journal
from appliance_agent.loop import Loop, Neighbours
from appliance_agent.notify import Notifier
from appliance_agent.snapshot import Snapshot
from appliance_agent.state_store import StateStore
from appliance_agent.states import State
from appliance_agent.watch import Watch, log_follower

_SIGNALS: Final = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP})


def run_agent(path: Path, state: Path) -> None:
    """Until SIGTERM. Raises ApplianceError."""
    faulthandler.enable()  # what hangs when systemd's watchdog fires is then in the journal
    config = load(path)
    journal = Journal.find(os.environ)
    notifier = Notifier.take(os.environ)
    with _signals_held(), ExitStack() as stack:
        stack.callback(notifier.close)
        store = _opened(stack, state)
        front = Front(config.metrics, os.environ.get("RUNTIME_DIRECTORY", ""))
        front.open()
        stack.callback(front.close)
        made = _Neighbourhood(config, stack, front)
        loop = Loop(
            config,
            path=path,
            version=version("ollama-appliance"),
            neighbours=made.open,
            store=store,
            journal=journal,
            notifier=notifier,
            publish=front.publish,
            configure=made.configure,
        )
        journal.info(f"ollama-agent {version('ollama-appliance')}, configuration {path}")
        _until_stopped(loop)


def take_down(path: Path, state: Path) -> None:
    """Drain and remove all containers; the service must not run. Raises ApplianceError."""
    config = load(path)
    told: dict[int, str] = {}

    def tell(snapshot: Snapshot) -> None:
        for slot in snapshot.host.slots:
            line = f"slot {slot.plan.index}: {slot.state.name.lower()}: {slot.because}"
            if slot.state is not State.ABSENT and told.get(slot.plan.index) != line:
                told[slot.plan.index] = line
                click.echo(line, err=True)
        for problem in snapshot.problems:
            if told.get(-1) != problem:
                told[-1] = problem
                click.echo(f"waits: {problem}", err=True)

    with _signals_held(), ExitStack() as stack:
        store = _opened(stack, state)
        made = _Neighbourhood(config, stack, None)
        loop = Loop(
            config,
            path=path,
            version=version("ollama-appliance"),
            neighbours=made.open,
            store=store,
            journal=Journal(open(os.devnull, "w", encoding="utf-8")),  # noqa: SIM115, PTH123 - for the whole life
            notifier=Notifier(""),
            publish=tell,
            configure=made.configure,
        )
        loop.down()
        _until_stopped(loop)


def _opened(stack: ExitStack, directory: Path) -> StateStore:
    store = StateStore(directory)
    store.open()
    stack.callback(store.close)
    return store


class _Neighbourhood:
    """Opens them when the loop asks, and hands new configurations on."""

    def __init__(self, config: Config, stack: ExitStack, front: Front | None) -> None:
        self._config = config
        self._stack = stack
        self._front = front

    def open(self, wake: Callable[[], None]) -> Neighbours:
        config = self._config
        self._gpus = gpus = GpuSwitch(wake)
        self._stack.callback(gpus.close)
        gpus.configure(config)
        self._engine = DockerSource(config, wake).start()
        self._stack.callback(self._engine.close)
        events = self._front.events if self._front else None
        self._health = Watch(
            config.health,
            follow=log_follower(config.engine.socket),
            gpus=gpus.snapshot,
            wake=wake,
            random=random.random,
            on_canary=events.canary if events else None,
            on_access=events.traffic.event if events else None,
            on_line=events.traffic.line if events else None,
        )
        if self._front:
            self._front.watch(gpus.snapshot, self._health.evidence)
        self._health.start()
        self._stack.callback(self._health.close)
        hands = DockerHands(config, self._engine, gpus.snapshot, clock=time.monotonic)
        return Neighbours(engine=self._engine, gpus=gpus, health=self._health, hands=hands)

    def configure(self, config: Config) -> None:
        self._gpus.configure(config)
        self._engine.configure(config)
        self._health.configure(config.health)


@contextmanager
def _signals_held() -> Generator[None]:
    """For this thread and all that it starts: signals are waited for, they interrupt nobody."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        while signal.SIGTERM in signal.sigpending():
            signal.sigwait({signal.SIGTERM})
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _until_stopped(loop: Loop) -> None:
    """The loop has a thread of its own, so that a signal never meets it holding a lock."""
    failures: list[BaseException] = []

    def work() -> None:
        try:
            loop.run()
        except BaseException as error:  # noqa: BLE001 - raised again below, in the main thread
            failures.append(error)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=work, name="loop")
    thread.start()
    while thread.is_alive():
        if signal.sigwait(_SIGNALS) == signal.SIGHUP:
            loop.reload()
        else:
            loop.stop()
            thread.join()
    if failures:
        raise failures[0]
