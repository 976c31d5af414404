"""A container's log, followed over the engine's whole life: every line once, none lost, an end when asked for."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import smallbase
from conftest import MakeEngine
from engines import Engine, wait_until
from hostfiles import host_python

from appliance_agent.log_tail import FrameError, Frames, Lines, LogFollower, LogTail

OUT, ERR = 1, 2
T0, T1, T2 = (f"2026-11-23T18:14:26.{digit}00000000".encode() for digit in "012")


def frame(stream: int, payload: bytes) -> bytes:
    return bytes([stream, 0, 0, 0]) + len(payload).to_bytes(4) + payload


WIRE = frame(OUT, b"one\n") + frame(ERR, b"") + frame(ERR, "zwei ⏎\n".encode()) + frame(OUT, b"x" * 300)
FRAMES = [(OUT, b"one\n"), (ERR, b""), (ERR, "zwei ⏎\n".encode()), (OUT, b"x" * 300)]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 9, 64, len(WIRE)])
def test_chunk_boundaries_do_not_matter_for_frames(size: int) -> None:
    frames = Frames()

    assert [each for i in range(0, len(WIRE), size) for each in frames.feed(WIRE[i : i + size])] == FRAMES


@pytest.mark.parametrize("wire", [b"HTTP/1.1 400", b"\x01\0\0\0\xff\xff\xff\xff", b"\x09\0\0\0\0\0\0\1x"])
def test_what_is_no_frame_is_refused(wire: bytes) -> None:
    with pytest.raises(FrameError):
        list(Frames().feed(wire))


def lines_of(*payloads: tuple[int, bytes], since: bytes = T0) -> list[bytes]:
    lines = Lines(since)
    return [line for stream, payload in payloads for line in lines.feed(stream, payload)]


def test_a_line_is_given_without_its_time() -> None:
    assert lines_of((OUT, T1 + b"Z hello\n"), (OUT, T2 + b"Z \n")) == [b"hello", b""]


def test_a_line_in_several_frames_is_one_line() -> None:
    long = [(ERR, T1 + b"Z begin "), (OUT, T1 + b"Z other\n"), (ERR, T1 + b"Z middle "), (ERR, T2 + b"Z end\n")]

    assert lines_of(*long) == [b"other", b"begin middle end"]


def test_lines_that_were_seen_are_left_out() -> None:
    lines = Lines(T0)
    list(lines.feed(OUT, T1 + b"Z seen\n"))
    since = lines.begin(now=T2)
    again = [*lines.feed(OUT, T1 + b"Z seen\n"), *lines.feed(OUT, T2 + b"Z new\n")]

    assert since == T1
    assert again == [b"new"]


def test_a_clock_that_was_set_back_hides_nothing() -> None:
    lines = Lines(T0)
    list(lines.feed(OUT, T2 + b"Z late\n"))
    lines.begin(now=T1)

    assert list(lines.feed(OUT, b"2026-11-23T18:14:26.15Z new\n")) == [b"new"]


# --- with an engine --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of an image with a Python in it, the stand-in's."""
    place = tmp_path_factory.mktemp("image")
    smallbase.assemble(place / "base", version="0.13.5")
    smallbase.archive(place / "base", place / "image.tar", "tail-test:1", version="0.13.5")
    return place / "image.tar"


@pytest.fixture
def loaded(classic_engine: Engine, image: Path) -> Engine:
    classic_engine.run_cli("load", "--input", str(image))
    return classic_engine


@contextmanager
def container(engine: Engine, program: str) -> Iterator[str]:
    """Runs Python code; its id."""
    with created(engine, program) as identity:
        engine.run_cli("start", identity)
        yield identity


@contextmanager
def created(engine: Engine, program: str) -> Iterator[str]:
    """Not started yet: whoever follows it first sees all that it says."""
    python = host_python().program
    words = ["--network=none", "--entrypoint", str(python), "tail-test:1", "-u", "-c", program]
    identity = engine.run_cli("create", "--name", f"tail-{uuid.uuid4().hex[:8]}", *words).stdout.strip()
    try:
        yield identity
    finally:
        engine.run_cli("rm", "--force", identity, check=False)


class Kept:
    def __init__(self) -> None:
        self.lines: list[bytes] = []

    def __call__(self, line: bytes) -> None:
        self.lines.append(line)


@contextmanager
def tail(engine: Engine, identity: str) -> Iterator[Kept]:
    kept, before = Kept(), set(threading.enumerate())
    following = LogTail(str(engine.socket), identity, kept)
    following.start()
    try:
        yield kept
    finally:
        following.close()
    assert [thread.name for thread in set(threading.enumerate()) - before if thread.name.startswith("log ")] == []


COUNTING = """
import sys, time
for number in range(100000):
    print(f"out {number}", file=(sys.stderr if number % 3 == 0 else sys.stdout))
    time.sleep(0.02)
"""


def numbers(kept: Kept) -> list[int]:
    return [int(line.split()[1]) for line in kept.lines]


def is_whole(found: list[int]) -> bool:
    """Each once. The engine keeps the order of each stream, not of both: what one of them is ahead may lack the other's."""
    end = min(max(number for number in found if number % 3 == 0), max(number for number in found if number % 3))
    until_there = sorted(number for number in found if number <= end)
    return len(found) == len(set(found)) and until_there == list(range(min(found), end + 1))


def runs(found: list[int]) -> tuple[list[int], list[int]]:
    """Before and after a restart, at which each of the streams counts from its beginning again."""
    before: list[int] = []
    after: list[int] = []
    for is_error in (True, False):
        stream = [number for number in found if (number % 3 == 0) is is_error]
        again = next(place for place in range(1, len(stream)) if stream[place] < stream[place - 1])
        before += stream[:again]
        after += stream[again:]
    return before, after


@pytest.mark.engine
def test_both_streams_are_followed_from_now_on(loaded: Engine) -> None:
    with container(loaded, COUNTING) as identity:
        wait_until(
            lambda: len(loaded.run_cli("logs", identity).stdout.split("\n")) > 20, timeout_s=30, what="old lines"
        )
        with tail(loaded, identity) as kept:
            wait_until(lambda: len(kept.lines) > 30, timeout_s=30, what="lines")
            found = numbers(kept)

    assert min(found) > 20
    assert is_whole(found)


@pytest.mark.engine
def test_a_silent_container_is_left_at_once(loaded: Engine) -> None:
    with container(loaded, "import time; time.sleep(1000)") as identity, tail(loaded, identity) as kept:
        pass

    assert kept.lines == []


@pytest.mark.engine
def test_long_lines_and_half_lines_come_whole(loaded: Engine) -> None:
    program = """
import sys, time
sys.stderr.write("x" * 40000 + "\\n")
sys.stdout.write("half ")
sys.stdout.flush()
time.sleep(0.3)
print("whole")
time.sleep(1000)
"""
    with created(loaded, program) as identity, tail(loaded, identity) as kept:
        loaded.run_cli("start", identity)
        wait_until(lambda: len(kept.lines) == 2, timeout_s=30, what="two lines")

        assert sorted(kept.lines, key=len) == [b"half whole", b"x" * 40000]


@pytest.mark.engine
def test_a_container_that_ends_and_one_that_never_was_are_waited_for_without_noise(loaded: Engine) -> None:
    with (
        created(loaded, "print('last words')") as identity,
        tail(loaded, identity) as kept,
        tail(loaded, "0" * 64) as nothing,
    ):
        loaded.run_cli("start", identity)
        wait_until(lambda: kept.lines == [b"last words"], timeout_s=30, what="the last line")
        loaded.run_cli("wait", identity)
        loaded.run_cli("start", identity)
        wait_until(lambda: len(kept.lines) == 2, timeout_s=30, what="the line of the second run")

    assert nothing.lines == []


@pytest.mark.engine
def test_no_line_is_lost_or_read_twice_when_the_engine_restarts(make_engine: MakeEngine, image: Path) -> None:
    engine = make_engine("classic")
    engine.run_cli("load", "--input", str(image))
    with container(engine, COUNTING) as identity, tail(engine, identity) as kept:
        wait_until(lambda: len(kept.lines) > 10, timeout_s=30, what="lines")
        engine.stop()  # and its containers with it
        seen = len(kept.lines)
        engine.start()
        engine.run_cli("start", identity)
        wait_until(
            lambda: {b"out 9", b"out 10"} <= set(kept.lines[seen:]), timeout_s=30, what="lines of both streams again"
        )
        found = numbers(kept)
        engine.run_cli("stop", "--time=0", identity)

    before, after = runs(found)
    assert is_whole(before)
    assert is_whole(after)


@pytest.mark.engine
def test_who_follows_again_reads_on_and_what_is_new_is_read_from_its_first_line(loaded: Engine) -> None:
    follow = LogFollower(str(loaded.socket))
    with container(loaded, COUNTING) as identity:
        wait_until(lambda: len(loaded.run_cli("logs", identity).stdout) > 100, timeout_s=30, what="lines nobody reads")
        first, second = Kept(), Kept()
        following = follow(identity, first)
        wait_until(lambda: len(first.lines) > 20, timeout_s=30, what="lines")
        following.close()
        loaded.run_cli("restart", "--time=0", identity)
        following = follow(identity, second)
        wait_until(lambda: {b"out 9", b"out 10"} <= set(second.lines), timeout_s=30, what="lines after the restart")
        following.close()
        found = numbers(first) + numbers(second)

    for run in runs(found):
        assert is_whole(run)
        assert min(run) == 0


@pytest.mark.engine
def test_a_frozen_engine_does_not_hold_up_the_end(make_engine: MakeEngine, image: Path) -> None:
    engine = make_engine("classic")
    engine.run_cli("load", "--input", str(image))
    with container(engine, COUNTING) as identity, tail(engine, identity) as kept:
        wait_until(lambda: len(kept.lines) > 5, timeout_s=30, what="lines")
        with engine.frozen(), tail(engine, identity) as frozen:
            seen = len(kept.lines)
        wait_until(lambda: len(kept.lines) > seen + 20, timeout_s=30, what="lines after the thaw")
        found = numbers(kept)

    assert frozen.lines == []
    assert is_whole(found)
