"""What the Docker Engine has, as values: its own state, our containers, the image, and who stands in our way."""

from __future__ import annotations

from dataclasses import dataclass

from appliance_agent.spec import Release
from appliance_image.labels import Labels


@dataclass(frozen=True, slots=True)
class ContainerSeen:
    """A container with our label, whatever its name."""

    id: str
    name: str
    slot: int
    spec_hash: str
    release_hash: str
    image_id: str
    gpus: tuple[str, ...]  # UUIDs, from its label
    status: str  # the engine's: created, running, paused, restarting, removing, exited, dead
    pid: int  # of its first process, in the engine's process namespace; 0 while it does not run
    started_at_s: float  # seconds since the epoch, 0 if never
    finished_at_s: float
    exit_code: int
    oom_killed: bool
    error: str  # what the engine says of a start that failed
    release: Release | None = None  # from its label: what a rollback can go back to

    @property
    def running(self) -> bool:
        return self.status == "running"


@dataclass(frozen=True, slots=True)
class Obstacle:
    """Somebody else's container with a name or a published port that a slot needs."""

    slot: int
    container: str  # its name
    what: str  # "name ollama-0" or "port 8880"


@dataclass(frozen=True, slots=True)
class ImageSeen:
    reference: str
    id: str  # "sha256:…", "" while it is not there
    digest: str  # "repository@sha256:…" if the engine knows it
    size_bytes: int
    labels: Labels | None  # None for an image that is not one of ours
    problem: str = ""  # labels that cannot be read, in words


@dataclass(frozen=True, slots=True)
class PullSeen:
    """The pull that runs, or the last one that failed."""

    running: bool
    done_bytes: int
    total_bytes: int
    error: str = ""
    hint: str = ""
    failed_at_s: float = 0.0  # CLOCK_MONOTONIC


@dataclass(frozen=True, slots=True)
class EngineFacts:
    """What does not change while an engine runs, from `/version` and `/info`."""

    version: str
    api_version: tuple[int, int]
    runtimes: tuple[str, ...]  # names, for example nvidia, runc
    devices: tuple[str, ...]  # CDI names the engine discovered, from API 1.50 on
    cdi_directories: tuple[str, ...]  # where it looks for CDI specifications, from 25.0 on
    cgroup_driver: str  # cgroupfs or systemd
    cgroup_version: str
    root: str  # where its data lies
    live_restore: bool
    specified: tuple[str, ...] = ()  # CDI names in specifications on disk, for engines that discover without telling


@dataclass(frozen=True, slots=True)
class EngineSeen:
    """The lists keep their last content while the engine does not answer."""

    at_s: float  # CLOCK_MONOTONIC of the newest complete listing
    up: bool
    because: str = ""  # why it is not, in words for a person
    since_s: float = 0.0  # when `up` last changed
    epoch: int = 0  # grows when the engine was seen to start anew
    facts: EngineFacts | None = None
    containers: tuple[ContainerSeen, ...] = ()
    obstacles: tuple[Obstacle, ...] = ()
    image: ImageSeen | None = None
    pull: PullSeen | None = None


NO_ENGINE = EngineSeen(at_s=0.0, up=False, because="the Docker Engine was not asked yet")
