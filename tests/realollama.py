"""A host whose containers run a real Ollama: its image, and what is asked of it and seen of its processes from outside."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agenthost import MODEL, AgentHost
from building import Site, ok
from engines import PrivateEngine, wait_until
from hosttraffic import requests_of, scrape, value_of
from ollamastore import Config, Source, lay_model
from scriptedgguf import write_scripted_gguf
from smallbase import assemble
from thinktemplates import R1_NOW

IMAGE = "agent-test:real"
_HIDDEN = 20_000  # a token takes some milliseconds, so that streams last


def build_image(engine: PrivateEngine, directory: Path) -> None:
    """Of the Ollama that `OLLAMA_BIN` names, and of a model that says the same without end."""
    site = Site(directory, {"DOCKER_HOST": engine.docker_host})
    weights = directory / "endless.gguf"
    write_scripted_gguf(weights, think="", answer="and on and", words=20, endless=True, hidden=_HIDDEN)
    layers: dict[str, Source | Sequence[Source]] = {"model": weights, "template": R1_NOW, "params": {"num_thread": 1}}
    lay_model(site.store, MODEL, layers, config=Config(file_type="F16"))
    program = Path(os.environ["OLLAMA_BIN"])
    alone = {"PATH": os.environ["PATH"], "HOME": str(directory), "OLLAMA_HOST": "127.0.0.1:1"}
    said = subprocess.run([program, "--version"], env=alone, check=True, capture_output=True, text=True)
    version = said.stdout.split()[-1]
    assemble(directory / "base", version=version, ollama_bin=program)
    base = ("--base", f"oci:{directory / 'base'}", "--ollama-version", version)
    ok(site.run("build", MODEL, "--from-store", str(site.store), *base, "-t", IMAGE, "--load"))


def ask(host: AgentHost, method: str, path: str, body: object = None, *, timeout_s: float = 60) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", 8880)
    connection.sock = host.engine.connect(8880, timeout_s=timeout_s)
    with contextlib.closing(connection):
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read()


def loaded(host: AgentHost) -> list[dict[str, Any]]:
    models: list[dict[str, Any]] = json.loads(ask(host, "GET", "/api/ps")[1])["models"]
    return models


def log(host: AgentHost, container: str = "") -> str:
    ran = host.engine.run_cli("logs", container or host.ids()[0])
    return ran.stdout + ran.stderr


def loads(host: AgentHost) -> int:
    return len(re.findall(r'msg="starting (?:runner|llama server|llama-server)".* --model ', log(host)))


def aborted(host: AgentHost) -> list[str]:
    return re.findall(r"\[GIN\].*\| 499 \|.*", log(host))


def runners(container: str) -> list[int]:
    """The processes that compute, as they are numbered here."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and container in (entry / "cgroup").read_text():
                words = (entry / "cmdline").read_bytes().split(b"\0")
                found += [int(entry.name)] if b"--model" in words else []
    return found


def runner(host: AgentHost) -> int:
    found = runners(host.ids()[0])
    assert len(found) == 1
    return found[0]


def good_canaries(host: AgentHost, number: int) -> None:
    """Until so many more have given tokens."""
    seen: set[str] = set()
    first = last_good(host)

    def enough() -> bool:
        seen.add(last_good(host))
        return len(seen - {first}) >= number

    host.wait(enough, f"{number} good canaries", timeout_s=120)


def last_good(host: AgentHost) -> str:
    slots = host.slots()
    return str((slots[0]["good_canary"] or {}).get("time", "")) if slots else ""


class Stream:
    """A user's chat under way."""

    def __init__(self, host: AgentHost, tokens: int) -> None:
        self.lines: list[bytes] = []
        self._host, self._tokens = host, tokens
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        wait_until(lambda: len(self.lines) > 3, timeout_s=60, what="the stream to begin")

    def _read(self) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": "hi"}],
            "options": {"num_predict": self._tokens},
        }
        connection = http.client.HTTPConnection("127.0.0.1", 8880)
        connection.sock = self._host.engine.connect(8880, timeout_s=120)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", "/api/chat", json.dumps(body))
            answer = connection.getresponse()
            while line := answer.readline():
                self.lines.append(line)

    def end(self) -> dict[str, Any]:
        """The last object."""
        self._thread.join(120)
        last: dict[str, Any] = json.loads(self.lines[-1])
        return last


def running(host: AgentHost) -> float | None:
    return value_of(scrape(host), "requests_running", gpu="0")


def served(host: AgentHost) -> int:
    return requests_of(scrape(host))[0, "ollama_chat", 200]


def states_for(host: AgentHost, seconds: int) -> set[str]:
    never = threading.Event()
    return {state for _ in range(2 * seconds) if not never.wait(0.5) for state in host.states()}


def restarts(host: AgentHost) -> dict[str, int]:
    counted: dict[str, int] = host.slots()[0]["restarts"]
    return counted
