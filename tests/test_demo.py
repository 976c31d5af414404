"""scripts/demo from end to end: its story is true, whatever it finds on the machine, and it leaves nothing behind."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import fakenvml
import pytest
from engines import EngineUnavailableError, PrivateEngine, start_engine, wait_until
from fakenvml import FakeGpu, World
from picture_source import PrometheusApi

DEMO = [sys.executable, str(Path(__file__).parent.parent / "scripts/demo.py")]
WATCHED = {
    'sum(appliance_backend_state{state="ready"})': 2,
    'sum(appliance_backend_restarts_total{reason="exit"})': 1,
    "sum(appliance_requests_total)": 5,
    "sum(appliance_gpu_energy_joules_total)": 1,
}
ANSWER = "thinking: Okay, the user wants a short answer.\n  answer: Hello from tiny model!"


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a demo plays: all of its files are below one directory."""

    directory: Path

    def environment(self, more: Mapping[str, str] | None = None) -> dict[str, str]:
        for name in ("tmp", "engines"):
            (self.directory / name).mkdir(exist_ok=True)
        return {
            **os.environ,
            "TMPDIR": str(self.directory / "tmp"),
            "APPLIANCE_TEST_ENGINES": str(self.directory / "engines"),
            "APPLIANCE_CACHE": str(self.directory / "cache"),
            **(more or {}),
        }

    def play(self, words: Sequence[str] = DEMO, more: Mapping[str, str] | None = None) -> str:
        done = subprocess.run(
            words, env=self.environment(more), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def path_without(self, name: str) -> str:
        """As if this program were not installed."""
        programs = self.directory / "programs"
        programs.mkdir()
        for directory in os.environ["PATH"].split(":"):
            for program in Path(directory).iterdir() if Path(directory).is_dir() else ():
                if program.name != name and not (programs / program.name).exists():
                    (programs / program.name).symlink_to(program)
        return str(programs)

    def left(self) -> list[str]:
        """Files, mounts and processes."""
        here = str(self.directory)
        files = [str(path) for name in ("tmp", "engines") for path in (self.directory / name).iterdir()]
        mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if here in line]
        return files + mounts + [words for words in _processes() if here in words]


def _processes() -> Iterator[str]:
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield file.read_text(errors="replace").replace("\0", " ")


@pytest.fixture
def stage() -> Iterator[Stage]:
    """Not in pytest's directory: the path of a socket must be short."""
    with tempfile.TemporaryDirectory(prefix="stage-") as directory:
        yield Stage(Path(directory))


@pytest.fixture
def own_engine() -> None:
    if os.geteuid() != 0:
        pytest.skip("a private Docker Engine needs root")


@pytest.fixture
def desktop() -> Iterator[PrivateEngine]:
    """One that is there before the demo comes."""
    try:
        engine = start_engine("classic", gpu_hook=True)
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    try:
        yield engine
    finally:
        engine.close()


def states(told: str, slot: int) -> list[str]:
    """Of the slot, one after the other."""
    return re.findall(rf"^ +[0-9.]+ s  slot {slot}  (\w+)", told, re.MULTILINE)


@pytest.mark.usefixtures("own_engine", "nvml_library")
def test_two_slots_answer_and_a_killed_one_comes_back(stage: Stage) -> None:
    told = stage.play()

    assert "simulated: 2 GPUs" in told
    assert told.count(ANSWER) == 2
    assert states(told, 0)[-1] == states(told, 1)[-1] == "ready"
    assert states(told, 0).count("ready") == 2
    assert states(told, 1).count("ready") == 1
    assert re.search(r"slot 0 answered again after [0-9.]+ s; slot 1 was not touched", told)
    assert re.search(r"slot 0: remove: ended with exit status 137", told)
    assert "2 of 2 slots answer without it" in told
    assert stage.left() == []


@pytest.mark.usefixtures("own_engine")
def test_without_gcc_there_is_one_slot_on_the_cpu_and_a_hint(stage: Stage) -> None:
    told = stage.play(more={"PATH": stage.path_without("gcc")})

    assert " ".join(told.split()).count("there is no gcc: `apt-get install gcc libc6-dev`") == 1
    assert told.count(ANSWER) == 1
    assert states(told, 0).count("ready") == 2
    assert stage.left() == []


def test_gpus_of_the_machine_are_used_through_the_engine_that_is_there(
    stage: Stage, desktop: PrivateEngine, nvml_library: Path
) -> None:
    """The driver's programs and library are stand-ins."""
    uuids = [f"GPU-{index:08d}-1111-4000-8000-000000000000" for index in range(3)]
    World([FakeGpu(uuid) for uuid in uuids]).write(stage.directory / "world")
    listing = "".join(f"GPU {index}: H100 (UUID: {uuid})\n" for index, uuid in enumerate(uuids))
    (stage.directory / "listing").write_text(listing)
    programs = stage.directory / "programs"
    programs.mkdir()
    for name in ("nvidia-smi", "nvidia-ctk"):
        (programs / name).write_text(f"#!/bin/sh\ncat {stage.directory}/listing\n")
        (programs / name).chmod(0o755)
    driver = fakenvml.environment(nvml_library, stage.directory / "world")
    path = f"{programs}:{os.environ['PATH']}"

    told = stage.play(
        desktop.command_inside(DEMO, network_only=False), {**driver, "DOCKER_HOST": desktop.docker_host, "PATH": path}
    )

    assert "2 of this machine's GPUs" in " ".join(told.split())
    assert told.count(ANSWER) == 2
    assert set(desktop.toolkit.hook_calls()) == set(uuids[:2])
    assert desktop.run_cli("ps", "-aq").stdout == desktop.run_cli("image", "ls", "-aq").stdout == ""
    assert stage.left() == []


@pytest.mark.usefixtures("own_engine")
@pytest.mark.parametrize("at", ["find a Docker Engine", "$ ollama-agent run", "$ docker kill"])
def test_ctrl_c_takes_everything_down(stage: Stage, at: str) -> None:
    """As a terminal does it: the signal is for the whole process group."""
    with subprocess.Popen(
        DEMO,
        env=stage.environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        assert demo.stdout is not None
        before: list[str] = []
        while not before or at not in before[-1]:
            before.append(demo.stdout.readline())
            assert before[-1], "".join(before)
        os.killpg(demo.pid, signal.SIGINT)
        after = demo.stdout.read()

    assert after.endswith("interrupted; nothing is left\n")
    assert demo.returncode == 130
    assert stage.left() == []


@pytest.mark.usefixtures("own_engine", "nvml_library")
def test_a_prometheus_watches_the_demo_until_it_is_told_to_end(stage: Stage) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("no prometheus: sudo apt-get install prometheus")
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):  # somebody else's Prometheus, so that the demo's has another port
            stack.enter_context(socket.create_server(("127.0.0.1", 9090)))
        demo = stack.enter_context(
            subprocess.Popen(
                [*DEMO, "--monitoring"],
                env=stage.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        )
        assert demo.stdout is not None
        told = ""
        while not (found := re.search(r"^\$ kill (\d+)$", told, re.MULTILINE)):
            line = demo.stdout.readline()
            assert line, told
            told += line
        prometheus = PrometheusApi(re.findall(r"http://127.0.0.1:\d+(?=/alerts)", told)[0])

        for expr, wanted in WATCHED.items():
            wait_until(lambda: number(prometheus, expr) >= wanted, timeout_s=60, what=expr)  # noqa: B023 - at once
        rules = prometheus.ask("rules")["groups"]
        os.kill(int(found[1]), signal.SIGTERM)
        after = demo.stdout.read()

    assert prometheus.url != "http://127.0.0.1:9090"
    assert rules
    assert "err" not in {rule["health"] for group in rules for rule in group["rules"]}
    assert "2 of 2 slots answer without it" in after
    assert demo.returncode == 0
    assert stage.left() == []


def number(prometheus: PrometheusApi, expr: str) -> float:
    return sum(value for series in prometheus.at(expr, time.time()) for _, value in series.points)


def test_without_a_prometheus_nothing_begins_and_it_is_said_what_to_install(stage: Stage) -> None:
    done = subprocess.run(
        [*DEMO, "--monitoring"],
        env=stage.environment({"PATH": stage.path_without("prometheus")}),
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout == ""
    assert done.stderr == "error: there is no Prometheus for --monitoring\nhint: sudo apt-get install prometheus\n"
    assert done.returncode == 1
    assert stage.left() == []
