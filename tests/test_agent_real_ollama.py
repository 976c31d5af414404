"""The health source over a real Ollama: a cold load, canaries, a runner that freezes or dies, and many users at once."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from engines import wait_until
from scriptedstore import lay_scripted_models
from standinserver import OllamaServer, chat, lines_with
from watching import MODEL, QUICK, Scene

from appliance_agent.access_log import Access, Timing
from appliance_agent.evidence import Evidence, Outcome
from appliance_agent.states import Health
from appliance_agent.verdict import Case, judge

pytestmark = pytest.mark.ollama

ENVIRONMENT = {
    "OLLAMA_NOPRUNE": "1",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_MAX_LOADED_MODELS": "1",
    "OLLAMA_NUM_PARALLEL": "1",
    "OLLAMA_CONTEXT_LENGTH": "2048",
    "OLLAMA_NO_CLOUD": "1",
    "OLLAMA_GO_TEMPLATE": "1",
}
CONFIG = replace(QUICK, canary_interval_s=1.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("store")
    lay_scripted_models(place / "store", place)
    return place / "store"


@pytest.fixture
def server(store: Path, tmp_path: Path) -> Iterator[OllamaServer]:
    with OllamaServer(store, tmp_path / "home", ENVIRONMENT, (os.environ["OLLAMA_BIN"],)) as server:
        yield server


@pytest.fixture
def scene(server: OllamaServer) -> Iterator[Scene]:
    with Scene(CONFIG) as scene:
        scene.put(0, server)
        yield scene


def canaries(scene: Scene, number: int) -> Evidence:
    """Until so many more have ended well, one after another."""
    begun_s = time.monotonic()

    def done() -> bool:
        good = [each for each in scene.evidence().canaries if each.started_s > begun_s]
        return len(good) >= number and all(each.outcome is Outcome.OK for each in good[-number:])

    wait_until(done, timeout_s=90, what=f"{number} good canaries")
    return scene.evidence()


def runners_of(server: OllamaServer) -> list[int]:
    """The processes that compute, and that load."""
    tasks = Path(f"/proc/{server.process.pid}/task").iterdir()
    children = [int(pid) for task in tasks for pid in (task / "children").read_text().split()]
    return [pid for pid in children if b"--model" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def runner_of(server: OllamaServer) -> int:
    running = runners_of(server)
    assert len(running) == 1
    return running[0]


def health(evidence: Evidence) -> Health:
    return judge(Case(evidence, CONFIG, time.monotonic())).health


def loads(server: OllamaServer) -> int:
    return len(lines_with(server.stderr, r'msg="starting (runner|llama server|llama-server)".* --model '))


def test_a_cold_load_is_waited_for_and_canaries_change_nothing(server: OllamaServer, scene: Scene) -> None:
    first = canaries(scene, 1)
    before = json.loads(server.ask("GET", "/api/ps").text)["models"]
    evidence = canaries(scene, 3)
    after = json.loads(server.ask("GET", "/api/ps").text)["models"]

    assert first.load is not None
    assert first.load.outcome is Outcome.OK
    assert evidence.ollama_version
    assert all(canary.load_s < 1 for canary in evidence.canaries)
    assert before[0]["expires_at"][:4] == after[0]["expires_at"][:4] > "2300"
    assert loads(server) == 1
    assert lines_with(server.stdout, r"\| 499 \|") == []


def test_our_own_lines_are_told_from_users(server: OllamaServer, scene: Scene) -> None:
    canaries(scene, 3)
    own = [event for _, event in scene.events if isinstance(event, Access | Timing)]
    before = scene.evidence().answer_line_s
    chat(server)
    wait_until(lambda: bool(scene.inference_lines()), timeout_s=10, what="the line of a user's chat")
    canaries(scene, 1)

    assert (own, before) == ([], None)
    assert [(line.status, line.path, line.query) for line in scene.inference_lines()] == [(200, "/api/chat", "")]


def test_a_client_s_context_is_kept_and_its_load_is_not_repeated(server: OllamaServer, scene: Scene) -> None:
    canaries(scene, 1)
    before = runner_of(server)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "options": {"num_ctx": 1024}}
    with server.connection("POST", "/api/chat", body):
        wait_until(lambda: runners_of(server) not in ([], [before]), timeout_s=20, what="the new runner")
        runner = runner_of(server)
        os.kill(runner, signal.SIGSTOP)
        try:
            wait_until(scene.sees(lambda evidence: evidence.loaded is False), timeout_s=20, what="it not to be listed")
            wait_until(scene.sees(lambda evidence: health(evidence) is Health.LOADING), timeout_s=20, what="the load")
        finally:
            os.kill(runner, signal.SIGCONT)
        evidence = canaries(scene, 3)

    assert evidence.context_tokens == 1024
    assert loads(server) == 2


def test_a_frozen_runner_shows_in_a_canary_that_waits(server: OllamaServer, scene: Scene) -> None:
    canaries(scene, 1)
    runner = runner_of(server)
    scene.between_canaries.do(lambda: os.kill(runner, signal.SIGSTOP))
    try:
        wait_until(
            scene.sees(lambda evidence: evidence.canary and time.monotonic() - evidence.canary.started_s > 4),
            timeout_s=30,
            what="a canary that waits",
        )
        evidence = scene.evidence()
    finally:
        os.kill(runner, signal.SIGCONT)
    canaries(scene, 1)

    assert evidence.canary is not None
    assert evidence.canary.pieces == 0
    assert evidence.refused_since_s is None


def test_a_runner_that_died_idle_is_found_out_by_the_canary(server: OllamaServer, scene: Scene) -> None:
    canaries(scene, 1)
    os.kill(runner_of(server), signal.SIGKILL)
    canaries(scene, 2)

    assert loads(server) == 2


def test_a_runner_that_dies_under_a_canary_is_an_outcome(server: OllamaServer, scene: Scene) -> None:
    canaries(scene, 1)
    runner = runner_of(server)
    os.kill(runner, signal.SIGSTOP)
    wait_until(
        scene.sees(lambda evidence: evidence.canary and time.monotonic() - evidence.canary.started_s > 1),
        timeout_s=30,
        what="a canary that waits",
    )
    os.kill(runner, signal.SIGKILL)
    canaries(scene, 2)
    bad = [canary for canary in scene.evidence().canaries if canary.outcome is not Outcome.OK]

    assert {canary.outcome for canary in bad} <= {Outcome.HTTP_ERROR, Outcome.STREAM_ERROR}


def test_many_users_at_once_are_proof_enough(server: OllamaServer, scene: Scene) -> None:
    canaries(scene, 1)
    count, over = len(scene.evidence().canaries), threading.Event()

    def talk() -> int:
        said = 0
        while not over.is_set():
            said += chat(server).status == 200
        return said

    with ThreadPoolExecutor(8) as pool:
        users = [pool.submit(talk) for _ in range(8)]
        begun_s = time.monotonic()
        try:
            wait_until(
                scene.sees(lambda evidence: (evidence.answer_line_s or 0) > begun_s + 5), timeout_s=30, what="traffic"
            )
            evidence = scene.evidence()
        finally:
            over.set()
    said = [user.result() for user in users]

    assert min(said) > 0
    assert {canary.outcome for canary in evidence.canaries} == {Outcome.OK}
    assert len(evidence.canaries) <= count + 2
    assert evidence.refused_since_s is None
