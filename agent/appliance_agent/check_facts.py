"""What `ollama-agent check` looks at, as values: what each neighbour says, or why it says nothing. No judgement."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Final

from appliance_agent.config import Config
from appliance_agent.containers import EngineFacts, ImageSeen
from appliance_agent.gpus import GpuSnapshot

SERVICE_USER: Final = "ollama-agent"


class Reach(Enum):
    """How far one gets with the Docker Engine."""

    UP = "up"
    NO_SOCKET = "no socket"
    FORBIDDEN = "permission denied"
    REFUSED = "connection refused"
    FROZEN = "no answer"
    BROKEN = "broken"  # an answer that is none of an engine


class Answer(Enum):
    """What a registry says of an image, as the engine hears it."""

    THERE = "there"
    NO_SUCH_IMAGE = "no such image"
    DENIED = "denied"
    UNREACHABLE = "unreachable"
    UNKNOWN = "unknown"  # not asked, or an answer that tells nothing


@dataclass(frozen=True, slots=True)
class Program:
    path: str
    installed_s: float  # seconds since the epoch: when it was put there, not when it was built


@dataclass(frozen=True, slots=True)
class DriverState:
    cards: int  # NVIDIA's GPUs on the PCI bus
    module_version: str  # "" while the kernel has not loaded it
    module_built: bool | None  # whether the running kernel has one to load; None: nobody can tell
    nouveau: bool
    library: str  # libnvidia-ml.so.1, "" where there is none
    library_version: str
    uvm_node: bool  # /dev/nvidia-uvm
    persistenced: bool  # the program nvidia-persistenced is installed


@dataclass(frozen=True, slots=True)
class Nvml:
    snapshot: GpuSnapshot | None
    problem: str = ""  # why there is none


@dataclass(frozen=True, slots=True)
class GpuUser:
    """A process on a GPU."""

    uuid: str
    pid: int
    name: str
    memory_bytes: int | None
    container_id: str = ""  # where a container engine started it


@dataclass(frozen=True, slots=True)
class CdiFile:
    path: str
    devices: tuple[str, ...]  # the names it gives, without `nvidia.com/gpu=`
    driver_version: str  # of the libraries it names
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Toolkit:
    """NVIDIA's, as dockerd would find it on its own PATH."""

    ctk: Program | None = None
    hook: Program | None = None
    runtime: Program | None = None
    cdi: tuple[CdiFile, ...] = ()
    cdi_directories: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")


@dataclass(frozen=True, slots=True)
class EngineState:
    reach: Reach
    detail: str = ""
    socket_group: str = ""  # to which the socket belongs
    facts: EngineFacts | None = None
    slow: str = ""  # what its answer to /info did, where that took long and all else did not
    started_s: float | None = None  # seconds since the epoch; None: nobody can tell
    snap: bool = False
    rootless: bool = False
    free_bytes: int | None = None  # where it keeps images
    images_root: str = ""


@dataclass(frozen=True, slots=True)
class ContainerThere:
    id: str
    name: str
    mine: bool  # it carries the label of an agent with our name prefix
    slot: int | None
    gpus: tuple[str, ...]
    running: bool
    ports: tuple[tuple[str, int], ...]  # published: address, port


@dataclass(frozen=True, slots=True)
class ImageState:
    seen: ImageSeen | None  # None: the engine was not asked, or did not answer
    created_s: float | None = None
    architecture: str = ""
    answer: Answer = Answer.UNKNOWN  # of the registry, where the image is absent
    detail: str = ""
    download_bytes: int | None = None
    credentials: bool = False  # there are some for that registry


@dataclass(frozen=True, slots=True)
class StoreState:
    problem: str = ""  # of the directory
    unreadable: str = ""  # the first path that the container's user cannot read
    manifest: bool = False
    missing_blobs: int = 0
    models: tuple[str, ...] = ()  # that there are
    owner: str = ""


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket of this host on one of the ports that the agent wants."""

    address: str
    port: int
    pid: int | None  # None: only root can see whose it is
    name: str
    user: str
    agent: bool = False  # it is a running ollama-agent


@dataclass(frozen=True, slots=True)
class HostState:
    kernel: str
    architecture: str
    distribution: str  # the kind of package manager: apt, dnf, zypper or ""
    ubuntu: bool
    user: str
    root: bool
    now_s: float  # seconds since the epoch
    synchronized: bool | None
    memory_bytes: int
    free_memory_bytes: int  # what is available without swapping
    open_files: int
    docker_group: bool  # this user is in the socket's group, perhaps not yet in this session
    service_home: str = ""  # of the user whom the installed unit runs as; "" where there is none
    hides: str = ""  # the option of /proc that hides the containers' processes from the agent


@dataclass(frozen=True, slots=True)
class CheckFacts:
    config: Config
    host: HostState
    engine: EngineState
    image: ImageState
    driver: DriverState | None = None  # None where no GPU is wanted, as with all of NVIDIA's below
    nvml: Nvml = Nvml(None)
    toolkit: Toolkit = field(default_factory=Toolkit)
    gpu_users: tuple[GpuUser, ...] = ()
    containers: tuple[ContainerThere, ...] = ()
    listeners: tuple[Listener, ...] = ()
    store: StoreState | None = None
    late: tuple[str, ...] = ()  # neighbours that did not answer in time, in words
