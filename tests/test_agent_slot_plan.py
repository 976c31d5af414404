"""Which slots a host has: every GPU keeps its index, name and port while GPUs, indexes and the configuration change."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance_agent.config import Config, Container
from appliance_agent.gpus import Gpu
from appliance_agent.slot_plan import GIBIBYTE, fits, plan_slots
from appliance_agent.spec import SlotPlan
from appliance_image.labels import Labels

T4 = "Tesla T4"
H100 = "NVIDIA H100 80GB HBM3"
SMALLER = "take a smaller model, a stronger quantization or a shorter context"


def gpu(number: int, name: str = T4, *, index: int | None = None, gib: int = 15) -> Gpu:
    """A whole GPU whose place on the bus, and by default its index, is `number`."""
    return Gpu(
        uuid=f"GPU-{number:04d}-{number}",
        index=number if index is None else index,
        minor=number,
        name=name,
        memory_bytes=gib * GIBIBYTE,
        pci_bus_id=f"00000000:{number:02X}:00.0",
    )


def mig(parent: Gpu, instance: int, *, uuid: str = "", gib: int = 10) -> Gpu:
    return replace(
        parent,
        uuid=uuid or f"MIG-{parent.uuid}/{instance}/0",
        name=f"{parent.name} MIG 1g.10gb",
        memory_bytes=gib * GIBIBYTE,
        parent_uuid=parent.uuid,
        gpu_instance=instance,
        compute_instance=0,
    )


def config(**values: object) -> Config:
    return replace(Config(image="registry.lan/ai/r1:32b"), **values)  # type: ignore[arg-type]


def gpus_by_index(plans: tuple[SlotPlan, ...]) -> dict[int, tuple[str, ...]]:
    return {plan.index: plan.gpus for plan in plans}


def planned(there: list[Gpu], known: tuple[SlotPlan, ...] = (), /, **values: object) -> dict[int, tuple[str, ...]]:
    plans, problems = plan_slots(config(**values), there, known)
    assert problems == ()
    return gpus_by_index(plans)


def test_every_gpu_is_a_slot() -> None:
    plans, problems = plan_slots(config(), [gpu(0), gpu(1)], ())

    assert problems == ()
    assert plans == (
        SlotPlan(0, "ollama-0", ("GPU-0000-0",), 8880),
        SlotPlan(1, "ollama-1", ("GPU-0001-1",), 8881),
    )


def test_names_and_ports_follow_the_configuration() -> None:
    wanted = config(base_port=9000, container=Container(name_prefix="r1"))

    plans, _ = plan_slots(wanted, [gpu(0)], (SlotPlan(3, "ollama-3", (gpu(0).uuid,), 8883),))

    assert plans == (SlotPlan(3, "r1-3", (gpu(0).uuid,), 9003),)


def test_without_gpus_there_is_one_slot_on_the_cpu() -> None:
    assert planned([gpu(0)], (SlotPlan(5, "ollama-5", (gpu(0).uuid,), 8885),), gpus="none") == {0: ()}


def test_a_host_without_any_gpu_is_a_problem_and_has_no_slots() -> None:
    plans, problems = plan_slots(config(), [], ())

    assert plans == ()
    assert problems == ('no GPU was found; `gpus = "none"` asks for one server on the CPU',)


def test_mig_devices_are_slots_and_their_gpu_is_not() -> None:
    parent = gpu(1, H100)

    slots = planned([gpu(0), parent, mig(parent, 9), mig(parent, 7)])

    assert slots == {0: (gpu(0).uuid,), 1: (mig(parent, 7).uuid,), 2: (mig(parent, 9).uuid,)}


def test_a_gpu_in_mig_mode_without_devices_is_told_and_not_used() -> None:
    plans, problems = plan_slots(config(), [gpu(0), gpu(1)], (), mig_enabled={gpu(1).uuid})

    assert gpus_by_index(plans) == {0: (gpu(0).uuid,)}
    assert problems == ("GPU 1 (Tesla T4, GPU-0001-1) has MIG enabled but no MIG device: nothing can run on it",)


def test_a_listed_gpu_in_mig_mode_stands_for_its_devices() -> None:
    parent = gpu(1, H100)

    slots = planned([gpu(0), parent, mig(parent, 7), mig(parent, 9)], gpus=(1,))

    assert slots == {0: (mig(parent, 7).uuid,), 1: (mig(parent, 9).uuid,)}


def test_one_mig_device_can_be_listed() -> None:
    parent = gpu(1, H100)

    assert planned([parent, mig(parent, 7), mig(parent, 9)], gpus=(mig(parent, 9).uuid,)) == {0: (mig(parent, 9).uuid,)}


def test_mig_devices_make_no_groups() -> None:
    parent = gpu(2, H100)
    there = [gpu(0), gpu(1), parent, mig(parent, 7), mig(parent, 9)]

    plans, problems = plan_slots(config(gpus_per_instance=2), there, ())

    assert gpus_by_index(plans) == {0: (gpu(0).uuid, gpu(1).uuid)}
    assert "MIG devices cannot work in groups of 2" in problems[0]
    assert "set `gpus_per_instance = 1`" in problems[0]


def test_groups_are_of_one_model_and_what_is_left_over_is_told() -> None:
    there = [gpu(0), gpu(1, H100), gpu(2), gpu(3, H100), gpu(4)]

    plans, problems = plan_slots(config(gpus_per_instance=2), there, ())

    assert gpus_by_index(plans) == {0: (gpu(0).uuid, gpu(2).uuid), 1: (gpu(1).uuid, gpu(3).uuid)}
    assert problems == ("one Tesla T4 cannot be part of a group of 2 and stays unused: GPU-0004-4 (4)",)


def test_a_list_says_which_gpus_are_a_group() -> None:
    there = [gpu(number) for number in range(4)]

    assert planned(there, gpus=(0, 3, "GPU-0002", 1), gpus_per_instance=2) == {
        0: (gpu(0).uuid, gpu(3).uuid),
        1: (gpu(2).uuid, gpu(1).uuid),
    }


@pytest.mark.parametrize(
    ("entries", "sentence"),
    [
        ((7,), "`gpus` names `7`, and there is no such GPU; there are GPU-0000-0 (0), GPU-0001-1 (1)"),
        (("GPU-ffff",), "`gpus` names `GPU-ffff`, and there is no such GPU; there are GPU-0000-0 (0), GPU-0001-1 (1)"),
        (("GPU-000",), "`gpus` names `GPU-000`, which fits several GPUs: GPU-0000-0, GPU-0001-1"),
    ],
)
def test_what_the_list_names_in_vain_is_told_with_what_there_is(entries: tuple[str | int, ...], sentence: str) -> None:
    plans, problems = plan_slots(config(gpus=(*entries, 1)), [gpu(0), gpu(1)], ())

    assert gpus_by_index(plans) == {0: (gpu(1).uuid,)}
    assert problems == (sentence,)


def test_one_gpu_named_in_two_ways_is_one_slot_and_a_problem() -> None:
    plans, problems = plan_slots(config(gpus=(1, "GPU-0001")), [gpu(0), gpu(1)], ())

    assert gpus_by_index(plans) == {0: (gpu(1).uuid,)}
    assert problems == ("`gpus` names one GPU twice: `1` and `GPU-0001` are both GPU-0001-1",)


def test_a_gpu_that_fell_off_the_bus_keeps_its_slot_and_the_others_theirs() -> None:
    known, _ = plan_slots(config(), [gpu(number) for number in range(3)], ())

    assert planned([gpu(1, index=0), gpu(2, index=1)], known) == {
        0: (gpu(0).uuid,),
        1: (gpu(1).uuid,),
        2: (gpu(2).uuid,),
    }


def test_all_gpus_gone_keep_all_slots() -> None:
    known, _ = plan_slots(config(), [gpu(0), gpu(1)], ())

    assert planned([], known) == {0: (gpu(0).uuid,), 1: (gpu(1).uuid,)}


def test_a_new_gpu_gets_the_lowest_free_index_wherever_it_is_on_the_bus() -> None:
    known = (SlotPlan(0, "ollama-0", (gpu(4).uuid,), 8880), SlotPlan(2, "ollama-2", (gpu(5).uuid,), 8882))

    assert planned([gpu(1), gpu(4), gpu(5), gpu(6)], known) == {
        0: (gpu(4).uuid,),
        1: (gpu(1).uuid,),
        2: (gpu(5).uuid,),
        3: (gpu(6).uuid,),
    }


def test_a_gpu_that_the_configuration_no_longer_lists_frees_its_index() -> None:
    there = [gpu(number) for number in range(4)]
    known, _ = plan_slots(config(gpus=(0, 1)), there, ())

    assert planned(there, known, gpus=(1, 2)) == {0: (gpu(2).uuid,), 1: (gpu(1).uuid,)}


def test_a_listed_index_stays_with_its_gpu_when_indexes_reshuffle() -> None:
    known, _ = plan_slots(config(gpus=(0, 2)), [gpu(number) for number in range(4)], ())
    after = [gpu(1, index=0), gpu(2, index=1), gpu(3, index=2)]

    plans, problems = plan_slots(config(gpus=(0, 2)), after, known)

    assert gpus_by_index(plans) == {0: (gpu(0).uuid,), 1: (gpu(2).uuid,)}
    assert problems == (
        "`gpus` names index 0, which was GPU-0000-0, and that is gone: if it was replaced, write the new one's UUID",
    )


def test_a_listed_uuid_that_is_gone_keeps_its_slot() -> None:
    there = [gpu(0), gpu(1)]
    known, _ = plan_slots(config(), there, ())  # by another configuration

    for entries in ((gpu(1).uuid, gpu(0).uuid), ("GPU-0001", "GPU-0000")):
        assert planned([gpu(0)], known, gpus=entries) == {0: (gpu(0).uuid,), 1: (gpu(1).uuid,)}


def test_a_group_whose_member_is_gone_is_not_made_anew() -> None:
    known, _ = plan_slots(config(gpus_per_instance=2), [gpu(number) for number in range(4)], ())
    after = [gpu(1), gpu(2), gpu(3)]

    assert planned(after, known, gpus_per_instance=2) == {0: (gpu(0).uuid, gpu(1).uuid), 1: (gpu(2).uuid, gpu(3).uuid)}


def test_another_group_size_makes_other_slots() -> None:
    there = [gpu(number) for number in range(4)]
    known, _ = plan_slots(config(gpus_per_instance=2), there, ())

    assert planned(there, known) == {number: (gpu(number).uuid,) for number in range(4)}


def test_the_same_group_in_another_order_is_no_change() -> None:
    there = [gpu(0), gpu(1)]
    known, _ = plan_slots(config(gpus=(0, 1), gpus_per_instance=2), there, ())

    plans, _ = plan_slots(config(gpus=(1, 0), gpus_per_instance=2), there, known)

    assert plans == known
    assert plans[0].chosen == ("0", "1")


def test_a_division_made_on_purpose_is_no_loss() -> None:
    parent = gpu(0, H100)
    before, _ = plan_slots(config(), [parent, mig(parent, 7), mig(parent, 8)], ())

    assert planned([parent, mig(parent, 1)], before) == {0: (mig(parent, 1).uuid,)}
    assert planned([parent], before) == {0: (parent.uuid,)}


def test_enabling_mig_replaces_the_gpu_by_its_devices() -> None:
    parent = gpu(0, H100)
    before, _ = plan_slots(config(), [parent, gpu(1)], ())

    assert planned([parent, mig(parent, 7), gpu(1)], before) == {0: (mig(parent, 7).uuid,), 1: (gpu(1).uuid,)}


def test_mig_devices_that_vanish_with_their_gpu_keep_their_slots() -> None:
    parent = gpu(0, H100)
    before, _ = plan_slots(config(), [parent, mig(parent, 7), gpu(1)], ())

    assert planned([gpu(1, index=0)], before) == {0: (mig(parent, 7).uuid,), 1: (gpu(1).uuid,)}


def test_a_slot_beyond_the_last_port_is_told() -> None:
    plans, problems = plan_slots(config(base_port=65471), [gpu(0)], (SlotPlan(65, "x", (gpu(0).uuid,), 65536),))

    assert plans == ()
    assert problems == ("slot 65 has no port: 65536 is beyond 65535",)


NUMBERS = st.sets(st.integers(0, 11), min_size=1, max_size=8)


@st.composite
def hosts(draw: st.DrawFn, numbers: set[int]) -> list[Gpu]:
    """These GPUs under NVML's indexes of the day, in any order."""
    names = {number: (T4, H100)[number % 2] for number in numbers}
    indexes = draw(st.permutations(range(len(numbers))))
    found = [gpu(number, names[number], index=index) for number, index in zip(sorted(numbers), indexes, strict=True)]
    return draw(st.permutations(found))


@given(data=st.data(), size=st.integers(1, 3))
def test_plans_do_not_depend_on_the_order_in_which_gpus_are_found(data: st.DataObject, size: int) -> None:
    numbers = data.draw(NUMBERS)

    first, _ = plan_slots(config(gpus_per_instance=size), data.draw(hosts(numbers)), ())
    second, _ = plan_slots(config(gpus_per_instance=size), data.draw(hosts(numbers)), ())

    assert first == second


@given(data=st.data(), size=st.integers(1, 3))
def test_indexes_are_stable_under_every_permutation_removal_and_addition(data: st.DataObject, size: int) -> None:
    known: tuple[SlotPlan, ...] = ()
    before: dict[int, tuple[str, ...]] = {}
    for _ in range(data.draw(st.integers(1, 5))):
        there = data.draw(hosts(data.draw(NUMBERS)))

        known, _ = plan_slots(config(gpus_per_instance=size), there, known)

        now = gpus_by_index(known)
        assert {index: now.get(index) for index in before} == before
        assert_nothing_is_shared(known)
        before = now


@given(data=st.data(), size=st.integers(1, 3))
def test_a_listed_index_means_one_gpu_for_as_long_as_it_is_listed(data: st.DataObject, size: int) -> None:
    first = data.draw(hosts(data.draw(st.sets(st.integers(0, 11), min_size=6, max_size=6))))
    entries = tuple(data.draw(st.permutations(range(6))))[: 6 - 6 % size]
    plans, problems = plan_slots(config(gpus=entries, gpus_per_instance=size), first, ())
    assert problems == ()

    there = data.draw(hosts(data.draw(NUMBERS)))
    after, _ = plan_slots(config(gpus=entries, gpus_per_instance=size), there, plans)

    assert after == plans
    assert [plan.chosen for plan in after] == [plan.chosen for plan in plans]


@given(data=st.data())
def test_no_two_slots_share_a_port_or_a_gpu_whatever_was_known(data: st.DataObject) -> None:
    uuids = [gpu(number).uuid for number in range(12)]
    groups = st.lists(st.sampled_from(uuids), max_size=3).map(tuple)
    plans = st.builds(lambda index, group: SlotPlan(index, f"x-{index}", group, 1), st.integers(0, 9), groups)
    known = tuple(data.draw(st.lists(plans, max_size=6)))
    entries = st.lists(st.one_of(st.integers(0, 9), st.sampled_from(uuids)), min_size=1, unique=True, max_size=6)
    wanted = data.draw(st.one_of(st.sampled_from(["all", "none"]), entries.map(tuple)))

    result, _ = plan_slots(
        config(gpus=wanted, gpus_per_instance=data.draw(st.integers(1, 3))), data.draw(hosts(data.draw(NUMBERS))), known
    )

    assert_nothing_is_shared(result)


def assert_nothing_is_shared(plans: tuple[SlotPlan, ...]) -> None:
    every = [uuid for plan in plans for uuid in plan.gpus]
    assert len(set(every)) == len(every)
    assert len({plan.port for plan in plans}) == len({plan.name for plan in plans}) == len(plans)
    assert all(plan.port == 8880 + plan.index and plan.name == f"ollama-{plan.index}" for plan in plans)


def labels(gib: float | None, *, weights_gib: float = 1) -> Labels:
    return Labels(
        layout=1,
        model="r1:32b",
        source="",
        think="as-is",
        weights_bytes=int(weights_gib * GIBIBYTE),
        parameters="32B",
        quantization="Q4_K_M",
        family="qwen2",
        context_length=8192,
        gpu_memory_bytes=None if gib is None else int(gib * GIBIBYTE),
        base="",
        ollama_version="0.13.5",
        builder="",
        environment=(),
    )


@pytest.mark.parametrize(
    ("count", "size", "needed", "sentence"),
    [
        (4, 1, labels(14), ""),
        (4, 1, labels(22), "`r1:32b` needs 22.0 GiB of GPU memory, slot 0 has 15.0 GiB; set `gpus_per_instance = 2`"),
        (4, 2, labels(22), ""),
        # Two cards have 30 GiB together, but what each needs for itself must fit too.
        (
            4,
            2,
            labels(29.5),
            "`r1:32b` needs 29.5 GiB of GPU memory, slot 0 has 2 x 15.0 GiB; set `gpus_per_instance = 4`",
        ),
        # Three would do; four make as many slots and leave no card idle.
        (8, 1, labels(40), "`r1:32b` needs 40.0 GiB of GPU memory, slot 0 has 15.0 GiB; set `gpus_per_instance = 4`"),
        (7, 1, labels(22), "`r1:32b` needs 22.0 GiB of GPU memory, slot 0 has 15.0 GiB; set `gpus_per_instance = 2`"),
        (
            2,
            1,
            labels(40),
            f"`r1:32b` needs 40.0 GiB of GPU memory, slot 0 has 15.0 GiB; all 2 Tesla T4 cannot hold it: {SMALLER}",
        ),
        # Without an estimate, weights that are larger than the card alone are proof enough.
        (
            1,
            1,
            labels(None, weights_gib=18.5),
            f"`r1:32b` needs 18.5 GiB of GPU memory, slot 0 has 15.0 GiB; the only Tesla T4 cannot hold it: {SMALLER}",
        ),
        (1, 1, labels(None, weights_gib=14.5), ""),
        (1, 1, None, ""),
    ],
)
def test_a_model_that_cannot_fit_is_told_with_the_group_size_that_can(
    count: int, size: int, needed: Labels | None, sentence: str
) -> None:
    there = [gpu(number) for number in range(count)]
    wanted = config(gpus_per_instance=size)
    plans, _ = plan_slots(wanted, there, ())

    assert fits(wanted, there, plans[0], needed) == sentence


def test_a_mig_device_that_is_too_small_wants_a_larger_one() -> None:
    parent = gpu(0, H100)
    there = [parent, mig(parent, 7)]
    plans, _ = plan_slots(config(), there, ())

    assert fits(config(), there, plans[0], labels(22)) == (
        "`r1:32b` needs 22.0 GiB of GPU memory, slot 0 has 10.0 GiB; make a larger MIG device, or disable MIG"
    )


def test_of_a_lost_gpu_nobody_can_tell() -> None:
    plans, _ = plan_slots(config(), [gpu(0)], ())

    assert fits(config(), [], plans[0], labels(999)) == ""


def test_the_proposal_counts_only_gpus_that_the_configuration_lists() -> None:
    there = [gpu(number) for number in range(4)]
    wanted = config(gpus=(0, 1))
    plans, _ = plan_slots(wanted, there, ())

    assert "all 2 Tesla T4 cannot hold it" in fits(wanted, there, plans[0], labels(40))
