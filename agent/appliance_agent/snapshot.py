"""What the loop publishes after each tick: everything that status, metrics and HTTP answers are rendered from. Immutable."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from appliance_agent.config import Config
from appliance_agent.containers import NO_ENGINE, EngineSeen
from appliance_agent.evidence import Evidence
from appliance_agent.gpus import NO_GPUS, GpuSnapshot
from appliance_agent.slots import Host, Now
from appliance_agent.states import SERVING


@dataclass(frozen=True, slots=True)
class Snapshot:
    now: Now
    version: str  # of the agent
    started_wall_s: float
    config: Config
    config_path: str
    reload_problem: str = ""  # why the last SIGHUP kept the old configuration
    reloaded_wall_s: float = 0.0
    host: Host = field(default_factory=Host)
    engine: EngineSeen = NO_ENGINE
    gpus: GpuSnapshot = NO_GPUS
    evidence: Mapping[int, Evidence] = field(default_factory=dict[int, Evidence])  # by slot
    problems: tuple[str, ...] = ()  # what stands in the way of the whole host, a sentence each
    rolling: str = ""  # what a rolling change is doing, "" while there is none
    tick_s: float = 0.0  # how long the last tick took
    late_s: float = 0.0  # how much later than planned it began
    ticks: int = 0
    hostname: str = ""

    @property
    def ready(self) -> int:
        return sum(slot.state in SERVING for slot in self.host.slots)
