"""What the parts of bench/agent.py share: an engine with images, its events with their times, users, and rows of a table."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from agentgraphics import Found
from agenthost import MODEL, AgentHost
from engines import PrivateEngine, docker_program, wait_until

from appliance_agent.spec import LABEL_SLOT

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    ours: str
    theirs: Mapping[str, str] = field(default_factory=dict[str, str])  # by the name of who
    target: str = ""
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class Event:
    at_ns: int  # the engine's clock, which is the machine's
    action: str
    container: str
    labels: Mapping[str, str]


class Events:
    """Of the engine's containers, from now on."""

    def __init__(self, engine: PrivateEngine) -> None:
        self.seen: list[Event] = []
        words = [docker_program(), "events", "--filter", "type=container", "--format", "{{json .}}"]
        self._process = subprocess.Popen(words, env=engine.environment, stdout=subprocess.PIPE, text=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._thread.join()
        if self._process.stdout:
            self._process.stdout.close()

    def first(self, action: str, *, after_ns: int, timeout_s: float, **labels: str) -> Event | None:
        """None if it does not come."""
        found: list[Event] = []

        def has_come() -> bool:
            found.extend(each for each in self.matching(action, after_ns=after_ns, **labels)[:1])
            return bool(found)

        with contextlib.suppress(TimeoutError):
            wait_until(has_come, timeout_s=timeout_s, what=action)
        return found[0] if found else None

    def matching(self, action: str, *, after_ns: int, **labels: str) -> list[Event]:
        return [
            each
            for each in list(self.seen)
            if each.action == action
            and each.at_ns > after_ns
            and all(each.labels.get(name) == value for name, value in labels.items())
        ]

    def _read(self) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            node = json.loads(line)
            actor = node["Actor"]
            self.seen.append(Event(node["timeNano"], node["Action"], actor["ID"], actor["Attributes"]))


@dataclass(frozen=True, slots=True)
class Bench:
    engine: PrivateEngine
    directory: Path
    library: Path
    events: Events
    rounds: int
    minutes: float

    @contextlib.contextmanager
    def agent(
        self, name: str, *, slots: int = 8, extra: str = "", environment: Mapping[str, str] | None = None
    ) -> Iterator[AgentHost]:
        """With its default configuration but for what `extra` says, and all models loading at once."""
        place = self.directory / name
        place.mkdir()
        host = AgentHost(self.engine, place, self.library, gpus=slots, extra=f"{extra}\n[engine]\n")
        host.write_config(head="[rollout]\nparallel_loads = 8\n", environment=environment)
        try:
            host.start()
            host.wait_ready(timeout_s=300)
            yield host
        finally:
            host.close()

    def started(self, slot: int, after_ns: int, *, timeout_s: float = 120) -> float:
        """Seconds until the slot has another container that runs."""
        event = self.events.first("start", after_ns=after_ns, timeout_s=timeout_s, **{LABEL_SLOT: str(slot)})
        return math.inf if event is None else (event.at_ns - after_ns) / SECOND_NS

    def kill_server(self, pid: int) -> None:
        """From outside of the container, as the kernel would; the process that stands before it passes that on."""
        script = f"kill -9 $(cat /proc/{pid}/task/{pid}/children)"
        subprocess.run(self.engine.command_inside(["sh", "-c", script], network_only=False), check=True)

    def pid_of(self, container: str) -> int:
        return int(self.engine.run_cli("inspect", "-f", "{{.State.Pid}}", container).stdout)


class Users:
    """So many at a time at one port, each with one request after the other."""

    def __init__(self, engine: PrivateEngine, port: int, count: int, *, tokens: int) -> None:
        self.answered = self.refused = self.cut = 0
        self._engine = engine
        self._port = port
        self._tokens = tokens
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run, daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def leave(self) -> None:
        self._over.set()

    def close(self) -> None:
        self.leave()
        for thread in self._threads:
            thread.join(timeout=120)

    def _run(self) -> None:
        while not self._over.is_set():
            how = self._ask()
            with self._lock:
                setattr(self, how, getattr(self, how) + 1)
            if how != "answered":
                self._over.wait(0.5)

    def _ask(self) -> str:
        try:
            status, body = chat(self._engine, self._port, tokens=self._tokens, timeout_s=600)
        except (OSError, http.client.HTTPException):
            return "cut"
        if status == http.client.SERVICE_UNAVAILABLE:
            return "refused"
        whole = status == http.client.OK and b'"done":true' in body
        return "answered" if whole else "cut"


def chat(engine: PrivateEngine, port: int, *, tokens: int, timeout_s: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "options": {"num_predict": tokens}}
    with contextlib.closing(connection):
        connection.sock = engine.connect(port, timeout_s=timeout_s)
        connection.request("POST", "/api/chat", json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read()


def serves_after_ns(engine: PrivateEngine, port: int, *, timeout_s: float = 60) -> int:
    """When a user first got a token again."""

    def is_served() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return chat(engine, port, tokens=1, timeout_s=5)[0] == http.client.OK
        return False

    wait_until(is_served, timeout_s=timeout_s, what="a token")
    return time.time_ns()


def misbehave(engine: PrivateEngine, port: int, text: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with contextlib.closing(connection):
        connection.sock = engine.connect(port, timeout_s=10)
        connection.request("POST", "/standin/fault", text)
        connection.getresponse().read()


def in_parallel(works: Sequence[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=work, daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def spread(seconds: Sequence[float]) -> str:
    """The middle, and what one in twenty exceeds; the number of values behind it."""
    return f"{quantile(seconds, 0.5):.2f} s (p95 {quantile(seconds, 0.95):.2f}, n={len(seconds)})"


def quantile(seconds: Sequence[float], share: float) -> float:
    ordered = sorted(seconds)
    return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


def found(host: AgentHost, slot: int) -> Found:
    return next(each for each in host.containers() if each.slot == slot and each.running)
