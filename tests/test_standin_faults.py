"""Each fault of the stand-in, as its clients see it."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scriptedstore import lay_scripted_models
from standinserver import Answer, OllamaServer, chat, endless_stream, read_answer, read_chunks, wait_for

MODEL = "deepseek-r1:32b"
BASE = {
    "OLLAMA_NOPRUNE": "1",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_MAX_LOADED_MODELS": "1",
    "STANDIN_CONTROL": "1",
    "STANDIN_LOAD_S": "0.02",
    "STANDIN_TOKEN_S": "0.005",
}
DIED = "an error was encountered while running the model: unexpected EOF"

Start = Callable[..., OllamaServer]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    lay_scripted_models(tmp_path / "store", tmp_path)
    servers: list[OllamaServer] = []

    def begin(**environment: str) -> OllamaServer:
        server = OllamaServer(tmp_path / "store", tmp_path / "home", {**BASE, **environment})
        servers.append(server.__enter__())
        return server

    yield begin
    for server in servers:
        server.__exit__(None, None, None)


def last_line(answer: Answer) -> dict[str, object]:
    document: dict[str, object] = json.loads(answer.chunks[-1])
    return document


def assert_alive(server: OllamaServer) -> None:
    """A server with a hanging runner looks well from outside."""
    for path in ("/", "/api/version", "/api/tags", "/api/ps"):
        assert server.ask("GET", path, give_up_s=20.0).status == 200


@pytest.mark.parametrize("fault", ["never_load", "hang_before_first_token", "frozen"])
def test_a_hanging_server_is_alive_but_gives_a_chat_no_headers(start: Start, fault: str) -> None:
    server = start(STANDIN_FAULT=fault)
    with pytest.raises(TimeoutError):
        chat(server, give_up_s=0.3)

    assert_alive(server)
    server.misbehave("")
    assert chat(server).status == 200


def test_a_stalled_stream_stays_open_and_goes_on_when_the_fault_is_over(start: Start) -> None:
    server = start()
    server.misbehave("stall_mid_stream", after=4)
    stalled = chat(server, give_up_s=2.0)  # time enough for all that comes
    with ThreadPoolExecutor() as pool:
        future = pool.submit(chat, server)
        wait_for(lambda: server.counts()["tokens"] == 8)
        server.misbehave("")
        answer = future.result()

    assert not stalled.complete
    assert len(stalled.chunks) == 2  # tag and newline make no chunk
    assert last_line(answer)["done_reason"] == "stop"


def test_slow_is_slower(start: Start) -> None:
    server = start()
    usual = last_line(chat(server, options={"num_predict": 4}))
    server.misbehave("slow", factor=100)
    slow = last_line(chat(server, options={"num_predict": 4}))

    assert int(str(slow["eval_duration"])) > 2.5 * int(str(usual["eval_duration"]))


def test_garbage_is_no_json(start: Start) -> None:
    server = start()
    server.misbehave("garbage", after=3)
    answer = chat(server)

    with pytest.raises(json.JSONDecodeError):
        json.loads(answer.chunks[2])


def test_error_500_comes_before_the_stream(start: Start) -> None:
    server = start()
    server.misbehave("error_500", message="CUDA error: an illegal memory access was encountered")
    answer = chat(server)

    assert (answer.status, answer.text) == (500, '{"error":"CUDA error: an illegal memory access was encountered"}')


@pytest.mark.parametrize(
    ("path", "last"),
    [
        ("/api/chat", f'{{"error":"{DIED}"}}\n'),
        ("/v1/chat/completions", '"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n'),
    ],
)
def test_a_runner_that_dies_in_mid_stream_ends_the_body_properly(start: Start, path: str, last: str) -> None:
    server = start()
    server.misbehave("error_mid_stream", after=5)
    answer = server.ask("POST", path, {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "stream": True})
    server.misbehave("")
    next_one = chat(server)

    assert (answer.status, answer.complete) == (200, True)
    assert answer.chunks[-1].endswith(last)
    assert "[DONE]" not in answer.text
    assert next_one.status == 200
    assert server.counts()["loads"] == 2  # a new runner


def test_a_runner_that_dies_without_a_stream_is_a_500(start: Start) -> None:
    server = start()
    server.misbehave("error_mid_stream")
    answer = chat(server, stream=False)

    assert (answer.status, answer.text) == (500, f'{{"error":"{DIED}"}}')


def test_a_stream_can_end_without_its_last_line(start: Start) -> None:
    server = start()
    server.misbehave("eof_without_done", after=6)
    answer = chat(server)

    assert answer.complete
    assert last_line(answer)["done"] is False


def test_out_of_memory_is_an_error_of_the_load(start: Start) -> None:
    server = start(STANDIN_FAULT="out_of_memory")
    answer = server.ask("POST", "/api/generate", {"model": MODEL})

    assert answer.status == 500
    assert "out of memory" in answer.text
    assert server.ask("GET", "/api/ps").text == '{"models":[]}'


def test_dying_at_once_ends_the_process_with_the_code(start: Start) -> None:
    server = start()
    with pytest.raises(ConnectionError):
        server.misbehave("die", code=3)

    assert server.process.wait(20) == 3


def test_dying_in_mid_stream_breaks_the_body_off(start: Start) -> None:
    server = start()
    server.misbehave("die", after=5, code=137)
    with server.connection("POST", "/api/chat", {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}) as (
        stream,
        started_s,
    ):
        answer = read_answer(stream, "POST", started_s)

    assert (answer.status, answer.complete) == (200, False)
    assert server.process.wait(20) == 137


def test_a_frozen_stream_goes_on_where_it_was(start: Start) -> None:
    server = start()
    with endless_stream(server) as stream:
        server.misbehave("frozen")
        with pytest.raises(TimeoutError):
            server.ask("POST", "/api/generate", {"model": "tiny:latest"}, give_up_s=0.3)
        said = server.counts()["tokens"]
        assert_alive(server)
        frozen = server.counts()["tokens"]
        server.misbehave("")
        wait_for(lambda: server.counts()["tokens"] > frozen)
        line = next(read_chunks(stream))

    assert frozen == said
    assert json.loads(line)["done"] is False


@pytest.mark.parametrize(("version", "waits"), [("0.5.11", 1), ("0.13.5", 2), ("0.33.0-rc2", 2)])
def test_a_frozen_idle_runner_is_replaced_after_the_waits_of_the_version(
    start: Start, version: str, waits: int
) -> None:
    server = start(STANDIN_PING_S="1.5", STANDIN_VERSION=version)
    chat(server)
    server.misbehave("frozen")
    answer = chat(server)

    assert waits * 1.5 <= answer.headers_s < (waits + 1) * 1.5
    assert server.counts()["loads"] == 2
    assert chat(server).headers_s < 1.5


def test_an_unknown_fault_is_refused(start: Start) -> None:
    server = start()
    with pytest.raises(ValueError, match="unknown fault: hiccup"):
        server.misbehave("hiccup")


def test_a_file_can_bring_a_fault_and_take_it_away(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "fault"
    server = start(STANDIN_FAULT_FILE=str(file), STANDIN_CONTROL="")
    before = chat(server)
    file.write_text("error_500,message=as the file says")
    during = chat(server)
    file.unlink()
    after = chat(server)

    assert (before.status, during.status, after.status) == (200, 500, 200)
    assert during.text == '{"error":"as the file says"}'


def test_without_control_there_is_no_way_to_ask_for_a_fault(start: Start) -> None:
    server = start(STANDIN_CONTROL="")
    answer = server.ask("POST", "/standin/fault", {"fault": "die"})

    assert (answer.status, answer.text) == (404, "404 page not found")
