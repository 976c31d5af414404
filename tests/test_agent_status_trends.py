"""What only somebody who watches can see: the last minutes, in characters; and what stays visible in a low window."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from watchednights import NIGHTS, shown

from appliance_agent.status_table import Window
from appliance_agent.terminal_text import width

GOLDEN = Path(__file__).parent / "recordings" / "agent"


@pytest.mark.parametrize(("columns", "tells"), [(60, True), (80, False), (120, True), (200, True)])
def test_the_live_table_of_a_known_night_is_what_it_always_was(columns: int, tells: bool) -> None:
    assert shown("bad", Window(columns), tells=tells) == (GOLDEN / f"watch-{columns}.txt").read_text()


def test_where_there_are_no_blocks_digits_say_the_same() -> None:
    text = shown("good", Window(80, blocks=False))

    assert text.isascii()
    assert re.search(r"\.[0-9]{8,}", text)


@pytest.mark.parametrize("columns", [*range(1, 30), 40, 60, 79, 80, 100, 120, 160, 200, 400])
def test_no_live_line_is_wider_than_the_window(columns: int) -> None:
    for night in NIGHTS:
        text = shown(night, Window(columns), tells=night == "bad")

        assert [line for line in text.splitlines() if width(line) > columns] == []


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_utilisation_traffic_first_token_and_the_last_action_are_in_every_window(columns: int) -> None:
    text = shown("bad", Window(columns, lines=24))

    heading = next(line for line in text.splitlines() if "SLOT" in line)
    assert [word for word in ("STATE", "UTIL ", "SENT ", "1ST TOKEN") if word not in heading] == []
    assert "slot 6: create: another image is wanted" in text


def test_slots_that_are_not_well_stay_visible_in_a_low_window() -> None:
    text = shown("sixteen", Window(80, lines=12))

    assert len(text.splitlines()) <= 12
    assert [int(line.split()[0]) for line in text.splitlines() if re.match(r" +\d+ +\d+ ", line)] == [*range(6), 14, 15]
    assert "8 more slots in a higher window: 8 ready" in text


def test_reasons_of_what_is_worst_are_kept_first() -> None:
    text = shown("sixteen", Window(80, lines=22))

    assert "the GPU fell off the bus (XID 79)" in text
    assert len(re.findall(r"^ +\d+ +\d+ ", text, re.MULTILINE)) == 16
    assert "slot 15: create: there was no container" in text


def test_reasons_come_before_what_is_merely_good_to_know() -> None:
    text = shown("sixteen", Window(60, lines=24))

    assert "Docker" not in text
    assert "no token for 9 s" in text
    assert "the GPU fell off the bus (XID 79)" in text


@pytest.mark.parametrize("lines", range(3, 40))
def test_no_live_table_is_higher_than_the_window(lines: int) -> None:
    for night in NIGHTS:
        assert len(shown(night, Window(80, lines=lines)).splitlines()) <= max(lines, 6)


# out of date


@pytest.mark.parametrize("window", [Window(80, age_s=75), Window(80, silence="this is the state of 9s ago: gone")])
def test_what_may_be_true_no_more_is_grey(window: Window) -> None:
    first, warning, *rest = shown("good", replace(window, colour=True)).splitlines()

    assert warning.startswith(
        "\x1b[1;31mthis is the state of" if window.silence else "\x1b[1;31mthe agent's loop hangs"
    )
    assert set(re.findall(r"\x1b\[[0-9;]+m", "".join([first, *rest]))) == {"\x1b[2m", "\x1b[0m"}


def test_chinese_names_keep_the_trends_in_line() -> None:
    text = shown("chinese", Window(200))

    rows = [line for line in text.splitlines() if re.match(r" +\d+ +\d+ ", line)]
    assert len({width(row[: row.index("▁")]) for row in rows}) == 1
