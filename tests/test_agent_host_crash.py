"""The agent is killed in the middle of a rolling change, again and again, each time a little later, and started anew."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
from agentgraphics import EngineHttp
from agenthost import ONE, QUICK, TWO, AgentHost, build_images
from engines import PrivateEngine

from appliance_agent.spec import LABEL_MANAGED, LABEL_SLOT

EVENTS = range(1, 11)  # of a whole change: kill, die, destroy, create, start of the trial, and of the other slot
ENTRIES = (1, 2)  # decided and written down, and perhaps not begun: to remove, to create


class Events:
    """What the engine tells of the agent's containers, as (slot, what); `strike` is called once at the n-th."""

    def __init__(self, engine: PrivateEngine) -> None:
        self.seen: list[tuple[int, str]] = []
        self._strike: tuple[int, Callable[[], None]] | None = None
        filters = json.dumps({"type": ["container"], "label": [f"{LABEL_MANAGED}=ollama"]}, separators=(",", ":"))
        self._connection = EngineHttp(engine.socket)
        self._connection.timeout = None
        self._connection.request("GET", f"/events?filters={filters}")
        self._answer = self._connection.getresponse()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._connection.sock.shutdown(2)
        self._thread.join(10)
        self._answer.close()
        self._connection.close()

    def begin(self) -> None:
        self.seen.clear()

    def strike_at(self, number: int, strike: Callable[[], None]) -> None:
        self._strike = (number, strike)

    def disarm(self) -> None:
        self._strike = None

    def _read(self) -> None:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            while line := self._answer.readline():
                event: dict[str, Any] = json.loads(line)
                self.seen.append((int(event["Actor"]["Attributes"][LABEL_SLOT]), str(event["Action"])))
                strike = self._strike
                if strike and len(self.seen) == strike[0]:
                    strike[1]()


class Written:
    """Calls `strike` once, as soon as the state file holds so many entries more than now."""

    def __init__(self, file: Path, number: int, strike: Callable[[], None]) -> None:
        self._file = file
        self._over = threading.Event()
        self._number = number
        self._last = self._entries()[-1]
        self._strike = strike
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(10)

    def _entries(self) -> list[object]:
        history: list[object] = json.loads(self._file.read_text())["history"]
        return history

    def _watch(self) -> None:
        before = 0
        while not self._over.wait(0.001):
            now = self._file.stat().st_mtime_ns
            if now != before and self._has_come():
                self._strike()
                return
            before = now

    def _has_come(self) -> bool:
        entries = self._entries()
        return len(entries) - 1 - entries.index(self._last) >= self._number


class User:
    """Chats all the time with the slot that is not being replaced, first 1 and then 0; no answer may break off."""

    def __init__(self, host: AgentHost, events: Events) -> None:
        self.answers: Counter[int] = Counter()
        self.broken: list[str] = []
        self._host = host
        self._events = events
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._talk, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join(60)

    def _talk(self) -> None:
        while not self._over.is_set():
            slot = 0 if (0, "start") in self._events.seen else 1
            if slot == 1 or self._is_loaded(slot):
                self._chat(slot)
            self._over.wait(0.05)

    def _chat(self, slot: int) -> None:
        try:
            status, body = self._host.chat(slot, tokens=100)
        except (OSError, http.client.HTTPException) as error:
            self.broken.append(f"slot {slot}: {error!r}")
            return
        self.answers[slot] += 1
        if status != 200 or json.loads(body.splitlines()[-1])["done"] is not True:
            self.broken.append(f"slot {slot}: {status} {body[-200:]!r}")

    def _is_loaded(self, slot: int) -> bool:
        try:
            return bool(json.loads(self._host.engine.http_get(8880 + slot, "/api/ps").body)["models"])
        except (OSError, http.client.HTTPException):
            return False


@pytest.fixture(scope="module")
def host(
    gpu_engine: PrivateEngine, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentHost]:
    build_images(tmp_path_factory.mktemp("agent-images"), gpu_engine)
    quick = QUICK.replace("canaries = 2", "canaries = 1")
    made = AgentHost(gpu_engine, tmp_path_factory.mktemp("crash"), nvml_library, extra=quick)
    try:
        made.start()
        made.wait_ready()
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def events(host: AgentHost) -> Iterator[Events]:
    with Events(host.engine) as events:
        yield events


def wanted_image(host: AgentHost, reference: str) -> str:
    return host.engine.run_cli("image", "inspect", "--format={{.Id}}", reference).stdout.strip()


def other(host: AgentHost) -> str:
    """The release that is not in force."""
    return TWO if f'image = "{ONE}"' in host.config.read_text() else ONE


def proven(host: AgentHost) -> bool:
    slots = host.slots()
    return len(slots) == 2 and all(slot["good_canary"] is not None and slot["state"] == "ready" for slot in slots)


def roll(host: AgentHost, events: Events, arm: Callable[[Callable[[], None]], object]) -> tuple[int, User]:
    """A change to the other release, with the agent killed where `arm` says; how often it was killed."""
    host.wait(lambda: proven(host), "both slots to be proved")
    reference = other(host)
    image = wanted_image(host, reference)
    host.write_config(reference)
    pid, kills = host.pid, []

    def kill() -> None:
        kills.append(pid)
        os.kill(pid, signal.SIGKILL)

    events.begin()
    user = User(host, events)
    try:
        armed = arm(kill)
        host.send(signal.SIGHUP)
        host.wait(lambda: bool(kills), "the moment to come")
        assert host.process is not None
        host.process.wait(20)
        host.process = None
        host.start()
        host.wait(lambda: both_run(host, image) and proven(host), "both slots to run the new release")
        if isinstance(armed, Written):
            armed.close()
    finally:
        events.disarm()
        user.close()
    return len(kills), user


def both_run(host: AgentHost, image: str) -> bool:
    return [(each.slot, each.image, each.running) for each in host.containers()] == [(0, image, True), (1, image, True)]


def check(host: AgentHost, events: Events, user: User) -> None:
    host.wait(lambda: {(0, "start"), (1, "start")} <= set(events.seen), "the engine to tell of both starts")
    happened = Counter(events.seen)
    for slot in (0, 1):
        told = f"{sorted(happened)}\n{host.story()}"
        assert happened[slot, "create"] == 1, told
        assert happened[slot, "start"] == 1, told
        assert happened[slot, "destroy"] == 1, told
    assert user.broken == []
    assert set(user.answers) == {0, 1}
    assert host.status()["host"]["refused"] is None


@pytest.mark.parametrize("number", EVENTS)
def test_killed_at_any_event_of_the_engine_the_change_goes_on(host: AgentHost, events: Events, number: int) -> None:
    kills, user = roll(host, events, lambda kill: events.strike_at(number, kill))

    assert kills == 1
    check(host, events, user)


@pytest.mark.parametrize("number", ENTRIES)
def test_killed_behind_any_entry_of_the_history_the_change_goes_on(
    host: AgentHost, events: Events, number: int
) -> None:
    kills, user = roll(host, events, lambda kill: Written(host.state / "state.json", number, kill))

    assert kills == 1
    check(host, events, user)
