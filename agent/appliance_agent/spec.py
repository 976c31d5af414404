"""What a slot's container should be, as a value with a hash: equal hash, nothing to do. Pure."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import lru_cache

from appliance_image.contract import PREFIX

LABEL_MANAGED = PREFIX + "agent"  # the value is the name prefix: two agents on one engine leave each other alone
LABEL_SLOT = PREFIX + "agent.slot"
LABEL_GPUS = PREFIX + "agent.gpus"
LABEL_SPEC = PREFIX + "agent.spec"  # the hash
LABEL_RELEASE = PREFIX + "agent.release"  # the hash of the part that all slots share
LABEL_RELEASE_JSON = PREFIX + "agent.release.json"  # that part itself: what a rollback goes back to


class Injection(Enum):
    """How a container gets its GPU."""

    NONE = "none"  # it runs on the CPU
    CDI = "cdi"
    RUNTIME = "runtime"  # runtime=nvidia and NVIDIA_VISIBLE_DEVICES
    DEVICE_REQUEST = "device-request"  # what `docker run --gpus` asks for, and the device nodes named one by one


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """Who a slot is. It stays the same while the agent, its containers and the GPU come and go."""

    index: int
    name: str  # of its container
    gpus: tuple[str, ...]  # UUIDs; empty for a slot on the CPU
    port: int
    # By which entry of the configuration each GPU was chosen, "" where none: an index keeps its GPU when indexes reshuffle.
    chosen: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True, slots=True)
class Release:
    """What all slots share; a rolling change goes from one release to another."""

    image: str  # the reference, for people
    image_id: str  # "sha256:…", what runs
    model: str  # the name that probes ask for
    environment: tuple[tuple[str, str], ...]  # sorted, all that the agent sets
    store: str  # a directory of the host to mount at /models, or ""
    user: str
    read_only: bool
    memory_bytes: int
    shm_bytes: int
    stop_timeout_s: int
    log_max_bytes: int
    log_max_files: int
    address: str
    injection: Injection

    @property
    def hash(self) -> str:
        return _release_hash(self)

    def render(self) -> str:
        values = asdict(self) | {"injection": self.injection.value, "environment": dict(self.environment)}
        return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def parse(cls, text: str) -> Release:
        """Raises ValueError for a text that `render` did not write."""
        try:
            values = json.loads(text)
            values["injection"] = Injection(values["injection"])
            values["environment"] = tuple(sorted(values["environment"].items()))
            return cls(**values)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a release: {error}") from error


@dataclass(frozen=True, slots=True)
class ContainerSpec:
    plan: SlotPlan
    release: Release

    @property
    def hash(self) -> str:
        return _spec_hash(self)


@lru_cache(64)  # asked for many times a second, and there are few
def _release_hash(release: Release) -> str:
    return _hash(release.render())


@lru_cache(256)
def _spec_hash(spec: ContainerSpec) -> str:
    plan = spec.plan
    return _hash(f"{spec.release.render()}\n{plan.index} {plan.name} {','.join(plan.gpus)} {plan.port}")


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
