"""`status --watch` on a real pseudo terminal: drawn in place, resized, left cleanly."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fcntl import ioctl
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
import snapshots
from engines import wait_until
from freeport import free_port

from appliance_agent.config import MetricsConfig
from appliance_agent.front import Front
from appliance_agent.slots import Now
from appliance_agent.snapshot import Snapshot
from appliance_agent.status_json import render
from appliance_agent.terminal_text import width

PROGRAM = "from appliance_agent.cli_status import status; status(prog_name='status')"
FRAME = "\x1b[?2026h"


class Terminal:
    """A terminal with the command in it; what it wrote is read in a thread, as a terminal would."""

    def __init__(
        self, url: str, *, columns: int = 100, lines: int = 30, environment: dict[str, str] | None = None
    ) -> None:
        self._master, slave = pty.openpty()
        self.resize(columns, lines)
        self._slave = slave
        self.first_modes = self.modes
        words = ["setsid", "--ctty", sys.executable, "-c", PROGRAM, "--watch=0.5", "--url", url]
        own = {name: text for name, text in os.environ.items() if name != "NO_COLOR"}
        self.process = subprocess.Popen(
            words, stdin=slave, stdout=slave, stderr=slave,
            env=own | {"TERM": "xterm", "LC_ALL": "C.UTF-8"} | (environment or {}),
        )  # fmt: skip
        self._written = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    @property
    def modes(self) -> list[object]:
        return list(termios.tcgetattr(self._slave))

    def resize(self, columns: int, lines: int) -> None:
        ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    @property
    def written(self) -> str:
        return self._written.decode(errors="replace")

    @property
    def frames(self) -> list[list[str]]:
        """The lines of each whole picture, without their colours."""
        pictures = self.written.split(FRAME)[1:]
        whole = [picture.partition("\x1b[J")[0] for picture in pictures if "\x1b[J" in picture]
        return [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", picture).replace("\r", "").split("\n") for picture in whole]

    def fits(self, columns: int, lines: int) -> bool:
        """A title that fills the line says that it was drawn for this width."""
        frame = self.frames[-1]
        full = width(frame[0]) == columns or columns < 60
        return len(frame) <= lines and max(map(width, frame)) <= columns and full

    def wait_for(self, text: str) -> None:
        wait_until(lambda: any(text in "\n".join(frame) for frame in self.frames[-1:]), timeout_s=20, what=text)

    def _read(self) -> None:
        while True:
            try:
                select.select([self._master], [], [])
                more = os.read(self._master, 65536)
            except OSError:
                return
            if not more:
                return
            self._written += more

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._slave)
        self._reader.join()
        os.close(self._master)


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front(MetricsConfig("127.0.0.1", free_port()))  # a test lets it go and takes it again
    made.open()
    made.publish(current(snapshots.bad_night()))
    yield made
    made.close()


def current(snapshot: Snapshot) -> Snapshot:
    return replace(snapshot, now=Now(time.monotonic(), snapshot.now.wall_s))


def url(front: Front) -> str:
    return f"http://127.0.0.1:{front.port}/status"


def test_it_follows_what_the_agent_publishes_and_never_clears_the_screen(front: Front) -> None:
    with Terminal(url(front)) as terminal:
        terminal.wait_for("4 of 8 slots serving")
        front.publish(current(snapshots.good_night()))
        terminal.wait_for("8 of 8 slots serving")

        assert "\x1b[2J" not in terminal.written


def test_it_draws_anew_in_the_size_that_the_window_gets(front: Front) -> None:
    with Terminal(url(front), columns=180, lines=50) as terminal:
        terminal.wait_for("LATELY")
        for columns, lines in ((80, 24), (40, 10), (120, 40)):
            terminal.resize(columns, lines)
            wait_until(partial(terminal.fits, columns, lines), timeout_s=20, what="a picture that fits")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_leaving_gives_the_terminal_back_and_keeps_the_last_table(front: Front, number: signal.Signals) -> None:
    with Terminal(url(front)) as terminal:
        terminal.wait_for("LATELY")
        terminal.process.send_signal(number)

        assert terminal.process.wait(20) == 0
        wait_until(lambda: "\x1b[?1049l" in terminal.written, timeout_s=20, what="the shell's own screen")
        after = terminal.written.rpartition("\x1b[?1049l")
        wait_until(
            lambda: "slot 6: \x1b[0mcreate" in terminal.written.rpartition("\x1b[?1049l")[2],
            timeout_s=20, what="the last table",
        )  # fmt: skip
        assert after[0].endswith("\x1b[?7h\x1b[?25h")
        assert "Traceback" not in terminal.written


def test_a_stopped_one_gives_the_terminal_back_and_comes_again(front: Front) -> None:
    with Terminal(url(front)) as terminal:
        terminal.wait_for("LATELY")
        terminal.process.send_signal(signal.SIGTSTP)
        wait_until(lambda: state_of(terminal.process.pid) == "T", timeout_s=20, what="the stop")
        wait_until(lambda: terminal.written.endswith("\x1b[?1049l"), timeout_s=20, what="the shell's own screen")
        before = len(terminal.frames)
        terminal.process.send_signal(signal.SIGCONT)

        wait_until(lambda: len(terminal.frames) > before, timeout_s=20, what="another picture")


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_it_says_for_how_long_the_agent_has_not_answered_and_goes_on_when_it_does(front: Front) -> None:
    with Terminal(url(front)) as terminal:
        terminal.wait_for("4 of 8 slots serving")
        port = front.port
        front.close()
        terminal.wait_for("this is the state of ")
        terminal.wait_for("4 of 8 slots serving")
        again = Front(MetricsConfig("127.0.0.1", port))
        again.open()
        try:
            again.publish(current(snapshots.good_night()))
            terminal.wait_for("8 of 8 slots serving")

            assert "this is the state of" not in "".join(terminal.frames[-1])
        finally:
            again.close()


def test_without_an_agent_it_ends_at_once_and_draws_nothing() -> None:
    with Terminal("http://127.0.0.1:1/status") as terminal:
        assert terminal.process.wait(20) == 1
        assert "\x1b[?1049h" not in terminal.written


@pytest.mark.parametrize("key", [b"q", b"xQ", b"\x03"], ids=["q", "Q", "Ctrl-C"])
def test_a_key_leaves_and_the_terminal_is_as_it_was(front: Front, key: bytes) -> None:
    with Terminal(url(front)) as terminal:
        terminal.wait_for("LATELY")
        assert terminal.modes != terminal.first_modes
        terminal.press(b"zzz")
        terminal.press(key)

        assert terminal.process.wait(20) == 0
        assert terminal.modes == terminal.first_modes
        assert "zzz" not in terminal.written


def test_a_key_leaves_while_the_agent_hangs() -> None:
    with (
        hanging_after(render(current(snapshots.good_night(1)))) as address,
        Terminal(address) as terminal,
    ):
        terminal.wait_for("1 of 1 slots serving")
        terminal.press(b"\x03")

        assert terminal.process.wait(20) == 0
        assert "Traceback" not in terminal.written


@contextmanager
def hanging_after(body: str) -> Iterator[str]:
    """A server that answers once and then accepts, but says nothing."""
    data = body.encode()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=_answer_once, args=(listener, data))
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/status"
        thread.join()


def _answer_once(listener: socket.socket, body: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65536)
        head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)


def test_the_last_minute_grows_while_it_is_watched(front: Front) -> None:
    with Terminal(url(front)) as terminal:
        terminal.wait_for("▆")  # 77 % of slot 7


@pytest.mark.parametrize("locale", ["C", "POSIX"])
def test_without_utf_8_digits_stand_for_the_blocks(front: Front, locale: str) -> None:
    front.publish(current(snapshots.good_night()))
    with Terminal(url(front), environment={"LC_ALL": locale}) as terminal:
        terminal.wait_for(".7")

        assert terminal.written.isascii()


@pytest.mark.parametrize(("variables", "coloured"), [({"NO_COLOR": "1"}, False), ({}, True)])
def test_a_terminal_has_colours_unless_none_are_wanted(front: Front, variables: dict[str, str], coloured: bool) -> None:
    with Terminal(url(front), environment=variables) as terminal:
        terminal.wait_for("LATELY")

        assert bool(re.findall(r"\x1b\[[0-9;]*m", terminal.written)) is coloured


def test_where_no_cursor_moves_the_tables_follow_each_other(front: Front) -> None:
    with Terminal(url(front), environment={"TERM": "dumb"}) as terminal:
        wait_until(lambda: terminal.written.count("slots serving") > 1, timeout_s=20, what="a second table")
        terminal.process.send_signal(signal.SIGTERM)

        assert terminal.process.wait(20) == 0
        assert "\x1b" not in terminal.written


def test_without_a_terminal_the_tables_follow_each_other(front: Front) -> None:
    words = [sys.executable, "-c", PROGRAM, "--watch=0.5", "--url", url(front)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout
        titles = 0
        while titles < 2:
            line = process.stdout.readline()
            titles += "slots serving" in line
            assert "\x1b" not in line
        process.send_signal(signal.SIGINT)
        process.stdout.read()

        assert process.wait(20) == 0
        assert process.stderr
        assert process.stderr.read() == ""
