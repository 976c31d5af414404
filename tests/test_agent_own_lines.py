"""Which timings are our own canary's: its figures say it, whenever they come and whatever came before."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from appliance_agent.access_log import MARK, Access, Event, LoadBegan, ModelLoad, Parser, Timing
from appliance_agent.evidence import Canary, Outcome
from appliance_agent.own_lines import HELD_S, OwnLines, Told

TOKENS = 8
OURS = Timing(5, 0.00027, 8, 0.14321)
CANARY = Canary(100.0, 100.5, Outcome.OK, tokens=8, answer_s=0.143214, prompt_s=0.000265)
CUT = Canary(100.0, 100.5, Outcome.TIMEOUT)
USERS = (
    Timing(5, 0.00027, 8, 0.14325),  # a few hundredths of a millisecond beside it
    Timing(5, 0.00029, 8, 0.14321),
    Timing(5, 0.00027, 7, 0.14321),
    Timing(900, 0.2, 3, 0.01),
)


def own_in_a_canary() -> OwnLines:
    own = OwnLines()
    own.began(100.0, TOKENS)
    return own


def held(own: OwnLines, *timings: Timing, at_s: float = 100.4) -> None:
    assert [own.is_users(timing, at_s) for timing in timings] == [False] * len(timings)


def timings(told: Sequence[Told]) -> list[Event]:
    return [event for _, event in told]


@pytest.mark.parametrize(
    ("event", "users"),
    [
        (Access(200, 1.0, "127.0.0.1", "POST", "/api/chat", MARK), False),
        (Access(200, 1.0, "127.0.0.1", "POST", "/api/chat"), True),
        (Access(200, 1.0, "127.0.0.1", "POST", "/api/chat", f"{MARK}&x"), True),
        (Timing(1, 0.1, 2, 0.1), True),
        (LoadBegan(), True),
        (ModelLoad(3.0), True),
    ],
)
def test_without_a_canary_the_mark_alone_tells_our_requests(event: Event, users: bool) -> None:
    assert OwnLines().is_users(event, 0.0) is users


@pytest.mark.parametrize("place", range(len(USERS) + 1))
def test_the_timing_with_the_canary_s_figures_is_ours_wherever_it_stands(place: int) -> None:
    own = own_in_a_canary()
    held(own, *USERS[:place], OURS, *USERS[place:])

    assert timings(own.ended(CANARY)) == list(USERS)
    assert own.is_users(OURS, 100.6)


def test_a_timing_that_comes_after_the_answer_is_ours() -> None:
    own = own_in_a_canary()
    held(own, *USERS)
    own.ended(CANARY)
    after = [own.is_users(timing, 105.0) for timing in (*USERS, OURS, OURS)]

    assert after == [True, True, True, True, False, True]


def test_a_timing_that_comes_while_the_next_canary_is_under_way_is_ours() -> None:
    own = own_in_a_canary()
    own.ended(CANARY)
    own.began(101.0, TOKENS)
    late = own.is_users(OURS, 101.2)
    second = replace(CANARY, started_s=101.0, ended_s=101.5, answer_s=0.2)
    held(own, replace(OURS, answer_s=0.2), at_s=101.3)

    assert late is False
    assert timings(own.ended(second)) == []


def test_a_timing_that_never_comes_is_not_waited_for() -> None:
    own = own_in_a_canary()
    own.ended(CANARY)

    assert own.is_users(OURS, 111.0)


def test_longer_answers_and_those_that_began_before_us_are_users_at_once() -> None:
    own = own_in_a_canary()

    assert own.is_users(Timing(5, 0.1, TOKENS + 2, 0.1), 100.4)
    assert own.is_users(Timing(5, 0.5, TOKENS, 0.5), 100.4)


@pytest.mark.parametrize("outcome", [Outcome.REFUSED, Outcome.HTTP_ERROR, Outcome.SERVER_BUSY])
def test_a_canary_that_never_ran_has_no_timing(outcome: Outcome) -> None:
    own = own_in_a_canary()
    held(own, *USERS)

    assert timings(own.ended(replace(CUT, outcome=outcome))) == list(USERS)
    assert own.is_users(OURS, 100.6)


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.STREAM_ERROR])
def test_of_a_canary_without_figures_the_newest_that_could_be_it_is_left_out(outcome: Outcome) -> None:
    own = own_in_a_canary()
    held(own, *USERS)

    assert timings(own.ended(replace(CUT, outcome=outcome))) == list(USERS[:-1])
    assert own.is_users(OURS, 100.6)


def test_or_else_the_next_one_within_two_seconds() -> None:
    early, late = own_in_a_canary(), own_in_a_canary()
    early.ended(CUT)
    late.ended(CUT)
    long = early.is_users(replace(OURS, answer_tokens=100), 101.0)
    next_two = [early.is_users(OURS, 101.0), early.is_users(OURS, 101.0)]

    assert (long, next_two) == (True, [False, True])
    assert late.is_users(OURS, 103.0)


def test_what_is_held_has_a_limit_while_a_canary_hangs() -> None:
    own = own_in_a_canary()
    held(own, USERS[0], at_s=101.0)
    held(own, USERS[1], at_s=105.0)
    before = own.overdue(101.0 + HELD_S)
    free = own.overdue(101.5 + HELD_S)

    assert before == []
    assert free == [(101.0, USERS[0])]
    assert own.holds


def test_a_server_that_logs_no_timings_costs_no_memory() -> None:
    own = OwnLines()
    for number in range(1000):
        own.began(10.0 * number, TOKENS)
        own.ended(replace(CANARY, started_s=10.0 * number, ended_s=10.0 * number + 0.5))

    assert len(own._missing) <= 2  # noqa: SLF001 - nothing else shows it


@pytest.mark.parametrize(
    ("tokens", "answer_ns", "prompt_ns"),
    [(8000, 1486174000, 265000), (8000, 1513299000, 1395000), (2, 135000, 291000)],
)
def test_the_end_of_a_recorded_stream_has_the_figures_of_its_line(tokens: int, answer_ns: int, prompt_ns: int) -> None:
    """What a real server said to its client, and what it wrote into its log at the time."""
    recorded = Path(__file__).parent / "recordings" / "logs" / "0.33.0-rc2.log"
    events = [line.event for line in Parser().feed(recorded.read_bytes())]
    told = [event for event in events if isinstance(event, Timing)]
    own = OwnLines()
    own.began(0.0, tokens)
    for timing in told:
        own.is_users(timing, 100.0)
    users = own.ended(Canary(0.0, 100.0, Outcome.OK, tokens=tokens, answer_s=answer_ns / 1e9, prompt_s=prompt_ns / 1e9))
    [ours] = [timing for timing in told if timing.answer_tokens <= tokens + 1 and timing not in timings(users)]

    assert ours.answer_tokens == tokens
    assert ours.answer_s == pytest.approx(answer_ns / 1e9, abs=6e-6)


@pytest.mark.parametrize("seed", range(50))
def test_whatever_the_order_every_user_s_timing_is_counted_once(seed: int) -> None:
    """Canaries and users interleaved, our own timing before or after the answer's end."""
    chance = random.Random(seed)
    own, counted, expected, now_s = OwnLines(), list[Event](), list[Event](), 0.0

    def log(timing: Timing) -> None:
        if own.is_users(timing, now_s):
            counted.append(timing)

    def user() -> None:
        timing = Timing(
            chance.randrange(1, 50), round(chance.random(), 5), chance.randrange(1, 12), round(chance.random(), 5)
        )
        expected.append(timing)
        log(timing)

    for _ in range(200):
        now_s += 3.0
        own.began(now_s, TOKENS)
        canary = Canary(
            now_s, now_s + 1, Outcome.OK, tokens=8, answer_s=chance.random() / 2, prompt_s=chance.random() / 2
        )
        ours = Timing(4, round(canary.prompt_s, 5), 8, round(canary.answer_s or 0, 5))
        late = chance.random() < 0.5
        now_s += 1.0
        for _ in range(chance.randrange(4)):
            user()
        if not late:
            log(ours)
        for _ in range(chance.randrange(4)):
            user()
        counted += timings(own.ended(canary))
        for _ in range(chance.randrange(4)):
            user()
        if late:
            log(ours)

    key = str
    assert sorted(counted, key=key) == sorted(expected, key=key)
