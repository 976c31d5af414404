"""Busy time from samples of the driver, and bytes from counters that wrap."""

from __future__ import annotations

import random

import pytest

from appliance_agent.gpu_meters import Busy, Bytes

SECOND = 1_000_000


def busy(*looks: list[tuple[float, int]]) -> Busy:
    """Samples as seconds and percent, look after look."""
    meter = Busy()
    for look in looks:
        meter = meter.after((int(at_s * SECOND), percent) for at_s, percent in look)
    return meter


def test_a_sample_stands_for_the_time_since_the_one_before() -> None:
    assert busy([(100, 0)], [(100.2, 50), (100.5, 100), (101.5, 10)]).seconds == pytest.approx(0.1 + 0.3 + 0.1)


def test_what_was_before_the_first_look_is_not_counted() -> None:
    """After a restart it would be counted twice."""
    assert busy([(80, 100), (81, 100), (82, 100)]).seconds == 0
    assert busy([(81, 100), (82, 100)], [(82.5, 100)]).seconds == pytest.approx(0.5)


def test_it_does_not_matter_where_one_look_ends_and_the_next_begins() -> None:
    chance = random.Random(7)
    samples = [(100 + place * 0.167 + chance.uniform(0, 0.05), chance.randrange(101)) for place in range(200)]
    whole = busy(samples[:1], samples[1:])
    for size in (1, 3, 17, 100):
        looks = [samples[place : place + size] for place in range(1, len(samples), size)]

        assert busy(samples[:1], *looks).seconds == pytest.approx(whole.seconds)


def test_samples_that_were_seen_before_are_not_counted_twice_and_their_order_is_nothing() -> None:
    samples = [(100.0, 0), (100.5, 100), (101.0, 50)]

    assert busy(samples[:1], samples, samples, list(reversed(samples))).seconds == pytest.approx(0.75)
    assert busy(samples[:1], list(reversed(samples))).seconds == pytest.approx(0.75)


def test_time_that_nobody_sampled_counts_for_nothing() -> None:
    assert busy([(100, 0)], [(101, 100)], [(200, 100), (201, 100)]).seconds == pytest.approx(2)


def test_a_clock_that_is_set_back_stops_the_count_for_a_moment_only() -> None:
    meter = busy([(5000, 0)], [(5001, 100)])
    for look in range(30):
        meter = meter.after([((1000 + look) * SECOND, 100)])

    assert meter.seconds == pytest.approx(1 + 30 - 3, abs=1)


def test_a_few_looks_without_a_sample_lose_nothing() -> None:
    meter = busy([(100, 0)]).quiet().quiet()

    assert meter.after([(101 * SECOND, 100)]).seconds == pytest.approx(1)


def test_more_than_all_of_the_time_is_never_counted() -> None:
    assert busy([(100, 0)], [(101, 250)]).seconds == 1


def counted(*values: int, bits: int, step_s: float = 1.0) -> int:
    meter = Bytes()
    for place, value in enumerate(values):
        meter = meter.after(value, bits=bits, now_s=place * step_s)
    return meter.total


@pytest.mark.parametrize("bits", [32, 64])
def test_bytes_are_counted_across_the_wrap(bits: int) -> None:
    top = 1 << bits

    assert counted(top - 1000, top - 400, 200, 700, bits=bits) == 600 + 600 + 500


def test_a_counter_that_begins_anew_is_not_taken_for_one_that_wrapped() -> None:
    assert counted(5 * 10**12, 5 * 10**12 + 7, 100, 150, bits=64) == 7 + 50


def test_the_first_value_is_where_the_count_begins() -> None:
    assert counted(10**15, bits=64) == 0
