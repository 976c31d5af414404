"""The health source over a real container: its log through the engine, its bytes and connections through the kernel."""

from __future__ import annotations

import http.client
import json
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pytest
import smallbase
from engines import Engine, wait_until
from scriptedstore import lay_scripted_models
from watching import ENVIRONMENT, MODEL, QUICK, BetweenCanaries

from appliance_agent.access_log import Access, Event
from appliance_agent.evidence import Evidence, Outcome
from appliance_agent.gpus import NO_GPUS
from appliance_agent.ports import Target
from appliance_agent.watch import Watch, log_follower

pytestmark = pytest.mark.engine


@dataclass(frozen=True, slots=True)
class Container:
    engine: Engine
    id: str
    port: int  # on this machine
    pid: int  # in this machine's process namespace, not the engine's

    def target(self, model: str = MODEL) -> Target:
        return Target(0, self.id, self.pid, "127.0.0.1", self.port, model, ())


@pytest.fixture(scope="module")
def image(classic_engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> tuple[Engine, Path]:
    """The engine that has it, and the store to mount."""
    place = tmp_path_factory.mktemp("image")
    smallbase.assemble(place / "base", version="0.13.5")
    smallbase.archive(place / "base", place / "image.tar", "watch-test:1", version="0.13.5")
    classic_engine.run_cli("load", "--input", str(place / "image.tar"))
    lay_scripted_models(place / "store", place)
    return classic_engine, place / "store"


@pytest.fixture
def container(image: tuple[Engine, Path]) -> Iterator[Container]:
    engine, store = image
    variables = [word for name, value in ENVIRONMENT.items() for word in ("--env", f"{name}={value}")]
    mount = ["--volume", f"{store}:/models:ro", "--env", "OLLAMA_MODELS=/models", "--env", "HOME=/tmp"]
    words = ["run", "--detach", "--publish", "127.0.0.1::11434", *variables, *mount]
    identity = engine.run_cli(*words, "--name", f"watch-{uuid.uuid4().hex[:8]}", "watch-test:1").stdout.strip()
    try:
        port = engine.forward(engine.published_port(identity, 11434))
        yield Container(engine, identity, port, _pid_of(identity))
    finally:
        engine.run_cli("rm", "--force", identity, check=False)


def _pid_of(identity: str) -> int:
    def found() -> list[int]:
        groups = Path("/proc").glob("[0-9]*/cgroup")
        return sorted(int(group.parent.name) for group in groups if identity in _text(group))

    wait_until(lambda: bool(found()), timeout_s=10, what="the process of the container")
    return found()[0]


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


class Watching:
    def __init__(self, engine: Engine) -> None:
        self.events: list[Event] = []
        self.between_canaries = BetweenCanaries()
        self.source = Watch(
            QUICK,
            follow=log_follower(str(engine.socket)),
            gpus=lambda: NO_GPUS,
            wake=lambda: None,
            random=lambda: 0.5,
            on_canary=lambda _, __: self.between_canaries.ended(),
            on_access=lambda _, event: self.events.append(event),
        )

    def __enter__(self) -> Self:
        self.source.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.close()

    @property
    def evidence(self) -> Evidence:
        return self.source.evidence().get(0, Evidence("", watched_since_s=0.0))

    @property
    def accesses(self) -> list[Access]:
        return [event for event in self.events if isinstance(event, Access)]


@contextmanager
def user(container: Container, *, model: str = MODEL) -> Iterator[http.client.HTTPResponse]:
    """A chat whose answer has begun."""
    link = http.client.HTTPConnection("127.0.0.1", container.port, timeout=60)
    try:
        link.request("POST", "/api/chat", json.dumps({"model": model, "messages": [{"role": "user", "content": "hi"}]}))
        yield link.getresponse()
    finally:
        link.close()


def test_an_idle_container_shows_nothing_of_our_own_requests(container: Container) -> None:
    with Watching(container.engine) as watching:
        watching.source.watch((container.target(),), closely=frozenset({0}))
        wait_until(lambda: len(watching.evidence.canaries) >= 6, timeout_s=30, what="six canaries")
        # A look that comes while a connection of ours ends may still see the end of it that is the proxy's.
        wait_until(lambda: watching.evidence.peers == 0, timeout_s=30, what="nobody to be connected")
        evidence = watching.evidence

    assert {canary.outcome for canary in evidence.canaries} == {Outcome.OK}
    assert (evidence.flow_s, evidence.answer_line_s) == (None, None)
    assert evidence.bytes_per_s is not None
    assert evidence.compute_ratio is not None
    assert watching.accesses == []


def test_users_show_as_flow_peers_and_lines(container: Container) -> None:
    with Watching(container.engine) as watching:
        watching.source.watch((container.target("tiny:latest"),), closely=frozenset({0}))
        wait_until(lambda: bool(watching.evidence.canaries), timeout_s=30, what="a canary")
        with user(container, model="tiny:latest") as answer:
            reader = threading.Thread(target=_read_on, args=(answer,))
            reader.start()
            wait_until(
                lambda: bool(watching.evidence.flow_s and watching.evidence.peers == 1),
                timeout_s=30,
                what="a stream to show",
            )
            during = watching.evidence
            container.engine.run_cli("restart", "--time=0", container.id)
            reader.join(30)

    assert (during.bytes_per_s or 0) > QUICK.flow_bytes_per_s


def _read_on(answer: http.client.HTTPResponse) -> None:
    try:
        while answer.read1(1000):
            pass
    except (OSError, http.client.HTTPException):
        return


def test_a_short_answer_shows_as_a_line(container: Container) -> None:
    with Watching(container.engine) as watching:
        watching.source.watch((container.target(),), closely=frozenset({0}))
        wait_until(lambda: bool(watching.evidence.canaries), timeout_s=30, what="a canary")
        with user(container) as answer:
            answer.read()
        wait_until(lambda: bool(watching.accesses), timeout_s=30, what="the line")
        wait_until(lambda: bool(watching.evidence.answer_line_s), timeout_s=30, what="the evidence")

    assert [(access.status, access.path) for access in watching.accesses] == [(200, "/api/chat")]


def test_a_paused_container_shows_in_a_canary_that_waits(container: Container) -> None:
    with Watching(container.engine) as watching:
        watching.source.watch((container.target(),), closely=frozenset({0}))
        watching.between_canaries.do(lambda: container.engine.run_cli("pause", container.id))
        wait_until(lambda: watching.evidence.canary is not None, timeout_s=30, what="a canary that waits")
        evidence = watching.evidence
        container.engine.run_cli("unpause", container.id)
        count = len(evidence.canaries)
        wait_until(lambda: len(watching.evidence.canaries) > count + 1, timeout_s=30, what="it to go on")

    assert evidence.canary is not None
    assert evidence.canary.pieces == 0


def test_a_container_that_is_killed_refuses(container: Container) -> None:
    with Watching(container.engine) as watching:
        watching.source.watch((container.target(),), closely=frozenset({0}))
        wait_until(lambda: bool(watching.evidence.canaries), timeout_s=30, what="a canary")
        container.engine.run_cli("kill", container.id)
        wait_until(lambda: bool(watching.evidence.refused_since_s), timeout_s=30, what="the refusal")
