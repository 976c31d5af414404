"""Everything that one slot's step needs to know, put together once per tick. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance_agent.config import Config
from appliance_agent.containers import ContainerSeen, EngineSeen
from appliance_agent.evidence import Evidence
from appliance_agent.gpus import GpuSnapshot
from appliance_agent.slots import Done, Host, Now, Slot
from appliance_agent.spec import ContainerSpec, Release, SlotPlan


@dataclass(frozen=True, slots=True)
class Seen:
    """One observation of the whole host."""

    engine: EngineSeen
    gpus: GpuSnapshot
    evidence: Mapping[int, Evidence] = field(default_factory=dict[int, Evidence])
    plans: tuple[SlotPlan, ...] = ()
    plans_known: bool = True  # False while no GPU could be listed: then nothing is left over
    wanted: Release | None = None  # None while the image is not known
    waiting_for: str = ""  # why `wanted` is None, in words
    misfits: Mapping[int, str] = field(default_factory=dict[int, str])  # slots whose GPUs are too small, in words
    unready: Mapping[int, str] = field(default_factory=dict[int, str])  # slots whose GPUs CUDA cannot open yet
    done: tuple[Done, ...] = ()
    trusted_since_s: float = 0.0  # the agent has looked without a break since then


@dataclass(frozen=True, slots=True)
class View:
    config: Config
    host: Host
    slot: Slot
    seen: Seen
    now: Now
    container: ContainerSeen | None
    spec: ContainerSpec | None  # what the slot should run

    @property
    def evidence(self) -> Evidence | None:
        evidence = self.seen.evidence.get(self.slot.plan.index)
        if evidence is None or self.container is None or evidence.container_id != self.container.id:
            return None
        return evidence
