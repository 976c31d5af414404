"""Which slots a host has: GPUs and configuration become plans that keep their index for as long as their GPUs are wanted. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from appliance_agent import gpu_choice
from appliance_agent.config import Config, GpuChoice
from appliance_agent.gpus import Gpu
from appliance_agent.spec import SlotPlan
from appliance_image.labels import Labels

GIBIBYTE: Final = 1024**3
_EACH_BYTES: Final = GIBIBYTE  # CUDA's context and the compute buffers, which every GPU of a group needs for itself
_PORT_MAX: Final = 65535


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A slot without its index; `chosen` stands beside `gpus`, or is empty."""

    gpus: tuple[str, ...]
    chosen: tuple[str, ...] = ()


def plan_slots(
    config: Config, gpus: Sequence[Gpu], known: Sequence[SlotPlan], *, mig_enabled: Collection[str] = ()
) -> tuple[tuple[SlotPlan, ...], tuple[str, ...]]:
    """The plans by index, and the problems in words. `known` are the plans made before, from whatever configuration.

    `mig_enabled` are UUIDs of GPUs in MIG mode, so that one without any MIG device is not taken for a whole GPU.
    """
    known = [plan for plan in known if len(set(plan.gpus)) == len(plan.gpus) and plan.index >= 0]
    if config.gpus == GpuChoice.NONE:
        wanted, problems = [_Wanted(())], list[str]()
    elif isinstance(config.gpus, tuple):
        wanted, problems = _listed(config.gpus, config.gpus_per_instance, gpus, known, mig_enabled)
    else:
        wanted, problems = _all(config.gpus_per_instance, gpus, known, mig_enabled)
    plans, left_out = _with_indexes(config, wanted, known)
    return plans, tuple(problems + left_out)


def _all(
    size: int, gpus: Sequence[Gpu], known: Sequence[SlotPlan], mig_enabled: Collection[str]
) -> tuple[list[_Wanted], list[str]]:
    there = gpu_choice.devices(gpus, mig_enabled)
    problems = gpu_choice.undivided(gpus, mig_enabled)
    if size > 1 and (parts := [gpu for gpu in there if gpu.is_mig]):
        problems.append(_no_groups_of_parts(parts[0].uuid, size))
        there = [gpu for gpu in there if not gpu.is_mig]
    kept = _still_wanted(size, gpus, there, known)
    free = [gpu for gpu in there if not any(gpu.uuid in plan.gpus for plan in kept)]
    grouped, left = _grouped(size, free)
    problems += left
    wanted = [_Wanted(plan.gpus) for plan in kept] + [_Wanted(group) for group in grouped]
    if not wanted and not problems:
        problems.append('no GPU was found; `gpus = "none"` asks for one server on the CPU')
    return wanted, problems


def _still_wanted(size: int, gpus: Sequence[Gpu], there: Sequence[Gpu], known: Sequence[SlotPlan]) -> list[SlotPlan]:
    """Known plans of this size whose GPUs are here, or gone: a lost GPU keeps its slot, which says that it is lost."""
    present, usable = {gpu.uuid for gpu in gpus}, {gpu.uuid for gpu in there}
    # MIG devices that nobody knew are a new division, made on purpose: what was before it is not lost.
    divided_anew = bool(usable - {uuid for plan in known for uuid in plan.gpus})
    kept: list[SlotPlan] = []
    for plan in sorted(known, key=lambda plan: plan.index):
        gone = [uuid for uuid in plan.gpus if uuid not in present]
        given_up = any(uuid in present and uuid not in usable for uuid in plan.gpus) or (
            divided_anew and any(uuid.startswith("MIG-") for uuid in gone)
        )
        claimed = any(uuid in other.gpus for other in kept for uuid in plan.gpus)
        if len(plan.gpus) == size and not given_up and not claimed:
            kept.append(plan)
    return kept


def _grouped(size: int, free: Sequence[Gpu]) -> tuple[list[tuple[str, ...]], list[str]]:
    """GPUs of one model together, because a group is as fast as its slowest."""
    groups: list[tuple[int, tuple[str, ...]]] = []
    problems: list[str] = []
    for name in dict.fromkeys(gpu.name for gpu in free):
        same = [(place, gpu) for place, gpu in enumerate(free) if gpu.name == name]
        whole = len(same) - len(same) % size
        for start in range(0, whole, size):
            group = same[start : start + size]
            groups.append((group[0][0], tuple(gpu.uuid for _, gpu in group)))
        if left := same[whole:]:
            count = f"{len(left)} {name}" if len(left) > 1 else f"one {name}"
            unused = ", ".join(f"{gpu.uuid} ({gpu.index})" for _, gpu in left)
            problems.append(f"{count} cannot be part of a group of {size} and stays unused: {unused}")
    return [group for _, group in sorted(groups)], problems


def _listed(
    entries: Sequence[str | int],
    size: int,
    gpus: Sequence[Gpu],
    known: Sequence[SlotPlan],
    mig_enabled: Collection[str],
) -> tuple[list[_Wanted], list[str]]:
    choices, problems = gpu_choice.choose(entries, gpus, _pins(entries, known), mig_enabled)
    problems += gpu_choice.undivided([gpu for gpu in gpus if gpu.is_mig or _names(entries, gpu)], mig_enabled)
    if size == 1:
        return [_Wanted((uuid,), (choice.entry,)) for choice in choices for uuid in choice.uuids], problems
    wanted: list[_Wanted] = []
    for start in range(0, len(choices), size):
        group = choices[start : start + size]
        if part := next((choice for choice in group if choice.mig), None):
            problems.append(_no_groups_of_parts(part.entry, size))
        elif all(choice.uuids for choice in group) and len(group) == size:
            wanted.append(_Wanted(tuple(choice.uuids[0] for choice in group), tuple(choice.entry for choice in group)))
    return wanted, problems


def _names(entries: Sequence[str | int], gpu: Gpu) -> bool:
    return any(entry == gpu.index if isinstance(entry, int) else gpu.uuid.startswith(entry) for entry in entries)


def _pins(entries: Sequence[str | int], known: Sequence[SlotPlan]) -> dict[str, tuple[str, ...]]:
    pins: dict[str, tuple[str, ...]] = {}
    for plan in sorted(known, key=lambda plan: plan.index):
        for uuid, entry in zip(plan.gpus, plan.chosen, strict=False):
            pins[entry] = (*pins.get(entry, ()), uuid)
    everything = [uuid for plan in known for uuid in plan.gpus]
    for entry in map(str, entries):  # a UUID needs no record to be recognised after its GPU is gone
        fitting = [uuid for uuid in everything if uuid.startswith(entry)]
        if entry not in pins and len(fitting) == 1 and not entry.isdecimal():
            pins[entry] = (fitting[0],)
    return pins


def _no_groups_of_parts(named: str, size: int) -> str:
    return (
        f"MIG devices cannot work in groups of {size}, a process sees one only: `{named}`; set `gpus_per_instance = 1`"
    )


def _with_indexes(
    config: Config, wanted: Iterable[_Wanted], known: Sequence[SlotPlan]
) -> tuple[tuple[SlotPlan, ...], list[str]]:
    before: dict[frozenset[str], SlotPlan] = {}
    used: set[int] = set()
    for plan in sorted(known, key=lambda plan: plan.index):
        before.setdefault(frozenset(plan.gpus), plan)
    wanted = list(wanted)
    placed: list[tuple[int, _Wanted]] = []
    for slot in wanted:
        old = before.get(frozenset(slot.gpus)) if slot.gpus else None
        if old is not None and old.index not in used:
            used.add(old.index)
            placed.append((old.index, _in_order_of(slot, old.gpus)))
    found = {frozenset(slot.gpus) for _, slot in placed}
    for slot in wanted:
        if frozenset(slot.gpus) not in found:
            index = next(number for number in range(len(used) + 1) if number not in used)
            used.add(index)
            placed.append((index, slot))
    plans = [_plan(config, index, slot) for index, slot in sorted(placed, key=lambda each: each[0])]
    problems = [
        f"slot {plan.index} has no port: {plan.port} is beyond {_PORT_MAX}" for plan in plans if plan.port > _PORT_MAX
    ]
    return tuple(plan for plan in plans if plan.port <= _PORT_MAX), problems


def _in_order_of(slot: _Wanted, gpus: tuple[str, ...]) -> _Wanted:
    """A list in another order asks for nothing new; the running container keeps its own."""
    chosen = dict(zip(slot.gpus, slot.chosen, strict=True)) if slot.chosen else {}
    return replace(slot, gpus=gpus, chosen=tuple(chosen[uuid] for uuid in gpus) if chosen else ())


def _plan(config: Config, index: int, slot: _Wanted) -> SlotPlan:
    return SlotPlan(
        index=index,
        name=f"{config.container.name_prefix}-{index}",
        gpus=slot.gpus,
        port=config.base_port + index,
        chosen=slot.chosen,
    )


def fits(config: Config, gpus: Sequence[Gpu], plan: SlotPlan, labels: Labels | None) -> str:
    """ "" where the model fits the slot's GPUs or nobody can tell, else why not and what to set instead."""
    group = [gpu for gpu in gpus if gpu.uuid in plan.gpus]
    needed = (labels.gpu_memory_bytes or labels.weights_bytes) if labels else 0
    if not labels or not needed or not group or len(group) != len(plan.gpus):
        return ""
    smallest = min(gpu.memory_bytes for gpu in group)
    if not smallest or _on_each(needed, len(group)) <= smallest:
        return ""
    has = f"{len(group)} x {_gib(smallest)}" if len(group) > 1 else _gib(smallest)
    says = f"`{labels.model}` needs {_gib(needed)} of GPU memory, slot {plan.index} has {has}"
    return f"{says}; {_instead(config, gpus, group, needed)}"


def _instead(config: Config, gpus: Sequence[Gpu], group: Sequence[Gpu], needed: int) -> str:
    if group[0].is_mig:
        return "make a larger MIG device, or disable MIG"
    alike = _alike(config, gpus, group[0])
    smallest = min(gpu.memory_bytes for gpu in alike)
    for size in range(len(group) + 1, len(alike) + 1):
        if _on_each(needed, size) <= smallest:
            # As many slots with larger groups leave no GPU idle.
            return f"set `gpus_per_instance = {len(alike) // (len(alike) // size)}`"
    together = f"all {len(alike)} {group[0].name}" if len(alike) > 1 else f"the only {group[0].name}"
    return f"{together} cannot hold it: take a smaller model, a stronger quantization or a shorter context"


def _alike(config: Config, gpus: Sequence[Gpu], one: Gpu) -> list[Gpu]:
    """The GPUs of the host that could form a group with this one under the configuration's `gpus`."""
    there = [gpu for gpu in gpu_choice.devices(gpus) if not gpu.is_mig]
    if isinstance(config.gpus, tuple):
        return [gpu for gpu in there if _names(config.gpus, gpu)] or [one]
    return [gpu for gpu in there if gpu.name == one.name]


def _on_each(needed: int, size: int) -> int:
    """What each GPU of a group has to hold: the labels' estimate is for one, and a part of it is there on each."""
    each = min(_EACH_BYTES, needed)
    return each + -(-(needed - each) // size)


def _gib(size: int) -> str:
    return f"{size / GIBIBYTE:.1f} GiB"
