"""The table of `ollama-agent status`: what it says, in which window, and that nothing can break it."""

from __future__ import annotations

import re
from dataclasses import replace
from datetime import timedelta, timezone
from pathlib import Path

import pytest
import snapshots
import soundhost
from hypothesis import given
from hypothesis import strategies as some

from appliance_agent.amounts import age
from appliance_agent.slots import Entry
from appliance_agent.snapshot import Snapshot
from appliance_agent.status import Status
from appliance_agent.status_columns import image_tags
from appliance_agent.status_json import parse, render
from appliance_agent.status_table import Window, render_table
from appliance_agent.terminal_text import clean, fit, width, wrap

GOLDEN = Path(__file__).parent / "recordings" / "agent"
ALL = {
    "good_night": snapshots.good_night(),
    "bad_night": snapshots.bad_night(),
    "without_gpus": snapshots.without_gpus(),
    "unknown": snapshots.unknown(),
    "no_slots": snapshots.good_night(0),
    "groups": snapshots.in_groups(),
    "mig": snapshots.mig(),
}
STATUSES = {name: parse(render(snapshot)) for name, snapshot in ALL.items()}
CHINESE = "模型加载失败"


def shown(snapshot: Snapshot, window: Window) -> str:
    return render_table(parse(render(snapshot)), window)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("columns", [*range(1, 30), 40, 79, 80, 100, 120, 160, 200, 400])
@pytest.mark.parametrize("status", STATUSES.values(), ids=STATUSES)
def test_no_line_is_wider_than_the_window(status: Status, columns: int) -> None:
    for colour in (False, True):
        text = render_table(status, Window(columns, colour=colour, silence="no answer for 3s: 连接被拒绝 " * 9))

        assert [line for line in plain(text).splitlines() if width(line) > columns] == []


@pytest.mark.parametrize("lines", [*range(6, 30), 50, 100])
@pytest.mark.parametrize("status", STATUSES.values(), ids=STATUSES)
def test_a_live_table_is_not_higher_than_the_window(status: Status, lines: int) -> None:
    for columns in (40, 80, 200):
        assert len(render_table(status, Window(columns, lines=lines)).splitlines()) <= lines


def test_colour_changes_nothing_but_the_colour() -> None:
    for status in STATUSES.values():
        coloured, bare = (render_table(status, Window(100, colour=colour)) for colour in (True, False))

        assert "\x1b" not in bare
        assert [line.rstrip() for line in plain(coloured).splitlines()] == bare.splitlines()


@pytest.mark.parametrize("columns", [80, 120, 200])
def test_the_table_of_a_known_night_is_what_it_always_was(columns: int) -> None:
    assert shown(snapshots.bad_night(), Window(columns)) == (GOLDEN / f"status-{columns}.txt").read_text()


def test_eighty_columns_say_who_serves_how_fast_and_what_was_restarted() -> None:
    heading = shown(snapshots.bad_night(), Window(80)).splitlines()[7]

    assert heading.split("  ") != []
    for word in ("SLOT", "GPU", "STATE", "FOR", "1ST TOKEN", "TOKENS/S", "OF USUAL", "RESTARTS"):
        assert word in heading


def test_a_wider_window_never_shows_less() -> None:
    words = (
        "SLOT",
        "GPU",
        "UUID",
        "STATE",
        "FOR",
        "MODEL",
        "IMAGE",
        "PORT",
        "TOKENS/S",
        "CANARY",
        "UTIL",
        "TEMP",
        "POWER",
    )
    heading = shown(snapshots.bad_night(), Window(220)).splitlines()[7]

    assert [word for word in words if word not in heading] == []


def test_images_have_a_column_of_their_own_while_they_differ() -> None:
    same, different = shown(snapshots.good_night(), Window(80)), shown(snapshots.bad_night(), Window(80))

    assert "IMAGE" not in same
    assert "IMAGE" in different
    assert "deepseek-r1:32b from registry.lan/ai/deepseek-r1:32b" in same


def test_every_slot_that_is_not_ready_says_why_and_what_comes_next() -> None:
    text = shown(snapshots.bad_night(), Window(120))

    for sentence in (
        "19.3 tokens/s, 46 % of usual",
        "no token for 9 s with requests waiting and the GPU idle, second time within 12 min",
        "the GPU fell off the bus (XID 79); probation in 4m 48s",
        "GPU 3: lost: the driver cannot reach it, XID 79 5m 12s ago",
        "GPU 4: the driver asks for GPU reset",
        f"exit status 1: {CHINESE}, out of memory; next try in 10s",
        "another image is wanted; create for 2s",
        "problem: clock of this host and of the registry differ by 9 min",
        "rolling: slot 6 tries deepseek-r1:32b-v2; 2 of 8 slots have it",
    ):
        assert sentence in text


def test_a_slot_that_is_ready_says_nothing_below_its_row() -> None:
    rows = shown(snapshots.good_night(), Window(80)).splitlines()

    assert [row.split()[:3] for row in rows[5:13]] == [[str(slot), str(slot), "ready"] for slot in range(8)]


def test_a_failed_canary_stands_where_the_first_token_would() -> None:
    row = next(row for row in shown(snapshots.bad_night(), Window(80)).splitlines() if row.startswith("   2"))

    assert row.split()[-4:] == ["timeout", "41.5", "99%", "3"]


def test_restarts_do_not_count_the_first_start() -> None:
    rows = shown(snapshots.bad_night(), Window(80)).splitlines()

    assert [row.split()[-1] for row in rows if re.match(r"   \d ", row)] == ["0", "0", "3", "1", "0", "4", "0", "0"]


def test_groups_and_mig_devices_have_one_row_each() -> None:
    groups, mig = (shown(ALL[name], Window(220)) for name in ("groups", "mig"))

    assert re.search(r"   0  0-3  4 x H100 80GB HBM3  GPU-00000000 \+3 .*  166/320 GiB", groups)
    assert re.search(r"   1    0  H100 80GB HBM3 MIG 3\.\.  MIG-00000001 .*  20/40 GiB  50 C", mig)


def test_history_is_the_newest_entries_in_local_time_with_a_date_if_not_today() -> None:
    zone = timezone(timedelta(hours=8), "CST")
    lines = shown(snapshots.bad_night(), Window(120, history=9, zone=zone)).splitlines()
    last = lines[lines.index("LATELY") + 1 :]

    assert last[0].startswith("Nov 25 15:03:17 slot 6: create")
    assert last[-1] == "20:03:09 slot 6: create: another image is wanted"


def test_evidence_is_shown_whole_or_not_at_all() -> None:
    wide, narrow = (shown(snapshots.bad_night(), Window(columns)) for columns in (120, 80))

    assert "requests waiting and the GPU idle, second time within 12 min (canary\n" in wide
    assert "canary timeout after" not in narrow
    assert "(NVML says GPU is\n         lost; 1 container)" in narrow


def test_no_history_is_asked_for_none_is_shown() -> None:
    assert "LATELY" not in shown(snapshots.bad_night(), Window(80, history=0))


def test_a_loop_that_hangs_and_an_agent_that_is_silent_are_told_first() -> None:
    hangs = shown(snapshots.good_night(), Window(80, age_s=75.0)).splitlines()
    silent = shown(snapshots.good_night(), Window(80, age_s=75.0, silence="no answer for 3s: it left")).splitlines()

    assert hangs[1] == "the agent's loop hangs: this is the state of 1m 15s ago"
    assert silent[1] == "no answer for 3s: it left"


@pytest.mark.parametrize("lines", [6, 8, 10])
def test_in_a_low_window_problems_and_rows_are_kept_before_all_else(lines: int) -> None:
    base = replace(snapshots.good_night(2), problems=("the disk is full",))
    text = shown(base, Window(80, lines=lines))

    assert "problem: the disk is full" in text
    assert len(re.findall(r"^   \d ", text, re.MULTILINE)) == 2


def test_texts_of_containers_cannot_write_to_the_terminal() -> None:
    evil = "\x1b]0;owned\x07\x1b[2J\r\nfake row\u202e\u200b\x9b31m"
    base = snapshots.bad_night()
    slots = tuple(replace(slot, because=evil, plan=replace(slot.plan, name=evil)) for slot in base.host.slots)
    entry = Entry(soundhost.NOW.wall_s, 0, (), evil, evil, evil)
    text = shown(replace(base, host=replace(base.host, slots=slots, history=(entry,)), problems=(evil,)), Window(120))

    assert [character for character in text if not character.isprintable() and character != "\n"] == []
    assert [line for line in text.splitlines() if line.startswith("fake row")] == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m 00s"), (599, "9m 59s"), (600, "10m"), (3599, "59m"),
     (3600, "1h 00m"), (35999, "9h 59m"), (36000, "10h"), (86400, "1d 0h"), (864000, "10d"), (8640000, "100d")],
)  # fmt: skip
def test_ages_are_short(seconds: float, text: str) -> None:
    assert age(seconds) == text


@pytest.mark.parametrize(
    ("references", "tags"),
    [
        (["registry.lan:5000/ai/r1:32b", "registry.lan:5000/ai/r1:32b-v2"], ["32b", "32b-v2"]),
        (["ai/r1:32b", "ai/qwen3:8b"], ["r1:32b", "qwen3:8b"]),
        (["ai/r1", None], ["latest", ""]),
        (["ai/r1@sha256:" + "a" * 64, "ai/r1:1@sha256:" + "b" * 64], ["aaaaaaaa", "1"]),
        ([None], [""]),
    ],
)
def test_an_image_is_named_by_what_tells_it_apart(references: list[str | None], tags: list[str]) -> None:
    assert image_tags(references) == tags


# text in columns


@pytest.mark.parametrize(
    ("text", "columns"),
    [("abc", 3), (CHINESE, 12), ("é", 1), ("e\u0301", 1), ("ｆｕｌｌ", 8), ("🙂", 2), ("a\u200bb", 2), ("", 0)],
)
def test_width_is_what_a_terminal_uses(text: str, columns: int) -> None:
    assert width(text) == columns


def test_a_wide_character_is_never_cut_in_half() -> None:
    assert fit(CHINESE, 7) == "模型.."
    assert fit(CHINESE, 8) == "模型加.."
    assert fit(CHINESE, 12) == CHINESE
    assert [fit(CHINESE, columns) for columns in (0, 1, 2)] == ["", ".", ".."]


@given(text=some.text(max_size=80), columns=some.integers(0, 40), lines=some.integers(1, 4))
def test_wrapped_and_cut_texts_fit(text: str, columns: int, lines: int) -> None:
    wrapped = wrap(clean(text), columns, lines=lines)

    assert len(wrapped) <= lines
    assert [line for line in wrapped if width(line) > columns] == []


@given(words=some.lists(some.text("abc模型", min_size=1, max_size=9), max_size=12), columns=some.integers(10, 40))
def test_wrapping_loses_nothing_when_there_is_room(words: list[str], columns: int) -> None:
    text = " ".join(words)

    assert "".join(wrap(text, columns, lines=999)).replace(" ", "") == text.replace(" ", "")
