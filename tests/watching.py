"""A health source over stand-in servers that run as plain processes: their log is what they print."""

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from standinserver import OllamaServer

from appliance_agent.access_log import Access, Event
from appliance_agent.config import HealthConfig
from appliance_agent.evidence import Canary, Evidence
from appliance_agent.gpus import NO_GPUS, GpuSnapshot
from appliance_agent.log_tail import Sink
from appliance_agent.ports import Target
from appliance_agent.procfs import Group, Processes
from appliance_agent.watch import Watch

T = TypeVar("T")
MODEL = "deepseek-r1:32b"
QUICK = HealthConfig(canary_interval_s=0.5, first_token_s=1.0, fresh_s=1.0, canary_tokens=8)
ENVIRONMENT = {
    "OLLAMA_NOPRUNE": "1",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_MAX_LOADED_MODELS": "1",
    "STANDIN_CONTROL": "1",
    "STANDIN_LOAD_S": "0.05",
    "STANDIN_TOKEN_S": "0.005",
}


class PlainProcesses(Processes):
    """Servers without a container: no cgroup and no network of their own; `sent` says what left them."""

    sent: dict[int, int]

    def __init__(self) -> None:
        super().__init__(Path("/proc"), Path("/nowhere"))
        object.__setattr__(self, "sent", {})

    def same_container(self, pid: int, container_id: str) -> bool | None:
        return f"c{pid}" in container_id

    def sent_bytes(self, pid: int) -> int | None:
        return self.sent.get(pid)

    def group(self, pid: int) -> Group | None:
        return None


class PrintedLog:
    """Follows what a server prints from now on."""

    def __init__(self, server: OllamaServer, sink: Sink) -> None:
        self._sources = [(lines, len(lines)) for lines in (server.stdout, server.stderr)]
        self._sink = sink
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._closed.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._closed.wait(0.01):
            for place, (lines, read) in enumerate(self._sources):
                new = lines[read:]  # once: more may come meanwhile
                for line in new:
                    self._sink(line.rstrip("\n").encode())
                self._sources[place] = (lines, read + len(new))


class BetweenCanaries:
    """Does something while no canary is under way; the source tells when one has `ended`, and asks no other meanwhile."""

    def __init__(self) -> None:
        self._wanted: list[Callable[[], None]] = []

    def do(self, act: Callable[[], T]) -> T:
        done: Future[T] = Future()
        self._wanted.append(lambda: done.set_result(act()))
        return done.result(30)

    def ended(self) -> None:
        while self._wanted:
            self._wanted.pop()()


class Scene:
    """Several servers and one watch. `wakes` counts, `canaries` and `events` are what the callbacks got."""

    def __init__(self, config: HealthConfig = QUICK) -> None:
        self.processes = PlainProcesses()
        self.snapshot: GpuSnapshot = NO_GPUS
        self.wakes = 0
        self.canaries: list[tuple[int, Canary]] = []
        self.events: list[tuple[int, Event]] = []
        self.between_canaries = BetweenCanaries()
        self._servers: dict[str, OllamaServer] = {}
        self._targets: dict[int, Target] = {}
        self.source = Watch(
            config,
            follow=lambda container_id, sink: PrintedLog(self._servers[container_id], sink),
            gpus=lambda: self.snapshot,
            wake=self._wake,
            random=lambda: 0.5,
            processes=self.processes,
            server_port=0,
            on_canary=self._canary,
            on_access=lambda slot, event: self.events.append((slot, event)),
        )

    def __enter__(self) -> Self:
        self.source.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.source.close()

    def put(self, slot: int, server: OllamaServer, *, model: str = MODEL, identity: str = "") -> None:
        pid = server.process.pid
        container_id = identity or f"c{pid}"
        self._servers[container_id] = server
        self._targets[slot] = Target(slot, container_id, pid, "127.0.0.1", server.port, model, ())
        self.source.watch(tuple(self._targets.values()), closely=frozenset(self._targets))

    def drop(self, slot: int) -> None:
        del self._targets[slot]
        self.source.watch(tuple(self._targets.values()), closely=frozenset(self._targets))

    def target(self, slot: int) -> Target:
        return self._targets[slot]

    def evidence(self, slot: int = 0) -> Evidence:
        """Of a slot that is being watched, or else nothing known."""
        found: Mapping[int, Evidence] = self.source.evidence()
        return found.get(slot, Evidence("", watched_since_s=0.0))

    def inference_lines(self) -> list[Access]:
        """Of users, so far."""
        return [event for _, event in self.events if isinstance(event, Access) and event.is_inference]

    def sees(self, condition: Callable[[Evidence], object], slot: int = 0) -> Callable[[], bool]:
        return lambda: bool(condition(self.evidence(slot)))

    def _canary(self, slot: int, canary: Canary) -> None:
        self.canaries.append((slot, canary))
        self.between_canaries.ended()

    def _wake(self) -> None:
        self.wakes += 1
