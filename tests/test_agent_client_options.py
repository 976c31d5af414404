"""What clients' options do to the loaded model: when a canary names a context, and when no preload is sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from appliance_agent.access_log import Access, LoadBegan, LoadFailed, ModelLoad, Timing
from appliance_agent.client_options import ClientOptions
from appliance_agent.config import HealthConfig
from appliance_agent.evidence import Canary, Evidence, Outcome
from appliance_agent.loading import after_canary, after_line

CONFIG = HealthConfig()
OK = Canary(50.0, 51.0, Outcome.OK, first_token_s=0.5, tokens=9)
SERVED = Evidence("c", watched_since_s=0.0, loaded=True, canaries=(OK,))
LOADING = replace(SERVED, loading_since_s=100.0)


@pytest.mark.parametrize(
    ("default", "listed", "named"),
    [
        (None, 8192, None),  # not known yet: after a restart of the agent
        (4096, 4096, None),
        (4096, 8192, 8192),
        (4096, 0, None),  # told no more
        (0, 0, None),  # never told
        (0, 8192, None),
    ],
)
def test_a_context_is_named_only_if_it_is_not_the_default(default: int | None, listed: int, named: int | None) -> None:
    options = ClientOptions()
    if default is not None:
        options.learn_default(default)

    assert options.context_tokens(listed) == named


def test_a_model_that_is_unlisted_for_a_moment_may_be_between_two_runners() -> None:
    options = ClientOptions()

    assert options.are_loading(SERVED, CONFIG, 100.0, listed=False)
    assert options.are_loading(SERVED, CONFIG, 105.9, listed=False)
    assert not options.are_loading(SERVED, CONFIG, 106.0, listed=False)
    assert not options.are_loading(SERVED, CONFIG, 110.0, listed=True)
    assert options.are_loading(SERVED, CONFIG, 111.0, listed=False)


def test_a_load_for_others_is_waited_for_as_long_as_it_moves() -> None:
    options = ClientOptions()
    moving = replace(LOADING, progress_s=4000.0)

    assert options.are_loading(LOADING, CONFIG, 399.0, listed=False)
    assert not options.are_loading(LOADING, CONFIG, 401.0, listed=False)
    assert options.are_loading(moving, CONFIG, 4200.0, listed=False)


def test_the_first_load_of_a_container_waits_for_nobody() -> None:
    assert not ClientOptions().are_loading(replace(LOADING, canaries=()), CONFIG, 100.0, listed=False)


@pytest.mark.parametrize("event", [ModelLoad(3.0), LoadFailed("no memory"), Timing(1, 0.1, 2, 0.1)], ids=repr)
def test_a_load_begins_and_ends_with_its_lines(event: ModelLoad | LoadFailed | Timing) -> None:
    begun = after_line(SERVED, LoadBegan(), 100.0)
    between = after_line(begun, Access(200, 0.1, "10.0.0.1", "GET", "/api/ps"), 101.0)
    ended = after_line(between, event, 103.0)

    assert begun == between == LOADING
    assert (ended.loading_since_s, ended.loading_ended_s) == (None, 103.0)
    assert after_line(SERVED, event, 103.0) == SERVED


@pytest.mark.parametrize(
    ("canary", "is_over"),
    [
        (replace(OK, started_s=99.0, first_token_s=4.0), True),
        (replace(OK, started_s=99.0, first_token_s=0.5), False),  # answered before it began
        (replace(OK, started_s=101.0, outcome=Outcome.TIMEOUT, first_token_s=None), False),
    ],
)
def test_a_load_whose_end_is_not_logged_ends_with_a_canary_that_waited_for_it(canary: Canary, is_over: bool) -> None:
    assert (after_canary(LOADING, canary).loading_since_s is None) is is_over
