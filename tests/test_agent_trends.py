"""What somebody who watches remembers of the last minutes, and the characters that stand for it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import snapshots
from hypothesis import given
from hypothesis import strategies as some
from watchednights import busy, status_of

from appliance_agent.access_log import Timing
from appliance_agent.amounts import amount
from appliance_agent.cli_status import has_blocks
from appliance_agent.generated import Generated, tells_tokens
from appliance_agent.sparkline import round_top, sparkline
from appliance_agent.status_json import parse, render
from appliance_agent.token_trend import TokenTrend
from appliance_agent.traffic import Traffic
from appliance_agent.trends import Trends


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
