"""What only somebody who watches can see: the last minutes, in characters; and what stays visible in a low window."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import snapshots
from hypothesis import given
from hypothesis import strategies as some

from appliance_agent.access_log import Timing
from appliance_agent.amounts import amount
from appliance_agent.cli_status import has_blocks
from appliance_agent.generated import Generated, tells_tokens
from appliance_agent.slots import Cause, Quarantine
from appliance_agent.snapshot import Snapshot
from appliance_agent.sparkline import round_top, sparkline
from appliance_agent.states import State
from appliance_agent.status import GpuStatus, SlotStatus, Status
from appliance_agent.status_json import parse, render
from appliance_agent.status_table import Window, render_table
from appliance_agent.terminal_text import width
from appliance_agent.token_trend import TokenTrend
from appliance_agent.traffic import Traffic
from appliance_agent.trends import Trends

GOLDEN = Path(__file__).parent / "recordings" / "agent"
CHINESE = "推理服务器"


def sixteen() -> Snapshot:
    """All is well, but for the last slots."""
    base = snapshots.good_night(16)
    slots = list(base.host.slots)
    since_s = snapshots.NOW.mono_s - 60
    slots[14] = replace(slots[14], state=State.LOADING, since_s=since_s, because="no token for 9 s")
    slots[15] = replace(
        slots[15], state=State.QUARANTINED, since_s=since_s,
        quarantine=Quarantine(Cause.GPU, "the GPU fell off the bus (XID 79)", since_s, since_s + 600, 1),
    )  # fmt: skip
    return replace(base, host=replace(base.host, slots=tuple(slots)))


def chinese() -> Snapshot:
    base = snapshots.good_night(2)
    first, second = base.gpus.gpus
    return replace(base, gpus=replace(base.gpus, gpus=(replace(first, name=CHINESE), second)))


NIGHTS = {
    "good": snapshots.good_night(),
    "bad": snapshots.bad_night(),
    "one": snapshots.good_night(1),
    "none": snapshots.good_night(0),
    "sixteen": sixteen(),
    "without_gpus": snapshots.without_gpus(),
    "unknown": snapshots.unknown(),
    "mig": snapshots.mig(),
    "chinese": chinese(),
}


def status_of(snapshot: Snapshot) -> Status:
    return parse(render(snapshot))


def busy(status: Status, second: int, *, tells: bool = False) -> Status:
    """Every slot is a little busier than the one before; every 20 s there is a pause of 5 s, and answers take 4 s."""

    def gpu(slot: SlotStatus, gpu: GpuStatus) -> GpuStatus:
        known = gpu.utilization_ratio is not None
        return replace(gpu, utilization_ratio=load(slot) if known else None)

    def load(slot: SlotStatus) -> float:
        return 0.0 if second % 20 < 5 else min((slot.slot + 1) * (1 + second % 7) / 56, 1.0)

    def told(slot: SlotStatus) -> Generated:
        answers = second // 4 * (slot.slot + 1)
        return Generated(answers, answers * 120, answers * 4.0)

    slots = (
        replace(
            slot,
            gpus=tuple(gpu(slot, each) for each in slot.gpus),
            sent_bytes_per_second=load(slot) * 9000 if slot.serving else None,
            generated=told(slot) if tells and slot.serving else None,
        )
        for slot in status.slots
    )
    return replace(status, slots=tuple(slots))


@cache
def watched(night: str, tells: bool) -> tuple[Status, Trends]:
    status = status_of(NIGHTS[night])
    trends = Trends(period_s=2)
    for second in range(0, 55, 2):
        trends.add(busy(status, second, tells=tells), 1000.0 + second)
    return busy(status, 54, tells=tells), trends


def shown(night: str, window: Window, *, tells: bool = False) -> str:
    status, trends = watched(night, tells)
    return render_table(status, replace(window, trends=trends))


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


# trends


def test_what_was_not_seen_is_a_gap_and_not_zero() -> None:
    status = status_of(snapshots.good_night(1))
    trends = Trends(period_s=1)

    trends.add(busy(status, 0), 1000.0)
    trends.add(busy(status, 19), 1010.0)
    trends.go_on(1019.0)

    zero, *_ = trends.utilization(0, 4)
    assert trends.utilization(0, 5) == [None, zero, None, pytest.approx(6 / 56), None]
    assert zero == 0.0
    assert trends.utilization(7, 2) == [None, None]


def test_a_value_that_nobody_knows_is_a_gap() -> None:
    lost = replace(snapshots.good_night(2), gpus=replace(snapshots.good_night().gpus, readings={}))
    trends = Trends(period_s=1)

    trends.add(status_of(lost), 1000.0)

    assert trends.utilization(0, 1) == trends.sent(0, 1) == [None]


def test_a_step_is_the_mean_of_what_was_seen_in_it() -> None:
    status = status_of(snapshots.good_night(2))
    trends = Trends(period_s=1)
    for second, rate in enumerate((100.0, 200.0, 600.0)):
        slots = tuple(replace(slot, sent_bytes_per_second=rate * (1 + slot.slot)) for slot in status.slots)
        trends.add(replace(status, slots=slots), 1000.0 + second)

    assert trends.sent(0, 2) == [None, 300.0]
    assert trends.most_sent(1) == 600.0


@pytest.mark.parametrize("period_s", [0.5, 1, 2, 5, 10, 60])
def test_a_late_answer_leaves_no_gap(period_s: float) -> None:
    trends = Trends(period_s=period_s)
    status = busy(status_of(snapshots.good_night(1)), 9)
    for number in range(240):
        trends.add(status, number * period_s + (0.9 * period_s if number % 3 == 0 else 0))

    assert None not in trends.utilization(0, 10)


# tokens


def test_the_tokens_of_an_answer_came_over_the_time_that_it_took() -> None:
    trend = TokenTrend(5.0)
    trend.add(Generated(7, 1000, 99.0), 1000.0)
    trend.add(Generated(7, 1000, 99.0), 1019.0)
    trend.add(Generated(8, 1200, 109.0), 1020.0)

    assert trend.rates(203, 5, sending=[False] * 5) == [None, 0.0, 0.0, 20.0, 20.0]


def test_answers_that_end_together_ran_side_by_side() -> None:
    trend = TokenTrend(5.0)
    trend.add(Generated(), 1000.0)
    trend.add(Generated(4, 400, 40.0), 1020.0)

    assert trend.rates(203, 4, sending=[False] * 4) == [0.0, 0.0, 40.0, 40.0]


def test_of_an_answer_that_began_before_only_what_was_watched_counts() -> None:
    trend = TokenTrend(5.0)
    trend.add(Generated(), 1000.0)
    trend.add(Generated(1, 1000, 100.0), 1010.0)

    assert trend.rates(201, 3, sending=[False] * 3) == [None, 10.0, 10.0]


def test_while_an_answer_runs_its_tokens_are_not_known() -> None:
    trend = TokenTrend(5.0)
    trend.add(Generated(), 1000.0)
    trend.add(Generated(1, 50, 5.0), 1006.0)
    trend.add(Generated(1, 50, 5.0), 1020.0)

    assert trend.rates(203, 3, sending=[True, False, True]) == [pytest.approx(10.0), 0.0, None]


@pytest.mark.parametrize("again", [Generated(), Generated(9, 0, 0.0)])
def test_an_agent_that_counts_anew_is_a_gap_and_what_was_before_stays(again: Generated) -> None:
    trend = TokenTrend(5.0)
    trend.add(Generated(5, 500, 50.0), 1000.0)
    trend.add(Generated(6, 550, 55.0), 1005.0)
    trend.add(again, 1010.0)
    trend.add(again, 1014.0)

    assert trend.rates(202, 4, sending=[False] * 4) == [None, 10.0, None, 0.0]


def test_a_slot_that_gets_another_container_keeps_its_tokens() -> None:
    trend = TokenTrend(5.0)
    trend.add(Generated(5, 500, 50.0), 1000.0)
    trend.add(Generated(6, 550, 55.0), 1005.0)
    trend.add(None, 1010.0)

    assert trend.rates(202, 3, sending=[False] * 3) == [10.0, None, None]

    trend.add(Generated(7, 600, 60.0), 1015.0)

    assert trend.rates(202, 3, sending=[False] * 3) == [10.0, 0.0, 10.0]


@given(
    answers=some.lists(
        some.tuples(some.integers(1, 4), some.integers(1, 500), some.floats(0.0, 60), some.floats(0.5, 20)), max_size=12
    )
)
def test_no_token_is_lost_and_none_is_made_up(answers: list[tuple[int, int, float, float]]) -> None:
    trend, counted, now_s = TokenTrend(5.0), Generated(), 1000.0
    trend.add(counted, now_s)
    now_s += 60
    for count, tokens, seconds, pause_s in answers:
        now_s += pause_s
        counted = Generated(counted.answers + count, counted.tokens + tokens, counted.seconds + seconds)
        trend.add(counted, now_s)
    last = int(now_s // 5)
    rates = trend.rates(last, 100, sending=[False] * 100)

    covered = [max(min((step + 1) * 5, now_s) - max(step * 5, 1000.0), 0) for step in range(last - 99, last + 1)]
    assert sum((rate or 0.0) * known for rate, known in zip(rates, covered, strict=True)) == pytest.approx(
        counted.tokens
    )


def test_answers_are_in_the_status_of_a_server_that_tells_of_them_or_has_done_so() -> None:
    traffic = Traffic()
    traffic.keep([0, 1])
    traffic.event(1, Timing(10, 0.1, 40, 2.0))
    traffic.event(1, Timing(10, 0.1, 2, 0.5))
    old, new = snapshots.good_night(2), snapshots.good_night(2)
    told = {index: replace(evidence, ollama_version="0.30.0") for index, evidence in new.evidence.items()}

    status = parse(render(replace(new, evidence=told), traffic.generated()))

    assert [slot.generated for slot in status.slots] == [Generated(), Generated(2, 42, 2.5)]
    assert [slot.generated for slot in parse(render(old, traffic.generated())).slots] == [None, Generated(2, 42, 2.5)]


@pytest.mark.parametrize(
    ("version", "tells"),
    [
        ("0.30.0", True),
        ("0.32.15-rc1", True),
        ("1.0", True),
        ("0.29.9", False),
        ("0.3", False),
        ("", False),
        ("dev", False),
    ],
)
def test_ollama_tells_tokens_since_0_30(version: str, tells: bool) -> None:
    assert tells_tokens(version) is tells


# characters


@pytest.mark.parametrize(
    ("values", "blocks", "text"),
    [
        ([None, 0.0, 0.001, 0.5, 1.0, 2.0], True, ".▁▂▅██"),
        ([None, 0.0, 0.001, 0.5, 1.0, 2.0], False, ".01599"),
        ([], True, ""),
    ],
)
def test_nothing_known_nothing_and_a_little_differ(values: list[float | None], blocks: bool, text: str) -> None:
    assert sparkline(values, top=1.0, blocks=blocks) == text


@given(highest=some.floats(0, 1e12), least=some.sampled_from([1.0, 1000.0]))
def test_a_scale_holds_its_highest_value_and_is_round(highest: float, least: float) -> None:
    top = round_top(highest, least=least)

    assert top >= max(highest, least)
    assert f"{top:.6e}"[:8] in ("1.000000", "2.000000", "5.000000")
    assert top == least or top <= highest * 2.5


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 "), (999.4, "999 "), (999.6, "1.0 k"), (9_940, "9.9 k"), (9_960, "10 k"), (999_600, "1.0 M"), (5e9, "5 G")],
)
def test_amounts_are_short(value: float, text: str) -> None:
    assert amount(value) == text


@pytest.mark.parametrize(
    ("environment", "made_up", "blocks"),
    [
        ({"LANG": "zh_CN.UTF-8"}, False, True),
        ({"LANG": "C", "LC_ALL": "en_US.utf8"}, False, True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, True, False),
        ({"LC_CTYPE": "C.UTF-8"}, True, False),  # Python's own: nothing was set
        ({"LC_CTYPE": "C.UTF-8"}, False, True),
        ({"LANG": "de_DE.UTF-8", "LC_CTYPE": "C.UTF-8"}, True, True),  # of a locale that is not installed
        ({"LANG": "zh_CN.GB18030"}, False, False),
        ({"LANG": "en_US.UTF-8", "TERM": "linux"}, False, False),
        ({}, False, False),
    ],
)
def test_blocks_are_for_who_reads_utf_8(environment: dict[str, str], made_up: bool, blocks: bool) -> None:
    assert has_blocks(environment, utf8_by_default=made_up) is blocks


# low windows


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
