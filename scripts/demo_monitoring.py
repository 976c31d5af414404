"""Prometheus beside the demo: it scrapes the agent, users ask the slots now and then, and simulated GPUs get warm."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import shutil
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlencode

from demo_scene import DemoError, Scene
from demo_show import say, tell_command
from gpuphysics import Physics
from realprometheus import Prometheus, PrometheusUnavailableError

from appliance_agent.status import SlotStatus
from appliance_image.chat import ChatError

ROOT = Path(__file__).resolve().parent.parent
HOST = "demo"
_RULES = ROOT / "monitoring/prometheus/rules"
_PORT, _PORTS = 9090, 100  # the first that nobody uses
_INTERVAL_S = 2
_PAUSE_S = (0.3, 3.0)  # of a user between two questions
_TOKENS = 32
_LOAD = 0.9  # of a GPU that answers
_STATES = "sum by (gpu, state) (appliance_backend_state) == 1"


def check() -> None:
    """Raises DemoError."""
    if shutil.which("prometheus") is None:
        raise DemoError("there is no Prometheus for --monitoring", hint="sudo apt-get install prometheus")


@contextlib.contextmanager
def monitored(scene: Scene, slots: Sequence[SlotStatus], question: str) -> Iterator[Prometheus]:
    """Raises DemoError."""
    rules = sorted(_RULES.glob("*.yml"))
    targets = {HOST: scene.agent.metrics_address}
    prometheus = Prometheus(scene.work / "prometheus", targets, interval_s=_INTERVAL_S, rules=rules, port=_free_port())
    with contextlib.ExitStack() as stack:
        stack.callback(prometheus.close)
        try:
            prometheus.start()
        except PrometheusUnavailableError as error:
            raise DemoError(str(error), hint="sudo apt-get install prometheus") from None
        busy = {slot.slot: 0.0 for slot in slots}
        if scene.gpus.graphics:
            stack.enter_context(Physics(scene.gpus.graphics, lambda place: busy.get(place, 0.0)))
        stack.enter_context(_users(scene, slots, question, busy))
        yield prometheus


def tell_monitoring(prometheus: Prometheus) -> None:
    graph = urlencode({"g0.expr": _STATES, "g0.tab": 0, "g0.stacked": 1, "g0.range_input": "5m"})
    rules = prometheus.rules_loaded()
    loaded = f", with {rules} rules of monitoring/prometheus/rules" if rules else ""
    say(f"\nPrometheus scrapes the agent every {prometheus.interval_s} s{loaded}; users ask each slot now and then.")
    say(f"  {prometheus.url}/graph?{graph}")
    say(f"  {prometheus.url}/alerts")
    say("For Grafana, this address is the data source of monitoring/grafana/dashboards/*.json. Without Grafana:")
    program = ROOT / "monitoring/grafana/picture.py"
    tell_command([str(ROOT / ".venv/bin/python"), str(program), prometheus.url, "dashboard.svg"])
    say("From another terminal all of it is ended by")
    tell_command(["kill", str(os.getpid())])


@contextlib.contextmanager
def _users(scene: Scene, slots: Sequence[SlotStatus], question: str, busy: dict[int, float]) -> Iterator[None]:
    """One at each slot, who is said to make it busy. What a slot that is being healed says to them does not matter."""
    over = threading.Event()

    def ask(slot: SlotStatus) -> None:
        while not over.wait(random.uniform(*_PAUSE_S)):
            busy[slot.slot] = _LOAD
            with contextlib.suppress(OSError, http.client.HTTPException, ChatError):
                for _ in scene.agent.chat(slot, scene.model, question, tokens=_TOKENS):
                    if over.is_set():
                        break
            busy[slot.slot] = 0.0

    threads = [threading.Thread(target=ask, args=(slot,), daemon=True) for slot in slots]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(timeout=5)


def _free_port() -> int:
    for port in range(_PORT, _PORT + _PORTS):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise DemoError(f"no port between {_PORT} and {_PORT + _PORTS} is free", hint="end what uses them")
