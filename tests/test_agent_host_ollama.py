"""The whole agent with a real Ollama in its containers: every verdict that the stand-in is asked for, from the original.

`OLLAMA_BIN` names the program. What runs on the CPU here runs the same requests through the same server as on a GPU.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from agenthost import MODEL, QUICK, AgentHost
from engines import PrivateEngine, wait_until
from hosttraffic import Sums, by_slot, lines_read, scrape, users, value_of
from realollama import (
    IMAGE,
    Stream,
    aborted,
    ask,
    build_image,
    good_canaries,
    loaded,
    loads,
    log,
    restarts,
    runner,
    runners,
    running,
    served,
    states_for,
)

pytestmark = pytest.mark.ollama

CPU = 'gpus = "none"'
ONE_AT_A_TIME = {"OLLAMA_NUM_PARALLEL": "1", "OLLAMA_CONTEXT_LENGTH": "2048"}
PATIENT = QUICK.replace("load_s = 6", "load_s = 60")


@pytest.fixture(scope="module")
def real_engine(gpu_engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> PrivateEngine:
    build_image(gpu_engine, tmp_path_factory.mktemp("real"))
    return gpu_engine


@pytest.fixture
def host(real_engine: PrivateEngine, nvml_library: Path, tmp_path: Path) -> Iterator[AgentHost]:
    made = AgentHost(real_engine, tmp_path, nvml_library, gpus=1, extra=PATIENT)
    made.write_config(IMAGE, head=CPU, environment=ONE_AT_A_TIME)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def ready(host: AgentHost) -> AgentHost:
    host.start()
    host.wait_ready()
    return host


def test_a_cold_load_is_waited_for_and_canaries_change_nothing(ready: AgentHost) -> None:
    before = loaded(ready)[0]
    good_canaries(ready, 4)
    after = loaded(ready)[0]

    assert before["expires_at"][:4] == after["expires_at"][:4] > "2300"
    assert before["context_length"] == after["context_length"] == 2048
    assert loads(ready) == 1
    assert aborted(ready) == []
    assert ready.chat(0, tokens=50)[0] == 200
    assert restarts(ready) == {"start": 1}


def test_a_client_s_keep_alive_outlives_the_canaries(ready: AgentHost) -> None:
    """Three hours after the last request, the canary's own included."""
    ask(ready, "POST", "/api/generate", {"model": MODEL, "keep_alive": "3h"})
    good_canaries(ready, 3)
    left = datetime.fromisoformat(loaded(ready)[0]["expires_at"]) - datetime.now(UTC)

    assert timedelta(hours=2.9) < left <= timedelta(hours=3)
    assert loads(ready) == 1


def test_a_slow_load_is_never_aborted(host: AgentHost) -> None:
    """The runner stands still in the middle of its load for longer than any canary may wait."""
    host.start()
    host.wait(lambda: 0 in host.ids(), "the container")
    container = host.ids()[0]
    wait_until(lambda: bool(runners(container)), timeout_s=60, what="the runner")
    begun = runners(container)[0]
    os.kill(begun, signal.SIGSTOP)
    try:
        states = states_for(host, 20)
    finally:
        os.kill(begun, signal.SIGCONT)
    host.wait_ready()

    assert states <= {"starting", "loading"}
    assert host.ids()[0] == container
    assert runners(container) == [begun]
    assert aborted(host) == []
    assert restarts(host) == {"start": 1}


def test_a_frozen_runner_is_found_out_and_the_slot_is_replaced(ready: AgentHost) -> None:
    before = ready.ids()
    os.kill(runner(ready), signal.SIGSTOP)
    ready.wait(lambda: ready.ids().get(0, before[0]) != before[0], "the slot to be replaced")
    ready.wait_ready()

    removed = [entry for entry in ready.history() if entry["action"] == "remove"]
    assert restarts(ready) == {"start": 1, "wedged": 1}
    assert "no token for" in removed[0]["because"]


def test_a_runner_that_freezes_under_a_user_is_found_out(ready: AgentHost) -> None:
    before = ready.ids()
    Stream(ready, 100_000)
    os.kill(runner(ready), signal.SIGSTOP)
    ready.wait(lambda: ready.ids().get(0, before[0]) != before[0], "the slot to be replaced")
    ready.wait_ready()

    removed = [entry for entry in ready.history() if entry["action"] == "remove"]
    assert restarts(ready) in ({"start": 1, "wedged": 1}, {"start": 1, "stalled": 1})
    assert "nothing computes" in removed[0]["because"]


def test_a_runner_that_dies_in_mid_stream_is_ollama_s_own_affair(ready: AgentHost) -> None:
    before = ready.ids()
    stream = Stream(ready, 100_000)
    os.kill(runner(ready), signal.SIGKILL)
    last = stream.end()
    good_canaries(ready, 3)

    assert "error" in last
    assert ready.ids() == before
    assert loads(ready) == 2
    assert restarts(ready) == {"start": 1}
    assert ready.states() == ["ready"]


def test_a_runner_that_dies_idle_is_found_out_and_nothing_is_restarted(ready: AgentHost) -> None:
    before = ready.ids()
    killed = runner(ready)
    os.kill(killed, signal.SIGKILL)
    good_canaries(ready, 3)

    assert runner(ready) != killed
    assert ready.ids() == before
    assert loads(ready) == 2
    assert restarts(ready) == {"start": 1}


def test_a_full_queue_is_busy_and_never_restarted(host: AgentHost) -> None:
    """With the thresholds that a user has; only the canaries come more often."""
    host.extra = "[health]\ncanary_interval_s = 1\n[engine]\n"
    host.write_config(IMAGE, head=CPU, environment=ONE_AT_A_TIME)
    host.start()
    host.wait_ready()
    good_canaries(host, 3)
    before, over = host.ids(), threading.Event()
    tokens = round(3 * host.slots()[0]["baseline_tokens_per_second"])  # ten of these are more than a canary may wait

    def use() -> int:
        said = 0
        while not over.is_set():
            said += host.chat(0, tokens=tokens, timeout_s=300)[0] == 200
        return said

    with ThreadPoolExecutor(10) as pool:
        users = [pool.submit(use) for _ in range(10)]
        try:
            host.wait(lambda: host.slots()[0]["health"] == "busy", "the verdict busy")
            seen = [host.slots()[0] for _ in range(60) if not over.wait(1)]
        finally:
            over.set()

    assert {slot["state"] for slot in seen} == {"ready"}, host.story()
    assert host.ids() == before
    assert restarts(host) == {"start": 1}
    assert aborted(host) == []
    assert sum(user.result() for user in users) > 10
    good_canaries(host, 2)


def test_a_model_that_a_client_unloads_is_loaded_again(ready: AgentHost) -> None:
    before, old = ready.ids(), runner(ready)
    ask(ready, "POST", "/api/generate", {"model": MODEL, "keep_alive": 0})
    ready.wait(lambda: runners(before[0]) not in ([], [old]), "another runner, perhaps as soon as the old one ended")
    ready.wait(lambda: len(runners(before[0])) == 1, "the old one to be gone")
    good_canaries(ready, 2)

    assert ready.ids() == before
    assert restarts(ready) == {"start": 1}
    assert loaded(ready)[0]["expires_at"][:4] > "2300"
    assert aborted(ready) == []


def test_on_a_gpu_the_same_and_a_fallback_is_noticed(host: AgentHost) -> None:
    host.write_config(IMAGE, environment=ONE_AT_A_TIME)
    host.start()
    host.wait_ready()
    before = host.ids()
    good_canaries(host, 2)
    first = host.ids()
    host.graphics.cpu_only.add(0)
    host.wait(lambda: host.ids().get(0, before[0]) != before[0], "the slot to be replaced")
    host.graphics.cpu_only.clear()
    host.wait_ready()

    assert first == before
    assert restarts(host) == {"start": 1, "on_cpu": 1}


def test_a_stream_under_way_shows_until_its_end(ready: AgentHost) -> None:
    good_canaries(ready, 1)
    told = "print_timing" in log(ready)
    stream = Stream(ready, 3000)
    ready.wait(lambda: running(ready) == (1 if told else None), "the stream to show")
    stream.end()
    ready.wait(lambda: running(ready) == (0 if told else None), "its end to show")


def test_what_users_saw_is_what_is_counted(ready: AgentHost) -> None:
    """Over an unload and a runner that is killed. Of prompts the log has what was not in the cache."""
    sums = Sums()
    with users(ready, sums, number=2, longest=30):
        good_canaries(ready, 2)
        ask(ready, "POST", "/api/generate", {"model": MODEL, "keep_alive": 0})
        good_canaries(ready, 2)
        os.kill(runner(ready), signal.SIGKILL)
        good_canaries(ready, 2)
    good_canaries(ready, 3)
    ready.wait(lambda: served(ready) == sums.requests[0, "ollama_chat", 200], "all requests to be counted")
    found, text = scrape(ready), log(ready)
    of_users = sums.of_users(text)

    assert len(of_users) == (served(ready) if "print_timing" in text else 0)
    assert by_slot(found, "generated_tokens_total")[0] == (sums.answer_tokens[0] if of_users else 0)
    assert by_slot(found, "prompt_tokens_total")[0] == sum(prompt_tokens for prompt_tokens, _ in of_users)
    assert by_slot(found, "model_load_seconds_count")[0] == loads(ready) == 3
    assert {name: value for name, value in lines_read(found).items() if value and "malformed" in name} == {}
    assert value_of(found, "model_context_tokens", gpu="0", model=MODEL) == 2048
    assert value_of(found, "model_expiry_timestamp_seconds", gpu="0", model=MODEL) is None
