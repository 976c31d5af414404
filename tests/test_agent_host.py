"""The whole agent on a real Docker Engine: start, serve, heal, roll, come and go. GPUs and Ollama are stand-ins."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fakenvml
import pytest
from agenthost import AGENT, METRICS_PORT, ONE, TWO, AgentHost, build_images
from engines import PrivateEngine
from hangingdisk import HangingFile


@pytest.fixture(scope="module")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    try:
        return fakenvml.build(tmp_path_factory.mktemp("nvml"))
    except fakenvml.GccMissingError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def agent_engine(gpu_engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> PrivateEngine:
    build_images(tmp_path_factory.mktemp("agent-images"), gpu_engine)
    return gpu_engine


@pytest.fixture
def host(agent_engine: PrivateEngine, nvml_library: Path, tmp_path: Path) -> Iterator[AgentHost]:
    made = AgentHost(agent_engine, tmp_path, nvml_library)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def ready(host: AgentHost) -> AgentHost:
    host.start()
    host.wait_ready()
    return host


def actions(host: AgentHost) -> list[tuple[int | None, str]]:
    return [(entry["slot"], entry["action"]) for entry in host.history() if entry["action"] in ("create", "remove")]


def problems(host: AgentHost) -> list[str]:
    return list(host.status().get("host", {}).get("problems", ["no status"]))


def wait_replaced(host: AgentHost, slot: int, before: dict[int, str], *, timeout_s: float = 120) -> float:
    took_s = host.wait(
        lambda: host.ids().get(slot, before[slot]) != before[slot], f"slot {slot} to be replaced", timeout_s=timeout_s
    )
    host.wait_ready()
    return took_s


def wait_ticks(host: AgentHost, count: int) -> None:
    until = int(host.status()["agent"]["ticks"]) + count
    host.wait(lambda: int(host.status()["agent"]["ticks"]) >= until, f"{count} more ticks")


def test_one_container_per_gpu_serves_a_streaming_chat(ready: AgentHost) -> None:
    status, body = ready.chat(1)

    assert status == 200
    assert json.loads(body.splitlines()[-1])["done"] is True
    assert [each.slot for each in ready.containers()] == [0, 1]
    assert sorted(ready.engine.toolkit.hook_calls()[-2:]) == [gpu.uuid for gpu in ready.graphics.world.gpus]


def test_a_killed_container_comes_back_and_the_other_is_not_touched(ready: AgentHost) -> None:
    before = ready.ids()
    ready.engine.run_cli("kill", before[0])

    wait_replaced(ready, 0, before)

    assert ready.ids()[1] == before[1]
    assert "exit status 137" in next(
        entry["because"] for entry in ready.history() if (entry["slot"], entry["action"]) == (0, "remove")
    )


def test_a_disk_that_does_not_answer_holds_up_no_healing_and_is_told(ready: AgentHost) -> None:
    told = f"the state is not saved: the disk below {ready.state} does not answer"
    before = ready.ids()
    with contextlib.closing(HangingFile(ready.state / "state.new")) as disk:
        ready.engine.run_cli("kill", before[0])
        wait_replaced(ready, 0, before)
        ready.wait(lambda: told in problems(ready), "the disk to be a problem")
        assert "exit status 137" not in (ready.state / "state.json").read_text()
        disk.release()
        ready.wait(lambda: told not in problems(ready), "it to be one no more")

    assert "exit status 137" in (ready.state / "state.json").read_text()
    assert ready.ids()[1] == before[1]


@pytest.mark.parametrize(
    ("fault", "word"),
    [
        ("hang_before_first_token", "no token"),
        ("stall_mid_stream,after=5", "no further token"),
        ("error_500", "in a row failed"),
        ("eof_without_done", "in a row failed"),
        ("garbage", "in a row failed"),
    ],
)
def test_a_server_that_answers_but_gives_no_tokens_is_replaced(ready: AgentHost, fault: str, word: str) -> None:
    before = ready.ids()
    ready.fault(1, fault)

    wait_replaced(ready, 1, before)

    assert ready.ids()[0] == before[0]
    because = [entry["because"] for entry in ready.history() if (entry["slot"], entry["action"]) == (1, "remove")]
    assert word in because[0]


def test_a_silent_fallback_to_the_cpu_is_noticed_and_mended(ready: AgentHost) -> None:
    before = ready.ids()
    ready.graphics.cpu_only.add(0)
    ready.wait(lambda: ready.ids().get(0) != before[0], "slot 0 to be replaced")
    ready.graphics.cpu_only.clear()

    ready.wait_ready()

    removed = [entry for entry in ready.history() if (entry["slot"], entry["action"]) == (0, "remove")]
    assert "no process of the container has been on its GPU" in removed[0]["because"]
    assert ready.ids()[1] == before[1]


def test_a_busy_server_is_never_restarted(host: AgentHost) -> None:
    """One request at a time, each of five seconds, and always two more waiting: the canary starves."""
    host.write_config(environment={"STANDIN_TOKEN_S": "0.3"})
    host.start()
    host.wait_ready()
    before = host.ids()
    over = threading.Event()

    def use() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):  # told by what is asserted below
                host.chat(0, tokens=100, timeout_s=120)

    users = [threading.Thread(target=use) for _ in range(3)]
    for user in users:
        user.start()
    with host.graphics.changing() as world:
        world.gpus[0].utilization_ratio = 0.95
    host.wait(lambda: host.slots()[0]["health"] == "busy", "the verdict busy")
    waited = [host.slots()[0]["state"] for _ in range(24) if not over.wait(0.5)]
    over.set()
    for user in users:
        user.join()

    assert set(waited) == {"ready"}
    assert host.ids() == before


def test_stopping_and_starting_the_agent_touches_nothing_and_cuts_no_stream(ready: AgentHost) -> None:
    before = ready.ids()
    answers: list[tuple[int, bytes]] = []
    stream = threading.Thread(target=lambda: answers.append(ready.chat(0, tokens=400)))
    stream.start()

    assert ready.stop() == 0
    assert ready.ids() == before
    ready.start()
    took_s = ready.wait_ready()
    stream.join()

    assert ready.ids() == before
    assert json.loads(answers[0][1].splitlines()[-1])["done"] is True
    assert took_s < 30
    assert len([entry for entry in ready.history() if entry["action"] == "create"]) == 2


def test_a_killed_agent_finds_everything_again(ready: AgentHost) -> None:
    before = ready.ids()

    ready.stop(signal.SIGKILL)
    ready.start()
    ready.wait_ready()

    assert ready.ids() == before


@pytest.mark.parametrize("fault", ["hang_before_first_token", "frozen"])
def test_a_server_that_hangs_already_when_the_agent_comes_is_replaced(ready: AgentHost, fault: str) -> None:
    before = ready.ids()
    ready.stop()
    ready.fault(0, fault)

    ready.start()
    wait_replaced(ready, 0, before)

    assert ready.ids()[1] == before[1]


def test_an_agent_that_stood_still_blames_nobody(ready: AgentHost) -> None:
    """Canaries were under way, and their tokens wait unread, for longer than an idle server may be silent."""
    before = ready.ids()
    for _ in range(4):
        ready.send(signal.SIGSTOP)
        time.sleep(4.5)
        ready.send(signal.SIGCONT)
        wait_ticks(ready, 2)

    ready.wait_ready()
    assert ready.ids() == before
    assert "the agent itself stood still" in ready.story()


def test_a_second_agent_is_refused(ready: AgentHost) -> None:
    words = [str(AGENT), "run", "--config", str(ready.config), "--state", str(ready.state)]

    second = subprocess.run(
        ready.engine.command_inside(words, network_only=False), capture_output=True, text=True, check=False, timeout=60
    )

    assert second.returncode == 1
    assert "another agent uses" in second.stderr
    assert "Traceback" not in second.stderr


def test_a_file_with_mistakes_changes_nothing_and_is_told(ready: AgentHost) -> None:
    before = ready.ids()
    ready.config.write_text("immage = 'x'\n")

    ready.send(signal.SIGHUP)
    ready.wait(lambda: bool(ready.status()["agent"]["reload_problem"]), "the problem to be told")

    assert "did you mean `image`" in ready.status()["agent"]["reload_problem"]
    assert ready.ids() == before


def test_a_new_image_rolls_through_the_slots_one_by_one(ready: AgentHost) -> None:
    before = ready.ids()
    ready.write_config(TWO)
    least = [2]

    ready.send(signal.SIGHUP)

    def rolled() -> bool:
        least.append(sum(state == "ready" for state in ready.states()))
        return all(ready.ids().get(slot, old) != old for slot, old in before.items())

    ready.wait(rolled, "both slots to be replaced")
    ready.wait_ready()
    assert min(number for number in least if ready.count) >= 1
    assert len({each.image for each in ready.containers()}) == 1
    assert actions(ready)[-4:] == [(0, "remove"), (0, "create"), (1, "remove"), (1, "create")]


@pytest.mark.parametrize("fault", ["die", "hang_before_first_token", "never_load", "error_500"])
def test_a_bad_configuration_is_rolled_back_after_one_slot(ready: AgentHost, fault: str) -> None:
    before = ready.ids()
    ready.write_config(environment={"STANDIN_FAULT": fault})

    ready.send(signal.SIGHUP)
    ready.wait(lambda: ready.status()["host"]["refused"] is not None, "the release to be refused")
    ready.wait_ready()

    after = ready.ids()
    assert after[1] == before[1]
    assert after[0] != before[0]
    assert ready.chat(0)[0] == 200


def test_after_the_engine_was_restarted_all_slots_serve_again_and_none_is_blamed(ready: AgentHost) -> None:
    ready.engine.stop()
    try:
        ready.wait(lambda: bool(problems(ready)), "the engine to be missed")
    finally:
        ready.engine.start()

    def is_noticed() -> bool:
        found = [slot["restarts"] for slot in ready.slots()]
        return bool(found) and all("engine_restart" in each for each in found)

    ready.wait(is_noticed, "both slots to be started anew")
    ready.wait_ready()

    restarts = [slot["restarts"] for slot in ready.slots()]
    assert all(each["start"] == each["engine_restart"] == sum(each.values()) / 2 for each in restarts), restarts


def test_while_the_engine_is_frozen_slots_serve_and_nothing_is_done(ready: AgentHost) -> None:
    before = actions(ready)
    with ready.engine.frozen():
        ready.wait(lambda: any("has not answered" in text for text in problems(ready)), "the freeze")
        assert ready.states() == ["ready", "ready"]
        assert ready.chat(0)[0] == 200
    ready.wait(lambda: not problems(ready), "the thaw")

    assert actions(ready) == before


def test_a_lost_gpu_is_put_aside_and_comes_back(ready: AgentHost) -> None:
    before = ready.ids()
    with ready.graphics.changing() as world:
        world.gpus[0].lost = True
    ready.wait(lambda: ready.states() == ["quarantined", "ready"], "the quarantine")
    ready.wait(lambda: list(ready.ids()) == [1], "its container to be gone")
    with ready.graphics.changing() as world:
        world.gpus[0].lost = False

    ready.wait_ready()

    assert ready.ids()[1] == before[1]


def test_an_xid_restarts_the_slot_of_its_gpu_and_no_other(ready: AgentHost) -> None:
    before = ready.ids()
    with ready.graphics.changing() as world:
        world.xid(world.gpus[1], 31)

    wait_replaced(ready, 1, before)

    assert ready.ids()[0] == before[0]


def test_while_nvml_hangs_slots_serve_and_nothing_is_done(ready: AgentHost) -> None:
    before = actions(ready)
    with ready.graphics.changing() as world:
        world.hangs = True
    ready.wait(lambda: any("NVML has not answered" in text for text in problems(ready)), "the hang")

    assert ready.states() == ["ready", "ready"]
    with ready.graphics.changing() as world:
        world.hangs = False
    ready.wait(lambda: not problems(ready), "NVML to answer again", timeout_s=90)
    assert actions(ready) == before


def test_somebody_elses_container_is_told_and_not_touched(host: AgentHost) -> None:
    foreign = host.engine.run_cli("run", "-d", "--name", "ollama-1", ONE).stdout.strip()
    try:
        host.start()
        host.wait(lambda: host.states() == ["ready", "blocked"], "slot 1 to be blocked")
        assert "ollama-1" in host.slots()[1]["because"]
        assert host.engine.run_cli("inspect", "-f", "{{.State.Running}}", foreign).stdout.strip() == "true"
    finally:
        host.engine.run_cli("rm", "-f", foreign)
    host.wait_ready()


def test_down_takes_all_containers_away_and_wants_the_service_stopped_first(ready: AgentHost) -> None:
    words = [str(AGENT), "down", "--config", str(ready.config), "--state", str(ready.state)]
    environment = {**os.environ, **fakenvml.environment(ready.library, ready.world_file)}

    def down() -> subprocess.CompletedProcess[str]:
        inside = ready.engine.command_inside(words, network_only=False)
        return subprocess.run(inside, env=environment, capture_output=True, text=True, check=False, timeout=120)

    refused = down()
    assert refused.returncode == 1
    assert "another agent uses" in refused.stderr
    assert len(ready.ids()) == 2
    ready.stop()
    done = down()

    assert done.returncode == 0, done.stderr
    assert ready.containers() == []


def test_metrics_tell_what_happened(ready: AgentHost) -> None:
    before = ready.ids()
    ready.engine.run_cli("kill", before[0])
    wait_replaced(ready, 0, before)

    text = ready.engine.http_get(METRICS_PORT, "/metrics").body.decode()

    assert 'appliance_backend_restarts_total{gpu="0",reason="exit"} 1\n' in text
    assert 'appliance_backend_state{gpu="0",state="ready"} 1\n' in text
