"""A host with NVSwitch: until Fabric Manager has set up its fabric no slot is started, replaced or charged for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from checkfacts import HEALTHY, SNAPSHOT
from fakenvml import NOT_SUPPORTED, FakeGpu, World
from gpuwatch import GpuHost
from troubledworld import TroubledWorld

from appliance_agent import fabric
from appliance_agent.check_facts import CheckFacts, Nvml
from appliance_agent.finding import Finding, Severity
from appliance_agent.findings_driver import driver_findings
from appliance_agent.gpus import Gpu, GpuReading, RecoveryAction
from appliance_agent.observe import observe
from appliance_agent.slots import Slot
from appliance_agent.states import Action, Reason, State

NOT_STARTED, IN_PROGRESS, COMPLETED = 1, 2, 3
COMMAND = "systemctl status nvidia-fabricmanager"


@pytest.fixture
def host(tmp_path: Path, nvml_library: Path) -> Iterator[GpuHost]:
    host = GpuHost(tmp_path, nvml_library, World([FakeGpu("GPU-aaaa"), FakeGpu("GPU-bbbb")]))
    yield host
    host.close()


def told(host: GpuHost) -> list[tuple[int | None, int | None]]:
    return [(each.fabric_state, each.fabric_status) for each in host.seen.readings.values()]


def test_nvml_tells_of_the_fabric_and_of_its_end(host: GpuHost) -> None:
    host.world.gpus[0].fabric = (IN_PROGRESS, 0)
    host.change()
    with host.watched():
        host.until_up()
        assert told(host) == [(IN_PROGRESS, None), (None, None)]
        host.world.gpus[0].fabric = (COMPLETED, 0)
        host.change()

        host.until(lambda _: told(host) == [(COMPLETED, 0), (None, None)], "the fabric")


@pytest.mark.parametrize("missing", ["nvmlDeviceGetGpuFabricInfoV", "nvmlDeviceGetGpuFabricInfo"])
def test_one_of_nvmls_two_calls_is_enough(host: GpuHost, missing: str) -> None:
    host.world.gpus[1].fabric = (NOT_STARTED, 0)
    host.world.gpus[1].errors[missing] = NOT_SUPPORTED
    host.change()
    with host.watched():
        host.until_up()

        assert told(host)[1] == (NOT_STARTED, None)
        assert host.seen.readings["GPU-bbbb"].sound


def gpu(index: int, **more: object) -> Gpu:
    return replace(Gpu(f"GPU-{index}", index, index, "H200", 141), **more)  # type: ignore[arg-type]


def test_gpus_that_wait_are_named_by_what_they_wait_for() -> None:
    states = (NOT_STARTED, IN_PROGRESS, COMPLETED, None, IN_PROGRESS)
    readings = {f"GPU-{index}": GpuReading(0.0, fabric_state=state) for index, state in enumerate(states)}

    text = fabric.pending([gpu(index) for index in range(6)], readings)

    assert "(Fabric Manager): not started for GPU 0, in progress for GPU 1, 4;" in text
    assert COMMAND in text


@pytest.mark.parametrize(
    "reading",
    [
        GpuReading(0.0),
        GpuReading(0.0, fabric_state=COMPLETED, fabric_status=0),
        GpuReading(0.0, fabric_state=COMPLETED, fabric_status=999),  # no NVLink, but CUDA begins
        GpuReading(0.0, fabric_state=IN_PROGRESS, mig_enabled=True),
        GpuReading(0.0, fabric_state=77),  # of a newer driver
    ],
)
def test_a_gpu_that_cuda_can_open_waits_for_no_fabric(reading: GpuReading) -> None:
    assert fabric.pending([gpu(0)], {"GPU-0": reading}) == ""


def untrained(cards: int = 4) -> TroubledWorld:
    """As after a boot: what is started now computes on the CPU."""
    world = TroubledWorld(cards)
    untrain(world)
    return world


def untrain(world: TroubledWorld, state: int = IN_PROGRESS) -> None:
    for index, card in enumerate(world.cards):
        card.fabric_state, world.cursed[index] = state, "on_cpu"


def train(world: TroubledWorld) -> None:
    world.cursed.clear()
    for card in world.cards:
        card.fabric_state = COMPLETED


def unharmed(slot: Slot) -> bool:
    return not slot.failures and not slot.quarantines and slot.quarantine is None


def test_no_slot_is_started_before_the_fabric_is_there_and_then_all_are() -> None:
    world = untrained()
    world.run(600)
    waiting = world.host

    assert [each for each in world.log if each.action is Action.CREATE] == []
    assert {slot.state for slot in waiting.slots} == {State.WAITING}
    assert all("NVSwitch fabric" in slot.because and unharmed(slot) for slot in waiting.slots)

    train(world)
    world.until(world.all_proven)
    assert all(unharmed(slot) for slot in world.host.slots)
    assert [len(world.made(index)) for index in range(4)] == [1] * 4


def test_the_host_says_once_that_it_waits_for_the_fabric() -> None:
    world = untrained()
    world.tick()

    problems = observe(world.config, world.host, world.news()).problems

    (found,) = [text for text in problems if "fabric" in text]
    assert found.startswith("waits for the NVSwitch fabric (Fabric Manager): in progress for GPU 0, 1, 2, 3; ")
    assert found.endswith(f"`{COMMAND}`")
    train(world)
    assert not [text for text in observe(world.config, world.host, world.news()).problems if "fabric" in text]


def test_who_is_told_not_to_wait_starts_at_once() -> None:
    world = TroubledWorld()
    for card in world.cards:
        card.fabric_state = IN_PROGRESS
    world.config = replace(world.config, healing=replace(world.config.healing, wait_for_fabric=False))

    world.until(world.all_proven)
    assert not [text for text in observe(world.config, world.host, world.news()).problems if "fabric" in text]


def test_what_runs_on_the_cpu_is_not_replaced_while_nothing_better_could_take_its_place() -> None:
    world = TroubledWorld()
    for index in range(4):
        world.cursed[index] = "on_cpu"
    world.tick()
    untrain(world)
    world.run(1200)
    left = world.host

    assert [each for each in world.log if each.action is Action.REMOVE] == []
    assert all(unharmed(slot) for slot in left.slots)
    assert all("NVSwitch fabric" in slot.because for slot in left.slots)

    train(world)
    world.until(world.all_proven)
    assert {len(slot.failures) for slot in world.host.slots} <= {0, 1}
    assert [len(world.made(index)) for index in range(4)] == [2] * 4


def test_slots_that_answer_are_left_alone_when_fabric_manager_is_gone() -> None:
    world = TroubledWorld()
    world.until(world.all_proven)
    world.log.clear()
    untrain(world, NOT_STARTED)

    assert world.run(600) == []
    assert world.all_proven()


def test_a_new_release_is_neither_tried_nor_refused_for_want_of_the_fabric() -> None:
    world = TroubledWorld()
    world.until(world.all_proven)
    world.log.clear()
    untrain(world)
    world.image_id, world.image_told = "sha256:two", None

    assert world.run(600) == []
    assert world.host.refused is None
    train(world)
    world.until(lambda: world.all_proven() and set(world.running().values()) == {"sha256:two"})


def test_a_release_whose_trial_began_before_the_fabric_went_is_not_blamed() -> None:
    world = TroubledWorld()
    world.until(world.all_proven)
    world.image_id, world.image_told = "sha256:two", None
    world.until(lambda: "sha256:two" in world.running().values())
    untrain(world)
    for container in world.containers.values():
        if container.seen.image_id == "sha256:two":
            container.ill, container.ill_since_s = "on_cpu", world.mono_s

    world.run(600)

    assert world.host.refused is None


def test_one_gpu_without_the_fabric_keeps_no_other_slot_waiting() -> None:
    world = TroubledWorld()
    world.cards[2].fabric_state = NOT_STARTED
    world.tick()

    world.until(lambda: all(world.slot(index).proven for index in (0, 1, 3)))

    assert world.made(2) == []
    assert world.slot(2).state is State.WAITING


def test_what_the_driver_or_a_person_asks_for_is_done_without_the_fabric_too() -> None:
    world = TroubledWorld()
    world.until(world.all_proven)
    world.log.clear()
    untrain(world)
    world.cards[1].recovery = RecoveryAction.GPU_RESET
    world.run(5)
    reset = [each.reason for each in world.removed(1)]
    world.host = replace(world.host, down=True)
    world.until(lambda: not world.running())

    assert reset == [Reason.GPU_RESET]


def checked(**reading: object) -> list[Finding]:
    there = {
        uuid: each._replace(**reading)  # type: ignore[arg-type]
        for uuid, each in SNAPSHOT.readings.items()
    }
    facts: CheckFacts = replace(HEALTHY, nvml=Nvml(replace(SNAPSHOT, readings=there)))
    return [each for each in driver_findings(facts) if each.code.startswith("fabric")]


def test_check_names_the_command_and_the_version_that_fabric_manager_must_have() -> None:
    (found,) = checked(fabric_state=IN_PROGRESS)

    assert found.severity is Severity.ERROR
    assert "in progress for GPU 0, 1" in found.sentence
    assert any(COMMAND in command for command in found.fix)
    assert any(SNAPSHOT.driver_version in command for command in found.fix)


def test_check_warns_of_a_fabric_that_failed_and_says_nothing_of_one_that_is_there_or_none() -> None:
    (failed,) = checked(fabric_state=COMPLETED, fabric_status=999)

    assert failed.severity is Severity.WARNING
    assert checked(fabric_state=COMPLETED, fabric_status=0) == []
    assert checked() == []
