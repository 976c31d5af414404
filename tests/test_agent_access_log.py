"""What is read from a container's log, line by line, and from logs that real servers wrote."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from appliance_agent.access_log import (
    Access,
    Event,
    Line,
    LoadBegan,
    LoadFailed,
    ModelLoad,
    Offload,
    Parser,
    Result,
    Source,
    Timing,
    Truncated,
    parse_duration,
)

RECORDED = Path(__file__).parent / "recordings" / "logs"
PROMPT = "slot print_timing: id  0 | task 7 | prompt eval time =     252.01 ms /     4 tokens (   63.00 ms per token)"
EVAL = "slot print_timing: id  0 | task 7 |        eval time =    5729.20 ms /    96 tokens (   60.31 ms per token)"


def parsed(*lines: str) -> list[Event]:
    return [found.event for found in read(*lines) if found.event]


def read(*lines: str) -> list[Line]:
    return list(Parser().feed("".join(f"{line}\n" for line in lines).encode()))


def gin(
    status: object = 200, took: str = "12.3ms", what: str = 'POST     "/api/chat"', client: str = "172.17.0.1"
) -> str:
    return f"[GIN] 2026/11/23 - 17:09:09 | {status} | {took:>13} | {client:>15} | {what}"


@pytest.mark.parametrize(
    ("line", "event"),
    [
        (gin(405, "7.12µs", 'PUT      "/api/chat"'), Access(405, 7.12e-6, "172.17.0.1", "PUT", "/api/chat")),
        (gin(200, "1m23s", 'POST "/api/chat?by=me"'), Access(200, 83.0, "172.17.0.1", "POST", "/api/chat", "by=me")),
        (gin(499, "0s", client="fd00::1"), Access(499, 0.0, "fd00::1", "POST", "/api/chat")),
        (
            '[GIN] 2026/08/30 - 10:28:57 |\x1b[97;42m 200 \x1b[0m|  77s |  ::1 |\x1b[97;44m GET     \x1b[0m "/api/ps"',
            Access(200, 77.0, "::1", "GET", "/api/ps"),
        ),
        (gin(what='GET      "/a\\"b|c"'), Access(200, 0.0123, "172.17.0.1", "GET", '/a\\"b|c')),
        ('time=T level=INFO source=s msg="llama runner started in 12.50 seconds"', ModelLoad(12.5)),
        ('time=T level=INFO source=s msg="llama-server started in 0.25 seconds"', ModelLoad(0.25)),
        (
            'time=T level=INFO source=s msg="starting runner" cmd="/usr/bin/ollama runner --model /m --port 1"',
            LoadBegan(),
        ),
        ('time=T level=INFO source=s msg="Load failed" model=/m error="no \\"x\\" here"', LoadFailed('no "x" here')),
        ('time=T level=INFO source=s msg="NewLlamaServer failed" model=/m error=oops', LoadFailed("oops")),
        (
            'time=T level=WARN source=r msg="truncating input prompt" limit=4096 prompt=5000 keep=4 new=4096',
            Truncated(prompt_tokens=5000, limit_tokens=4096),
        ),
        ("slot      release: id  0 | task 35 | stop processing: n_tokens = 3962, truncated = 1", Truncated()),
        ("load_tensors: offloaded 33/65 layers to GPU", Offload(33, 65)),
    ],
)
def test_a_line_is_one_event(line: str, event: Event) -> None:
    assert parsed(line) == [event]


def test_a_discovery_of_gpus_is_no_load() -> None:
    assert parsed('time=T msg="starting runner" cmd="/usr/bin/ollama runner --ollama-engine --port 1"') == []


def test_a_load_that_is_told_twice_is_one_load() -> None:
    began = 'time=T msg="starting runner" cmd="ollama runner --model /m"'
    told = 'time=T msg="llama runner started in 0.26 seconds"'
    again = 'time=T msg="llama runner started in 0.27 seconds"'

    assert parsed(began, told, again, began, told) == [LoadBegan(), ModelLoad(0.26), LoadBegan(), ModelLoad(0.26)]


def test_a_timing_joins_prompt_and_answer_of_one_task() -> None:
    other = PROMPT.replace("task 7", "task 8").replace("252.01", "1.00")

    assert parsed(PROMPT, other, EVAL) == [Timing(4, 0.25201, 96, 5.7292)]


def test_what_is_computed_is_told_from_launches_and_releases() -> None:
    def launch(task: int) -> str:
        return f"slot launch_slot_: id  1 | task {task} | processing task, is_child = 0"

    def release(task: int, truncated: int = 0) -> str:
        return f"slot      release: id  1 | task {task} | stop processing: n_tokens = 12, truncated = {truncated}"

    sampler = "slot launch_slot_: id  1 | task -1 | sampler params: "
    idle, other = "srv  update_slots: all slots are idle", 'time=T msg="loaded runners" count=1'
    began = 'time=T msg="starting llama-server" cmd="llama-server --model /m"'
    told = [
        other,
        sampler,
        launch(0),
        sampler,
        launch(9),
        launch(9),
        release(0, 1),
        release(7),
        launch(11),
        began,
        launch(0),
        idle,
    ]
    parser, seen = Parser(), list[int | None]()
    for text in told:
        parser.line(text.encode())
        seen.append(parser.computing)

    assert seen == [None, None, 1, 1, 2, 2, 1, 1, 2, 0, 1, 0]


def test_a_timing_without_prefix_is_read_too() -> None:
    eval_line = "       eval time =     500.00 ms /    13 tokens (   26.33 ms per token,    37.98 tokens per second)"

    assert parsed(eval_line) == [Timing(0, 0.0, 13, 0.5)]


@pytest.mark.parametrize(
    "line",
    [
        gin("abc"),
        gin(took="soon"),
        "[GIN] 2026/11/23 - 17:09:09 | 200 |",
        "slot print_timing: id  0 | task 7 |        eval time = lots",
        "slot print_timing: id  0 | task 7 |        eval time =   1.2.3 ms /    96 tokens",
    ],
)
def test_a_line_that_goes_on_otherwise_is_counted(line: str) -> None:
    found = read(line)[0]

    assert (found.result, found.event) == (Result.MALFORMED, None)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "\r",
        'time=T msg="llama runner started in 1.2.3 seconds"',
        "[GIN-debug] GET / --> x",
        "\x00\xff\xfe",
        "Ollama is running",
        "time=",
        "total time = 3 ms",
    ],
)
def test_a_line_of_another_kind_is_nothing(line: str) -> None:
    found = Parser().line(line.encode("utf-8", "surrogateescape"))

    assert (found.result, found.event) == (Result.IGNORED, None)


def test_a_line_without_an_end_does_not_grow_for_ever() -> None:
    parser = Parser()
    for _ in range(100):
        list(parser.feed(b"x" * 10_000))

    last = list(parser.feed(f"\n{gin()}\n".encode()))[-1]

    assert last.event == Access(200, 0.0123, "172.17.0.1", "POST", "/api/chat")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1h2m3s", 3723.0), ("186ms", 0.186), ("150ns", 1.5e-7), ("2us", 2e-6), ("15m0s", 900.0), ("1.5s", 1.5), ("", None),
     ("1.2.3s", None), ("fast", None)],
)  # fmt: skip
def test_durations_are_gos(text: str, seconds: float | None) -> None:
    assert parse_duration(text) == (None if seconds is None else pytest.approx(seconds))


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.log")), ids=lambda path: str(path.stem))
def test_recorded_logs_are_understood_however_they_are_cut(path: Path) -> None:
    data = path.read_bytes()
    whole, cut = Parser(), Parser()
    lines = list(whole.feed(data))
    pieces = [line for start in range(0, len(data), 7) for line in cut.feed(data[start : start + 7])]
    kinds = Counter(type(line.event) for line in lines)

    assert pieces == lines
    assert {line.result for line in lines} == {Result.MATCHED, Result.IGNORED}
    assert {line.source for line in lines} == set(Source)
    assert kinds[Access] == sum(line.startswith(b"[GIN]") for line in data.splitlines())
    assert kinds[LoadBegan] >= kinds[ModelLoad] > 0
    assert kinds[LoadFailed] > 0
    assert (kinds[Timing] > 0) == ("0.33" in path.name)
