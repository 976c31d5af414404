"""Go's own text/template as the tests' oracle: `gorender` built once with whatever Go the machine has, and asked."""

from __future__ import annotations

import atexit
import functools
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

_SOURCE = Path(__file__).parent / "gorender"
_USUAL_PLACES = ("/usr/local/go/bin/go", "/usr/lib/go/bin/go")


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str
    thinking: str = ""
    calls: tuple[str, ...] = ()

    @property
    def wire(self) -> dict[str, object]:
        calls = [{"Function": {"Name": name, "Arguments": {"city": "Paris"}}} for name in self.calls]
        return {"Role": self.role, "Content": self.content, "Thinking": self.thinking, "ToolCalls": calls}


@dataclass(frozen=True, slots=True)
class Question:
    template: str
    messages: tuple[Message, ...] = ()
    system: str = ""
    tools: tuple[str, ...] = ()
    think: bool | None = None
    old: bool = False  # what 0.5.11 passes in

    @property
    def wire(self) -> str:
        tools = [{"Function": {"Name": name}} for name in self.tools]
        return json.dumps(
            {
                "Template": self.template,
                "Messages": [message.wire for message in self.messages],
                "System": self.system,
                "Tools": tools,
                "Think": self.think,
                "Old": self.old,
            }
        )


@dataclass(frozen=True, slots=True)
class Answer:
    prompt: str
    error: str
    parsed: bool
    texts: tuple[str, ...]
    go: tuple[int, int]


def ask(questions: Sequence[Question]) -> list[Answer]:
    lines = "\n".join(question.wire for question in questions)
    done = subprocess.run([_binary()], input=lines, capture_output=True, check=True, text=True, encoding="utf-8")
    return [_answer(line) for line in done.stdout.splitlines()]


def _answer(line: str) -> Answer:
    body = json.loads(line)
    major, minor, *_ = body["go"].removeprefix("go").split(".")
    return Answer(body["prompt"], body["error"], body["parsed"], tuple(body["texts"] or ()), (int(major), int(minor)))


@functools.cache
def _binary() -> Path:
    go = os.environ.get("GO") or shutil.which("go") or next((p for p in _USUAL_PLACES if Path(p).exists()), None)
    if go is None:
        pytest.skip("no Go here; `apt-get install golang-go`")
    folder = Path(tempfile.mkdtemp(prefix="gorender-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    environment = os.environ | {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
    environment.setdefault("GOCACHE", str(folder / "cache"))
    subprocess.run([go, "build", "-o", folder / "gorender", "."], cwd=_SOURCE, env=environment, check=True)
    return folder / "gorender"
