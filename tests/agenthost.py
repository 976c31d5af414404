"""A GPU host for tests of the whole agent: a real Docker Engine, images with a stand-in for Ollama, GPUs that a file
describes, and the agent as a process of its own, started in the engine's namespaces as systemd would start it.

What a real driver would report by itself, `Graphics` does: a running container of a slot computes on the slot's GPU.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

from agentgraphics import Found, Graphics, containers
from building import Site, ok
from engines import PrivateEngine, wait_until
from fakenvml import FakeGpu, World, environment

AGENT = Path(sys.executable).parent / "ollama-agent"
MODEL = "r1:tiny"
ONE, TWO = "agent-test:one", "agent-test:two"
METRICS_PORT = 9440
QUICK = """
[health]
canary_interval_s = 1
first_token_s = 3
stall_s = 3
silent_s = 6
on_cpu_s = 4
load_s = 6
fresh_s = 2
[healing]
backoff_s = 0.2
backoff_max_s = 1
budget = 4
budget_window_s = 60
proven_s = 20
probation_s = 4
[rollout]
slower_ratio = 0.05
canaries = 2
parallel_loads = 8
drain_s = 10
[engine]
timeout_s = 2
"""


def build_images(directory: Path, engine: PrivateEngine) -> None:
    """Two releases of one model that differ in Ollama's version, in the engine under the names ONE and TWO. Once."""
    if engine.run_cli("image", "inspect", ONE, TWO, check=False).returncode == 0:
        return
    site = Site(directory, {"DOCKER_HOST": engine.docker_host})
    site.lay(MODEL)
    for reference, version in ((ONE, "0.32.14"), (TWO, "0.32.15")):
        ok(site.build(MODEL, "-t", reference, "--load", version=version))


class AgentHost:
    """One agent with its state; `start`, look, break things, `close`."""

    def __init__(
        self, engine: PrivateEngine, directory: Path, library: Path, *, gpus: int = 2, extra: str = QUICK
    ) -> None:
        self.engine = engine
        self.directory = directory
        self.library = library
        self.count = gpus
        self.extra = extra
        uuids = [f"GPU-{index:08d}-0000-4000-8000-000000000000" for index in range(gpus)]
        self.world_file = directory / "world"
        self.graphics = Graphics(
            engine, World([FakeGpu(uuid, name="Tesla T4", memory_gib=16) for uuid in uuids]), self.world_file
        )
        self.config = directory / "agent.toml"
        self.state = directory / "state"
        self.log = directory / "agent.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.write_config()

    # --- life --------------------------------------------------------------------------------------------------------

    def write_config(
        self,
        image: str = ONE,
        *,
        head: str = "",
        pull: str = "never",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        variables = {"STANDIN_CONTROL": "1", "STANDIN_TOKEN_S": "0.01", **(environment or {})}
        lines = "\n".join(f'{name} = "{value}"' for name, value in variables.items())
        text = f'image = "{image}"\npull = "{pull}"\n{head}\n{self.extra}'
        if "socket" not in text:
            text = text.replace("[engine]\n", f'[engine]\nsocket = "{self.engine.socket}"\n')
        self.config.write_text(f"{text}\n[metrics]\nport = {METRICS_PORT}\n[container.environment]\n{lines}\n")

    def start(self, *words: str) -> None:
        self.graphics.start()
        arguments = ["run", "--config", str(self.config), "--state", str(self.state)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.engine.command_beside([str(AGENT), *(words or arguments)]),
                env={**os.environ, **environment(self.library, self.world_file), "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip

    @property
    def pid(self) -> int:
        """The agent's own, seen from outside; nsenter is its parent."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return int(children[0])

    def send(self, which: signal.Signals) -> None:
        os.kill(self.pid, which)

    def stop(self, which: signal.Signals = signal.SIGTERM) -> int:
        assert self.process is not None
        if self.process.poll() is None:
            self.send(which)
        status = self.process.wait(timeout=60)
        self.process = None
        return status

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(IndexError, OSError):
                self.send(signal.SIGCONT)
                self.send(signal.SIGKILL)
            self.process.kill()
            self.process.wait()
        self.graphics.close()
        with contextlib.suppress(Exception):
            self.remove_containers()

    def remove_containers(self) -> None:
        found = [each.id for each in self.containers()]
        if found:
            self.engine.run_cli("rm", "-f", "-v", *found, check=False)

    # --- looks -------------------------------------------------------------------------------------------------------

    def containers(self) -> list[Found]:
        return containers(self.engine)

    def ids(self) -> dict[int, str]:
        return {each.slot: each.id for each in self.containers() if each.running}

    def status(self) -> dict[str, Any]:
        try:
            answer = self.engine.http_get(METRICS_PORT, "/status", timeout_s=20)
        except (OSError, http.client.HTTPException):
            return {}
        return cast("dict[str, Any]", json.loads(answer.body)) if answer.status == 200 else {}

    def slots(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self.status().get("slots", []))

    def states(self) -> list[str]:
        return [str(slot["state"]) for slot in self.slots()]

    def story(self) -> str:
        lines = [f"{slot['state']}: {slot['because']}" for slot in self.slots()]
        tail = self.log.read_text(errors="replace")[-4000:] if self.log.exists() else ""
        return "\n".join([*lines, "", tail])

    def history(self) -> list[dict[str, Any]]:
        return cast("list[dict[str, Any]]", self.status().get("history", []))

    def wait(self, true: Callable[[], bool], what: str, *, timeout_s: float = 120) -> float:
        """Seconds it took."""
        began_s = time.monotonic()
        try:
            wait_until(true, timeout_s=timeout_s, what=what)
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{self.story()}") from None
        return time.monotonic() - began_s

    def wait_ready(self, *, timeout_s: float = 120) -> float:
        return self.wait(lambda: self.states() == ["ready"] * self.count, "all slots to be ready", timeout_s=timeout_s)

    # --- users and faults --------------------------------------------------------------------------------------------

    def fault(self, slot: int, text: str) -> None:
        """Of the stand-in in the slot's container; empty ends it."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", 8880 + slot)) as connection:
            connection.sock = self.engine.connect(8880 + slot, timeout_s=10)
            connection.request("POST", "/standin/fault", text)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body

    def chat(self, slot: int, *, tokens: int = 8, timeout_s: float = 60) -> tuple[int, bytes]:
        """A whole streamed answer."""
        connection = http.client.HTTPConnection("127.0.0.1", 8880 + slot)
        connection.sock = self.engine.connect(8880 + slot, timeout_s=timeout_s)
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "你好"}],
            "options": {"num_predict": tokens},
        }
        try:
            connection.request("POST", "/api/chat", json.dumps(body))
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()
