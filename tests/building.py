"""What the tests of whole builds share: a store with a model, a base image, and the command as a user runs it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ollamastore import Config, Source, StoredModel, lay_model
from smallbase import assemble
from tinygguf import write_tiny_gguf

APPLIANCE = Path(sys.executable).parent / "appliance"
MODEL = "r1:tiny"
OLLAMA = "0.32.15"
MIB = 1024 * 1024

# Shaped as DeepSeek-R1's of 2025: roles, a `.Thinking` block, an empty block for an explicit false.
TEMPLATE = """\
{{- if .System }}{{ .System }}{{ end }}
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<｜User｜>{{ .Content }}
{{- else if eq .Role "assistant" }}<｜Assistant｜>
{{- if and $.IsThinkSet (and $last .Thinking) }}<think>
{{ .Thinking }}
</think>
{{- end }}{{ .Content }}{{- if not $last }}<｜end▁of▁sentence｜>{{- end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<｜Assistant｜>
{{- end }}
{{- end }}"""


@dataclass(frozen=True, slots=True)
class Ran:
    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def events(self) -> list[dict[str, object]]:
        """Of a run with --json."""
        return [json.loads(line) for line in self.err.splitlines()]


class Site:
    """One user's machine: cache, store, base images, and `appliance` run in it."""

    def __init__(self, directory: Path, environment: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.store = directory / "store"
        self.home = directory / "home"
        self.home.mkdir(parents=True, exist_ok=True)
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "LANG": "C.UTF-8",
            "APPLIANCE_CACHE": str(directory / "cache"),
            **(environment or {}),
        }

    def lay(self, name: str = MODEL, *, pad_bytes: int = MIB, seed: int = 0, template: str = TEMPLATE) -> StoredModel:
        weights = self.directory / "weights.gguf"
        write_tiny_gguf(weights, pad_bytes=pad_bytes, seed=seed)
        layers: dict[str, Source | Sequence[Source]] = {
            "model": weights,
            "template": template,
            "params": {"stop": ["<｜User｜>"]},
            "license": "do as you like\n",
        }
        stored = lay_model(self.store, name, layers, config=Config(model_type="158K", file_type="F16"))
        weights.unlink()
        return stored

    def base(self, version: str = OLLAMA, *, platforms: tuple[str, ...] = ("linux/amd64",)) -> list[str]:
        """The words that choose this base."""
        layout = self.directory / f"base-{version}-{len(platforms)}"
        if not layout.exists():
            assemble(layout, version=version, platforms=platforms)
        return ["--base", f"oci:{layout}", "--ollama-version", version]

    def run(self, *words: str, environment: Mapping[str, str] | None = None, timeout_s: float = 300) -> Ran:
        done = subprocess.run(
            [APPLIANCE, *words],
            env={**self.environment, **(environment or {})},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def build(self, model: str, *words: str, version: str = OLLAMA) -> Ran:
        return self.run("build", model, "--from-store", str(self.store), *self.base(version), *words)

    def forget(self) -> None:
        """As if this were another machine: nothing learnt, nothing downloaded."""
        shutil.rmtree(self.directory / "cache", ignore_errors=True)


def ok(ran: Ran) -> Ran:
    assert ran.status == 0, f"exit {ran.status}\n{ran.out}\n{ran.err}"
    return ran


def failed(ran: Ran, *, status: int = 1) -> tuple[str, str]:
    """The sentence and the hint; anything else on stderr that looks like a traceback is a bug."""
    assert "Traceback" not in ran.err, ran.err
    assert ran.status == status, f"exit {ran.status}\n{ran.out}\n{ran.err}"
    lines = ran.err.splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in lines if line.startswith("hint: ")]
    assert len(errors) == 1, ran.err
    assert hints, ran.err
    return errors[0], hints[-1]
