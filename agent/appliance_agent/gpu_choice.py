"""Which GPUs the configuration asks for: entries of `gpus` become devices, and what cannot be found is told in words. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from appliance_agent.gpus import Gpu

Entry = str | int


@dataclass(frozen=True, slots=True)
class Choice:
    """One entry of the configuration, and the devices that it stands for; of one that is gone only the UUID is known."""

    entry: str
    uuids: tuple[str, ...]
    mig: bool = False


def in_pci_order(gpus: Iterable[Gpu]) -> list[Gpu]:
    """NVML's indexes are in this order too, but they change when a GPU falls off the bus; its place does not."""
    return sorted(gpus, key=_place)


def devices(gpus: Sequence[Gpu], mig_enabled: Collection[str] = ()) -> list[Gpu]:
    """What a container can have: MIG devices where MIG is enabled, whole GPUs elsewhere, in PCI order."""
    divided = {gpu.parent_uuid for gpu in gpus} | set(mig_enabled)
    return in_pci_order(gpu for gpu in gpus if gpu.is_mig or gpu.uuid not in divided)


def undivided(gpus: Sequence[Gpu], mig_enabled: Collection[str]) -> list[str]:
    """A sentence for each GPU that has MIG enabled and nothing made of it."""
    parents = {gpu.parent_uuid for gpu in gpus}
    return [
        f"{tell(gpu)} has MIG enabled but no MIG device: nothing can run on it"
        for gpu in in_pci_order(gpus)
        if gpu.uuid in mig_enabled and gpu.uuid not in parents and not gpu.is_mig
    ]


def tell(gpu: Gpu) -> str:
    kind = "MIG device of GPU" if gpu.is_mig else "GPU"
    return f"{kind} {gpu.index} ({gpu.name}, {gpu.uuid})"


def choose(
    entries: Sequence[Entry],
    gpus: Sequence[Gpu],
    pins: Mapping[str, tuple[str, ...]],
    mig_enabled: Collection[str] = (),
) -> tuple[list[Choice], list[str]]:
    """`pins`: what each entry stood for before. It goes on standing for that, also while the GPU is gone."""
    chosen: list[Choice] = []
    problems: list[str] = []
    taken: dict[str, str] = {}
    for entry in map(str, entries):
        found, problem = _one(entry, gpus, pins.get(entry, ()), mig_enabled)
        twice = next((taken[uuid] for uuid in found.uuids if uuid in taken), "")
        if twice:
            problem = f"`gpus` names one GPU twice: `{twice}` and `{entry}` are both {found.uuids[0]}"
            found = Choice(entry, ())
        taken |= dict.fromkeys(found.uuids, entry)
        chosen.append(found)
        problems += [problem] if problem else []
    return chosen, problems


def _one(entry: str, gpus: Sequence[Gpu], pinned: tuple[str, ...], mig_enabled: Collection[str]) -> tuple[Choice, str]:
    by_uuid = {gpu.uuid: gpu for gpu in gpus}
    if pinned:
        if here := next((by_uuid[uuid] for uuid in pinned if uuid in by_uuid), None):
            named = by_uuid.get(here.parent_uuid, here) if not entry.startswith("MIG-") else here
            return _divided(entry, named, gpus, mig_enabled), ""
        return Choice(entry, pinned, mig=pinned[0].startswith("MIG-")), _gone(entry, pinned)
    matching = _matching(entry, gpus)
    if len(matching) == 1:
        return _divided(entry, matching[0], gpus, mig_enabled), ""
    if matching:
        several = ", ".join(gpu.uuid for gpu in matching)
        return Choice(entry, ()), f"`gpus` names `{entry}`, which fits several GPUs: {several}"
    return Choice(entry, ()), f"`gpus` names `{entry}`, and there is no such GPU; {_there_are(gpus)}"


def _matching(entry: str, gpus: Sequence[Gpu]) -> list[Gpu]:
    if entry.isdecimal():
        return [gpu for gpu in gpus if gpu.index == int(entry) and not gpu.is_mig]
    exact = [gpu for gpu in gpus if gpu.uuid == entry]
    return exact or [gpu for gpu in gpus if gpu.uuid.startswith(entry)]


def _divided(entry: str, gpu: Gpu, gpus: Sequence[Gpu], mig_enabled: Collection[str]) -> Choice:
    parts = in_pci_order(part for part in gpus if part.parent_uuid == gpu.uuid)
    if parts or gpu.uuid in mig_enabled:
        return Choice(entry, tuple(part.uuid for part in parts), mig=True)
    return Choice(entry, (gpu.uuid,), mig=gpu.is_mig)


def _gone(entry: str, pinned: tuple[str, ...]) -> str:
    if not entry.isdecimal():
        return ""
    return f"`gpus` names index {entry}, which was {pinned[0]}, and that is gone: if it was replaced, write the new one's UUID"


def _there_are(gpus: Sequence[Gpu]) -> str:
    if not gpus:
        return "no GPU was found at all"
    return "there are " + ", ".join(f"{gpu.uuid} ({'MIG of ' if gpu.is_mig else ''}{gpu.index})" for gpu in gpus)


def _place(gpu: Gpu) -> tuple[str, int, int, int, str]:
    # A MIG device may not know its parent's address; the index, which it shares, must then decide for both.
    return (gpu.pci_bus_id.lower(), gpu.index, gpu.gpu_instance or 0, gpu.compute_instance or 0, gpu.uuid)
