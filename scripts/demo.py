"""The main job in one go: build an image, load it into a Docker Engine, start it, stream a chat, clean up.

Started by `scripts/demo`, which makes the environment. Everything it uses is real: the builder as a user calls it, a
Docker Engine, a container without rights. Only the model is tiny, and Ollama is a stand-in where no real one is there.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from building import TEMPLATE  # noqa: E402 - after the path is set
from engines import Engine, EngineUnavailableError, desktop_engine, desktop_refusal, start_engine  # noqa: E402
from ollamastore import Config, lay_model  # noqa: E402
from scriptedgguf import write_scripted_gguf  # noqa: E402
from smallbase import assemble  # noqa: E402

from appliance_image.chat import Decoder, Done  # noqa: E402

MODEL = "demo-r1-think:tiny"
SOURCE = "demo-r1:tiny"
QUESTION = "天空为什么是蓝色的？"
STANDIN_VERSION = "0.32.15"


@dataclass(frozen=True, slots=True)
class Step:
    what: str
    seconds: float


class Steps:
    """Prints what happens and remembers how long it took."""

    def __init__(self) -> None:
        self.taken: list[Step] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Generator[None, None, None]:
        print(f"\n── {what}", flush=True)
        began_s = time.monotonic()
        yield
        self.taken.append(Step(what, time.monotonic() - began_s))

    def table(self) -> str:
        width = max(len(step.what) for step in self.taken)
        return "\n".join(f"  {step.what.ljust(width)}  {step.seconds:6.1f} s" for step in self.taken)


def main() -> int:
    arguments = _arguments()
    steps = Steps()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="appliance-demo-")))
        with steps.step("find a Docker Engine"):
            engine = stack.enter_context(_engine(work))
        words = _embedded(work, steps) if arguments.model is None else [arguments.model]
        image = f"appliance-demo:{(arguments.model or MODEL).replace(':', '-').replace('/', '-')}"
        with steps.step(f"appliance build {words[0]}"):
            _appliance(["build", *words, "-t", image, "--load"], engine)
        with steps.step("start it: read-only, without rights, as nobody"):
            container = _start(engine, image)
        if not arguments.keep:
            stack.callback(_remove, engine, container, image)
        with steps.step("stream a chat"):
            _chat(engine, container, arguments.model or MODEL)
        if arguments.keep:
            print(f"\nleft running: DOCKER_HOST={engine.docker_host} docker rm -f {container}")
            stack.pop_all()
    print(f"\nwhat each step took:\n{steps.table()}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Build an appliance image, run it in a Docker Engine and stream a chat.",
        epilog="Without MODEL a tiny scripted model is made on the spot, and no network is needed.",
    )
    parser.add_argument("model", nargs="?", help="an Ollama model for the real thing, for example qwen3:0.6b")
    parser.add_argument("--keep", action="store_true", help="leave the container and the image")
    return parser.parse_args()


@contextlib.contextmanager
def _engine(work: Path) -> Iterator[Engine]:
    if (desktop := desktop_engine(work)) is not None:
        print(f"the one that is here: Docker {desktop.version} at {desktop.docker_host}")
        yield desktop
        return
    try:
        private = start_engine("classic")
    except EngineUnavailableError as error:
        hint = "start Docker, join its group (`sudo usermod -aG docker $USER`, then log in again), or run this as root"
        sys.exit(f"error: no Docker Engine here: {desktop_refusal()}; and {error}\nhint: {hint}")
    print(f"one of its own for this demo: Docker {private.version}")
    with contextlib.closing(private):
        yield private


def _embedded(work: Path, steps: Steps) -> list[str]:
    """The words for `appliance build` when nothing is to be had from outside."""
    real = shutil.which("ollama") if sys.platform == "linux" else None  # containers run no program of another system
    with steps.step("make a tiny model and a base image"):
        weights = work / "scripted.gguf"
        write_scripted_gguf(weights)
        config = Config(model_type="160K", file_type="F16")
        lay_model(work / "store", SOURCE, {"model": weights, "template": TEMPLATE}, config=config)
        version = _version(real) if real else STANDIN_VERSION
        assemble(work / "base", version=version, ollama_bin=Path(real).resolve() if real else None)
        if real:
            print(f"base: the real Ollama {version} of this machine ({real}); real inference runs")
        else:
            print(f"base: a stand-in that answers as Ollama {version} does; no inference, the words are scripted")
    store, base = str(work / "store"), f"oci:{work / 'base'}"
    return [MODEL, "--from-store", store, "--base", base, "--ollama-version", version]


def _version(program: str) -> str:
    said = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout
    return said.split()[-1]


def _appliance(words: list[str], engine: Engine) -> None:
    program = Path(sys.executable).parent / "appliance"
    print(f"$ appliance {' '.join(words)}", flush=True)
    environment = {**os.environ, "DOCKER_HOST": engine.docker_host}
    status = subprocess.run([program, *words], env=environment, check=False).returncode
    if status:
        sys.exit(status)


def _start(engine: Engine, image: str) -> str:
    words = ["run", "-d", "--read-only", "--user", "65534:65534", "--cap-drop", "ALL", "-p", "127.0.0.1::11434", image]
    print(f"$ docker {' '.join(words)}", flush=True)
    return engine.run_cli(*words).stdout.strip()


def _remove(engine: Engine, container: str, image: str) -> None:
    engine.run_cli("rm", "-f", "-v", container)
    engine.run_cli("rmi", "-f", image)


def _chat(engine: Engine, container: str, model: str) -> None:
    port = engine.published_port(container, 11434)
    _wait(engine, port, container)
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.sock = engine.connect(port, timeout_s=600)
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    print(f"> {QUESTION}")
    asked_s = time.monotonic()
    connection.request("POST", "/api/chat", json.dumps(body))
    response = connection.getresponse()
    decoder = Decoder()
    first_s, part = None, ""
    while chunk := response.read1():
        first_s = first_s or time.monotonic()
        for event in decoder.feed(chunk):
            if isinstance(event, Done):
                _summary(event, first_s - asked_s)
                continue
            for name, text in (("thinking", event.thinking), ("answer", event.content)):
                if text:
                    print(("" if part == name else f"\n{name:>8}: ") + text, end="", flush=True)
                    part = name
    decoder.close()


def _summary(done: Done, first_token_s: float) -> None:
    rate = f", {done.tokens_per_s:.0f} tokens/s" if done.tokens_per_s else ""
    print(f"\n\nfirst token after {first_token_s:.2f} s, {done.answer_tokens} tokens{rate}, ended by {done.reason}")


def _wait(engine: Engine, port: int, container: str) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError, http.client.HTTPException):
            if engine.http_get(port).status == 200:
                return
        time.sleep(0.1)
    sys.exit(f"error: the container does not answer\n{engine.run_cli('logs', container, check=False).stderr}")


if __name__ == "__main__":
    sys.exit(main())
