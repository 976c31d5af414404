"""The stand-in under load: queues, clients that leave, what loads and unloads a model."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from scriptedstore import lay_scripted_models
from standinserver import Answer, OllamaServer, chat, endless_stream, lines_with, wait_for

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


# --- queues ----------------------------------------------------------------------------------------------------------


def test_a_waiting_chat_gets_no_headers_until_the_one_before_is_done(start: Start) -> None:
    server = start(STANDIN_TOKEN_S="0.3")  # how late a client may see the end of the one before
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda _: chat(server, options={"num_predict": 3}), range(3)))
    answers.sort(key=lambda answer: answer.started_s + answer.headers_s)

    for before, after in pairwise(answers):
        assert after.started_s + after.headers_s >= before.started_s + before.arrived_s[-1]
    assert all(last_line(answer)["done"] for answer in answers)


def test_num_parallel_chats_speak_at_once(start: Start) -> None:
    server = start(OLLAMA_NUM_PARALLEL="3")
    with endless_stream(server), endless_stream(server), endless_stream(server):
        state = server.state()

    assert state["speaking"] == 3


def test_a_full_queue_for_another_model_is_answered_with_503(start: Start) -> None:
    server = start(OLLAMA_MAX_QUEUE="1")
    with ThreadPoolExecutor() as pool:
        with endless_stream(server):
            waiting = [pool.submit(chat, server) for _ in range(2)]
            wait_for(lambda: server.state()["waiting"] == 2)
            refused = chat(server)
        served = [future.result() for future in waiting]

    assert refused.status == 503
    assert refused.text == '{"error":"server busy, please try again.  maximum pending requests exceeded"}'
    assert all(answer.status == 200 for answer in served)


def test_64_streams_at_once_all_come_to_their_end(start: Start) -> None:
    server = start(OLLAMA_NUM_PARALLEL="64", STANDIN_TOKEN_S="0.01")
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda _: chat(server), range(64)))

    assert [answer.complete and last_line(answer)["done_reason"] for answer in answers] == ["stop"] * 64
    assert server.counts()["chats_done"] == 64


# --- clients that leave ----------------------------------------------------------------------------------------------


def test_a_client_that_leaves_ends_the_generation_and_is_logged_as_200(start: Start) -> None:
    server = start()
    with endless_stream(server):
        pass
    wait_for(lambda: server.state()["speaking"] == 0)
    said = server.counts()["tokens"]
    answer = chat(server, "tiny:latest", options={"num_predict": 2})

    assert last_line(answer)["eval_count"] == 2
    assert server.counts()["tokens"] == said + 2
    wait_for(lambda: len(lines_with(server.stdout, r"\| 200 \|.*/api/chat")) == 2)


def test_a_client_that_leaves_during_a_load_aborts_it_and_is_logged_as_499(start: Start) -> None:
    server = start(STANDIN_LOAD_S="30")
    with pytest.raises(TimeoutError):
        chat(server, give_up_s=0.2)
    wait_for(lambda: bool(lines_with(server.stdout, r"\| 499 \|.*/api/chat")))

    assert server.ask("GET", "/api/ps").text == '{"models":[]}'


def test_a_client_that_leaves_the_queue_is_not_served(start: Start) -> None:
    server = start()
    with endless_stream(server):
        with pytest.raises(TimeoutError):
            chat(server, "tiny:latest", give_up_s=0.2)
        wait_for(lambda: server.state()["waiting"] == 0)

    assert server.counts()["chats"] == 1


# --- loading ---------------------------------------------------------------------------------------------------------


def loaded(server: OllamaServer) -> dict[str, object]:
    models: list[dict[str, object]] = json.loads(server.ask("GET", "/api/ps").text)["models"]
    return models[0] if models else {}


def test_keep_alive_of_a_request_sticks(start: Start) -> None:
    server = start()
    chat(server)
    for_ever = loaded(server)["expires_at"]
    chat(server, keep_alive="10m")
    chat(server)

    assert str(for_ever).startswith("23")
    wait_for(lambda: not str(loaded(server)["expires_at"]).startswith("23"))


def test_an_expired_model_is_gone(start: Start) -> None:
    server = start(OLLAMA_KEEP_ALIVE="50ms")
    chat(server)

    wait_for(lambda: loaded(server) == {})


def test_keep_alive_zero_unloads(start: Start) -> None:
    server = start()
    chat(server)
    answer = server.ask("POST", "/api/generate", {"model": MODEL, "keep_alive": 0})

    assert json.loads(answer.text)["done_reason"] == "unload"
    wait_for(lambda: loaded(server) == {})


@pytest.mark.parametrize(
    ("options", "loads"), [({"num_predict": 2, "temperature": 0, "seed": 1}, 1), ({"num_ctx": 1024}, 2)]
)
def test_only_num_ctx_starts_another_runner(start: Start, options: dict[str, object], loads: int) -> None:
    server = start()
    chat(server)
    chat(server, options=options)

    assert server.counts()["loads"] == loads
    assert loaded(server)["context_length"] == options.get("num_ctx", 4096)


def test_another_model_takes_the_place_of_an_idle_one(start: Start) -> None:
    server = start()
    chat(server)
    chat(server, "tiny:latest", options={"num_predict": 1})

    assert loaded(server)["name"] == "tiny:latest"


@pytest.mark.parametrize(("fault", "share"), [("", 1.0), ("cpu_fallback", 0.0)])
def test_with_a_gpu_all_of_the_model_is_in_video_memory_unless_it_fell_back(
    start: Start, fault: str, share: float
) -> None:
    server = start(STANDIN_GPU="GPU-1", STANDIN_FAULT=fault)
    chat(server, options={"num_predict": 1})
    model = loaded(server)

    assert model["size_vram"] == int(str(model["size"])) * share
    wait_for(lambda: bool(lines_with(server.stderr, 'msg="inference compute" id=GPU-1 library=CUDA')))
