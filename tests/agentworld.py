"""A host that exists only as values: engine, containers, GPUs and clock, for tests of `reconcile` without any I/O.

Actions take time: a decision becomes a `Done` when `finish` says so, so that tests can look into every moment between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from appliance_agent.config import Config, HealingConfig, RolloutConfig
from appliance_agent.containers import ContainerSeen, EngineSeen, ImageSeen
from appliance_agent.evidence import Canary, Evidence, Load, Outcome, Running
from appliance_agent.gpus import Gpu, GpuReading, GpuSnapshot, RecoveryAction, Xid
from appliance_agent.memory_file import parse, render
from appliance_agent.reconcile import reconcile
from appliance_agent.slot_view import Seen
from appliance_agent.slots import Decision, Done, Host, Now, Slot
from appliance_agent.spec import Injection, Release, SlotPlan
from appliance_agent.states import Action, State

IMAGE = "registry.lan/ai/r1:32b"
PROVEN = 3
LOAD_S = 4.0


def release(tag: str = "one", **changes: object) -> Release:
    base = Release(
        image=IMAGE, image_id=f"sha256:{tag}", model="r1:32b", environment=(), store="", user="65534:65534",
        read_only=True, memory_bytes=0, shm_bytes=1, stop_timeout_s=30, log_max_bytes=1, log_max_files=1,
        address="127.0.0.1", injection=Injection.CDI,
    )  # fmt: skip
    return replace(base, **changes)  # type: ignore[arg-type]


CONFIG = Config(
    image=IMAGE, healing=HealingConfig(), rollout=RolloutConfig(canaries=PROVEN, parallel_loads=8, drain_s=60)
)


@dataclass
class FakeContainer:
    """What happens inside is set by tests: `ill` is one of the words that `World.evidence` knows."""

    seen: ContainerSeen
    born_s: float
    ill: str = ""
    ill_since_s: float = 0.0
    rate: float = 40.0
    users: int = 0
    canaries: list[Canary] = field(default_factory=list[Canary])

    @property
    def release_hash(self) -> str:
        return self.seen.release_hash


class World:
    def __init__(self, slots: int = 2, *, config: Config = CONFIG, wanted: Release | None = None) -> None:
        self.config = config
        self.gpus = [f"GPU-{index:04d}" for index in range(slots)]
        self.plans = tuple(
            SlotPlan(index, f"ollama-{index}", (uuid,), 8880 + index) for index, uuid in enumerate(self.gpus)
        )
        self.wanted = wanted or release()
        self.host = Host()
        self.mono_s = 1000.0
        self.wall_s = 1_800_000_000.0
        self.containers: dict[str, FakeContainer] = {}
        self.engine_up = True
        self.epoch = 0
        self.nvml_up = True
        self.lost: set[str] = set()
        self.recovery: dict[str, RecoveryAction] = {}
        self.xids: list[Xid] = []
        self.in_hand: list[Decision] = []
        self.log: list[Decision] = []
        self.told: list[Done] = []
        self.bad: Callable[[Release], str] = lambda _: ""  # the illness that a release brings
        self.rates: dict[str, float] = {}  # tokens/s by image id
        self.create_error: Done | None = None
        self.stuck: set[str] = set()
        self.trusted_since_s = 0.0
        self._count = 0

    # --- time --------------------------------------------------------------------------------------------------------

    def tick(self, seconds: float = 1.0, *, finish: bool = True) -> tuple[Decision, ...]:
        """One look, one decision, and by default every action done at once."""
        self.mono_s += seconds
        self.wall_s += seconds
        self._live()
        done, self.told = tuple(self.told), []
        self.host, decisions = reconcile(self.config, self.host, self.seen(done), Now(self.mono_s, self.wall_s))
        self.log += decisions
        self.in_hand += decisions
        if finish:
            self.finish()
        return decisions

    def run(self, seconds: float, *, step_s: float = 1.0) -> list[Decision]:
        decided: list[Decision] = []
        for _ in range(round(seconds / step_s)):
            decided += self.tick(step_s)
        return decided

    def until(self, true: Callable[[], bool], *, limit_s: float = 3600.0) -> float:
        """Seconds it took."""
        began_s = self.mono_s
        while not true():
            assert self.mono_s - began_s < limit_s, self.states()
            self.tick()
        return self.mono_s - began_s

    def restart_agent(self, *, wall_s: float | None = None) -> None:
        """kill -9 and start: only what the state file holds is left, and what hands had begun is never reported."""
        text = render(self.host, Now(self.mono_s, self.wall_s))
        self.wall_s = self.wall_s if wall_s is None else wall_s
        self.host = parse(text, Now(self.mono_s, self.wall_s), self.config.healing)
        self.in_hand, self.told = [], []
        self.trusted_since_s = self.mono_s

    # --- what is asked -----------------------------------------------------------------------------------------------

    def slot(self, index: int) -> Slot:
        slot = self.host.slot(index)
        assert slot is not None
        return slot

    def states(self) -> list[str]:
        return [f"{slot.state.name}: {slot.because}" for slot in self.host.slots]

    def all_ready(self) -> bool:
        return bool(self.host.slots) and all(slot.state is State.READY for slot in self.host.slots)

    def all_proven(self) -> bool:
        return self.all_ready() and all(slot.proven for slot in self.host.slots)

    def of(self, index: int) -> FakeContainer:
        return next(each for each in self.containers.values() if each.seen.slot == index)

    def running(self) -> dict[int, str]:
        """Image id by slot."""
        return {each.seen.slot: each.seen.image_id for each in self.containers.values() if each.seen.running}

    def made(self, index: int) -> list[Decision]:
        return [each for each in self.log if each.action is Action.CREATE and each.slot == index]

    def removed(self, index: int | None) -> list[Decision]:
        return [each for each in self.log if each.action is Action.REMOVE and each.slot == index]

    # --- what happens ------------------------------------------------------------------------------------------------

    def ill(self, index: int, what: str) -> None:
        container = self.of(index)
        container.ill, container.ill_since_s = what, self.mono_s

    def end(self, index: int, *, code: int = 137, oom: bool = False) -> None:
        container = self.of(index)
        container.seen = replace(container.seen, status="exited", exit_code=code, oom_killed=oom, pid=0)

    def xid(self, index: int, code: int) -> None:
        self.xids.append(Xid(self.gpus[index], code, self.mono_s))

    def restart_engine(self) -> None:
        self.epoch += 1
        for container in self.containers.values():
            container.seen = replace(container.seen, status="exited", exit_code=0, pid=0)

    def finish(self) -> None:
        in_hand, self.in_hand = self.in_hand, []
        self.told += [self._done(decision) for decision in in_hand]

    def _done(self, decision: Decision) -> Done:
        if not self.engine_up:
            return Done(decision.action, decision.slot, ok=False, error="no answer", container_id=decision.container_id)
        if decision.action is Action.PULL:
            return Done(decision.action, None, ok=True)
        if decision.action is Action.REMOVE:
            if decision.container_id in self.stuck:
                return Done(decision.action, decision.slot, ok=False, stuck=True, container_id=decision.container_id)
            self.containers.pop(decision.container_id, None)
            return Done(decision.action, decision.slot, ok=True, container_id=decision.container_id)
        if self.create_error is not None:
            return replace(self.create_error, slot=decision.slot)
        return Done(decision.action, decision.slot, ok=True, container_id=self.create(decision))

    def create(self, decision: Decision) -> str:
        assert decision.spec is not None
        spec = decision.spec
        if made := next((each for each in self.containers.values() if each.seen.name == spec.plan.name), None):
            assert (made.seen.status, made.seen.spec_hash) == ("created", spec.hash), "name in use"
            made.seen = replace(made.seen, status="running", pid=self._count)
            return made.seen.id
        self._count += 1
        seen = ContainerSeen(
            id=f"container-{self._count}", name=spec.plan.name, slot=spec.plan.index, spec_hash=spec.hash,
            release_hash=spec.release.hash, image_id=spec.release.image_id, gpus=spec.plan.gpus, status="running",
            pid=self._count, started_at_s=self.wall_s, finished_at_s=0, exit_code=0, oom_killed=False, error="",
            release=spec.release,
        )  # fmt: skip
        illness = self.bad(spec.release)
        container = FakeContainer(seen, self.mono_s, ill=illness, ill_since_s=self.mono_s)
        container.rate = self.rates.get(spec.release.image_id, 40.0)
        if illness == "exits":
            container.seen = replace(seen, status="exited", exit_code=1, pid=0)
        self.containers[seen.id] = container
        return seen.id

    # --- what is seen ------------------------------------------------------------------------------------------------

    def seen(self, done: Iterable[Done] = ()) -> Seen:
        at_s = self.mono_s
        engine = EngineSeen(
            at_s=at_s if self.engine_up else at_s - 60,
            up=self.engine_up,
            because="" if self.engine_up else "the engine does not answer",
            since_s=1.0,
            epoch=self.epoch,
            containers=tuple(each.seen for each in self.containers.values()),
            image=ImageSeen(IMAGE, self.wanted.image_id, "", 1, None),
        )
        readings = {
            uuid: GpuReading(at_s, lost=uuid in self.lost, recovery_action=self.recovery.get(uuid, RecoveryAction.NONE))
            for uuid in self.gpus
        }
        gpus = tuple(Gpu(uuid, index, index, "T4", 16 * 1024**3) for index, uuid in enumerate(self.gpus))
        return Seen(
            engine=engine,
            gpus=GpuSnapshot(at_s, self.nvml_up, gpus=gpus, readings=readings, xids=tuple(self.xids)),
            evidence={each.seen.slot: self.evidence(each) for each in self.containers.values() if each.seen.running},
            plans=self.plans,
            wanted=self.wanted,
            done=tuple(done),
            trusted_since_s=self.trusted_since_s,
        )

    def _live(self) -> None:
        """Canaries of sound containers: one every ten seconds once the model is loaded."""
        for each in self.containers.values():
            since_s = self.mono_s - each.born_s - LOAD_S
            due = since_s >= 0 and (not each.canaries or self.mono_s - each.canaries[-1].started_s >= 10)
            if each.seen.running and due and each.ill in ("", "on_cpu", "slow", "failing"):
                each.canaries.append(self._canary(each))

    def _canary(self, container: FakeContainer) -> Canary:
        if container.ill == "failing":
            return Canary(self.mono_s, self.mono_s, Outcome.STREAM_ERROR, "an error in the stream")
        rate = container.rate * (0.2 if container.ill == "slow" else 1.0)
        return Canary(self.mono_s, self.mono_s, Outcome.OK, first_token_s=0.1, tokens=9, tokens_per_s=rate)

    def evidence(self, container: FakeContainer) -> Evidence:
        now_s, born_s = self.mono_s, container.born_s
        loaded = now_s - born_s >= LOAD_S and container.ill != "never_loads"
        evidence = Evidence(
            container_id=container.seen.id,
            watched_since_s=born_s,
            answered_s=now_s,
            loaded=loaded,
            load=Load(born_s, born_s + LOAD_S if loaded else None, Outcome.OK if loaded else None),
            canaries=tuple(container.canaries[-20:]),
            peers=container.users,
            flow_s=now_s if container.users and not container.ill else None,
            compute_ratio=0.5 if container.users and not container.ill else 0.0,
            compute_s=now_s if container.users and not container.ill else None,
            on_gpu=container.ill != "on_cpu" if self.nvml_up else None,
            on_gpu_since_s=container.ill_since_s if container.ill == "on_cpu" else born_s,
            progress_s=None,
        )
        if container.ill == "wedged":
            evidence = replace(evidence, canary=Running(max(container.ill_since_s, born_s)))
        if container.ill == "stalled":
            started_s = container.ill_since_s
            evidence = replace(evidence, canary=Running(started_s, started_s, started_s, 2))
        if container.ill == "gone":
            evidence = replace(evidence, refused_since_s=container.ill_since_s)
        return evidence
