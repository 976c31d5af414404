"""When a server is asked, when users' traffic makes it needless."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from appliance_agent.config import HealthConfig
from appliance_agent.due import AT_ONCE, due_s, is_hopeless, is_left_out, is_questionable, is_troubled, was_alone
from appliance_agent.evidence import Canary, Evidence, Load, Outcome, Running

CONFIG = HealthConfig(canary_interval_s=10, first_token_s=8, fresh_s=10, silent_s=300)
NEW = Evidence("c1", watched_since_s=0.0, loaded=True)
GOOD = Canary(100.0, 100.2, Outcome.OK, first_token_s=0.1)
PROVED = replace(NEW, canaries=(GOOD,))


def due(evidence: Evidence, asked_s: float | None = 100.2, spread: float = 1.0) -> float:
    return due_s(evidence, CONFIG, asked_s=asked_s, spread=spread)


def test_a_container_that_began_is_asked_at_once() -> None:
    assert due(NEW, None) == AT_ONCE


def test_a_healthy_server_is_asked_every_interval_from_start_to_start_with_its_spread() -> None:
    assert due(PROVED) == 110.0
    assert due(PROVED, spread=0.9) == 109.0


def test_after_a_load_the_canary_comes_at_once() -> None:
    loaded = replace(NEW, load=Load(50.0, 150.0, Outcome.OK))

    assert due(loaded, 150.0) == AT_ONCE
    assert due(replace(loaded, canaries=(GOOD,)), 150.0) == AT_ONCE
    assert due(replace(loaded, canaries=(replace(GOOD, started_s=150.1),)), 150.4) == pytest.approx(160.1)


def test_a_load_that_failed_is_tried_again_after_an_interval() -> None:
    assert due(replace(NEW, load=Load(50.0, 150.0, Outcome.HTTP_ERROR)), 150.0) == 160.0


@pytest.mark.parametrize(
    "canary", [replace(GOOD, outcome=Outcome.STREAM_ERROR), replace(GOOD, first_token_s=4.1, ended_s=104.5)]
)
def test_trouble_is_looked_at_sooner(canary: Canary) -> None:
    evidence = replace(NEW, canaries=(canary,))

    assert is_troubled(evidence, CONFIG)
    assert due(evidence, canary.ended_s) == canary.ended_s + 2.5


def test_a_server_that_refuses_is_asked_twice_a_second_at_first() -> None:
    refused = replace(PROVED, refused_since_s=100.0)

    assert due(refused, 101.0) == 101.5
    assert due(refused, 161.0) == 163.5


@pytest.mark.parametrize(
    ("evidence", "left_out"),
    [
        (PROVED, False),
        (replace(PROVED, answer_line_s=105.0), True),
        (replace(PROVED, flow_s=108.0), True),
        (replace(PROVED, flow_s=105.0), False),
        (replace(PROVED, flow_s=105.0, answer_line_s=105.0), True),
        (replace(PROVED, flow_s=105.0, answer_line_s=102.0), False),  # another answer began, and stopped
        (replace(PROVED, flow_s=108.0, answer_line_s=90.0), True),
        (replace(PROVED, flow_s=99.0), False),
        (replace(PROVED, flow_s=108.0, canaries=(replace(GOOD, started_s=49.0),)), False),
        (replace(PROVED, flow_s=108.0, canaries=(replace(GOOD, outcome=Outcome.TIMEOUT),)), False),
        (replace(PROVED, flow_s=108.0, canaries=(replace(GOOD, outcome=Outcome.SERVER_BUSY),)), True),
        (replace(NEW, flow_s=108.0), False),
    ],
)
def test_users_speak_for_a_server_for_a_while(evidence: Evidence, left_out: bool) -> None:
    assert is_left_out(evidence, CONFIG, now_s=109.5) is left_out


@pytest.mark.parametrize(
    ("evidence", "hopeless"),
    [
        (PROVED, False),
        (replace(PROVED, canary=Running(1000.0)), False),
        (replace(PROVED, canary=Running(600.0)), True),
        (replace(PROVED, canary=Running(600.0, 610.0, 900.0, 7)), False),
        (replace(PROVED, canary=Running(600.0), progress_s=900.0), False),
    ],
)
def test_a_canary_is_given_up_only_when_nothing_has_moved_for_long(evidence: Evidence, hopeless: bool) -> None:
    assert is_hopeless(evidence, CONFIG, now_s=1000.0) is hopeless


@pytest.mark.parametrize(
    ("changes", "questionable"),
    [
        ({}, False),
        ({"canary": Running(100.0)}, True),
        ({"canary": Running(109.8)}, False),
        ({"canary": Running(100.0, 100.1, 109.9, 3)}, False),
        ({"canary": Running(100.0, 100.1, 105.0, 3)}, True),
        ({"canaries": (Canary(100.0, 100.0, Outcome.SERVER_BUSY),)}, True),
        ({"canaries": (Canary(100.0, 100.1, Outcome.OK),)}, False),
        ({"canary": Running(100.0), "flow_s": 109.0}, False),
        ({"canary": Running(100.0), "flow_s": 105.0}, True),
    ],
)
def test_connections_are_counted_only_while_our_own_request_gets_nothing(
    changes: dict[str, Any], questionable: bool
) -> None:
    evidence = replace(Evidence("c", watched_since_s=0.0), **changes)

    assert is_questionable(evidence, 110.0) is questionable


def test_a_canary_was_alone_if_nobody_was_served_since_it_began() -> None:
    canary = Canary(100.0, 101.0, Outcome.OK)
    evidence = Evidence("c", watched_since_s=0.0, flow_s=90.0, answer_line_s=80.0)

    assert was_alone(evidence, canary)
    assert not was_alone(replace(evidence, flow_s=100.5), canary)
    assert not was_alone(replace(evidence, answer_line_s=99.9), canary)
