"""What people and other programs do to a host on which the agent works: they take, pause, stop, restart and remove."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from agenthost import QUICK, AgentHost, build_images
from engines import PrivateEngine


@pytest.fixture(scope="module")
def host(
    gpu_engine: PrivateEngine, nvml_library: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AgentHost]:
    build_images(tmp_path_factory.mktemp("agent-images"), gpu_engine)
    generous = QUICK.replace("budget = 4", "budget = 40")
    made = AgentHost(gpu_engine, tmp_path_factory.mktemp("people"), nvml_library, extra=generous)
    try:
        made.start()
        yield made
    finally:
        made.close()


@pytest.fixture
def ready(host: AgentHost) -> AgentHost:
    host.wait_ready()
    return host


@contextmanager
def listening(host: AgentHost, port: int) -> Iterator[None]:
    """A program of the host has the port."""
    program = f"import socket; s = socket.create_server(('0.0.0.0', {port})); print('on', flush=True); s.accept()"
    words = host.engine.command_inside([sys.executable, "-c", program])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout
        listener.stdout.readline()
        try:
            yield
        finally:
            listener.kill()


def last_start(host: AgentHost, slot: int) -> str:
    """Why its container was made."""
    made = [entry for entry in host.history() if (entry["slot"], entry["action"]) == (slot, "create")]
    return str(made[-1]["because"])


def served_since(host: AgentHost, slot: int) -> str:
    """When its container was started, if it has given tokens since and the agent is content; else nothing."""
    told = host.slots()[slot]
    started, good = told["container_started"] or "", (told["good_canary"] or {}).get("time") or ""
    return str(started) if told["state"] == "ready" and good > started else ""


def test_a_port_that_a_program_of_the_host_has_blocks_its_slot_until_it_is_free(ready: AgentHost) -> None:
    before = ready.ids()
    ready.stop()
    ready.engine.run_cli("rm", "-f", before[1])
    with listening(ready, 8881):
        ready.start()
        ready.wait(lambda: ready.states() == ["ready", "blocked"], "slot 1 to be blocked")
        told = ready.slots()[1]["because"]
        ready.wait(lambda: ready.status()["agent"]["ticks"] > 5, "some more ticks")
        assert list(ready.ids()) == [0]
    ready.wait_ready()

    assert "port 8881 is in use by a program of this host" in told
    assert "`ss -ltnp 'sport = :8881'` shows which" in told
    assert ready.ids()[0] == before[0]
    assert ready.slots()[1]["quarantine"] is None


def test_a_container_that_somebody_pauses_is_left_alone_and_goes_on_after_that(ready: AgentHost) -> None:
    before = ready.ids()
    ready.engine.run_cli("pause", "ollama-0")
    ready.wait(lambda: ready.states() == ["blocked", "ready"], "the pause to be seen")
    told = ready.slots()[0]["because"]
    ready.stop()
    ready.start()
    ready.wait(lambda: ready.states() == ["blocked", "ready"], "the pause to be seen by a new agent")
    ready.wait(lambda: ready.status()["agent"]["ticks"] > 5, "more time than a canary may take")
    ready.engine.run_cli("unpause", "ollama-0")
    ready.wait_ready()

    assert "`docker unpause ollama-0`" in told
    assert ready.ids() == before
    assert ready.chat(0)[0] == 200


@pytest.mark.parametrize(
    ("words", "because"),
    [
        (("rm", "-f"), "its container was removed by somebody else"),
        (("stop",), "ended with exit status 0"),
        (("kill",), "ended with exit status 137"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_container_that_somebody_ends_comes_back_and_the_other_is_not_touched(
    ready: AgentHost, words: tuple[str, ...], because: str
) -> None:
    before = ready.ids()
    ready.engine.run_cli(*words, "ollama-1")
    ready.wait(lambda: ready.ids().get(1, before[1]) != before[1], "slot 1 to come back")
    ready.wait_ready()

    assert because in last_start(ready, 1)
    assert ready.ids()[0] == before[0]


def test_after_a_restart_by_somebody_there_is_one_container_and_it_serves(ready: AgentHost) -> None:
    other, before = ready.ids()[0], ready.slots()[1]["container_started"]
    ready.engine.run_cli("restart", "--time=1", "ollama-1", check=False)
    ready.wait(lambda: served_since(ready, 1) > before, "a good canary of what was started")
    ready.wait_ready()

    assert ready.ids()[0] == other
    assert [each.slot for each in ready.containers()] == [0, 1]
    assert ready.chat(1)[0] == 200


def test_a_container_that_somebody_renames_makes_room_for_one_with_the_right_name(ready: AgentHost) -> None:
    before = ready.ids()
    ready.engine.run_cli("rename", "ollama-1", "mine")
    ready.wait(lambda: ready.ids().get(1, before[1]) != before[1], "slot 1 to come back")
    ready.wait_ready()

    assert ready.ids()[0] == before[0]
    assert [each.slot for each in ready.containers()] == [0, 1]
