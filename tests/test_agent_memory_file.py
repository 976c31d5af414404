"""What the agent remembers over an end of its own, also when the clock of the host was wrong before or is now."""

from __future__ import annotations

import pytest
from agentworld import CONFIG, World
from hypothesis import given
from hypothesis import strategies as st

from appliance_agent.config import HealingConfig
from appliance_agent.memory_file import parse, render
from appliance_agent.slots import Cause, Host, Now, Quarantine, Slot
from appliance_agent.spec import SlotPlan
from appliance_agent.states import State

PLAN = SlotPlan(0, "ollama-0", ("GPU-0",), 8880)
HOUR_S, DAY_S, YEAR_S = 3600.0, 86_400.0, 31_536_000.0
WALL_S = 1_800_000_000.0

configs = st.builds(
    HealingConfig,
    backoff_max_s=st.floats(1, DAY_S),
    probation_s=st.floats(1, DAY_S),
)
moments = st.floats(-DAY_S, DAY_S)  # from the moment of writing
quarantines = st.builds(Quarantine, st.sampled_from(Cause), st.just("because"), moments, moments, st.integers(0, 5000))
slots = st.builds(
    Slot,
    st.just(PLAN),
    since_s=moments,
    failures=st.lists(moments, max_size=6).map(lambda times: tuple(sorted(times))),
    not_before_s=moments,
    ready_since_s=st.none() | moments,
    quarantine=st.none() | quarantines,
)
clocks = st.floats(0, WALL_S + 100 * YEAR_S)


def reloaded(slot: Slot, healing: HealingConfig, *, written_wall_s: float, read: Now) -> Slot:
    """Written at 0 of the other clock."""
    found = parse(render(Host((slot,)), Now(0.0, written_wall_s)), read, healing).slot(0)
    assert found is not None
    return found


@given(slots, configs, clocks, clocks, st.floats(0, YEAR_S))
def test_nothing_is_remembered_that_is_later_than_it_can_be(
    slot: Slot, healing: HealingConfig, written_wall_s: float, read_wall_s: float, uptime_s: float
) -> None:
    found = reloaded(slot, healing, written_wall_s=written_wall_s, read=Now(uptime_s, read_wall_s))

    assert found.since_s <= uptime_s
    assert all(at_s <= uptime_s for at_s in found.failures)
    assert len(found.failures) == len(slot.failures)
    assert found.ready_since_s is None or found.ready_since_s <= uptime_s
    assert found.not_before_s <= uptime_s + healing.backoff_max_s
    if found.quarantine is not None:
        assert found.quarantine.since_s <= uptime_s
        assert found.quarantine.until_s <= uptime_s + DAY_S
        if found.quarantine.level == 0:
            assert found.quarantine.until_s <= uptime_s + max(10.0, healing.probation_s)


@given(st.floats(0, 10 * DAY_S))
def test_with_a_clock_that_is_right_everything_is_remembered_as_it_was(away_s: float) -> None:
    written = Slot(
        PLAN,
        since_s=-60.0,
        failures=(-120.0, -60.0),
        not_before_s=200.0,
        ready_since_s=-30.0,
        quarantine=Quarantine(Cause.BUDGET, "failed", -60.0, 1100.0, 1),
    )

    found = reloaded(written, HealingConfig(), written_wall_s=WALL_S, read=Now(5.0, WALL_S + away_s))

    def then(moment_s: float) -> object:
        return pytest.approx(moment_s - away_s + 5.0, abs=0.01)

    assert (found.since_s, found.not_before_s, found.ready_since_s) == (then(-60.0), then(200.0), then(-30.0))
    assert list(found.failures) == [then(-120.0), then(-60.0)]
    assert found.quarantine is not None
    assert (found.quarantine.since_s, found.quarantine.until_s) == (then(-60.0), then(1100.0))


@pytest.mark.parametrize("back_s", [8 * HOUR_S, 50 * YEAR_S], ids=["local time", "dead battery"])
@pytest.mark.parametrize("failures", [3, 6], ids=["back-off", "quarantine"])
def test_a_clock_that_is_behind_at_boot_makes_no_pause_longer_than_the_longest(failures: int, back_s: float) -> None:
    world = World(2)
    world.until(world.all_proven)
    for _ in range(failures):
        world.until(lambda: 0 in world.running())
        world.end(0)
        world.tick()
    world.tick()
    assert world.slot(0).state in (State.WAITING, State.QUARANTINED)
    world.restart_agent(wall_s=world.wall_s - back_s)

    healing = CONFIG.healing
    limit_s = healing.backoff_max_s if failures == 3 else healing.probation_s
    assert world.until(world.all_ready, limit_s=limit_s + 60) <= limit_s + 60
