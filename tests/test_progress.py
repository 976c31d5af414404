"""Progress: lines for logs, JSON for programs, bars on a terminal; sizes and times as people write them."""

from __future__ import annotations

import io
import json
import threading
from typing import Any

import pytest

from appliance_builder.bars import BarReporter
from appliance_builder.progress import JsonReporter, LineReporter, choose, render_duration, render_size


class Clock:
    """Goes on only when told to."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1, "1 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (999_499, "999.5 kB"),
        (999_500, "1.0 MB"),
        (1_500_000, "1.5 MB"),
        (19_851_335_552, "19.9 GB"),
        (404_430_186_304, "404.4 GB"),
        (1_300_000_000_000, "1.3 TB"),
        (5_000_000_000_000_000, "5000.0 TB"),
    ],
)
def test_a_size_is_written_in_decimal_units(size: float, text: str) -> None:
    assert render_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.96, "10.0 s"),
        (59.9, "59.9 s"),
        (60, "1 min 00 s"),
        (61.4, "1 min 01 s"),
        (3599.4, "59 min 59 s"),
        (3599.6, "1 h 00 min"),
        (3661, "1 h 01 min"),
        (100_000, "27 h 46 min"),
    ],
)
def test_a_duration_is_written_in_two_units_at_most(seconds: float, text: str) -> None:
    assert render_duration(seconds) == text


def test_a_transfer_says_a_line_every_ten_seconds_and_one_at_its_end() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = LineReporter(stream, now=clock)
    with reporter.transfer("push r.lan/x: weights abc", size=40_000_000) as transfer:
        for _ in range(8):
            clock.now_s += 5
            transfer.advance(5_000_000)

    assert stream.getvalue().splitlines() == [
        "push r.lan/x: weights abc: 10.0 MB of 40.0 MB, 1.0 MB/s, 30.0 s left",
        "push r.lan/x: weights abc: 20.0 MB of 40.0 MB, 1.0 MB/s, 20.0 s left",
        "push r.lan/x: weights abc: 30.0 MB of 40.0 MB, 1.0 MB/s, 10.0 s left",
        "push r.lan/x: weights abc: 40.0 MB of 40.0 MB, 1.0 MB/s, 0.0 s left",
        "push r.lan/x: weights abc: 40.0 MB in 40.0 s, 1.0 MB/s",
    ]


def test_a_note_is_said_once_and_at_once() -> None:
    stream, clock = io.StringIO(), Clock()
    with LineReporter(stream, now=clock).transfer("x", size=2000) as transfer:
        clock.now_s += 1
        transfer.advance(1000)
        for text in ("waits for r.lan", "waits for r.lan", ""):
            transfer.note(text)

    assert stream.getvalue().splitlines() == [
        "x: 1.0 kB of 2.0 kB, 1.0 kB/s, waits for r.lan",
        "x: 1.0 kB in 1.0 s, 1.0 kB/s",
    ]


def test_a_step_is_a_line_and_a_warning_has_its_hint_below() -> None:
    stream = io.StringIO()
    reporter = LineReporter(stream)
    reporter.step("base ollama/ollama:0.32.15")
    reporter.warning("the disk is nearly full", hint="free some")

    assert stream.getvalue() == "base ollama/ollama:0.32.15\nwarning: the disk is nearly full\nhint: free some\n"


def events(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_tells_a_transfer_from_beginning_to_end() -> None:
    stream, clock = io.StringIO(), Clock()
    reporter = JsonReporter(stream, now=clock)
    reporter.step("模型 deepseek-r1\n二")
    reporter.warning("careful", hint="do that")
    with reporter.transfer("x", size=30) as transfer:
        transfer.advance(10)
        transfer.restart(0)
        clock.now_s += 10
        transfer.advance(10)
        transfer.note("waits")
        clock.now_s += 1.5
        transfer.advance(20)

    assert events(stream) == [
        {"event": "step", "message": "模型 deepseek-r1\n二"},
        {"event": "warning", "message": "careful", "hint": "do that"},
        {"event": "begin", "name": "x", "size": 30},
        {"event": "progress", "name": "x", "size": 30, "done": 10, "note": ""},
        {"event": "note", "name": "x", "size": 30, "done": 10, "note": "waits"},
        {"event": "end", "name": "x", "size": 30, "done": 30, "seconds": 11.5},
    ]


@pytest.mark.parametrize("kind", [JsonReporter, LineReporter])
def test_many_threads_never_mix_their_lines(kind: type[JsonReporter | LineReporter]) -> None:
    stream = io.StringIO()
    reporter = kind(stream)

    def work(name: str) -> None:
        for index in range(50):
            with reporter.transfer(f"{name} {index}", size=100) as transfer:
                transfer.advance(100)
                transfer.note(f"note of {name}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = stream.getvalue().splitlines()

    if kind is JsonReporter:
        assert [event["event"] for event in events(stream)].count("end") == 200
        assert {tuple(event) for event in events(stream) if event["event"] == "end"} == {
            ("event", "name", "size", "done", "seconds")
        }
    assert len(lines) == 200 * (3 if kind is JsonReporter else 2)


def test_bytes_counted_by_many_threads_are_all_counted() -> None:
    stream = io.StringIO()
    with JsonReporter(stream).transfer("x", size=40_000) as transfer:

        def count() -> None:
            for _ in range(10_000):
                transfer.advance(1)

        threads = [threading.Thread(target=count) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert events(stream)[-1]["done"] == 40_000


def test_a_file_gets_lines_a_terminal_bars_and_a_program_json() -> None:
    with choose(io.StringIO(), as_json=False) as lines, choose(io.StringIO(), as_json=True) as as_json:
        assert isinstance(lines, LineReporter)
        assert isinstance(as_json, JsonReporter)
    with choose(Terminal(), as_json=False) as bars:
        assert isinstance(bars, BarReporter)
    with choose(Terminal(), as_json=True) as asked:
        assert isinstance(asked, JsonReporter)


def test_a_terminal_shows_what_is_going_on_and_reads_no_markup_in_it() -> None:
    terminal = Terminal()
    with choose(terminal, as_json=False) as reporter:
        reporter.step("model [bold]x[/bold]")
        reporter.warning("careful [red]", hint="do that")
        with reporter.transfer("push [b]x", size=2_000_000) as transfer:
            transfer.advance(1_000_000)
            transfer.note("waits")
            transfer.restart(500_000)
            transfer.advance(1_500_000)
    text = terminal.getvalue()

    for words in ("model [bold]x[/bold]", "careful [red]", "hint: do that", "push [b]x"):
        assert words in text
