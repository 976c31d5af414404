"""The state file: on the disk before anything is done, and no stop where the disk is full or does not answer."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from engines import wait_until
from hangingdisk import HangingFile

from appliance_agent.config import HealingConfig
from appliance_agent.newest import Newest
from appliance_agent.slots import Entry, Host, Now
from appliance_agent.state_store import StateError, StateStore

NOW = Now(1000.0, 1_800_000_000.0)


def host(what: str) -> Host:
    return Host(history=(Entry(NOW.wall_s, 0, (), "remove", what),))


def opened(directory: Path, *, patience_s: float = 30.0) -> StateStore:
    store = StateStore(directory, patience_s=patience_s, last_patience_s=60.0)
    store.open()
    return store


def remembered(directory: Path) -> Host:
    found, problem = StateStore(directory).load(NOW, HealingConfig())
    assert problem == ""
    return found


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[HangingFile]:
    """The one below `tmp_path`, where nothing can be saved."""
    with closing(HangingFile(tmp_path / "state.new")) as disk:
        yield disk


def test_what_was_saved_is_in_the_file(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        for what in ("one", "two"):
            problem = store.save(host(what), NOW)

            assert problem == ""
            assert remembered(tmp_path) == host(what)


def test_what_has_not_changed_is_not_written(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        store.save(host("one"), NOW)
        file = (tmp_path / "state.json").stat().st_ino
        store.save(host("one"), replace(NOW, mono_s=1001.0))

        assert (tmp_path / "state.json").stat().st_ino == file


def test_there_is_a_thread_only_while_something_is_written(tmp_path: Path) -> None:
    with closing(opened(tmp_path)) as store:
        store.save(host("one"), NOW)

        wait_until(
            lambda: "state" not in [thread.name for thread in threading.enumerate()], timeout_s=60, what="its end"
        )


def test_a_disk_that_does_not_answer_is_told_and_waited_for_once(tmp_path: Path, disk: HangingFile) -> None:
    with closing(opened(tmp_path, patience_s=0.1)) as store:
        told = {store.save(host(what), NOW) for what in ("one", "one", "two", "two")}
        disk.release()

        assert told == {f"the state is not saved: the disk below {tmp_path} does not answer"}


def test_a_disk_that_answers_again_gets_the_newest(tmp_path: Path, disk: HangingFile) -> None:
    with closing(opened(tmp_path, patience_s=0.1)) as store:
        for what in ("one", "two", "three"):
            store.save(host(what), NOW)
        disk.release()
        wait_until(lambda: store.save(host("three"), NOW) == "", timeout_s=60, what="it to be saved")

        assert remembered(tmp_path) == host("three")


def test_a_memory_that_is_again_as_it_was_is_saved_over_what_was_on_its_way(tmp_path: Path) -> None:
    with closing(opened(tmp_path, patience_s=0.1)) as store:
        wait_until(lambda: store.save(host("one"), NOW) == "", timeout_s=60, what="it to be saved")
        with closing(HangingFile(tmp_path / "state.new")) as disk:
            store.save(host("two"), NOW)
            store.save(host("one"), NOW)
            disk.release()
        wait_until(lambda: store.save(host("one"), NOW) == "", timeout_s=60, what="it to be saved")

        assert remembered(tmp_path) == host("one")


def test_closing_waits_for_what_is_not_written_yet(tmp_path: Path, disk: HangingFile) -> None:
    store = opened(tmp_path, patience_s=0.1)
    store.save(host("one"), NOW)
    store.save(host("two"), NOW)
    disk.release()
    store.close()

    assert remembered(tmp_path) == host("two")


def test_a_disk_that_never_answers_holds_up_no_end(tmp_path: Path, disk: HangingFile) -> None:
    store = StateStore(tmp_path, patience_s=0.1, last_patience_s=0.1)
    store.open()
    store.save(host("one"), NOW)
    store.close()

    with closing(opened(tmp_path)):
        with pytest.raises(StateError, match="another agent uses"):
            opened(tmp_path)
        disk.release()


def test_a_disk_that_refuses_is_told_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "state.new").mkdir()
    with closing(opened(tmp_path)) as store:
        refused = store.save(host("one"), NOW)
        again = store.save(host("one"), NOW)
        (tmp_path / "state.new").rmdir()

        assert refused == again == f"the state cannot be saved in {tmp_path}: {os.strerror(21)}"
        assert store.save(host("one"), NOW) == ""
        assert remembered(tmp_path) == host("one")


def test_of_what_comes_while_something_is_written_only_the_newest_is() -> None:
    written: list[bytes] = []
    begun, go_on = threading.Event(), threading.Event()

    def write(content: bytes) -> None:
        written.append(content)
        begun.set()
        go_on.wait(60)

    newest = Newest(write, name="state")
    newest.put(b"one")
    assert begun.wait(60)
    newest.put(b"two")
    newest.put(b"three")
    at_first = newest.wait(0)
    go_on.set()

    assert at_first is False
    assert newest.wait(60) is True
    assert written == [b"one", b"three"]
