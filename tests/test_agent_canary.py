"""The canary and the preload against the stand-in: however a server behaves, the outcome says it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from engines import wait_until
from scriptedstore import lay_scripted_models
from standinserver import OllamaServer, chat, lines_with

from appliance_agent import canary, preload
from appliance_agent.access_log import MARK, Parser, Timing
from appliance_agent.canary import Question
from appliance_agent.evidence import Canary, Load, Outcome, Running
from appliance_agent.http import Broken, ExchangeError, Link, Meter, Server

MODEL = "deepseek-r1:32b"
BASE = {
    "OLLAMA_NOPRUNE": "1",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_MAX_LOADED_MODELS": "1",
    "STANDIN_CONTROL": "1",
    "STANDIN_LOAD_S": "0.05",
    "STANDIN_TOKEN_S": "0.005",
}
QUESTION = Question("Say hello.", 8)
Start = Callable[..., OllamaServer]
Fault = tuple[str, dict[str, object]]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("store")
    lay_scripted_models(place / "store", place)
    return place / "store"


@pytest.fixture
def start(store: Path, tmp_path: Path) -> Iterator[Start]:
    with contextlib.ExitStack() as stack:

        def begin(**environment: str) -> OllamaServer:
            return stack.enter_context(OllamaServer(store, tmp_path / "home", {**BASE, **environment}))

        yield begin


def at(server: OllamaServer | int, model: str = MODEL) -> Server:
    return Server("127.0.0.1", server if isinstance(server, int) else server.port, model, Meter())


class Asked:
    """A canary under way in a thread."""

    def __init__(self, server: Server, pool: ThreadPoolExecutor) -> None:
        self.heard: list[Running] = []
        self.link = Link(server)
        self.future: Future[Canary] = pool.submit(self._ask)

    def _ask(self) -> Canary:
        with self.link:
            return canary.ask(self.link, QUESTION, progress=self.heard.append)

    @property
    def newest(self) -> Running | None:
        return self.heard[-1] if self.heard else None


@pytest.fixture
def asked() -> Iterator[Callable[[Server], Asked]]:
    with ThreadPoolExecutor() as pool:
        all_asked: list[Asked] = []

        def begin(server: Server) -> Asked:
            all_asked.append(Asked(server, pool))
            return all_asked[-1]

        yield begin
        for each in all_asked:
            each.link.cancel()


def ask(server: Server) -> Canary:
    with Link(server) as link:
        return canary.ask(link, QUESTION, progress=lambda running: None)


def load(server: Server) -> Load:
    with Link(server) as link:
        return preload.preload(link, started_s=time.monotonic())


def listed(server: Server) -> preload.Loaded:
    with Link(server) as link:
        return preload.loaded(link, silence_s=2)


def read_request(link: socket.socket) -> None:
    """All of it: a hang-up with bytes unread would be a reset, which may overtake the answer."""
    with link.makefile("rb") as lines:
        length = 0
        while (line := lines.readline().lower()) not in {b"", b"\r\n"}:
            if line.startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        lines.read(length)


@contextlib.contextmanager
def answering(answer: bytes, *, reset: bool = False) -> Iterator[int]:
    """A server that gives every request these bytes and hangs up."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                link, _ = listener.accept()
                with link:
                    read_request(link)
                    link.sendall(answer)
                    if reset:
                        link.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        listener.close()


def test_a_good_answer_is_told_as_it_grows(start: Start, asked: Callable[[Server], Asked]) -> None:
    server = start()
    talk = asked(at(server))
    result = talk.future.result(10)

    assert (result.outcome, result.detail) == (Outcome.OK, "")
    assert result.tokens == QUESTION.tokens
    assert result.tokens_per_s
    assert result.first_token_s
    pieces = [running.pieces for running in talk.heard]
    assert pieces == sorted(set(pieces))
    assert pieces[0] == 0
    assert pieces[-1] > 4
    assert talk.heard[0].first_token_s is None
    assert talk.heard[1].first_token_s == talk.heard[-1].first_token_s


def test_the_canary_tells_when_it_had_to_load_the_model(start: Start) -> None:
    server = at(start(STANDIN_LOAD_S="0.4"))
    first, second = ask(server), ask(server)

    assert first.load_s >= 0.4 > second.load_s


def test_thinking_is_progress(start: Start, asked: Callable[[Server], Asked]) -> None:
    server = start()
    thinking = chat(server, options={"num_predict": 8}).text
    talk = asked(at(server))

    assert talk.future.result(10).outcome is Outcome.OK
    assert '"thinking"' in thinking
    assert len(talk.heard) > 1


def test_the_canary_leaves_keep_alive_as_it_was(start: Start) -> None:
    server = start()
    chat(server, keep_alive="1h")
    before = _expires(server)
    ask(at(server))
    after = _expires(server)
    chat(server, keep_alive=-1)
    ask(at(server))

    assert after - before < timedelta(minutes=30)
    wait_until(lambda: _expires(server).year > 2300, timeout_s=20, what="a time that is for ever")
    assert server.counts()["loads"] == 1


def _expires(server: OllamaServer) -> datetime:
    models = json.loads(server.ask("GET", "/api/ps").text)["models"]
    return datetime.fromisoformat(models[0]["expires_at"])


@pytest.mark.parametrize(
    ("fault", "outcome", "detail"),
    [
        (("error_500", {"message": "CUDA error"}), Outcome.HTTP_ERROR, "status 500: CUDA error"),
        (("error_mid_stream", {"after": 4}), Outcome.STREAM_ERROR, "unexpected EOF"),
        (("eof_without_done", {"after": 4}), Outcome.STREAM_ERROR, "broke off"),
        (("garbage", {"after": 4}), Outcome.STREAM_ERROR, "no JSON"),
        (("die", {"after": 4}), Outcome.STREAM_ERROR, ""),
        (("out_of_memory", {}), Outcome.HTTP_ERROR, "out of memory"),
    ],
)
def test_a_fault_is_an_outcome(start: Start, fault: Fault, outcome: Outcome, detail: str) -> None:
    server = start()
    name, fields = fault
    server.misbehave(name, **fields)
    result = ask(at(server))

    assert result.outcome is outcome
    assert detail in result.detail
    assert (result.first_token_s is not None) == (fields.get("after") == 4)


def test_an_unknown_model_is_an_outcome(start: Start) -> None:
    result = ask(at(start(), "nobody:1b"))

    assert result.outcome is Outcome.HTTP_ERROR
    assert "status 404: model 'nobody:1b' not found" in result.detail


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (b"", Outcome.REFUSED),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Outcome.REFUSED),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", Outcome.STREAM_ERROR),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello", Outcome.STREAM_ERROR),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Outcome.STREAM_ERROR),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", Outcome.STREAM_ERROR),
        (b'HTTP/1.1 503 Busy\r\nContent-Length: 17\r\n\r\n{"error":"queue"}', Outcome.SERVER_BUSY),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"[" * 100_000 + b"\n", Outcome.STREAM_ERROR),
        (b"HTTP/1.1 500 Oh\r\n\r\n" + b"[" * 60_000, Outcome.HTTP_ERROR),
        (b"HTTP/1.1 502 Bad\r\nContent-Length: 4\r\n\r\n<a/>", Outcome.HTTP_ERROR),
        (
            b'HTTP/1.1 200 OK\r\n\r\n{"message":{"content":""},"done":true,"eval_count":1}\n',
            Outcome.NO_TOKENS,
        ),
        (b'HTTP/1.1 200 OK\r\n\r\n{"message":{"content":""},"done":true,"eval_count":8}\n', Outcome.OK),
    ],
)  # fmt: skip
def test_whatever_answers_there_is_an_outcome(answer: bytes, outcome: Outcome) -> None:
    with answering(answer) as port:
        assert ask(at(port)).outcome is outcome


def test_a_connection_that_is_reset_is_an_outcome() -> None:
    with answering(b"", reset=True) as port:
        assert ask(at(port)).outcome is Outcome.REFUSED


def test_no_server_is_an_outcome() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # so that nobody else listens there
        target = at(silent.getsockname()[1])

        assert ask(target).outcome is Outcome.REFUSED
        assert load(target).outcome is Outcome.REFUSED


@pytest.mark.parametrize("fault", ["hang_before_first_token", "never_load", "frozen", "spin"])
def test_a_canary_that_hangs_is_shown_and_cancelled_at_once(
    start: Start, asked: Callable[[Server], Asked], fault: str
) -> None:
    server = start()
    server.misbehave(fault)
    target = at(server)
    talk = asked(target)
    wait_until(lambda: server.counts().get("requests") == 1, timeout_s=10, what="the request")
    assert not talk.future.done()
    assert target.meter.connections == 1
    talk.link.cancel()
    result = talk.future.result(10)

    assert result.outcome is Outcome.TIMEOUT
    assert result.first_token_s is None
    assert talk.newest is not None
    assert talk.newest.pieces == 0
    assert target.meter.connections == 0
    server.misbehave("")
    wait_until(lambda: server.counts().get("clients_gone") == 1, timeout_s=10, what="the server to notice")


def test_a_stall_shows_in_the_age_of_the_last_token(start: Start, asked: Callable[[Server], Asked]) -> None:
    server = start()
    server.misbehave("stall_mid_stream", after=6)
    talk = asked(at(server))
    wait_until(lambda: server.counts().get("tokens", 0) >= 6, timeout_s=10, what="six tokens")
    wait_until(lambda: bool(talk.newest and talk.newest.pieces), timeout_s=10, what="a piece")
    stalled_s = time.monotonic()
    server.misbehave("")
    result = talk.future.result(10)

    assert result.outcome is Outcome.OK
    last_s = [running.last_token_s for running in talk.heard if running.last_token_s is not None]
    assert max(last_s) > stalled_s > min(last_s)


def test_a_slow_server_is_slow_by_its_own_figures(start: Start) -> None:
    server = start()
    usual = max(ask(at(server)).tokens_per_s or 0 for _ in range(3))
    server.misbehave("slow", factor=40)
    slow = ask(at(server))

    assert slow.tokens_per_s
    assert slow.tokens_per_s < usual / 3


def test_a_cancel_that_comes_first_ends_what_comes_after(start: Start) -> None:
    with Link(at(start())) as link:
        link.cancel()

        assert canary.ask(link, QUESTION, progress=lambda running: None).outcome is Outcome.TIMEOUT


NONE_LOADED = b'{"models":[]}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + NONE_LOADED
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nd\r\n" + NONE_LOADED + b"\r\n0\r\n\r\n"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 13\r\n\r\n" + NONE_LOADED


@pytest.mark.parametrize(
    ("answers", "connections"),
    [
        ([GOOD, CHUNKED, GOOD], 1),
        ([GOOD, LAST, GOOD], 2),
        ([GOOD + b"more", GOOD], 2),
        ([CHUNKED[:-2], GOOD], 2),
        ([GOOD[:-1], GOOD], 2),
    ],
)
def test_exchanges_share_a_connection_for_as_long_as_it_serves(answers: list[bytes], connections: int) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    waiting, accepted = list(answers), list[socket.socket]()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while waiting:
                link, _ = listener.accept()
                accepted.append(link)
                with link, link.makefile("rb") as lines:
                    while waiting and lines.readline():
                        while lines.readline() != b"\r\n":
                            pass
                        answer = waiting.pop(0)
                        link.sendall(answer)
                        if answer not in (GOOD, CHUNKED):
                            break

    thread = threading.Thread(target=serve)
    thread.start()
    target = at(listener.getsockname()[1])
    with Link(target) as link:
        for _ in answers:
            with contextlib.suppress(ExchangeError):
                assert not preload.loaded(link, silence_s=2).loaded
            assert target.meter.connections <= 1
    thread.join()
    listener.close()

    assert target.meter.connections == 0
    assert len(accepted) == connections


def test_our_requests_show_their_mark_in_the_log(start: Start) -> None:
    server = start()
    with Link(at(server)) as link:
        preload.version(link, silence_s=2)
    load(at(server))
    ask(at(server))
    wait_until(lambda: len(lines_with(server.stdout, r"^\[GIN\]")) == 3, timeout_s=5, what="the access lines")

    assert len(lines_with(server.stdout, rf'\?{MARK}"$')) == 3


def test_the_meter_counts_about_what_the_server_sent(start: Start) -> None:
    target = at(start())
    ask(target)
    exact = 1500

    assert exact / 2 < target.meter.received_bytes < exact * 2


def test_what_waits_to_be_read_has_arrived() -> None:
    ours, servers = socket.socketpair()
    meter = Meter(received_bytes=5, link=ours)
    with ours, servers:
        servers.sendall(b"1234567")
        assert meter.arrived_bytes() == 12

    assert meter.arrived_bytes() == 5


def test_a_preload_waits_for_the_load_and_can_be_cancelled(start: Start) -> None:
    server = start(STANDIN_LOAD_S="0.3")
    good = load(at(server))
    loaded = listed(at(server))

    assert good.outcome is Outcome.OK
    assert good.ended_s is not None
    assert good.ended_s - good.started_s >= 0.3
    assert loaded.loaded
    assert loaded.model_bytes > 0


@pytest.mark.parametrize(("fault", "outcome"), [("out_of_memory", Outcome.HTTP_ERROR), ("die", Outcome.REFUSED)])
def test_a_load_that_fails_is_an_outcome(start: Start, fault: str, outcome: Outcome) -> None:
    server = start()
    if fault == "die":
        server.process.kill()
        server.process.wait()
    else:
        server.misbehave(fault)

    assert load(at(server)).outcome is outcome


def test_a_model_that_is_not_in_memory_is_not_loaded(start: Start) -> None:
    server = start(STANDIN_GPU="Tesla T4")
    before = listed(at(server))
    server.ask("POST", "/api/generate", {"model": "tiny:latest"})
    other = listed(at(server))
    short = listed(at(server, "Tiny"))

    assert (before.loaded, other.loaded, short.loaded) == (False, False, True)
    assert short.vram_bytes == short.model_bytes > 0
    assert (before.others_bytes, other.others_bytes, other.others_vram_bytes) == (None, *[short.model_bytes] * 2)
    assert (short.others_bytes, short.context_tokens, short.expires_wall_s) == (None, 4096, None)


PS = {
    "name": MODEL,
    "size": 20,
    "size_vram": 10,
    "context_length": 4096,
    "expires_at": "2026-11-28T12:00:00.123456789Z",
}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([PS], preload.Loaded(True, 20, 10, 4096, 1795867200.123456)),
        ([{**PS, "expires_at": "2319-03-07T18:14:26.123456789+01:00"}], preload.Loaded(True, 20, 10, 4096)),
        ([{**PS, "expires_at": "0001-01-01T00:00:00Z"}], preload.Loaded(True, 20, 10, 4096)),
        ([{**PS, "expires_at": "soon"}], preload.Loaded(True, 20, 10, 4096)),
        ([{"name": MODEL, "size": -1, "size_vram": "x", "context_length": None}], preload.Loaded(True)),
        ([{"name": "a", "size": 3}, PS, {"name": "b", "size": 4, "size_vram": 1}, 7],
         preload.Loaded(True, 20, 10, 4096, 1795867200.123456, 7, 1)),
    ],
)  # fmt: skip
def test_what_is_in_memory_is_told_for_the_model_and_for_all_others_together(
    rows: list[object], told: preload.Loaded
) -> None:
    body = json.dumps({"models": rows}).encode()
    with answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)) as port:
        found = listed(at(port))

    assert found == told


def test_the_figures_of_an_answer_are_its_end_s(start: Start) -> None:
    server = start(STANDIN_VERSION="0.33.0-rc2")
    result = ask(at(server))
    wait_until(lambda: bool(lines_with(server.stderr, r"\| +eval time")), timeout_s=10, what="the timing in the log")
    parsed = [found.event for found in Parser().feed("".join(server.stderr).encode()) if found.event]
    timings = [event for event in parsed if isinstance(event, Timing)]

    assert result.answer_s is not None
    assert [timing.answer_tokens for timing in timings] == [result.tokens]
    assert timings[0].answer_s == pytest.approx(result.answer_s, abs=6e-6)
    assert timings[0].prompt_s == pytest.approx(result.prompt_s, abs=6e-6)


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b"hello", b'{"models":null}', b"[" * 100_000])
def test_something_else_than_ollama_lists_no_models(body: bytes) -> None:
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    with answering(answer) as port, pytest.raises(preload.NoAnswerError):
        listed(at(port))


def test_a_server_that_is_silent_is_not_waited_for() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        Link(at(listener.getsockname()[1])) as link,
        pytest.raises(ExchangeError) as caught,
    ):
        preload.version(link, silence_s=0.2)

    assert caught.value.how is Broken.TIMEOUT


def test_proxies_of_the_environment_are_not_asked(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")

    assert os.environ["HTTP_PROXY"]
    assert ask(at(start())).outcome is Outcome.OK
