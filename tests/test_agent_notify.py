"""What arrives at a socket like systemd's, and what does not get lost on the way."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from appliance_agent.notify import Notifier, plain, watchdog_interval_s


class Listener:
    """systemd's end, at a path or at an abstract name that begins with `@`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(5)
        self._socket.bind(f"\0{address[1:]}" if address.startswith("@") else address)

    def datagram(self) -> bytes:
        return self._socket.recv(65536)

    def nothing_more(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Listener]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@appliance-test-{os.getpid()}"
    listening = Listener(address)
    yield listening
    listening.close()


@pytest.fixture
def notifier(listener: Listener) -> Iterator[Notifier]:
    made = Notifier.take({"NOTIFY_SOCKET": listener.address})
    yield made
    made.close()


def test_each_message_is_a_datagram_with_one_key(notifier: Notifier, listener: Listener) -> None:
    assert notifier.ready()
    assert notifier.status("7/8 ready")
    assert notifier.watchdog()
    assert notifier.extend_timeout(1.5)
    assert notifier.stopping()

    expected = [b"READY=1", b"STATUS=7/8 ready", b"WATCHDOG=1", b"EXTEND_TIMEOUT_USEC=1500000", b"STOPPING=1"]
    assert [listener.datagram() for _ in expected] == expected
    assert listener.nothing_more()


def test_a_reload_tells_its_moment_in_the_same_datagram(notifier: Notifier, listener: Listener) -> None:
    before_us = time.monotonic_ns() // 1000

    assert notifier.reloading()

    first, second = listener.datagram().decode().split("\n")
    assert first == "RELOADING=1"
    assert before_us <= int(second.removeprefix("MONOTONIC_USEC=")) <= time.monotonic_ns() // 1000


def test_a_text_in_any_script_arrives(notifier: Notifier, listener: Listener) -> None:
    assert notifier.status("gpu 0 → ready — café 深度求索")
    assert notifier.watchdog()

    assert listener.datagram() == b"STATUS=gpu 0 -> ready - cafe ????"
    assert listener.datagram() == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7/8 ready", "7/8 ready"),
        ("two\nlines\r\nWATCHDOG=trigger", "two lines WATCHDOG=trigger"),
        ("naïve Ångström ﬁt ½", "naive Angstrom fit 1?2"),
        ("slot 3 · 82 °C … ≥ 5 × “slow”", 'slot 3 - 82 deg C ... >= 5 x "slow"'),
        ("\x1b[31mred\x00\x7f", "?[31mred??"),
        ("\ud800 lone", "? lone"),
        ("", ""),
    ],
)
def test_other_characters_are_replaced_by_something_that_can_be_read(text: str, expected: str) -> None:
    assert plain(text) == expected


def test_a_status_never_grows_beyond_what_systemd_reads(notifier: Notifier, listener: Listener) -> None:
    assert notifier.status("slot 0 is ready, " * 1000)

    assert len(listener.datagram()) < 4096


def test_a_socket_that_was_bound_anew_gets_the_next_message(tmp_path: Path) -> None:
    address = tmp_path / "notify"
    first = Listener(str(address))
    notifier = Notifier(str(address))
    assert notifier.ready()
    first.close()
    address.unlink()
    second = Listener(str(address))

    assert notifier.watchdog()

    assert second.datagram() == b"WATCHDOG=1"
    assert notifier.failures == 0
    notifier.close()
    second.close()


def test_failures_are_told_and_counted_and_end_when_the_socket_is_there(tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    notifier = Notifier(address)

    assert not notifier.ready()
    assert not notifier.watchdog()
    assert (notifier.failures, "No such file" in notifier.error) == (2, True)

    listener = Listener(address)
    assert notifier.watchdog()
    assert listener.datagram() == b"WATCHDOG=1"
    notifier.close()
    listener.close()


def test_a_listener_that_does_not_read_holds_nobody_up_for_long(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "notify"))
    notifier = Notifier(listener.address)

    sent = 0
    while notifier.watchdog():
        sent += 1

    assert sent > 0
    assert notifier.failures == 1
    assert "timed out" in notifier.error
    listener.datagram()
    assert notifier.watchdog()
    notifier.close()
    listener.close()


def test_without_systemd_every_message_succeeds_and_goes_nowhere() -> None:
    notifier = Notifier.take({"PATH": "/bin"})

    assert notifier.ready()
    assert notifier.status("ready")
    assert notifier.failures == 0
    notifier.close()


def test_programs_that_the_agent_starts_do_not_find_the_socket(
    monkeypatch: pytest.MonkeyPatch, listener: Listener
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", listener.address)

    notifier = Notifier.take(os.environ)
    child = subprocess.run(["env"], capture_output=True, text=True, check=True)

    assert notifier.ready()
    assert listener.datagram() == b"READY=1"
    assert "NOTIFY_SOCKET" not in child.stdout
    notifier.close()


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
        ({"WATCHDOG_USEC": "٣"}, None),
        ({}, None),
    ],
)
def test_systemd_is_told_twice_within_its_patience(environ: dict[str, str], expected: float | None) -> None:
    assert watchdog_interval_s(environ) == expected
