"""What is wrong with the host, and not with a slot, takes no slot down and is charged to none. Found by the fault matrix."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agentworld import World, release
from troubledworld import THERMAL, TroubledWorld

from appliance_agent.containers import NO_ENGINE
from appliance_agent.gpus import RecoveryAction
from appliance_agent.slots import Done
from appliance_agent.states import Action, Reason, State

TWO = release("two")
NO_TOOLKIT = Done(Action.CREATE, 0, ok=False, error="no way to hand out GPUs", obstacle=True, host_wide=True)


def ready(slots: int = 4) -> World:
    world = World(slots)
    world.until(world.all_proven)
    world.log.clear()
    return world


def troubled() -> TroubledWorld:
    world = TroubledWorld()
    world.until(world.all_proven)
    world.log.clear()
    return world


def test_slots_that_fall_ill_one_by_one_of_the_same_cause_are_treated_one_after_the_other() -> None:
    """Canaries find out at different moments."""
    world = ready()
    for index in range(4):
        world.ill(index, "wedged")
        world.run(2)

    world.until(lambda: bool(world.removed(0)))
    world.run(3)

    assert [len(world.removed(index)) for index in range(4)] == [1, 0, 0, 0]
    world.until(world.all_ready)
    assert [len(world.removed(index)) for index in range(4)] == [1, 1, 1, 1]


def test_an_agent_that_starts_while_the_engine_is_silent_keeps_what_it_remembers() -> None:
    world = troubled()
    world.engine_up = False
    world.restart_agent()

    world.run(60)

    assert [slot.state for slot in world.host.slots] == [State.READY] * 4
    assert all(not slot.failures for slot in world.host.slots)
    world.engine_up = True
    assert world.run(120) == []


def test_nothing_is_taken_for_gone_while_the_engine_was_never_asked() -> None:
    world = ready(2)
    world.host = replace(world.host, down=True)
    seen = world.seen()
    world.seen = lambda done=(): replace(seen, engine=NO_ENGINE)  # type: ignore[method-assign]

    world.run(10)

    assert State.STOPPED not in [slot.state for slot in world.host.slots]


def test_a_container_that_the_engine_removes_later_than_asked_was_not_removed_by_somebody_else() -> None:
    world = troubled()
    world.end(0)
    world.freeze()
    world.run(12)
    world.thaw()

    world.until(world.all_ready)

    assert [each.reason for each in world.made(0)] == [Reason.EXIT]
    assert len(world.slot(0).failures) == 1


def test_a_removal_that_was_done_when_the_agent_was_killed_is_no_loss() -> None:
    world = troubled()
    world.end(0)
    world.tick(finish=False)
    world.restart_agent(done=True)

    world.until(world.all_ready)

    assert [each.reason for each in world.made(0)] == [Reason.EXIT]
    assert len(world.slot(0).failures) == 1


@pytest.mark.parametrize("what", ["library missing", "driver mismatch"])
def test_starts_that_fail_without_a_driver_are_charged_to_no_slot(what: str) -> None:
    world = troubled()
    world.driver_problem = what
    world.end(0)

    world.run(600)
    failures = world.slot(0).failures
    world.driver_problem = ""
    world.run(30)

    assert len(failures) == 1
    assert world.all_ready()


def test_an_image_that_is_gone_is_waited_for_and_charged_to_no_slot() -> None:
    world = troubled()
    world.image_is_there = False
    world.end(0)

    world.run(600)
    failures, state = world.slot(0).failures, world.slot(0).state
    world.image_is_there = True
    world.until(world.all_ready, limit_s=90)

    assert len(failures) == 1
    assert state is State.BLOCKED
    assert Action.PULL in [each.action for each in world.log]


@pytest.mark.parametrize("what", ["no toolkit", "no image", "no driver"])
def test_a_rolling_change_stops_at_the_first_slot_that_cannot_start(what: str) -> None:
    world = troubled()
    world.image_id, world.image_told = "sha256:two", None
    world.until(lambda: bool(world.log))
    world.image_is_there = what != "no image"
    world.driver_problem = "library missing" if what == "no driver" else ""
    world.create_error = NO_TOOLKIT if what == "no toolkit" else None

    world.run(900)

    assert [len(world.removed(index)) for index in range(4)] == [1, 0, 0, 0]
    assert world.host.refused is None
    world.image_is_there, world.driver_problem, world.create_error = True, "", None
    world.until(lambda: world.all_proven() and set(world.running().values()) == {"sha256:two"})


def test_nothing_that_works_is_taken_away_while_the_driver_is_silent() -> None:
    world = troubled()
    world.nvml_up = False
    world.image_id, world.image_told = "sha256:two", None

    assert world.run(600) == []
    world.nvml_up = True
    world.until(lambda: world.all_proven() and set(world.running().values()) == {"sha256:two"})


def test_a_release_that_asks_for_what_the_host_does_not_have_is_rolled_back_after_one_slot() -> None:
    world = ready()
    world.wanted = TWO
    world.until(lambda: bool(world.removed(0)))
    world.create_error = replace(NO_TOOLKIT, error="the store /srv/x is not there", release=True)
    world.tick()
    world.create_error = None

    without_s = world.until(lambda: 0 in world.running())
    world.until(world.all_proven)

    assert without_s <= 2  # nobody waits to see whether what is given up works now
    assert world.host.refused is not None
    assert "/srv/x" in world.host.refused.because
    assert [len(world.removed(index)) for index in range(4)] == [1, 0, 0, 0]


def test_a_gpu_that_the_driver_wants_drained_waits_for_no_other_slot() -> None:
    world = troubled()
    world.of(1).users = 1
    world.image_is_there, world.image_told = False, None
    world.end(0)
    world.run(3)
    world.cards[1].recovery = RecoveryAction.DRAIN_AND_RESET

    world.run(2)
    state = world.slot(1).state
    world.of(1).users = 0
    world.run(3)

    assert state is State.DRAINING
    assert world.slot(1).state is State.QUARANTINED
    assert 1 not in world.running()


def test_a_container_that_could_not_be_killed_and_ends_after_all_is_replaced_at_once() -> None:
    world = ready(2)
    world.stuck.add(world.of(0).seen.id)
    world.ill(0, "wedged")
    world.until(lambda: world.slot(0).state is State.QUARANTINED)
    world.stuck.clear()
    world.end(0)

    took_s = world.until(world.all_ready)

    assert took_s < 20
    assert len(world.slot(0).failures) <= 1


def test_a_gpu_that_is_slowed_down_during_a_trial_is_not_the_releases_fault() -> None:
    world = troubled()
    world.cards[0].clock_event_reasons = THERMAL
    world.image_id, world.image_told = "sha256:two", None

    world.run(300)
    because = world.slot(0).because

    assert world.host.refused is None
    assert "slowed down" in because
    assert world.removed(1) == []
    world.cards[0].clock_event_reasons = 0
    world.until(lambda: world.all_proven() and set(world.running().values()) == {"sha256:two"})


def test_a_slot_whose_gpu_is_too_small_for_the_new_model_goes_on_with_the_old_one() -> None:
    world = ready(2)
    world.wanted = TWO
    seen = world.seen
    world.seen = lambda done=(): replace(seen(done), misfits={0: "`big` needs 40 GiB"})  # type: ignore[method-assign]

    world.until(lambda: world.running().get(1) == TWO.image_id and world.slot(1).proven)
    world.run(600)

    assert world.removed(0) == []
    assert world.slot(0).state is State.READY
    assert "needs 40 GiB" in world.slot(0).because


def divided() -> TroubledWorld:
    """One card, three MIG devices: instances 0, 1 and 2."""
    world = TroubledWorld(1)
    world.cards[0].migs = ["MIG-0", "MIG-1", "MIG-2"]
    world.until(world.all_proven)
    world.log.clear()
    return world


@pytest.mark.parametrize("code", [13, 31, 94])
def test_an_xid_in_one_mig_instance_restarts_its_slot_and_no_other(code: int) -> None:
    world = divided()

    for _ in range(6):  # more than the budget of any slot
        world.xid_of(world.cards[0], code, instance=1)
        world.run(20)

    assert world.removed(1)
    assert {each.reason for each in world.removed(1)} == {Reason.XID}
    assert (world.removed(0), world.removed(2)) == ([], [])
    assert [world.slot(index).state for index in (0, 2)] == [State.READY] * 2


def test_an_xid_that_names_no_mig_instance_may_be_of_any() -> None:
    world = divided()
    world.xid_of(world.cards[0], 31)
    world.until(world.all_proven)

    world.run(60)

    assert [[each.reason for each in world.removed(index)] for index in range(3)] == [[Reason.XID]] * 3


def test_a_reset_that_an_xid_of_one_mig_instance_asks_for_is_of_the_whole_card() -> None:
    world = divided()
    world.cards[0].recovery = RecoveryAction.GPU_RESET
    world.xid_of(world.cards[0], 48, instance=1)

    world.run(5)

    assert [slot.state for slot in world.host.slots] == [State.QUARANTINED] * 3
