"""The neighbours of the loop, as it sees them: each observes on its own and is asked without waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from appliance_agent.containers import EngineSeen
from appliance_agent.evidence import Evidence
from appliance_agent.gpus import GpuSnapshot
from appliance_agent.slots import Decision, Done
from appliance_agent.spec import SlotPlan

Wake = Callable[[], None]  # tells the loop that there is news; from any thread, cheap


class GpuSource(Protocol):
    def snapshot(self) -> GpuSnapshot: ...

    def close(self) -> None: ...


class EngineSource(Protocol):
    """Observes the engine; `seen` never blocks."""

    def seen(self) -> EngineSeen: ...

    def want_image(self, reference: str) -> None:
        """Look at once what this name means, and again after each pull and while it is not there."""
        ...

    def expect(self, plans: tuple[SlotPlan, ...]) -> None:
        """The names and ports that the slots need: whoever else has one is an obstacle."""
        ...

    def close(self) -> None: ...


class Hands(Protocol):
    """Does one thing at the engine, in a worker's thread; may block up to its own deadline and never raises."""

    def act(self, decision: Decision) -> Done: ...


@dataclass(frozen=True, slots=True)
class Target:
    """A container to be watched."""

    slot: int
    container_id: str
    pid: int
    address: str  # where its port is published
    port: int
    model: str
    gpus: tuple[str, ...]


class HealthSource(Protocol):
    """Watches containers; `evidence` never blocks. A target with another container id begins anew."""

    def watch(self, targets: tuple[Target, ...], closely: frozenset[int] = frozenset()) -> None:
        """`closely`: slots whose connections are to be counted at each look; for the others that is done only while
        a canary waits, because it is dear."""
        ...

    def evidence(self) -> Mapping[int, Evidence]: ...

    def trusted_since_s(self, now_s: float) -> float:
        """Since when it has looked every second: what was not seen before may have been there."""
        ...

    def close(self) -> None: ...
