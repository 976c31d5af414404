"""When to try again, and when to stop."""

from collections.abc import Iterator

import pytest
from registry_client import Time, close_connections

from appliance_builder.registry_errors import RegistryError
from appliance_builder.waiting import Patience, retry_after_s


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_connections()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("Thu, 01 Jan 1970 00:20:00 GMT", 200.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, expected: float | None) -> None:
    assert retry_after_s({"retry-after": text}, now=1000.0) == expected


def failure(told_s: float | None = None) -> RegistryError:
    return RegistryError("trouble", hint="", host="h", status=503, retry_after_s=told_s)


def test_patience_is_time_without_progress() -> None:
    time = Time()
    patience = Patience(time.waiting(60))
    while patience.wait(failure()):
        pass
    spent_s = sum(time.slept)
    patience.progressed()

    assert 60 <= spent_s < 90
    assert patience.wait(failure())


def test_patience_begins_with_the_first_failure() -> None:
    time = Time()
    patience = Patience(time.waiting(60))
    time.now_s += 3600

    assert patience.wait(failure())


def test_waits_that_were_asked_for_do_not_use_up_the_patience() -> None:
    time = Time()
    patience = Patience(time.waiting(10))

    assert [patience.wait(failure(100.0)) for _ in range(4)] == [True, True, True, False]
    assert sum(time.slept) >= 300


def test_a_note_tells_why_it_waits_and_goes_away() -> None:
    notes: list[str] = []
    patience = Patience(Time().waiting(), notes.append)

    patience.wait(failure(5.0))
    patience.progressed()
    patience.progressed()

    assert notes == ["waiting 6 s: trouble", ""]
