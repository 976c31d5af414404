"""The health source over servers that misbehave: what it finds out, and what it never does to them."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Self

import pytest
from engines import wait_until
from scriptedstore import lay_scripted_models
from standinserver import OllamaServer, chat, endless_stream, lines_with, read_chunks
from watching import ENVIRONMENT, MODEL, QUICK, Scene

from appliance_agent.access_log import Access, Timing
from appliance_agent.evidence import Evidence, Outcome
from appliance_agent.gpus import GpuProcess, GpuReading, GpuSnapshot
from appliance_agent.states import Health
from appliance_agent.verdict import Case, Verdict, judge

Start = Callable[..., OllamaServer]
Seen = Callable[[Evidence], object]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("store")
    lay_scripted_models(place / "store", place)
    return place / "store"


@pytest.fixture
def start(store: Path, tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(**environment: str) -> OllamaServer:
            return stack.enter_context(OllamaServer(store, tmp_path / "home", {**ENVIRONMENT, **environment}))

        yield begin


@pytest.fixture
def scene() -> Iterator[Scene]:
    with Scene() as scene:
        yield scene
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith(("ask ", "watch", "log "))] == []


def see(scene: Scene, condition: Seen, what: str, *, slot: int = 0, timeout_s: float = 20) -> Evidence:
    found: list[Evidence] = []

    def holds() -> bool:
        found[:] = [scene.evidence(slot)]
        return bool(condition(found[0]))

    wait_until(holds, timeout_s=timeout_s, what=what)
    return found[0]


def has_canaries(number: int) -> Seen:
    return lambda evidence: len(evidence.canaries) >= number


def ended_with(outcome: Outcome) -> Seen:
    return lambda evidence: evidence.last_canary and evidence.last_canary.outcome is outcome


def waits(evidence: Evidence) -> bool:
    return evidence.canary is not None and evidence.canary.pieces == 0


def waits_longer_than(seconds: float) -> Seen:
    return lambda evidence: evidence.canary and time.monotonic() - evidence.canary.started_s > seconds


def proved(scene: Scene, slot: int = 0) -> Evidence:
    return see(scene, ended_with(Outcome.OK), "a good canary", slot=slot)


# --- a server that is well -------------------------------------------------------------------------------------------


def test_a_new_container_is_loaded_once_and_then_asked_again_and_again(start: Start, scene: Scene) -> None:
    server = start()
    scene.put(0, server)
    evidence = see(scene, has_canaries(3), "three canaries")
    wait_until(lambda: len(scene.canaries) >= 3, timeout_s=20, what="the callbacks of three")

    assert evidence.ollama_version == "0.13.5"
    assert evidence.loaded
    assert evidence.model_bytes > 0
    assert evidence.load is not None
    assert evidence.load.outcome is Outcome.OK
    assert {canary.outcome for canary in evidence.canaries} == {Outcome.OK}
    assert all(canary.load_s < 1 for canary in evidence.canaries)
    assert server.counts()["loads"] == 1
    assert [canary for _, canary in scene.canaries][:3] == list(evidence.canaries)[:3]
    assert scene.wakes >= 4  # the load and each canary


def test_our_own_requests_are_no_traffic_of_users(start: Start, scene: Scene) -> None:
    scene.put(0, start(STANDIN_VERSION="0.33.0-rc2"))
    evidence = see(scene, has_canaries(4), "four canaries")

    assert evidence.answer_line_s is None
    assert [event for _, event in scene.events if isinstance(event, Access | Timing)] == []
    assert evidence.peers == 0


def test_canaries_leave_expires_at_and_the_loaded_model_alone(start: Start, scene: Scene) -> None:
    server = start(OLLAMA_KEEP_ALIVE="2h")
    scene.put(0, server)
    proved(scene)
    chat(server, keep_alive=-1)
    wait_until(lambda: expiry(server).year > 2300, timeout_s=20, what="the server to be done with the chat")
    count = len(scene.evidence().canaries)
    see(scene, has_canaries(min(count + 2, 20)), "more canaries")

    assert expiry(server).year > 2300
    assert server.counts()["loads"] == 1


def expiry(server: OllamaServer) -> datetime:
    return datetime.fromisoformat(json.loads(server.ask("GET", "/api/ps").text)["models"][0]["expires_at"])


def test_a_cold_load_is_waited_for_however_long_it_takes(start: Start, scene: Scene) -> None:
    server = start(STANDIN_LOAD_S="3")
    scene.put(0, server)
    loading = see(scene, lambda evidence: evidence.load, "the load")
    evidence = proved(scene)

    assert loading.load is not None
    assert (loading.load.ended_s, loading.loaded) == (None, False)
    assert server.counts()["loads"] == 1
    assert "loads_failed" not in server.counts()
    assert lines_with(server.stdout, r"\| 499 \|") == []
    assert evidence.canaries[0].load_s < 1


def test_a_model_that_was_driven_out_is_loaded_before_it_is_asked(start: Start, scene: Scene) -> None:
    server = start()
    scene.put(0, server)
    before = proved(scene).load
    server.ask("POST", "/api/generate", {"model": "tiny:latest"})
    evidence = see(scene, lambda evidence: evidence.load is not before and evidence.loaded, "another load")
    count = len(evidence.canaries)
    evidence = see(scene, has_canaries(count + 1), "a canary")

    assert all(canary.load_s < 1 for canary in evidence.canaries)
    assert server.counts()["loads"] == 3


@pytest.mark.parametrize("version", ["0.13.5", "0.33.0-rc2"])
def test_a_client_s_context_is_kept_by_the_canaries(start: Start, scene: Scene, version: str) -> None:
    server = start(STANDIN_VERSION=version)
    scene.put(0, server)
    proved(scene)
    chat(server, options={"num_ctx": 1024, "num_predict": 2})
    count = len(scene.evidence().canaries)
    evidence = see(scene, has_canaries(count + 3), "canaries after it")

    assert evidence.context_tokens == 1024
    assert server.counts()["loads"] == 2
    assert all(canary.load_s < 1 for canary in evidence.canaries)


def test_a_server_that_does_not_tell_its_context_is_asked_for_none(start: Start, scene: Scene) -> None:
    server = start(STANDIN_VERSION="0.5.11")
    scene.put(0, server)
    evidence = see(scene, has_canaries(3), "three canaries")

    assert evidence.context_tokens == 0
    assert server.counts()["loads"] == 1


def test_a_canary_that_meets_the_load_of_a_client_s_options_waits_for_it(start: Start, scene: Scene) -> None:
    server = start(STANDIN_LOAD_S="3")
    scene.put(0, server)
    proved(scene)
    seen: list[Verdict] = []

    def judged(evidence: Evidence) -> Verdict:
        seen.append(judge(Case(evidence, QUICK, time.monotonic())))
        return seen[-1]

    body = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "options": {"num_ctx": 1024}}
    with server.connection("POST", "/api/chat", body):
        see(scene, lambda evidence: judged(evidence).health is Health.LOADING, "the load to be told")
        see(scene, lambda evidence: judged(evidence).health is Health.READY, "the end of it")

    assert {verdict.health for verdict in seen} <= {Health.READY, Health.LOADING, Health.BUSY}
    assert server.counts()["loads"] == 2


def test_a_model_that_is_listed_under_another_name_is_asked_all_the_same(start: Start, scene: Scene) -> None:
    server = start()
    scene.put(0, server, model="registry.ollama.ai/library/deepseek-r1:32b")

    proved(scene)


# --- faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["hang_before_first_token", "frozen", "spin"])
def test_a_server_that_hangs_shows_in_one_canary_that_waits(start: Start, scene: Scene, fault: str) -> None:
    server = start(STANDIN_PING_S="60")
    scene.put(0, server)

    def fail() -> int:
        server.misbehave(fault)
        return server.counts()["requests"]

    requests = scene.between_canaries.do(fail)
    waiting = see(scene, waits, "a canary that waits").canary
    later = see(scene, waits_longer_than(2), "it to wait on")
    wakes = scene.wakes
    assert waiting is not None
    begun_s = waiting.started_s
    assert later.canary == waiting
    assert later.peers == 0  # the canary is ours
    assert server.counts()["requests"] == requests + 1
    server.misbehave("")
    evidence = see(scene, lambda evidence: evidence.canaries[-1].started_s >= begun_s, "its end")
    wait_until(
        lambda: scene.wakes >= wakes + 2, timeout_s=20, what="the first token after a silence and the end to wake"
    )

    [ended] = [canary for canary in evidence.canaries if canary.started_s == begun_s]
    assert ended.outcome is Outcome.OK
    assert (ended.first_token_s or 0) > 2


def test_a_stall_in_mid_stream_shows_in_the_last_token(start: Start, scene: Scene) -> None:
    server = start()
    scene.put(0, server)
    scene.between_canaries.do(lambda: server.misbehave("stall_mid_stream", after=6))
    stalled = see(scene, lambda evidence: evidence.canary and evidence.canary.pieces > 1, "some pieces")
    assert stalled.canary is not None
    last_s = stalled.canary.last_token_s
    later = see(
        scene, lambda evidence: evidence.canary and last_s and time.monotonic() - last_s > 1.5, "a longer silence"
    )
    server.misbehave("")

    assert later.canary is not None
    assert later.canary.started_s == stalled.canary.started_s
    assert proved(scene).last_canary is not None


def test_a_slow_server_answers_slowly(start: Start, scene: Scene) -> None:
    server = start()
    scene.put(0, server)
    usual = max(canary.tokens_per_s or 0 for canary in see(scene, has_canaries(3), "three canaries").canaries)
    server.misbehave("slow", factor=30)
    evidence = see(scene, lambda evidence: (evidence.canaries[-1].tokens_per_s or 0) < usual / 3, "a slow canary")

    assert evidence.canaries[-1].outcome is Outcome.OK


@pytest.mark.parametrize(
    ("fault", "outcome"),
    [
        ("error_500", Outcome.HTTP_ERROR),
        ("error_mid_stream", Outcome.STREAM_ERROR),
        ("eof_without_done", Outcome.STREAM_ERROR),
        ("garbage", Outcome.STREAM_ERROR),
    ],
)
def test_a_canary_that_fails_is_followed_by_the_next_one_soon(
    start: Start, scene: Scene, fault: str, outcome: Outcome
) -> None:
    server = start()
    scene.put(0, server)
    proved(scene)
    server.misbehave(fault)
    see(scene, ended_with(outcome), "a bad canary")
    count = len(scene.evidence().canaries)
    evidence = see(scene, has_canaries(min(20, count + 3)), "three more")
    server.misbehave("")

    bad = evidence.canaries[-4:]
    assert {canary.outcome for canary in bad} == {outcome}
    assert min(later.started_s - canary.ended_s for canary, later in pairwise(bad)) < QUICK.canary_interval_s / 2
    assert evidence.error_lines_in_a_row == 0  # they are our own
    proved(scene)


def test_a_server_that_dies_refuses(start: Start, scene: Scene) -> None:
    server = start()
    scene.put(0, server)
    proved(scene)
    wakes = scene.wakes
    server.process.kill()
    server.process.wait()
    evidence = see(scene, lambda evidence: evidence.refused_since_s, "the refusal")
    since_s = evidence.refused_since_s
    later = see(scene, lambda evidence: time.monotonic() - (since_s or 0) > 1, "more refusals")
    wait_until(lambda: scene.wakes > wakes, timeout_s=20, what="the refusal to wake")

    assert later.refused_since_s == since_s


def test_a_load_that_fails_is_known_and_tried_again(start: Start, scene: Scene) -> None:
    server = start(STANDIN_FAULT="out_of_memory")
    scene.put(0, server)
    evidence = see(scene, lambda evidence: evidence.load and evidence.load.ended_s, "the end of the load")
    server.misbehave("")
    later = proved(scene)

    assert evidence.load is not None
    assert evidence.load.outcome is Outcome.HTTP_ERROR
    assert "out of memory" in evidence.load.detail
    assert later.load is not None
    assert later.load.outcome is Outcome.OK


def test_a_load_that_never_ends_is_one_request(start: Start, scene: Scene) -> None:
    server = start(STANDIN_FAULT="never_load")
    scene.put(0, server)
    see(scene, lambda evidence: evidence.load and time.monotonic() - evidence.load.started_s > 2, "a long load")

    assert server.counts()["requests"] == 1
    assert scene.evidence().canaries == ()


def test_a_server_whose_every_thread_is_frozen_is_asked_by_one_canary(start: Start, scene: Scene) -> None:
    server = start()
    scene.put(0, server)
    scene.between_canaries.do(lambda: server.process.send_signal(signal.SIGSTOP))
    frozen_s = time.monotonic()
    try:
        waiting = see(scene, waits, "a canary that waits")
    finally:
        server.process.send_signal(signal.SIGCONT)
    see(scene, lambda evidence: evidence.last_canary and evidence.last_canary.ended_s > frozen_s + 2, "its end")

    assert waiting.answered_s is not None
    assert waiting.answered_s < frozen_s + 1
    assert scene.evidence().canaries[-1].outcome is Outcome.OK


def test_a_canary_is_given_up_when_it_has_waited_far_too_long(start: Start) -> None:
    with Scene(replace(QUICK, silent_s=-58.0)) as scene:  # a minute is added
        server = start(STANDIN_PING_S="60")
        scene.put(0, server)
        proved(scene)
        server.misbehave("hang_before_first_token")
        evidence = see(scene, ended_with(Outcome.TIMEOUT), "the canary to be given up")

    assert evidence.canaries[-1].first_token_s is None
    assert evidence.canaries[-1].detail == "given up by the agent"


# --- users -----------------------------------------------------------------------------------------------------------


class Listener:
    """A user of a stream without end; its bytes are what leaves the server."""

    def __init__(self, server: OllamaServer, scene: Scene) -> None:
        self._ended = threading.Event()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._listen, args=(server, scene.processes.sent))

    def __enter__(self) -> Self:
        self._thread.start()
        self._begun.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _listen(self, server: OllamaServer, sent: dict[int, int]) -> None:
        with endless_stream(server) as stream:
            for chunk in read_chunks(stream):
                sent[server.process.pid] = sent.get(server.process.pid, 0) + len(chunk)
                self._begun.set()
                if self._ended.is_set():
                    return


def test_a_long_answer_keeps_the_canary_waiting_and_shows_as_flow(start: Start) -> None:
    with Scene() as scene:
        server = start()
        server.ask("POST", "/api/generate", {"model": "tiny:latest"})
        with Listener(server, scene):
            scene.put(0, server, model="tiny:latest")
            evidence = see(scene, lambda evidence: waits(evidence) and evidence.flow_s, "a canary that waits in a flow")
            since_s = evidence.flow_s or 0.0
            later = see(scene, lambda now: (now.flow_s or 0) > since_s + 1.5, "the flow to go on")
        ended = proved(scene)

    assert (evidence.bytes_per_s or 0) > QUICK.flow_bytes_per_s
    assert evidence.canary is not None
    assert later.canary == evidence.canary
    assert ended.canaries[0].started_s == evidence.canary.started_s


def test_users_traffic_takes_the_place_of_the_canary_for_six_intervals(start: Start) -> None:
    with Scene(replace(QUICK, fresh_s=20.0)) as scene:
        server = start(OLLAMA_NUM_PARALLEL="2")
        scene.put(0, server)
        proved(scene)
        chat(server, options={"num_predict": 4})
        evidence, chats = see(scene, lambda evidence: evidence.answer_line_s, "the line of the chat"), 1
        count = len(evidence.canaries)
        while len(scene.evidence().canaries) < count + 2:  # the first may have begun before the line was read
            chat(server, options={"num_predict": 4})
            chats += 1
        wait_until(lambda: len(scene.inference_lines()) == chats, timeout_s=20, what="a line of each chat")
        first, second = scene.evidence().canaries[count : count + 2]

    assert second.started_s - first.started_s >= 6 * QUICK.canary_interval_s


def test_errors_of_users_are_counted_until_a_good_answer(start: Start, scene: Scene) -> None:
    server = start()
    scene.put(0, server)
    proved(scene)
    server.misbehave("error_500")
    for _ in range(3):
        chat(server)
    counted = see(scene, lambda evidence: evidence.error_lines_in_a_row == 3, "three errors")
    server.misbehave("")
    chat(server)
    see(scene, lambda evidence: evidence.error_lines_in_a_row == 0, "a good answer")

    assert counted.answer_line_s is None


# --- several slots, and targets that come and go ---------------------------------------------------------------------


def test_slots_are_asked_one_after_another_as_long_as_a_request_is_young(start: Start, scene: Scene) -> None:
    first, second = start(), start()
    for server in (first, second):
        server.ask("POST", "/api/generate", {"model": MODEL})
        server.misbehave("hang_before_first_token")
    before_s = time.monotonic()
    scene.put(0, first)
    see(scene, waits, "the first canary")
    scene.put(1, second)
    later = see(scene, waits, "the second canary", slot=1).canary

    assert later is not None
    assert later.started_s - before_s >= 2


def test_another_container_in_a_slot_begins_anew(start: Start, scene: Scene) -> None:
    old, new = start(), start()
    scene.put(0, old)
    before = proved(scene)
    scene.put(0, new)
    after = see(scene, lambda evidence: evidence.container_id != before.container_id and evidence.canaries, "a canary")

    assert after.watched_since_s > before.watched_since_s
    assert all(canary.started_s >= after.watched_since_s for canary in after.canaries)
    assert new.counts()["loads"] == 1


def test_a_target_that_is_dropped_is_left_alone_at_once(start: Start, scene: Scene) -> None:
    server = start()
    server.misbehave("hang_before_first_token")
    scene.put(0, server)
    see(scene, waits, "a canary that waits")
    wait_until(lambda: server.counts().get("chats") == 1, timeout_s=20, what="the server to have it")
    scene.drop(0)
    wait_until(lambda: 0 not in scene.source.evidence(), timeout_s=20, what="the target to go")
    wait_until(lambda: server.counts().get("clients_gone") == 1, timeout_s=20, what="the canary to end")

    assert scene.canaries == []


def test_the_end_does_not_wait_for_a_server_that_hangs(start: Start) -> None:
    with Scene() as scene:
        server = start(STANDIN_FAULT="never_load")
        scene.put(0, server)
        see(scene, lambda evidence: evidence.load, "the load")
        wait_until(lambda: server.counts().get("loads") == 1, timeout_s=5, what="the server to begin with it")
        ended_s = time.monotonic()
    wait_until(lambda: server.counts().get("clients_gone") == 1, timeout_s=5, what="the load to end")

    assert time.monotonic() - ended_s < 5


def test_the_gpu_of_a_slot_is_looked_at(start: Start, scene: Scene) -> None:
    server = start()
    scene.put(0, server, identity=f"c{server.process.pid}-gpu")
    scene.source.watch((replace(scene.target(0), gpus=("GPU-1",)),))
    see(scene, lambda evidence: evidence.on_gpu is None and evidence.canaries, "a canary")
    reading = GpuReading(time.monotonic(), utilization_ratio=0.5, processes=(GpuProcess(server.process.pid, 1000),))
    scene.snapshot = GpuSnapshot(reading.at_s, up=True, readings={"GPU-1": reading})
    evidence = see(scene, lambda evidence: evidence.on_gpu, "the GPU")

    assert (evidence.gpu_memory_bytes, evidence.compute_ratio) == (1000, 0.5)
    see(scene, lambda evidence: evidence.on_gpu is None, "the reading to be too old")
