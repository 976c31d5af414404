"""What an agent that starts believes of containers that served before, until it has asked them itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from agentworld import CONFIG, World, release

from appliance_agent.evidence import Evidence, Running
from appliance_agent.slot_view import Seen
from appliance_agent.slots import Done
from appliance_agent.states import State

TWO = release("two")


class NewEyes(World):
    """After a restart nothing is known of a container at first, then only what is seen from outside, then all."""

    def __init__(self, slots: int = 2) -> None:
        super().__init__(slots)
        self.watched_after_s = 1.0
        self.asked_after_s = 3.0
        self.restarted_s: float | None = None
        self.outside = Evidence("", 0.0)
        self.until(self.all_proven)
        self.run(100)
        self.log.clear()

    def restart_agent(self, *, wall_s: float | None = None) -> None:
        super().restart_agent(wall_s=wall_s)
        self.restarted_s = self.mono_s

    def seen(self, done: Iterable[Done] = ()) -> Seen:
        seen, since_s = super().seen(done), self.restarted_s
        if since_s is None or self.mono_s - since_s > self.asked_after_s:
            return seen
        if self.mono_s - since_s <= self.watched_after_s:
            return replace(seen, evidence={})
        bare = {
            slot: replace(
                self.outside, container_id=evidence.container_id, watched_since_s=since_s + self.watched_after_s
            )
            for slot, evidence in seen.evidence.items()
        }
        return replace(seen, evidence=bare)


def states(world: World, seconds: int) -> set[State]:
    return {slot.state for _ in range(seconds) if world.tick() is not None for slot in world.host.slots}


@pytest.mark.parametrize("asked_after_s", [0, 1, 3, 25])
def test_a_slot_that_serves_is_ready_since_the_same_moment_after_a_restart_of_the_agent(asked_after_s: float) -> None:
    world = NewEyes()
    world.asked_after_s = asked_after_s
    before = [(slot.since_s, slot.ready_since_s) for slot in world.host.slots]
    told = world.host.history
    world.restart_agent()

    assert states(world, 60) == {State.READY}
    after = [(slot.since_s, slot.ready_since_s) for slot in world.host.slots]
    assert after == [pytest.approx(moments, abs=0.01) for moments in before]
    assert world.host.history == told


def test_a_server_that_refuses_is_not_believed() -> None:
    world = NewEyes(1)
    world.outside = replace(world.outside, refused_since_s=world.mono_s)
    world.restart_agent()

    assert states(world, 3) == {State.READY, State.LOADING}


def test_a_container_that_was_started_anew_meanwhile_is_not_believed() -> None:
    world = NewEyes(1)
    world.of(0).seen = replace(world.of(0).seen, started_at_s=world.wall_s)
    world.restart_agent()

    assert states(world, 3) == {State.READY, State.LOADING}


@pytest.mark.parametrize(("serves", "state"), [(True, State.READY), (False, State.LOADING)])
def test_a_server_of_which_nothing_is_heard_is_believed_for_half_a_minute(serves: bool, state: State) -> None:
    """The users that it serves let our question wait."""
    world = NewEyes(1)
    world.asked_after_s = 100
    world.restart_agent()
    world.run(29)
    believed = world.slot(0).state
    if serves:
        world.outside = replace(world.outside, flow_s=world.mono_s)

    world.run(10)

    assert (believed, world.slot(0).state) == (State.READY, state)


def test_a_server_that_lets_the_first_canary_wait_is_believed_no_longer_than_any_other() -> None:
    world = NewEyes(1)
    world.asked_after_s = 100
    world.restart_agent()
    world.outside = replace(
        world.outside, canary=Running(world.mono_s + 2), answered_s=world.mono_s, loaded=True, peers=0
    )

    assert states(world, 9) == {State.READY}
    world.until(lambda: len(world.removed(0)) == 1)
    assert "no token for 8 s, and nobody else is connected" in world.removed(0)[0].because


@pytest.mark.parametrize("watched_after_s", [0, 1])
def test_an_agent_that_starts_with_another_image_cuts_nobody_off(watched_after_s: float) -> None:
    world = NewEyes(1)
    world.watched_after_s = watched_after_s
    world.of(0).users = 2
    world.wanted = TWO
    world.restart_agent()

    world.run(20)
    assert world.log == []
    assert world.slot(0).state is State.DRAINING
    world.of(0).users = 0
    world.run(2)
    assert len(world.removed(0)) == 1


@pytest.mark.parametrize("watched_after_s", [0, 1])
def test_an_agent_that_takes_everything_down_at_once_cuts_nobody_off(watched_after_s: float) -> None:
    world = NewEyes(1)
    world.watched_after_s = watched_after_s
    world.of(0).users = 2
    world.restart_agent()
    world.host = replace(world.host, down=True)

    world.run(20)
    assert world.log == []
    world.until(lambda: len(world.removed(0)) == 1)
    assert f"still busy after {CONFIG.rollout.drain_s:.0f} s" in world.removed(0)[0].because
