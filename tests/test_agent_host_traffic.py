"""Users and canaries at once, over unloads, restarts and cut connections: what the agent counts is what users saw."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agenthost import QUICK, AgentHost, build_images
from engines import PrivateEngine
from hosttraffic import Sums, ask, by_slot, probes, requests_of, scrape, users
from leakysocket import LeakySocket


@pytest.fixture(scope="module")
def images(gpu_engine: PrivateEngine, tmp_path_factory: pytest.TempPathFactory) -> PrivateEngine:
    build_images(tmp_path_factory.mktemp("agent-images"), gpu_engine)
    return gpu_engine


@pytest.fixture
def leaky(images: PrivateEngine, tmp_path: Path) -> Iterator[LeakySocket]:
    made = LeakySocket(tmp_path / "leaky.sock", images.socket)
    made.open()
    yield made
    made.close()


@pytest.fixture
def ready(images: PrivateEngine, nvml_library: Path, leaky: LeakySocket, tmp_path: Path) -> Iterator[AgentHost]:
    often = QUICK.replace("fresh_s = 2", "fresh_s = 1").replace("budget = 4", "budget = 40")
    extra = often.replace("[engine]", f'[engine]\nsocket = "{leaky.path}"')
    made = AgentHost(images, tmp_path, nvml_library, extra=extra)
    try:
        made.start()
        made.wait_ready()
        yield made
    finally:
        made.close()


def wait_canaries(host: AgentHost, number: int) -> None:
    before = probes(host)
    host.wait(lambda: probes(host) >= before + number, f"{number} canaries")


def settled(host: AgentHost, sums: Sums) -> None:
    """The log may be a moment behind; and what was counted is not counted again."""
    host.wait(lambda: requests_of(scrape(host)) == sums.requests, "all requests to be counted")
    wait_canaries(host, 4)
    host.wait(lambda: not set(by_slot(scrape(host), "requests_running").elements()), "nobody to be served any more")
    found = scrape(host)

    assert requests_of(found) == sums.requests
    assert by_slot(found, "generated_tokens_total") == sums.answer_tokens
    assert by_slot(found, "prompt_tokens_total") == sums.prompt_tokens


def test_what_users_saw_is_what_is_counted(ready: AgentHost, leaky: LeakySocket) -> None:
    sums = Sums()
    with users(ready, sums, number=4):
        wait_canaries(ready, 3)
        assert leaky.cut() >= 2  # the logs of both, the events
        wait_canaries(ready, 3)
        ask(ready, 0, {"keep_alive": 0}, sums, api="generate")
        wait_canaries(ready, 3)
        assert leaky.cut() >= 2
        wait_canaries(ready, 3)
    settled(ready, sums)

    assert sums.broken == 0
    assert min(sums.answer_tokens[0], sums.answer_tokens[1]) > 100
    assert {status for _, _, status in sums.requests} == {200, 404}


def test_a_restart_of_the_container_loses_and_doubles_nothing(ready: AgentHost) -> None:
    """Users come back before the agent does."""
    sums = Sums()
    with users(ready, sums, number=4):
        wait_canaries(ready, 3)
    settled(ready, sums)
    before = ready.ids()
    ready.engine.run_cli("restart", "--time=0", before[0], check=False)  # the agent may take it away between the two
    with users(ready, sums, number=4):
        ready.wait_ready()
        wait_canaries(ready, 3)
    settled(ready, sums)

    assert sums.requests[0, "ollama_chat", 200] > 10
