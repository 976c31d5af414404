"""What stands in for the agent on other hosts: Docker's restart policy, HEALTHCHECK with autoheal, a naive inference check."""

from __future__ import annotations

import contextlib
import http.client
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

from agentgraphics import EngineHttp
from agenthost import MODEL, ONE
from engines import PrivateEngine
from hostfiles import host_python

SERVER_PORT: Final = 11434
AUTOHEAL_S: Final = 5.0  # AUTOHEAL_INTERVAL
STOP_S: Final = 10  # AUTOHEAL_DEFAULT_STOP_TIMEOUT
NAIVE_TIMEOUT_S: Final = 15.0
NAIVE_FAILURES: Final = 3
_SECOND_NS: Final = 1_000_000_000
_CHAT: Final = """
import http.client, json, sys
connection = http.client.HTTPConnection("127.0.0.1", 11434, timeout=%f)
body = {"model": "%s", "messages": [{"role": "user", "content": "ping"}], "stream": False, "options": {"num_predict": 1}}
connection.request("POST", "/api/chat", json.dumps(body))
answer = connection.getresponse()
answer.read()
sys.exit(answer.status != 200)
"""


@dataclass(frozen=True, slots=True)
class Check:
    """A HEALTHCHECK."""

    words: tuple[str, ...]
    interval_s: float
    timeout_s: float
    retries: int


def plain_check() -> Check:
    """What most people write, with Docker's defaults."""
    return Check(("ollama", "list"), 30, 30, 3)


def chat_check(interval_s: float, timeout_s: float, retries: int) -> Check:
    """It asks for a token, which hardly anybody's does."""
    words = (str(host_python().program), "-IBSc", _CHAT % (timeout_s, MODEL))
    return Check(words, interval_s, timeout_s, retries)


def call(engine: PrivateEngine, method: str, path: str, body: Mapping[str, object] | None = None) -> Any:
    connection = EngineHttp(engine.socket)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status >= http.client.BAD_REQUEST:
            raise RuntimeError(f"{method} {path}: {text.decode()}")
        return json.loads(text) if text else None


def run_rival(
    engine: PrivateEngine,
    name: str,
    port: int,
    *,
    restart: str = "always",
    check: Check | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """The same image as the agent's, started as `docker run` would. The container's id."""
    variables = {"STANDIN_CONTROL": "1", "STANDIN_TOKEN_S": "0.01", **(environment or {})}
    exposed = f"{SERVER_PORT}/tcp"
    body: dict[str, object] = {
        "Image": ONE,
        "Env": [f"{name}={value}" for name, value in variables.items()],
        "Labels": {"autoheal": "true", "rival": name},
        "ExposedPorts": {exposed: {}},
        "HostConfig": {
            "Init": True,
            "RestartPolicy": {"Name": restart},
            "PortBindings": {exposed: [{"HostIp": "127.0.0.1", "HostPort": str(port)}]},
        },
    }
    if check is not None:
        body["Healthcheck"] = {
            "Test": ["CMD", *check.words],
            "Interval": round(check.interval_s * _SECOND_NS),
            "Timeout": round(check.timeout_s * _SECOND_NS),
            "Retries": check.retries,
        }
    made = cast("dict[str, str]", call(engine, "POST", f"/containers/create?name={name}", body))["Id"]
    call(engine, "POST", f"/containers/{made}/start")
    return made


class Autoheal:
    """As willfarrell/autoheal does: every five seconds whatever is unhealthy is restarted."""

    def __init__(self, engine: PrivateEngine) -> None:
        self.restarts: list[str] = []  # names
        self._engine = engine
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        filters = json.dumps({"health": ["unhealthy"], "label": ["autoheal=true"]}).replace(" ", "")
        while not self._over.wait(AUTOHEAL_S):
            with contextlib.suppress(OSError, http.client.HTTPException, RuntimeError):
                for each in call(self._engine, "GET", f"/containers/json?filters={filters}"):
                    self.restarts.append(each["Labels"]["rival"])
                    call(self._engine, "POST", f"/containers/{each['Id']}/restart?t={STOP_S}")


class NaiveCheck:
    """As GPUStack's inference check does: a chat that is not streamed, 15 s, three failures. It only counts what it would do."""

    def __init__(self, engine: PrivateEngine, port: int, *, interval_s: float) -> None:
        self.asked = self.failed = self.restarts = 0
        self._engine = engine
        self._port = port
        self._interval_s = interval_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        in_a_row = 0
        while not self._over.wait(self._interval_s):
            self.asked += 1
            if self._answers():
                in_a_row = 0
                continue
            self.failed += 1
            in_a_row += 1
            if in_a_row == NAIVE_FAILURES:
                in_a_row, self.restarts = 0, self.restarts + 1

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port)
        messages = [{"role": "user", "content": "ping"}]
        body = {"model": MODEL, "messages": messages, "stream": False, "options": {"num_predict": 1}}
        with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
            connection.sock = self._engine.connect(self._port, timeout_s=NAIVE_TIMEOUT_S)
            connection.request("POST", "/api/chat", json.dumps(body))
            answer = connection.getresponse()
            answer.read()
            return answer.status == http.client.OK
        return False
