"""What the tests of the whole agent see of it from outside: its containers as the engine lists them, and a driver that
tells who computes where, as a real one would by itself."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engines import Engine
from fakenvml import GIB, FakeGpu, FakeMig, World

from appliance_agent.spec import LABEL_GPUS, LABEL_MANAGED, LABEL_SLOT


class EngineHttp(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def ask(engine: Engine, path: str) -> Any:
    connection = EngineHttp(engine.socket)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


@dataclass(frozen=True, slots=True)
class Found:
    """A container of the agent, as the engine tells."""

    id: str
    slot: int
    pid: int
    image: str
    running: bool
    gpus: tuple[str, ...]  # UUIDs


def containers(engine: Engine, prefix: str = "ollama") -> list[Found]:
    filters = json.dumps({"label": [f"{LABEL_MANAGED}={prefix}"]})
    listed = ask(engine, f"/containers/json?all=1&filters={filters}".replace(" ", ""))
    found: list[Found] = []
    for entry in listed:
        node = ask(engine, f"/containers/{entry['Id']}/json")
        if "State" in node:
            slot = int(entry["Labels"][LABEL_SLOT])
            state = node["State"]
            gpus = tuple(filter(None, entry["Labels"][LABEL_GPUS].split(",")))
            found.append(Found(entry["Id"], slot, state["Pid"], node["Image"], state["Running"], gpus))
    return sorted(found, key=lambda each: each.slot)


class Graphics:
    """Writes what the driver would say: who computes on which GPU. A slot in `cpu_only` has lost its GPU."""

    def __init__(self, engine: Engine, world: World, path: Path, *, prefix: str = "ollama") -> None:
        self.world = world
        self.cpu_only: set[int] = set()
        self._engine = engine
        self._path = path
        self._prefix = prefix
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Once; again is nothing."""
        self.change()
        if not self._thread.is_alive():
            self._thread.start()

    def close(self) -> None:
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()

    @contextlib.contextmanager
    def changing(self) -> Iterator[World]:
        with self._lock:
            yield self.world
        self.change()

    def change(self) -> None:
        with self._lock:
            self.world.write(self._path)

    def _run(self) -> None:
        while not self._over.wait(0.2):
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException, KeyError):
                found = [each for each in containers(self._engine, self._prefix) if each.running]
                with self._lock:
                    if [self._changed(device, found) for device in self._devices()].count(True):
                        self.world.write(self._path)

    def _devices(self) -> Iterator[FakeGpu | FakeMig]:
        for gpu in self.world.gpus:
            yield gpu
            yield from gpu.migs

    def _changed(self, device: FakeGpu | FakeMig, running: list[Found]) -> bool:
        ours = [each for each in running if device.uuid in each.gpus and each.slot not in self.cpu_only]
        before, device.processes = device.processes, [(each.pid, GIB) for each in ours]
        device.used_gib += len(ours) - len(before or [])
        return before != device.processes
