"""What arrives at a socket like journald's, read back by the protocol's own rules, and what people read on stderr."""

from __future__ import annotations

import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from appliance_agent.journal import Journal
from appliance_agent.logline import Priority
from appliance_agent.slots import Entry

STAMP = "2026-08-01T12:00:00.000"
CREATED = Entry(
    wall_s=1.0,
    slot=0,
    gpus=("GPU-aaaa", "GPU-bbbb"),
    action="create",
    because="no token within 8 s, third time",
    evidence="canary started 08:00\nGPU computes 0 %",
)


def parsed(content: bytes) -> dict[str, str]:
    """Journal Export Format, the way journald reads it."""
    fields: dict[str, str] = {}
    while content:
        first, _, content = content.partition(b"\n")
        name, equals, value = first.partition(b"=")
        if not equals:
            size = int.from_bytes(content[:8], "little")
            value, content = content[8 : 8 + size], content[8 + size :]
            assert content[:1] == b"\n"
            content = content[1:]
        fields[name.decode()] = value.decode()
    return fields


class Journald:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(5)
        self._socket.bind(str(path))

    def received(self) -> dict[str, str]:
        content, descriptors, _, _ = socket.recv_fds(self._socket, 1 << 20, 1)
        for descriptor in descriptors:
            with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
                assert content == b""
                file.seek(0)
                content = file.read()
                with pytest.raises(OSError, match="not permitted"):
                    os.truncate(descriptor, 0)
        return parsed(content)

    def nothing_more(self) -> bool:
        self._socket.setblocking(False)
        try:
            self._socket.recv(1)
        except BlockingIOError:
            return True
        return False

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    listening = Journald(tmp_path / "socket")
    yield listening
    listening.close()


@pytest.fixture
def stderr(tmp_path: Path) -> Iterator[TextIO]:
    with (tmp_path / "stderr").open("w+") as file:
        yield file


def read(stderr: TextIO) -> str:
    stderr.seek(0)
    return stderr.read()


def stream_of(stderr: TextIO) -> dict[str, str]:
    status = os.fstat(stderr.fileno())
    return {"JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}


def test_the_journal_gets_every_field_of_an_action(journald: Journald, stderr: TextIO) -> None:
    journal = Journal.find(stream_of(stderr), stderr=stderr, path=str(journald.path))

    journal.entry(CREATED, reason="wedged")

    assert journald.received() == {
        "MESSAGE": "slot=0 gpu=GPU-aaaa,GPU-bbbb action=create reason=wedged"
        ' because="no token within 8 s, third time" evidence="canary started 08:00\\nGPU computes 0 %"',
        "PRIORITY": "5",
        "SYSLOG_IDENTIFIER": "ollama-agent",
        "SLOT": "0",
        "GPU": "GPU-aaaa,GPU-bbbb",
        "ACTION": "create",
        "REASON": "wedged",
        "BECAUSE": "no token within 8 s, third time",
        "EVIDENCE": "canary started 08:00\nGPU computes 0 %",
    }
    assert read(stderr) == ""


def test_a_message_has_its_priority_and_the_fields_it_is_given(journald: Journald, stderr: TextIO) -> None:
    journal = Journal(stderr, path=str(journald.path))

    journal.error("image `registry.lan/模型:32b` cannot be pulled", slot=3, image="registry.lan/模型:32b", detail="")

    assert journald.received() == {
        "MESSAGE": "image `registry.lan/模型:32b` cannot be pulled slot=3 image=registry.lan/模型:32b",
        "PRIORITY": "3",
        "SYSLOG_IDENTIFIER": "ollama-agent",
        "SLOT": "3",
        "IMAGE": "registry.lan/模型:32b",
    }


def test_an_entry_too_large_for_a_datagram_goes_as_a_sealed_file(journald: Journald, stderr: TextIO) -> None:
    journal = Journal(stderr, path=str(journald.path))
    fields = {f"part{number}": str(number) * 60_000 for number in range(8)}

    journal.warning("much", **fields)

    received = journald.received()
    assert {name: received[name.upper()] for name in fields} == fields
    assert journal.failures == 0


def test_a_field_without_an_end_is_cut(journald: Journald, stderr: TextIO) -> None:
    journal = Journal(stderr, path=str(journald.path))

    journal.info("cut", detail="深" * 1_000_000)

    assert journald.received()["DETAIL"] == "深" * 65536 + "…"


@pytest.mark.parametrize("stream", ["", "1:2", "garbage"])
def test_a_journal_stream_that_is_not_this_stderr_is_not_used(stream: str, journald: Journald, stderr: TextIO) -> None:
    journal = Journal.find({"JOURNAL_STREAM": stream}, stderr=stderr, path=str(journald.path))

    journal.info("hello")

    assert journald.nothing_more()
    assert read(stderr).endswith(" hello\n")


def test_a_stderr_without_a_descriptor_gets_plain_lines() -> None:
    stderr = io.StringIO()

    Journal.find({"JOURNAL_STREAM": "1:2"}, stderr=stderr).info("hello")

    assert stderr.getvalue().endswith(" hello\n")


def test_a_journal_that_is_gone_loses_no_line(tmp_path: Path, stderr: TextIO) -> None:
    journal = Journal(stderr, path=str(tmp_path / "nobody"))

    journal.warning("the engine does not answer")

    assert journal.failures == 1
    assert read(stderr).endswith(" warning: the engine does not answer\n")


def test_a_journal_that_does_not_read_holds_nobody_up_for_ever(journald: Journald, stderr: TextIO) -> None:
    journal = Journal(stderr, path=str(journald.path))

    count = 0
    while journal.failures == 0:
        journal.info(f"line {count}")
        count += 1

    assert read(stderr).endswith(f" line {count - 1}\n")
    assert journald.received()["MESSAGE"] == "line 0"


def test_a_plain_line_begins_with_the_time_and_says_how_bad_it_is() -> None:
    stderr = io.StringIO()
    journal = Journal(stderr, clock=lambda: 1785585600.25)

    journal.info("ready")
    journal.warning("slow", slot=2)
    journal.error("gone")
    journal.entry(Entry(0.0, 1, ("GPU-a",), "remove", "orphan"))

    first, *others = stderr.getvalue().splitlines()
    stamp = first.removesuffix(" ready")
    assert stamp[:5] == "2026-"
    assert ".250" in stamp
    assert others == [
        f"{stamp} warning: slow slot=2",
        f"{stamp} error: gone",
        f"{stamp} slot=1 gpu=GPU-a action=remove because=orphan",
    ]


def test_a_plain_line_is_one_line_whatever_it_says() -> None:
    stderr = io.StringIO()
    journal = Journal(stderr)

    journal.error(
        "agent.toml: 2 mistakes\n  gpus: names a GPU twice\n  port: is missing\x1b[2J", because='a "b"\n\x1b c\x9b'
    )

    (only,) = stderr.getvalue().splitlines()
    assert only.endswith(
        ' error: agent.toml: 2 mistakes; gpus: names a GPU twice; port: is missing?[2J because="a \\"b\\"\\n\\u001b c?"'
    )


def test_a_message_is_not_repeated_until_something_else_was_said_about_the_same_slot() -> None:
    stderr = io.StringIO()
    journal = Journal(stderr)

    for _ in range(3):
        journal.info("waits for the engine", slot=0)
        journal.info("waits for the engine", slot=1)
        journal.info("7/8 ready")
    journal.info("ready", slot=0)
    journal.info("waits for the engine", slot=0)
    journal.info("waits for the engine", slot=1)

    said = [text.partition(" ")[2] for text in stderr.getvalue().splitlines()]
    assert said == [
        "waits for the engine slot=0",
        "waits for the engine slot=1",
        "7/8 ready",
        "ready slot=0",
        "waits for the engine slot=0",
    ]


def test_an_action_is_told_as_often_as_it_is_done() -> None:
    stderr = io.StringIO()
    journal = Journal(stderr)

    for _ in range(3):
        journal.entry(CREATED)

    assert len(stderr.getvalue().splitlines()) == 3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("GET https://robot:hunter2@registry.lan/v2/ failed", "GET https://***@registry.lan/v2/ failed"),
        ("Authorization: Basic cm9ib3Q6aHVudGVyMg==", "Authorization: ***"),
        ("sent Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln", "sent Bearer ***"),
        ("the bearer token expired", "the bearer token expired"),
        ('{"password":"hunter2","user":"robot"}', '{"password":"***","user":"robot"}'),
        ("/token?api_key=abcdef&scope=pull", "/token?api_key=***&scope=pull"),
        ("first token after 3 s: slow", "first token after 3 s: slow"),
        ("repository@sha256:0123", "repository@sha256:0123"),
    ],
)
def test_secrets_do_not_get_into_the_log(text: str, expected: str) -> None:
    stderr = io.StringIO()
    journal = Journal(stderr)

    journal.info(text, detail=text)

    assert f" {expected} detail=" in stderr.getvalue()
    assert stderr.getvalue().count("hunter2") == 0


def test_a_name_that_is_no_text_is_written_all_the_same(journald: Journald, stderr: TextIO) -> None:
    journal = Journal(stderr, path=str(journald.path))

    journal.info("found", name="\udcff.gguf")

    assert journald.received()["NAME"] == "\\udcff.gguf"


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    journal = Journal(Broken())

    journal.error("nobody reads this")
    journal.entry(CREATED)


def test_lines_of_several_threads_do_not_mix() -> None:
    stderr = io.StringIO()
    journal = Journal(stderr)

    def talk(slot: int) -> None:
        for number in range(200):
            journal.info(f"line {number}", slot=slot)

    threads = [threading.Thread(target=talk, args=(slot,)) for slot in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    said = [text.split(" ", 1)[1] for text in stderr.getvalue().splitlines()]
    assert sorted(said) == sorted(f"line {number} slot={slot}" for slot in range(4) for number in range(200))


def test_priorities_are_those_of_syslog() -> None:
    assert [priority.value for priority in Priority] == [3, 4, 5, 6, 7]
