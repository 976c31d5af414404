"""Asks every neighbour of the agent at once, each with a deadline. What fails or is late is a fact; nothing raises."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from appliance_agent import check_driver, check_engine, check_host, gpu_wire
from appliance_agent.check_engine import EngineDoor, EngineUnseenError
from appliance_agent.check_facts import CheckFacts, EngineState, HostState, ImageState, Nvml, Reach, StoreState, Toolkit
from appliance_agent.check_image import image_state
from appliance_agent.check_store import store_state
from appliance_agent.config import Config, GpuChoice
from appliance_agent.gpus import GpuSnapshot

DEADLINE_S: Final = 5.0
INFO_S: Final = 45.0  # twice what the engine itself waits for a Swarm without a quorum
NVML_S: Final = 45.0  # one to four seconds a GPU where no persistence mode keeps it awake
_GRACE_S: Final = 0.5  # so that a neighbour's own deadline speaks before ours
_SLOW_S: Final = 3.0
_SLOTS: Final = 64

T = TypeVar("T")


@dataclass
class _Asked(Generic[T]):
    """A question in a thread of its own, which is left behind when its answer is late: it may hang in the kernel."""

    who: str
    ask: Callable[[], T]
    limit_s: float
    answers: list[T] = field(default_factory=list[T])
    problem: str = ""

    def __post_init__(self) -> None:
        self._until_s = time.monotonic() + self.limit_s + _GRACE_S
        self._thread = threading.Thread(target=self._run, name=f"check {self.who}", daemon=True)
        self._thread.start()

    def is_answered_within(self, limit_s: float) -> bool:
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def answer(self, otherwise: T) -> T:
        self._thread.join(max(0.0, self._until_s - time.monotonic()))
        if not self.answers and not self.problem:
            self.problem = f"{self.who} did not answer within {self.limit_s:g} s"
        return self.answers[0] if self.answers else otherwise

    def _run(self) -> None:
        try:
            self.answers.append(self.ask())
        except EngineUnseenError as silent:
            self.problem = f"{self.who}: {silent.detail or silent.reach.value}"
        except Exception as error:  # noqa: BLE001 - a part that cannot be seen must not hide the others
            self.problem = f"{self.who} cannot be looked at: {type(error).__name__}: {error}"


def gather(
    config: Config,
    *,
    deadline_s: float = DEADLINE_S,
    info_s: float = INFO_S,
    nvml_s: float = NVML_S,
    tell: Callable[[str], None] = lambda _: None,
) -> CheckFacts:
    """`tell` hears why it takes long."""
    on_gpus = config.gpus != GpuChoice.NONE
    path = config.engine.socket
    door = EngineDoor(path, timeout_s=deadline_s)
    ports = [*range(config.base_port, config.base_port + _SLOTS), config.metrics.port]

    engine = _Asked(
        "the Docker Engine",
        lambda: check_engine.engine_state(door, path, slow_s=deadline_s, info_s=info_s),
        2 * deadline_s + info_s,
    )
    containers = _Asked(
        "the list of containers", lambda: check_engine.containers(door, config.container.name_prefix), deadline_s
    )
    image = _Asked("the image", lambda: image_state(config, deadline_s=deadline_s), 3 * deadline_s)
    nvml = _Asked("NVML", lambda: nvml_once(nvml_s), nvml_s) if on_gpus else None
    driver = _Asked("the driver's state in /proc", check_driver.driver_state, deadline_s) if on_gpus else None
    host = _Asked("the host's state in /proc", lambda: _host(path), deadline_s)
    listening = _Asked("the list of sockets", lambda: check_host.listeners(ports), deadline_s)
    store = _Asked(f"the store {config.store}", lambda: _store(config), deadline_s) if config.store else None

    if not engine.is_answered_within(deadline_s + _GRACE_S):
        tell(f"waiting for the Docker Engine's answer to `docker info` (at most {info_s:g} s)")
    answered = engine.answer(EngineState(Reach.FROZEN))
    state, tools = _toolkit(answered, door) if on_gpus else (answered, Toolkit())
    if nvml and not nvml.is_answered_within(_SLOW_S):
        tell(f"waiting for the driver; without persistence mode its first answer takes a while (at most {nvml_s:g} s)")
    seen = nvml.answer(Nvml(None, _late_nvml(nvml_s))) if nvml else Nvml(None)
    facts = CheckFacts(
        config=config,
        host=host.answer(_UNKNOWN_HOST),
        engine=state,
        image=image.answer(ImageState(None)) if state.reach is Reach.UP else ImageState(None),
        driver=driver.answer(check_driver.driver_state(Path("/nonexistent"))) if driver else None,
        nvml=seen,
        toolkit=tools,
        gpu_users=check_host.gpu_users(seen.snapshot) if seen.snapshot else (),
        containers=containers.answer(()),
        listeners=listening.answer(()),
        store=store.answer(None) if store else None,
    )
    asked: list[_Asked[Any] | None] = [host, listening, driver, store]
    asked += [containers, image] if state.reach is Reach.UP else []
    return replace(facts, late=tuple(each.problem for each in asked if each and each.problem))


def nvml_once(timeout_s: float) -> Nvml:
    """In a process of its own, because a call may hang in the driver; one that does is left behind."""
    words = [sys.executable, "-m", "appliance_agent.nvml_child", "--once"]
    child = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        output, complaint = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        child.kill()
        for pipe in (child.stdout, child.stderr):
            if pipe:
                pipe.close()
        return Nvml(None, _late_nvml(timeout_s))
    try:
        line = gpu_wire.Reader().parse(output.splitlines()[-1])
    except (gpu_wire.WireError, IndexError):
        said = complaint.decode(errors="replace").strip().removeprefix("error: ")
        return Nvml(None, said or f"its process ended with status {child.returncode}")
    return Nvml(line) if isinstance(line, GpuSnapshot) else Nvml(None, "its process said nothing of GPUs")


def _late_nvml(timeout_s: float) -> str:
    return f"no answer within {timeout_s:g} s"


def _store(config: Config) -> StoreState | None:
    return store_state(Path(config.store), config.model, config.container.user)


def _host(path: str) -> HostState:
    return check_host.host_state(check_engine.socket_group(path))


def _toolkit(engine: EngineState, door: EngineDoor) -> tuple[EngineState, Toolkit]:
    """As dockerd sees it: on its PATH and below its root, where this user may look there."""
    pid = check_engine.engine_process(door)
    path = check_host.environment(pid).get("PATH", "") if pid else ""
    root = Path(f"/proc/{pid}/root") if path else Path("/")
    directories = engine.facts.cdi_directories if engine.facts else ()
    tools = check_driver.toolkit(root, path=path or check_driver.DEFAULT_PATH, cdi=directories)
    started_s = check_host.started_s(pid) if pid else None
    return replace(engine, started_s=started_s), tools


_UNKNOWN_HOST: Final = HostState(
    kernel="",
    architecture="",
    distribution="",
    ubuntu=False,
    user="",
    root=False,
    now_s=0.0,
    synchronized=None,
    memory_bytes=0,
    free_memory_bytes=0,
    open_files=1 << 20,
    docker_group=False,
)
