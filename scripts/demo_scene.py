"""What the demo plays with: a Docker Engine, GPUs, the agent, a model; and which of them are real."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from building import TEMPLATE
from demo_agent import PREFIX, DemoAgent
from demo_gpus import Gpus, choose, real_uuids
from demo_signals import signals_held
from enclosure import EnclosureError
from engines import Engine, EngineError, PrivateEngine, desktop_engine, desktop_refusal, start_engine
from ollamastore import Config, lay_model
from smallbase import assemble

from appliance_image.errors import ApplianceError

MODEL = "demo-r1-think:tiny"
_SOURCE = "demo-r1:tiny"
_STANDIN_VERSION = "0.32.15"
# What computes on a CPU, on whatever machine, may take its time.
_PATIENT = "canary_interval_s = 2\nfirst_token_s = 60\nstall_s = 60\n"
_UNUSED_GPUS = "on_cpu_s = 3600\n"


class DemoError(ApplianceError):
    pass


@dataclass(frozen=True, slots=True)
class Scene:
    work: Path
    engine: Engine
    gpus: Gpus
    agent: DemoAgent
    model: str
    given: bool  # the model is one of the real library
    ollama: Path | None  # of this machine, for the model that is made here

    @property
    def image(self) -> str:
        return f"appliance-demo:{self.model.replace(':', '-').replace('/', '-')}"

    @property
    def health(self) -> str:
        """Lines for the agent's configuration."""
        if self.gpus.real and self.given:
            return "canary_interval_s = 2\n"
        return _PATIENT + (_UNUSED_GPUS if self.gpus.real else "")

    @property
    def container(self) -> str:
        """Lines for the agent's configuration: with simulated GPUs the stand-in has its model on one."""
        standing_in = self.gpus.simulated and not (self.given or self.ollama)
        return 'environment = { STANDIN_GPU = "H100" }\n' if standing_in else ""

    def facts(self) -> tuple[list[str], list[str]]:
        """What is real, and what is simulated."""
        own = "an engine of its own" if isinstance(self.engine, PrivateEngine) else "yours"
        real = ["builder and agent", f"Docker {self.engine.version} ({own})", "containers and streams"]
        simulated = [self.gpus.simulated] if self.gpus.simulated else []
        if self.gpus.real:
            real.append(self.gpus.real + ("" if self.given else " (with nothing to compute)"))
        computed = "" if self.gpus.real and self.given else ", computed on the CPU"
        if self.given:
            real.append(f"Ollama's own image with {self.model}{computed}")
        elif self.ollama:
            real.append(f"Ollama {_version(self.ollama)} ({self.ollama}) with a tiny model{computed}")
        else:
            simulated.append(f"Ollama (a stand-in for {_STANDIN_VERSION}, its words are scripted)")
        return real, simulated


@contextlib.contextmanager
def find_scene(work: Path, model: str | None) -> Iterator[Scene]:
    """Raises DemoError."""
    if sys.platform != "linux":
        raise DemoError("the agent runs on Linux only", hint="a virtual machine with Debian will do")
    uuids = real_uuids()
    program = shutil.which("ollama") if model is None else None
    with contextlib.ExitStack() as stack:
        with signals_held():
            engine = stack.enter_context(_engine(work, with_gpus=bool(uuids)))
        gpus = choose(engine, uuids, work, prefix=PREFIX)
        agent = DemoAgent(engine, gpus, work)
        yield Scene(work, engine, gpus, agent, model or MODEL, model is not None, Path(program) if program else None)


def embedded(scene: Scene) -> list[str]:
    """The words for `appliance build` when nothing is to be had from outside."""
    from scriptedgguf import write_scripted_gguf  # noqa: PLC0415 - imports for a second

    weights, store, base = scene.work / "scripted.gguf", scene.work / "store", scene.work / "base"
    version = _version(scene.ollama) if scene.ollama else _STANDIN_VERSION
    write_scripted_gguf(weights)
    config = Config(model_type="160K", file_type="F16")
    lay_model(store, _SOURCE, {"model": weights, "template": TEMPLATE}, config=config)
    assemble(base, version=version, ollama_bin=scene.ollama.resolve() if scene.ollama else None)
    return [MODEL, "--from-store", str(store), "--base", f"oci:{base}", "--ollama-version", version]


def _version(program: Path) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[-1]


def _engine(work: Path, *, with_gpus: bool) -> contextlib.AbstractContextManager[Engine]:
    """Real GPUs are known to the engine that is here; one of the demo's own may have simulated ones."""
    refusals: list[str] = []
    for private in (False, True) if with_gpus or os.geteuid() != 0 else (True, False):
        found = _private(refusals) if private else _desktop(work, refusals)
        if found is not None:
            return found
    raise DemoError(
        f"no Docker Engine here: {'; and '.join(refusals)}",
        hint="start Docker, join its group (`sudo usermod -aG docker $USER`, then log in again), or run this as root",
    )


def _private(refusals: list[str]) -> contextlib.AbstractContextManager[Engine] | None:
    try:
        return contextlib.closing(start_engine("classic", gpu_hook=True))
    except (EngineError, EnclosureError) as error:
        refusals.append(str(error))
        return None


def _desktop(work: Path, refusals: list[str]) -> contextlib.AbstractContextManager[Engine] | None:
    engine = desktop_engine(work)
    if engine is None:
        refusals.append(desktop_refusal())
        return None
    if not engine.docker_host.startswith("unix://"):
        refusals.append(f"{engine.docker_host} is on another machine, and the agent needs the engine's socket")
        return None
    return _alone(engine)


@contextlib.contextmanager
def _alone(engine: Engine) -> Iterator[Engine]:
    """Two demos on one engine would take each other's containers for their own."""
    with Path(__file__).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DemoError("another demo uses this engine", hint="wait until it ends") from None
        yield engine
