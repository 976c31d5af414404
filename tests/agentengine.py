"""What the tests of the agent's work at real engines share: a site of its own on an engine that others use as well."""

from __future__ import annotations

import http.client
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from conftest import BASE_VERSION
from engines import Engine, wait_until
from loadedimages import load_standin

from appliance_agent.config import Config, Container
from appliance_agent.config import Engine as EngineConfig
from appliance_agent.containers import ContainerSeen, EngineSeen
from appliance_agent.engine_source import DockerSource
from appliance_agent.gpus import NO_GPUS, GpuSnapshot
from appliance_agent.hands import DockerHands
from appliance_agent.slots import Decision, Done
from appliance_agent.spec import ContainerSpec, Injection, Release, SlotPlan
from appliance_agent.states import Action, Reason

GRACE_S = 10
_PORTS = range(12_000, 14_900)  # nobody else's: below those of `freeport`, of which an engine has some by `expose`


@dataclass
class Wakes:
    """Stands in for the loop."""

    count: int = 0
    event: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> None:
        self.count += 1
        self.event.set()


def overfill(engine: Engine, port: int) -> None:
    """A request that is larger than the memory of the container that is asked."""
    connection = http.client.HTTPConnection("127.0.0.1", port)
    with suppress(OSError, http.client.HTTPException), closing(connection):
        connection.sock = engine.connect(port, timeout_s=20)
        connection.request("POST", "/api/chat", b"x" * (256 * 1024 * 1024))
        connection.getresponse()


@dataclass(frozen=True, slots=True)
class AgentSite:
    """A prefix, ports and an image; `source` and `hands` work for them."""

    engine: Engine
    config: Config
    image_id: str
    source: DockerSource
    hands: DockerHands
    wakes: Wakes

    def plan(self, index: int = 0, *, gpus: Sequence[str] = ()) -> SlotPlan:
        name = f"{self.config.container.name_prefix}-gpu{index}"
        return SlotPlan(index, name, tuple(gpus), self.config.base_port + index)

    def release(self, injection: Injection = Injection.NONE) -> Release:
        return Release(
            image="test/ollama:standin",
            image_id=self.image_id,
            model="r1:tiny",
            environment=(("HOME", "/dev/shm/ollama"), ("OLLAMA_MODELS", "/tmp/models"), ("STANDIN_TEST", "1")),
            store="",
            user="65534:65534",
            read_only=True,
            memory_bytes=0,
            shm_bytes=64 * 1024 * 1024,
            stop_timeout_s=GRACE_S,
            log_max_bytes=1024 * 1024,
            log_max_files=2,
            address="127.0.0.1",
            injection=injection,
        )

    def spec(self, index: int = 0, *, gpus: Sequence[str] = (), release: Release | None = None) -> ContainerSpec:
        return ContainerSpec(self.plan(index, gpus=gpus), release or self.release())

    def create(self, spec: ContainerSpec | None = None) -> Done:
        spec = spec or self.spec()
        return self.hands.act(Decision(Action.CREATE, spec.plan.index, "a test", Reason.START, spec=spec))

    def remove(self, container_id: str, *, grace_s: float = GRACE_S) -> Done:
        decision = Decision(Action.REMOVE, 0, "a test", Reason.EXIT, container_id=container_id, grace_s=grace_s)
        return self.hands.act(decision)

    def pull(self) -> Done:
        return self.hands.act(Decision(Action.PULL, None, "a test", Reason.START))

    def seen(self) -> EngineSeen:
        return self.source.seen()

    def container(self, container_id: str) -> ContainerSeen | None:
        return next((each for each in self.seen().containers if each.id == container_id), None)

    def until(self, true: Callable[[EngineSeen], bool], what: str, *, timeout_s: float = 30) -> EngineSeen:
        """The first state for which it is true."""
        found: list[EngineSeen] = []

        def look() -> bool:
            found[:] = [self.seen()]
            return true(found[0])

        try:
            wait_until(look, timeout_s=timeout_s, what=what)
        except TimeoutError as error:
            raise AssertionError(f"{error}; seen last: {found[0]}") from error
        return found[0]

    def names(self) -> list[str]:
        """All containers of this site that the engine has, whatever their state."""
        words = ("ps", "-a", "--format={{.Names}}", f"--filter=name={self.config.container.name_prefix}")
        return sorted(self.engine.run_cli(*words).stdout.split())


@contextmanager
def agent_site(
    engine: Engine,
    layout: Path,
    *,
    timeout_s: float = 10,
    gpus: GpuSnapshot = NO_GPUS,
    kill_s: float = 30,
    quiet_s: float = 30,
    docker_config: str = "",
    path: Path | None = None,
) -> Iterator[AgentSite]:
    """`path`: another socket than the engine's own. Without one, the engine has told its settings in the beginning."""
    image_id = load_standin(engine, layout, version=BASE_VERSION)
    prefix = f"t{secrets.token_hex(4)}"
    config = Config(
        image="test/ollama:standin",
        base_port=secrets.choice(_PORTS),
        engine=EngineConfig(socket=str(path or engine.socket), timeout_s=timeout_s, docker_config=docker_config),
        container=replace(Container(), name_prefix=prefix),
    )
    wakes = Wakes()
    source = DockerSource(config, wakes).start()
    hands = DockerHands(config, source, lambda: gpus, clock=time.monotonic, kill_s=kill_s, quiet_s=quiet_s)
    site = AgentSite(engine, config, image_id, source, hands, wakes)
    try:
        site.until(lambda seen: seen.up and (path is not None or seen.facts is not None), "the engine to be seen")
        yield site
    finally:
        source.close()
        if names := _left(engine, prefix):
            engine.run_cli("rm", "-f", "-v", *names, check=False)


def _left(engine: Engine, prefix: str) -> list[str]:
    return engine.run_cli("ps", "-aq", f"--filter=name={prefix}", check=False).stdout.split()


def shim_of(container_id: str) -> int:
    """The process between the engine and the container; while it is stopped nothing can be done to the container."""
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"containerd-shim" in words[0] and container_id.encode() in words:
            return int(entry.name)
    raise AssertionError("no shim")
