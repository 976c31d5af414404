"""What the news of all neighbours mean together: which slots there are, which release is wanted, what is watched how."""

from __future__ import annotations

from dataclasses import replace

import pytest
from agentworld import IMAGE, World, release

from appliance_agent.config import Config
from appliance_agent.containers import EngineFacts, ImageSeen, PullSeen
from appliance_agent.gpus import NO_GPUS
from appliance_agent.observe import News, observe, targets, watched_closely
from appliance_agent.slots import Host
from appliance_agent.spec import Injection

CONFIG = Config(image=IMAGE, model="r1:32b")
FACTS = EngineFacts("28.5.2", (1, 51), ("runc", "nvidia"), (), ("/etc/cdi",), "systemd", "2", "/var/lib/docker", False)


def cdi(world: World) -> EngineFacts:
    return replace(FACTS, devices=tuple(f"nvidia.com/gpu={uuid}" for uuid in world.gpus))


def news(world: World, facts: EngineFacts, **changes: object) -> News:
    seen = world.seen()
    image = ImageSeen(IMAGE, "sha256:one", "", 1, None)
    engine = replace(seen.engine, **{"facts": facts, "image": image} | changes)  # type: ignore[arg-type]
    return News(engine, seen.gpus, seen.evidence, (), 0.0)


def injection(host: Host, what: News, config: Config = CONFIG) -> Injection | None:
    wanted = observe(config, host, what).seen.wanted
    return wanted.injection if wanted else None


def test_the_way_to_a_gpu_is_kept_while_the_engine_supports_it() -> None:
    world = World(2)
    by_runtime = Host(good=release(injection=Injection.RUNTIME))

    assert injection(Host(), news(world, FACTS)) is Injection.RUNTIME
    assert injection(Host(), news(world, cdi(world))) is Injection.CDI
    assert injection(by_runtime, news(world, cdi(world))) is Injection.RUNTIME
    assert injection(by_runtime, news(world, replace(cdi(world), runtimes=("runc",)))) is Injection.CDI
    assert injection(by_runtime, news(world, cdi(world)), replace(CONFIG, injection="cdi")) is Injection.CDI


def test_without_a_driver_the_slots_are_those_that_are_known() -> None:
    world = World(2)
    world.until(world.all_ready)
    what = replace(news(world, FACTS), gpus=replace(NO_GPUS, because="the driver is not loaded"))

    for host in (world.host, Host()):  # from memory, and from the containers' labels
        observed = observe(CONFIG, host, what)

        assert [(plan.index, plan.name, plan.gpus, plan.port) for plan in observed.seen.plans] == [
            (plan.index, plan.name, plan.gpus, plan.port) for plan in world.plans
        ]
        assert not observed.seen.plans_known
        assert "the driver is not loaded" in observed.problems


@pytest.mark.parametrize(
    ("pull", "words"),
    [
        (PullSeen(running=True, done_bytes=3_000_000_000, total_bytes=20_000_000_000), "being pulled: 3.0 of 20.0 GB"),
        (PullSeen(running=False, done_bytes=0, total_bytes=0, error="denied", hint="log in"), "denied"),
    ],
)
def test_what_a_pull_does_is_said_where_slots_wait_for_it(pull: PullSeen, words: str) -> None:
    world = World(1)
    absent = ImageSeen(IMAGE, "", "", 0, None)

    observed = observe(CONFIG, Host(), news(world, FACTS, image=absent, pull=pull))

    assert observed.seen.wanted is None
    assert words in observed.seen.waiting_for
    assert any(words in problem for problem in observed.problems)


def test_running_containers_of_slots_are_watched_under_an_address_that_can_be_dialled() -> None:
    world = World(2, wanted=release(address="0.0.0.0"))
    world.until(world.all_ready)
    world.end(1)

    found = targets(world.host, world.seen().engine.containers)

    assert [(target.slot, target.address, target.port, target.model) for target in found] == [
        (0, "127.0.0.1", 8880, "r1:32b")
    ]


def test_connections_are_counted_where_a_container_is_to_be_replaced() -> None:
    world = World(2)
    world.until(world.all_proven)
    there = world.seen().engine.containers

    assert watched_closely(world.host, there) == frozenset()
    world.wanted = release("two")
    world.tick(finish=False)
    assert watched_closely(world.host, there) == {world.host.trial}
    assert watched_closely(replace(world.host, down=True), there) == {0, 1}


def test_a_host_that_hides_its_processes_has_a_problem() -> None:
    world = World(1)
    world.until(world.all_ready)
    what = news(world, FACTS)
    hidden = {slot: replace(each, hidden=True) for slot, each in what.evidence.items()}

    before, after = (observe(CONFIG, Host(), each).problems for each in (what, replace(what, evidence=hidden)))

    assert before == ()
    assert ["`hidepid` of /proc?" in each for each in after] == [True]


def test_an_engine_that_has_not_told_its_settings_is_a_problem_where_gpus_are_wanted() -> None:
    world = World(1)
    told = news(world, FACTS)
    what = replace(told, engine=replace(told.engine, facts=None))

    problems = observe(CONFIG, Host(), what).problems
    without_gpus = observe(replace(CONFIG, gpus="none"), Host(), what)

    assert "the Docker Engine has not answered `docker info` yet, which tells how containers get GPUs" in problems
    assert without_gpus.problems == ()
    assert without_gpus.seen.wanted
