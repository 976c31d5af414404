"""The agent against any order of events: a model of a host that hypothesis drives, with the promises as invariants.

One container for each slot, untouched slots are never restarted, a cause of the host never restarts many at once, every
action has a reason, budgets hold, and when all faults are gone everything serves again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
from agentworld import CONFIG, World, release
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from appliance_agent.slots import Cause, Host
from appliance_agent.states import SICK_REASONS, TRANSITIONS, Action, Reason, State

SLOTS = 4
INDEX = st.integers(0, SLOTS - 1)
ILLNESS = st.sampled_from(["wedged", "stalled", "on_cpu", "gone", "failing", "slow", "never_loads"])
CALM_S = 14_400
_BLAMED = frozenset({Reason.EXIT, Reason.OOM, Reason.XID, Reason.LOAD}) | SICK_REASONS


class Agent(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.world = World(SLOTS, config=replace(CONFIG, rollout=replace(CONFIG.rollout, drain_s=30)))
        self.touched: set[int] = set()
        self.forgot = False
        self.states: list[State] = []
        self.releases = 1
        self.tick(40)

    @rule(count=st.integers(1, 60))
    def wait(self, count: int) -> None:
        self.tick(count)

    @rule(index=INDEX, code=st.sampled_from([0, 1, 137, 139]), oom=st.booleans())
    def container_ends(self, index: int, code: int, oom: bool) -> None:
        if index in self.world.running():
            self.touch(index)
            self.world.end(index, code=code, oom=oom)

    @rule(index=INDEX, illness=ILLNESS)
    def container_falls_ill(self, index: int, illness: str) -> None:
        if index in self.world.running():
            self.touch(index)
            self.world.ill(index, illness)

    @rule(index=INDEX)
    def container_is_removed_by_somebody(self, index: int) -> None:
        if index in self.world.running():
            self.touch(index)
            del self.world.containers[self.world.of(index).seen.id]

    @rule(index=INDEX, code=st.sampled_from([13, 31, 43, 48, 63, 79, 94, 119, 4711]))
    def driver_reports_an_xid(self, index: int, code: int) -> None:
        self.touch(index)
        self.world.xid(index, code)

    @rule(index=INDEX, back=st.booleans())
    def gpu_is_lost_or_back(self, index: int, back: bool) -> None:
        self.touch(index)
        (self.world.lost.discard if back else self.world.lost.add)(self.world.gpus[index])

    @rule(up=st.booleans())
    def nvml_is_silent_or_not(self, up: bool) -> None:
        self.world.nvml_up = up

    @rule(up=st.booleans())
    def engine_is_silent_or_not(self, up: bool) -> None:
        self.world.engine_up = up

    @rule()
    def engine_restarts(self) -> None:
        if self.world.engine_up:
            self.touch(*range(SLOTS))
            self.world.restart_engine()

    @rule(index=INDEX, users=st.integers(0, 3))
    def users_come_and_go(self, index: int, users: int) -> None:
        if index in self.world.running():
            self.world.of(index).users = users

    @rule(illness=st.sampled_from(["", "", "exits", "wedged", "never_loads", "failing"]))
    def another_release_is_wanted(self, illness: str) -> None:
        self.touch(*range(SLOTS))
        self.releases += 1
        wanted = release(f"release-{self.releases}")
        bad = self.world.bad
        self.world.bad = lambda what: illness if what == wanted else bad(what)
        self.world.wanted = wanted

    @rule(index=INDEX)
    def container_cannot_be_ended(self, index: int) -> None:
        if index in self.world.running():
            self.touch(index)
            self.world.stuck.add(self.world.of(index).seen.id)

    @rule(kept=st.booleans(), data=st.data())
    def agent_is_killed(self, kept: bool, data: st.DataObject) -> None:
        """With actions on their way: each may have been done, or not."""
        self.tick(1, finish=False)
        for decision in self.world.in_hand:
            if data.draw(st.booleans(), label=f"{decision.action.value} {decision.slot} was done"):
                self.world._done(decision)  # noqa: SLF001
        self.world.restart_agent()
        if not kept:
            self.forgot = True
            self.touch(*range(SLOTS))
            self.world.host = Host()

    @precondition(lambda self: hasattr(self, "world"))
    @invariant()
    def names_are_used_once(self) -> None:
        names = [each.seen.name for each in self.world.containers.values()]

        assert len(names) == len(set(names)) <= SLOTS

    def teardown(self) -> None:
        """All faults end: then everything must serve again, on a release that is not bad."""
        if not hasattr(self, "world"):
            return
        world = self.world
        world.engine_up = world.nvml_up = True
        world.lost.clear()
        world.stuck.clear()
        if world.host.good is None or self.forgot:  # without memory there may be no good release to go back to
            world.bad = lambda _: ""
        for container in world.containers.values():
            assert container.seen.release is not None
            container.ill, container.users = world.bad(container.seen.release), 0
        for _ in range(CALM_S // 30):
            self.tick(1, seconds=30)
            if world.all_ready():
                break

        assert world.all_ready(), world.states()

    def touch(self, *indexes: int) -> None:
        self.touched |= set(indexes)

    def tick(self, count: int, *, finish: bool = True, seconds: float = 1.0) -> None:
        for _ in range(count):
            before = {slot.plan.index: slot.state for slot in self.world.host.slots}
            decisions = self.world.tick(seconds, finish=finish)
            assert all(decision.because for decision in decisions)
            assert all(
                decision.slot in self.touched or decision.reason is Reason.START or decision.action is Action.PULL
                for decision in decisions
            ), decisions
            assert not decisions or self.world.engine_up
            self.legal(before)
            self.budgets()

    def legal(self, before: dict[int, State]) -> None:
        for slot in self.world.host.slots:
            old = before.get(slot.plan.index, State.ABSENT)
            assert slot.state is old or slot.state in TRANSITIONS[old], f"{old.name} to {slot.state.name}"

    def budgets(self) -> None:
        config = self.world.config.healing
        for slot in self.world.host.slots:
            recent = [at_s for at_s in slot.failures if self.world.mono_s - at_s < config.budget_window_s]
            if len(recent) >= config.budget:
                assert slot.quarantine is not None
                assert slot.quarantine.cause in (Cause.BUDGET, Cause.GPU, Cause.UNKILLABLE)


TestAgent = Agent.TestCase
TestAgent.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


@pytest.mark.parametrize("count", range(1, 60))
def test_a_rolling_change_ends_well_wherever_the_agent_is_killed(count: int) -> None:
    """Crash points one by one: after each tick of the change, with the actions done or lost."""
    for done in (True, False):
        world = World(3)
        world.until(world.all_proven)
        world.wanted = release("two")
        world.run(count - 1)
        world.tick(finish=False)
        if done:
            for decision in world.in_hand:
                world._done(decision)  # noqa: SLF001
        world.restart_agent()

        world.until(partial(_runs, world, "sha256:two"))

        assert [len(world.made(index)) <= 3 for index in range(3)] == [True] * 3
        assert world.host.refused is None


def _runs(world: World, image_id: str) -> bool:
    return world.all_proven() and set(world.running().values()) == {image_id}
