"""What `/status` and `ollama-agent status` say, as values: field names are the keys of the JSON and are API. Pure.

Units are in the names, times are UTC, None is "not known" and never zero. `status_of` makes it from the published
snapshot; `status_json` writes and reads it, `status_table` shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from appliance_agent.generated import Generated

SCHEMA = 1  # grows when a key changes its meaning; a new key is no change


@dataclass(frozen=True, slots=True)
class AgentStatus:
    version: str
    started: datetime | None
    config_path: str | None
    reload_problem: str | None  # why the last reload kept the old configuration
    ticks: int
    tick_seconds: float  # how long the last tick took
    late_seconds: float  # how much later than planned it began


@dataclass(frozen=True, slots=True)
class EngineStatus:
    up: bool
    because: str | None  # why it is not
    since: datetime | None  # when `up` last changed
    version: str | None


@dataclass(frozen=True, slots=True)
class DriverStatus:
    up: bool
    because: str | None
    version: str | None
    cuda_version: str | None


@dataclass(frozen=True, slots=True)
class PullStatus:
    running: bool
    done_bytes: int
    total_bytes: int
    error: str | None
    hint: str | None


@dataclass(frozen=True, slots=True)
class RefusedStatus:
    release: str
    because: str
    time: datetime | None


@dataclass(frozen=True, slots=True)
class HostStatus:
    name: str | None
    serving: int  # slots that answer users
    down: bool  # a person asked for all containers to be taken down
    image: str | None  # what configuration asks for
    image_id: str | None
    model: str | None
    rolling: str | None  # what a rolling change is doing
    problems: tuple[str, ...]
    refused: RefusedStatus | None  # the release that was rolled back
    pull: PullStatus | None


@dataclass(frozen=True, slots=True)
class GpuStatus:
    uuid: str
    index: int | None  # NVML's
    name: str | None
    up: bool  # the last look at it succeeded, and it is sound
    problem: str | None
    utilization_ratio: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_celsius: float | None
    power_watts: float | None
    power_limit_watts: float | None
    recovery_action: str | None  # what the driver asks for
    last_xid: int | None
    last_xid_time: datetime | None


@dataclass(frozen=True, slots=True)
class CanaryStatus:
    time: datetime | None  # when it ended
    outcome: str
    detail: str | None
    time_to_first_token_seconds: float | None
    tokens_per_second: float | None


@dataclass(frozen=True, slots=True)
class PendingStatus:
    action: str
    since: datetime | None


@dataclass(frozen=True, slots=True)
class QuarantineStatus:
    cause: str
    because: str
    since: datetime | None
    until: datetime | None  # when the probation begins
    level: int


@dataclass(frozen=True, slots=True)
class SlotStatus:
    slot: int
    state: str
    state_number: int
    since: datetime | None
    because: str | None
    health: str | None
    serving: bool
    gpus: tuple[GpuStatus, ...]
    model: str | None
    image: str | None  # what its container runs
    image_id: str | None
    ollama_version: str | None
    container_name: str
    container_id: str | None
    container_started: datetime | None
    address: str
    port: int
    canary: CanaryStatus | None  # the last one
    good_canary: CanaryStatus | None  # the last one that gave tokens
    baseline_tokens_per_second: float | None
    restarts: Mapping[str, int]  # containers made, by reason
    pending: PendingStatus | None
    quarantine: QuarantineStatus | None
    next_try: datetime | None  # the end of the back-off, while it lies ahead
    sent_bytes_per_second: float | None  # to users, over the last seconds
    generated: Generated | None  # for users; None if its Ollama does not tell

    @property
    def utilization_ratio(self) -> float | None:
        """Of all its GPUs; None as long as one of them is not known."""
        ratios = [gpu.utilization_ratio for gpu in self.gpus]
        known = [ratio for ratio in ratios if ratio is not None]
        return sum(known) / len(known) if known and len(known) == len(ratios) else None


@dataclass(frozen=True, slots=True)
class EntryStatus:
    time: datetime | None
    slot: int | None  # None for the whole host
    gpus: tuple[str, ...]
    action: str
    because: str
    evidence: str | None


@dataclass(frozen=True, slots=True)
class Status:
    schema: int
    time: datetime  # of the tick that this is the state of
    agent: AgentStatus
    engine: EngineStatus
    driver: DriverStatus
    host: HostStatus
    slots: tuple[SlotStatus, ...]
    history: tuple[EntryStatus, ...]  # newest last


def moment(wall_s: float) -> datetime:
    return datetime.fromtimestamp(wall_s, UTC)
