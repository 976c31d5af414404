"""What the agent decides, told as scenarios: a host of values, a clock that tests turn, and no I/O at all."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agentworld import CONFIG, World, release

from appliance_agent.config import HealingConfig
from appliance_agent.containers import EngineSeen, Obstacle
from appliance_agent.gpus import RecoveryAction
from appliance_agent.healing import backoff_s
from appliance_agent.reconcile import reconcile
from appliance_agent.rollout import target
from appliance_agent.slots import Decision, Done, Host, Now, Slot
from appliance_agent.spec import Injection, Release
from appliance_agent.states import Action, Reason, State

TWO = release("two")


def ready(slots: int = 2, **arguments: object) -> World:
    world = World(slots, **arguments)  # type: ignore[arg-type]
    world.until(world.all_proven)
    world.log.clear()
    return world


def test_every_slot_gets_its_container_and_is_ready_when_tokens_came() -> None:
    world = World(3)

    decisions = world.tick()

    assert [(each.action, each.slot, each.reason) for each in decisions] == [
        (Action.CREATE, index, Reason.START) for index in range(3)
    ]
    world.until(world.all_proven)
    assert world.host.good == world.wanted


def test_nothing_is_done_twice_while_an_action_runs() -> None:
    world = World(2)
    world.tick(finish=False)

    assert [world.tick(finish=False) for _ in range(30)] == [()] * 30
    assert {slot.state for slot in world.host.slots} == {State.STARTING}


def test_few_models_load_at_the_same_time() -> None:
    world = World(8, config=replace(CONFIG, rollout=replace(CONFIG.rollout, parallel_loads=2)))

    most = 0
    while not world.all_ready():
        world.tick()
        most = max(most, sum(slot.state in (State.LOADING, State.STARTING) for slot in world.host.slots))

    assert most == 2


def test_a_container_that_ended_is_replaced_at_once_and_the_other_is_not_touched() -> None:
    world = ready()
    world.end(0, code=139)

    world.tick()
    world.tick()

    assert [(each.action, each.slot, each.reason) for each in world.log] == [
        (Action.REMOVE, 0, Reason.EXIT),
        (Action.CREATE, 0, Reason.EXIT),
    ]
    assert "exit status 139" in world.log[0].because
    world.until(world.all_ready)
    assert world.slot(0).restarts[Reason.EXIT] == 1


@pytest.mark.parametrize(
    ("illness", "reason"),
    [
        ("wedged", Reason.WEDGED),
        ("stalled", Reason.STALLED),
        ("on_cpu", Reason.ON_CPU),
        ("gone", Reason.GONE),
        ("failing", Reason.FAILING),
    ],
)
def test_a_sick_container_is_replaced_with_the_reason_and_the_facts(illness: str, reason: Reason) -> None:
    world = ready()
    world.ill(1, illness)

    world.until(lambda: bool(world.made(1)))

    assert [each.reason for each in world.removed(1)] == [reason]
    assert world.removed(1)[0].evidence
    assert world.removed(0) == []
    world.until(world.all_ready)


def test_an_out_of_memory_kill_is_named() -> None:
    world = ready()
    world.end(0, oom=True)

    world.tick()

    assert world.removed(0)[0].reason is Reason.OOM
    assert "out of memory" in world.removed(0)[0].because


def test_restarts_slow_down_and_the_budget_ends_in_quarantine_with_longer_and_longer_pauses() -> None:
    world = ready(1)
    world.bad = lambda _: "exits"
    world.end(0)

    world.until(lambda: world.slot(0).state is State.QUARANTINED)
    first = len(world.made(0))
    world.until(lambda: len(world.made(0)) > first)
    world.until(lambda: world.slot(0).state is State.QUARANTINED)
    again = world.slot(0).quarantine

    assert first == CONFIG.healing.budget - 1
    assert again is not None
    assert again.until_s - again.since_s == pytest.approx(2 * CONFIG.healing.probation_s)
    world.bad = lambda _: ""
    world.until(world.all_ready)
    world.run(CONFIG.healing.proven_s + 10)
    assert world.slot(0).quarantines == 0
    assert world.slot(0).failures == ()


def test_backoff_doubles_up_to_its_limit() -> None:
    config = HealingConfig(backoff_s=1, backoff_max_s=10)

    assert [backoff_s(count, config) for count in range(1, 8)] == [0, 1, 2, 4, 8, 10, 10]


def test_many_slots_that_fall_ill_together_are_treated_one_after_the_other() -> None:
    world = ready(4)
    for index in range(4):
        world.ill(index, "on_cpu")

    world.until(lambda: bool(world.removed(0)))
    world.run(3)

    assert sum(len(world.removed(index)) for index in range(4)) == 1
    assert "held back" in world.slot(1).because
    world.until(world.all_ready)
    assert [len(world.removed(index)) for index in range(4)] == [1, 1, 1, 1]


def test_nothing_is_restarted_while_the_engine_is_silent() -> None:
    world = ready()
    world.ill(0, "wedged")
    world.engine_up = False

    world.run(120)

    assert world.log == []
    assert "the engine does not answer" in world.slot(0).because
    world.engine_up = True
    world.until(lambda: bool(world.made(0)))


def test_after_a_restart_of_the_engine_all_slots_start_and_none_is_blamed() -> None:
    world = ready(4)
    world.restart_engine()

    world.run(2)
    world.until(world.all_ready)

    assert {each.reason for each in world.log} == {Reason.ENGINE}
    assert all(slot.failures == () for slot in world.host.slots)


def test_while_nvml_is_silent_no_slot_is_taken_for_one_on_the_cpu() -> None:
    world = ready()
    world.nvml_up = False
    for index in range(2):
        world.ill(index, "on_cpu")

    world.run(120)

    assert world.log == []


def test_a_lost_gpu_puts_its_slot_into_quarantine_until_it_is_back() -> None:
    world = ready()
    world.lost.add(world.gpus[0])

    world.run(3)

    assert world.slot(0).state is State.QUARANTINED
    assert 0 not in world.running()
    world.run(3600)
    assert world.made(0) == []
    world.lost.clear()
    world.until(world.all_ready)
    assert world.removed(1) == []


@pytest.mark.parametrize(
    ("code", "reason", "state"),
    [
        (13, Reason.XID, State.READY),
        (31, Reason.XID, State.READY),
        (94, Reason.XID, State.READY),
        (43, None, State.READY),
        (63, None, State.READY),
        (92, None, State.READY),
        (99999, None, State.READY),
        (48, Reason.GPU_RESET, State.QUARANTINED),
        (79, Reason.GPU_RESET, State.QUARANTINED),
        (95, Reason.GPU_RESET, State.QUARANTINED),
        (119, Reason.GPU_RESET, State.QUARANTINED),
    ],
)
def test_an_xid_asks_for_what_nvidia_says(code: int, reason: Reason | None, state: State) -> None:
    world = ready()
    world.recovery[world.gpus[0]] = RecoveryAction.GPU_RESET if state is State.QUARANTINED else RecoveryAction.NONE
    world.xid(0, code)

    world.tick()
    world.run(20)

    assert [each.reason for each in world.removed(0)] == ([reason] if reason else [])
    assert world.slot(0).state is state
    assert world.removed(1) == []
    assert len(world.removed(0)) <= 1


def test_a_container_that_cannot_be_ended_blocks_its_slot_and_no_other() -> None:
    world = ready()
    world.stuck.add(world.of(0).seen.id)
    world.ill(0, "wedged")

    world.until(lambda: world.slot(0).state is State.QUARANTINED)
    world.run(600)

    assert world.made(0) == []
    assert "cannot be ended" in world.slot(0).because
    assert world.slot(1).state is State.READY
    world.stuck.clear()
    world.until(world.all_ready)


def test_a_name_or_port_in_foreign_hands_blocks_only_its_slot() -> None:
    world = World(2)
    seen = world.seen()
    obstacle = Obstacle(1, "nginx", "port 8881")

    host, decisions = reconcile(
        world.config, world.host, replace(seen, engine=replace(seen.engine, obstacles=(obstacle,))), Now(1000, 1)
    )

    assert [each.slot for each in decisions] == [0]
    blocked = host.slot(1)
    assert blocked is not None
    assert blocked.state is State.BLOCKED
    assert "nginx" in blocked.because


def test_a_create_that_only_a_person_can_mend_is_tried_seldom_and_never_quarantined() -> None:
    world = World(1)
    world.create_error = Done(Action.CREATE, 0, ok=False, error="port 8880 is in use", hint="`ss -ltnp`", obstacle=True)

    world.run(3600)

    assert world.slot(0).state is State.BLOCKED
    assert world.slot(0).failures == ()
    assert 60 < len(world.made(0)) <= 241
    assert len([entry for entry in world.host.history if entry.action == "create"]) < 5


def test_a_new_release_is_tried_on_one_slot_and_then_follows_slot_by_slot() -> None:
    world = ready(3)
    world.wanted = TWO

    least, mixed = 3, set[tuple[int, ...]]()
    while not (world.all_proven() and set(world.running().values()) == {TWO.image_id}):
        world.tick()
        least = min(least, sum(slot.state is State.READY for slot in world.host.slots))
        mixed.add(tuple(sorted(index for index, image in world.running().items() if image == TWO.image_id)))

    assert least == 2
    assert mixed >= {(), (0,), (0, 1), (0, 1, 2)}
    assert {each.reason for each in world.log} == {Reason.DRIFT}
    assert world.host.good == TWO


@pytest.mark.parametrize("illness", ["exits", "wedged", "on_cpu", "failing", "never_loads", "gone"])
def test_a_bad_release_is_rolled_back_after_one_slot_and_stays_refused(illness: str) -> None:
    world = ready(3)
    world.bad = lambda what: illness if what == TWO else ""
    world.wanted = TWO

    world.until(lambda: world.host.refused is not None)
    world.until(world.all_ready)
    world.run(1200)

    assert set(world.running().values()) == {"sha256:one"}
    assert [len(world.removed(index)) for index in (1, 2)] == [0, 0]
    assert world.host.refused is not None
    assert world.host.good == release()
    world.bad = lambda _: ""
    world.wanted = release("three")
    world.until(lambda: world.all_proven() and set(world.running().values()) == {"sha256:three"})
    assert world.host.refused is None


def test_a_release_that_is_much_slower_is_rolled_back() -> None:
    world = ready(2)
    world.rates[TWO.image_id] = 25.0
    world.wanted = TWO

    world.until(lambda: world.host.refused is not None)
    world.until(world.all_proven)

    assert world.host.refused is not None
    assert "38% slower" in world.host.refused.because
    assert set(world.running().values()) == {"sha256:one"}
    assert world.removed(1) == []


def test_a_gpu_that_fails_during_a_trial_is_not_the_releases_fault() -> None:
    world = ready(2)
    world.wanted = TWO
    world.until(lambda: TWO.image_id in world.running().values())
    index = next(index for index, image in world.running().items() if image == TWO.image_id)
    world.lost.add(world.gpus[index])

    world.until(lambda: world.running().get(1 - index) == TWO.image_id)

    assert world.host.refused is None


def test_slots_that_get_gpus_are_never_made_from_what_was_good_on_the_cpu() -> None:
    on_cpu = release(injection=Injection.NONE)
    world = World(2, wanted=on_cpu)
    plans = world.plans
    world.plans = (replace(plans[0], gpus=()),)
    world.until(world.all_proven)
    world.plans, world.wanted = plans, release()

    world.until(lambda: len(world.running()) == 2 and world.all_proven())

    assert [each.spec.release for each in world.made(0) if each.spec] == [on_cpu, release()]
    assert [each.spec.release for each in world.made(1) if each.spec] == [release()]
    assert target(Host(good=on_cpu), Slot(plans[0])) is None  # while the new wish is not known


def test_a_slot_that_serves_is_drained_before_it_is_replaced_and_cut_only_after_the_limit() -> None:
    world = ready(1)
    world.of(0).users = 2
    world.wanted = TWO

    world.run(20)
    assert world.slot(0).state is State.DRAINING
    assert world.log == []
    world.of(0).users = 0
    world.run(2)
    assert world.removed(0)[0].reason is Reason.DRIFT

    world.until(world.all_proven)
    world.of(0).users = 1
    world.wanted = release("three")
    took_s = world.until(lambda: len(world.removed(0)) == 2)
    assert took_s >= CONFIG.rollout.drain_s
    assert "still busy" in world.removed(0)[1].because


def test_the_first_release_of_all_is_retried_because_there_is_none_to_go_back_to() -> None:
    world = World(1)
    world.bad = lambda _: "exits"

    world.run(60)

    assert world.host.refused is None
    assert len(world.made(0)) > 2


def test_containers_are_adopted_after_the_agent_was_killed_and_nothing_is_repeated() -> None:
    world = ready(8)
    world.restart_agent()

    assert world.run(300) == []
    assert world.all_proven()


@pytest.mark.parametrize(("wanted", "actions"), [(release(), [Action.CREATE]), (TWO, [Action.REMOVE, Action.CREATE])])
def test_a_container_that_a_killed_agent_made_and_did_not_start_is_started_if_it_is_still_wanted(
    wanted: Release, actions: list[Action]
) -> None:
    world = World(1)
    (decision,) = world.tick(finish=False)
    made = world.containers[world.create(decision)]
    made.seen = replace(made.seen, status="created", pid=0)
    world.restart_agent()
    world.wanted = wanted

    after = [*world.tick(), *world.tick(finish=False)]

    assert [each.action for each in after] == actions
    assert after[-1].spec is not None
    assert after[-1].spec.release == wanted


def test_failures_and_quarantines_survive_the_agent() -> None:
    world = ready(1)
    world.bad = lambda _: "exits"
    world.end(0)
    world.until(lambda: world.slot(0).state is State.QUARANTINED)
    made = len(world.made(0))

    world.restart_agent()
    world.run(60)

    assert len(world.made(0)) == made
    assert world.slot(0).state is State.QUARANTINED


def test_a_container_left_over_is_removed_and_one_of_a_slot_is_not() -> None:
    world = ready(2)
    world.plans = world.plans[:1]

    decisions = world.run(5)

    assert [(each.action, each.slot, each.reason) for each in decisions] == [(Action.REMOVE, None, Reason.ORPHAN)]
    assert list(world.running()) == [0]


def test_nothing_is_left_over_while_no_gpu_can_be_listed() -> None:
    world = ready(2)
    seen = replace(world.seen(), plans=(), plans_known=False)

    _, decisions = reconcile(world.config, Host(), seen, Now(world.mono_s, world.wall_s))

    assert decisions == ()


def test_a_container_that_somebody_removed_comes_back_and_a_fight_about_it_is_not_endless() -> None:
    world = ready(1)

    for _ in range(200):
        world.containers.clear()
        world.run(10)

    assert len(world.made(0)) < 25


def test_a_container_made_a_moment_ago_is_not_missed_in_an_older_listing() -> None:
    world = World(1)
    world.tick()
    done, world.told = tuple(world.told), []
    old = replace(world.seen(done).engine, containers=(), at_s=world.mono_s - 5)

    host, decisions = reconcile(
        world.config, world.host, replace(world.seen(done), engine=old), Now(world.mono_s, world.wall_s)
    )
    host, again = reconcile(world.config, host, replace(world.seen(), engine=old), Now(world.mono_s + 1, 1))

    assert (decisions, again) == ((), ())


def test_a_container_just_removed_is_not_removed_again_because_an_older_listing_shows_it() -> None:
    world = ready(1)
    before = world.of(0).seen
    world.end(0)
    world.tick()
    stale = replace(before, status="exited", exit_code=137, pid=0)
    seen = world.seen(world.told)

    _, decisions = reconcile(
        world.config,
        world.host,
        replace(seen, engine=replace(seen.engine, containers=(stale,))),
        Now(world.mono_s + 1, world.wall_s),
    )

    assert [each.action for each in decisions] == [Action.CREATE]


def test_down_takes_everything_away_after_running_answers() -> None:
    world = ready(2)
    world.of(1).users = 1
    world.host = replace(world.host, down=True)

    world.run(5)
    assert list(world.running()) == [1]
    world.of(1).users = 0
    world.run(5)

    assert world.running() == {}
    assert {slot.state for slot in world.host.slots} == {State.STOPPED}


def test_an_image_that_is_not_here_is_pulled_and_not_again_while_that_runs() -> None:
    world = World(1)
    image = world.seen().engine.image
    assert image is not None
    engine = EngineSeen(at_s=1, up=True, image=replace(image, id=""))
    seen = replace(world.seen(), engine=engine, wanted=None, waiting_for="not here")

    host, first = reconcile(world.config, Host(), seen, Now(1, 1))
    _, second = reconcile(world.config, host, seen, Now(2, 2))

    assert [each.action for each in first] == [Action.PULL]
    assert second == ()


def test_the_newest_image_is_asked_for_again_until_the_registry_answers_and_told_once() -> None:
    world = ready(1, config=replace(CONFIG, pull="always"))
    world.host = replace(world.host, pull_due=True)
    failed = Done(Action.PULL, None, ok=False, error="registry.lan cannot be reached")
    pulls: list[Decision] = []
    for _ in range(600):
        pulls += [each for each in world.tick(finish=False) if each.action is Action.PULL]
        world.told += [failed for each in world.in_hand if each.action is Action.PULL]
        world.in_hand = []
    told = [entry for entry in world.host.history if entry.action == "pull"]
    world.tick(60, finish=False)
    world.told.append(replace(failed, ok=True, error=""))
    after = world.run(600)

    assert 9 <= len(pulls) <= 10
    assert len(told) == 1
    assert world.all_ready()
    assert after == []


def test_every_decision_has_a_reason_in_words() -> None:
    world = ready(3)
    world.ill(0, "wedged")
    world.end(1)
    world.xid(2, 31)
    world.run(60)

    assert all(decision.because for decision in world.log)
    assert all(entry.because for entry in world.host.history)


def test_without_a_state_file_the_good_release_is_what_most_slots_run() -> None:
    world = ready(3)
    world.bad = lambda what: "never_loads" if what == TWO else ""
    world.wanted = TWO
    world.until(lambda: TWO.image_id in world.running().values())

    world.host = Host()
    world.until(lambda: world.host.refused is not None)
    world.until(world.all_ready)

    assert set(world.running().values()) == {"sha256:one"}
    assert [len(world.removed(index)) for index in (1, 2)] == [0, 0]
