"""The demo's agent, as a person uses it: words on the command line, and slots that answer over HTTP."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from demo_gpus import Gpus
from engines import Engine, PrivateEngine

from appliance_agent import status_client, status_json
from appliance_agent.spec import LABEL_MANAGED
from appliance_agent.states import State
from appliance_agent.status import SlotStatus, Status
from appliance_image.chat import Decoder, Event

PREFIX = "appliance-demo"
PROGRAM = Path(sys.executable).parent / "ollama-agent"
_BASE_PORT, _METRICS_PORT = 8880, 9440
_SLOTS_MOST = 8
_POLL_S = 0.05
_LOG_LINES = 20


class AgentFailedError(Exception):
    """What was waited for did not come; the message is what the agent says of it."""


@dataclass(frozen=True, slots=True)
class Change:
    after_s: float
    slot: SlotStatus


def is_ready(slot: SlotStatus) -> bool:
    return slot.state_number == State.READY


class DemoAgent:
    def __init__(self, engine: Engine, gpus: Gpus, work: Path) -> None:
        self.config = work / "agent.toml"
        self.log = work / "agent.log"
        self._engine = engine
        self._gpus = gpus
        self._state = work / "state"
        private = isinstance(engine, PrivateEngine)  # then nobody else is there
        self._base_port = _BASE_PORT if private else _free_ports(_BASE_PORT, _SLOTS_MOST)
        self._metrics_port = _METRICS_PORT if private else _free_ports(_METRICS_PORT, 1)
        self._roads: dict[int, int] = {}
        self._process: subprocess.Popen[bytes] | None = None

    def configure(self, image: str, *, container: str, health: str) -> str:
        """What the file says."""
        text = f"""\
image = "{image}"
pull = "never"
gpus = {self._gpus.wanted}
base_port = {self._base_port}
[engine]
socket = "{self._engine.socket}"
[container]
name_prefix = "{PREFIX}"
{container}[health]
{health}[metrics]
address = "127.0.0.1"
port = {self._metrics_port}
"""
        self.config.write_text(text)
        return text

    def start(self) -> None:
        if self._gpus.graphics:
            self._gpus.graphics.start()
        # It ends with this program, whatever ends that; but Ctrl-C is not for both.
        words = ["setpriv", "--pdeathsig", "TERM", *self._words("run")]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                words, env=self._environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self) -> None:
        """Its containers go on serving."""
        if self._process is not None and self._process.poll() is None:
            self._send(self._process, signal.SIGTERM)
            self._process.wait(timeout=60)
        self._process = None

    def wait(self) -> None:
        if self._process is not None:
            self._process.wait()

    def take_down(self) -> None:
        subprocess.run(self._words("down"), env=self._environment, check=True)

    def check(self) -> None:
        subprocess.run(self._words("check"), env=self._environment, check=False)

    def close(self) -> None:
        """Whatever state it is in."""
        if self._process is not None:
            self._send(self._process, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._gpus.graphics:
            self._gpus.graphics.close()
        if left := self.containers():
            self._engine.run_cli("rm", "-f", "-v", *left, check=False)

    # --- looks -------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def url(self) -> str:
        return f"http://{self.metrics_address}/status"

    @property
    def metrics_address(self) -> str:
        return f"127.0.0.1:{self._road(self._metrics_port)}"

    def slot_url(self, slot: SlotStatus) -> str:
        return f"http://127.0.0.1:{self._road(slot.port)}"

    def status(self) -> Status:
        """Raises StatusUnavailableError."""
        return status_json.parse(status_client.ask(self.url).text)

    def show_status(self, *words: str) -> None:
        subprocess.run([PROGRAM, "status", "--url", self.url, *words], check=True)

    def containers(self) -> list[str]:
        words = ["ps", "-aq", "--filter", f"label={LABEL_MANAGED}={PREFIX}"]
        return self._engine.run_cli(*words, check=False).stdout.split()

    def changes(
        self, until: Callable[[Status], bool], *, timeout_s: float, before: Status | None = None
    ) -> Iterator[Change]:
        """What becomes of the slots until that is true. Raises AgentFailedError."""
        began_s = time.monotonic()
        seen = {slot.slot: slot.state for slot in before.slots} if before else {}
        while True:
            status = None
            with contextlib.suppress(status_client.StatusUnavailableError):
                status = self.status()
            after_s = time.monotonic() - began_s
            for slot in status.slots if status else ():
                if seen.get(slot.slot) != slot.state:
                    seen[slot.slot] = slot.state
                    yield Change(after_s, slot)
            if status and until(status):
                return
            if not self.running or after_s > timeout_s:
                raise AgentFailedError(self._story(status))
            time.sleep(_POLL_S)

    def chat(self, slot: SlotStatus, model: str, question: str, *, tokens: int = -1) -> Iterator[Event]:
        connection = http.client.HTTPConnection(self.slot_url(slot).removeprefix("http://"), timeout=600)
        body = {"model": model, "messages": [{"role": "user", "content": question}], "options": {"num_predict": tokens}}
        with contextlib.closing(connection):
            connection.request("POST", "/api/chat", json.dumps(body))
            response = connection.getresponse()
            decoder = Decoder()
            while chunk := response.read1():
                yield from decoder.feed(chunk)
            decoder.close()

    # -----------------------------------------------------------------------------------------------------------------

    def _words(self, word: str) -> list[str]:
        """In the engine's namespaces: there are its ports and the processes of its containers."""
        state = ["--state", str(self._state)] if word != "check" else []
        words = [str(PROGRAM), word, "--config", str(self.config), *state]
        return self._engine.command_inside(words, network_only=False)

    @property
    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._gpus.environment, "PYTHONUNBUFFERED": "1"}

    def _send(self, process: subprocess.Popen[bytes], which: signal.Signals) -> None:
        """Of a private engine the process is `nsenter`, and the agent its child."""
        with contextlib.suppress(OSError):
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            inside = isinstance(self._engine, PrivateEngine) and children
            os.kill(int(children[0]) if inside else process.pid, which)

    def _road(self, port: int) -> int:
        """Where this machine finds that port of the engine's network."""
        if port not in self._roads:
            self._roads[port] = self._engine.forward(port)
        return self._roads[port]

    def _story(self, status: Status | None) -> str:
        slots = [f"slot {slot.slot} is {slot.state}: {slot.because}" for slot in status.slots] if status else []
        problems = list(status.host.problems) if status else []
        what = "what was waited for did not come" if self.running else "the agent has ended"
        log = self.log.read_text(errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join([what, *problems, *slots, "the end of its log:", *log])


def _free_ports(first: int, count: int) -> int:
    """The first of so many that nobody uses."""
    return next(port for port in range(first, 60000, count) if all(_is_free(port + more) for more in range(count)))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
