"""A host of values where everything can go wrong at once: `agentworld` with graphics cards, an engine that answers as the
real one does, and the way from news to observation that the real loop takes.

What a fault does to the host is here; which faults meet, and what must hold then, is in `test_agent_matrix`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from agentworld import IMAGE, FakeContainer, World

from appliance_agent.config import Config, Container, HealingConfig, HealthConfig, RolloutConfig
from appliance_agent.containers import NO_ENGINE, EngineFacts, EngineSeen, ImageSeen, Obstacle
from appliance_agent.evidence import Canary, Evidence, Outcome, Running
from appliance_agent.gpus import Gpu, GpuReading, GpuSnapshot, RecoveryAction, Xid
from appliance_agent.observe import News, observe
from appliance_agent.slot_view import Seen
from appliance_agent.slots import Decision, Done
from appliance_agent.states import Action

CONFIG = Config(
    image=IMAGE,
    model="r1:32b",
    container=Container(environment={"OLLAMA_NUM_PARALLEL": "4"}),
    health=HealthConfig(load_s=30, silent_s=60),
    healing=HealingConfig(backoff_s=1, backoff_max_s=8, budget=4, budget_window_s=300, proven_s=60, probation_s=40),
    rollout=RolloutConfig(canaries=2, parallel_loads=8, drain_s=30),
)
FACTS = EngineFacts(
    "26.1.5", (1, 45), ("nvidia", "runc"), (), (), "cgroupfs", "2", "/var/lib/docker", live_restore=False
)
HANGS_S = 5.0  # until hands give an engine up that does not answer
ANSWERING = frozenset({"", "on_cpu", "slow", "failing", "error_500", "busy", "overrun"})
THERMAL = 0x40


@dataclass
class Card:
    """`recovery` None: an older driver, which does not say what it wants."""

    uuid: str
    lost: bool = False
    reset_required: bool = False
    recovery: RecoveryAction | None = RecoveryAction.NONE
    ecc_errors: int = 0
    clock_event_reasons: int = 0
    fabric_state: int | None = None
    migs: list[str] = field(default_factory=list[str])

    def mend(self) -> None:
        self.__init__(self.uuid)  # type: ignore[misc]

    @property
    def sound(self) -> bool:
        return not self.lost and not self.reset_required


class TroubledWorld(World):
    def __init__(self, cards: int = 4, *, config: Config = CONFIG) -> None:
        super().__init__(cards, config=config)
        self.cards = [Card(uuid) for uuid in self.gpus]
        self.image_id = "sha256:one"
        self.image_is_there = True
        self.frozen = False
        self.old_engine: EngineSeen | None = None  # what is told while no event comes
        self.engine_told = NO_ENGINE  # lists keep their last content
        self.cards_told: tuple[Gpu, ...] = ()
        self.image_told: str | None = None
        self.blind = False  # the agent's own threads had no time to look yet
        self.driver_problem = ""
        self.foreign: dict[int, str] = {}  # by slot: what somebody else's container has of it
        self.cursed: dict[int, str] = {}  # by slot: what every new container of it falls ill with
        self.evidence_before: dict[int, Evidence] = {}
        self.ours: set[str] = set()
        self.served: dict[str, Evidence] = {}  # by container: what is remembered of its users
        self._late: list[Decision] = []  # a frozen engine does them when it thaws
        self._handed_s: dict[int, float] = {}

    # --- what happens ------------------------------------------------------------------------------------------------

    def freeze(self) -> None:
        self.frozen = True

    def thaw(self) -> None:
        self.frozen, self.engine_up = False, True
        late, self._late = self._late, []
        for decision in late:
            self._done(decision)

    def card(self, uuid: str) -> Card | None:
        return next((card for card in self.cards if uuid == card.uuid or uuid in card.migs), None)

    def standstill(self, seconds: float) -> tuple[Decision, ...]:
        """The agent is stopped and goes on: it acts on old news first."""
        self.evidence_before = dict(self.seen().evidence)
        self.old_engine = self.seen().engine
        self.mono_s += seconds
        self.wall_s += seconds
        self._live()
        self.trusted_since_s = self.mono_s
        self.blind = True
        decisions = self.tick()
        self.blind, self.old_engine = False, None
        return decisions

    def restart_agent(self, *, wall_s: float | None = None, done: bool = False) -> None:
        for decision in self.in_hand if done else []:
            self._done(decision)
        super().restart_agent(wall_s=wall_s)
        self.engine_told, self.cards_told, self.image_told = NO_ENGINE, (), None
        if self.old_engine is not None:
            self.list_anew()

    def list_anew(self) -> None:
        """While events are missed, now and then."""
        self.old_engine = None
        self.old_engine = self._engine()

    def release(self, index: int) -> None:
        """Somebody else's container ends and gives back what it had of the slot."""
        self.foreign.pop(index, None)

    # --- what the hands meet -----------------------------------------------------------------------------------------

    def finish(self) -> None:
        if not self.frozen:
            super().finish()
            return
        for decision in self.in_hand:
            self._handed_s.setdefault(id(decision), self.mono_s)
        given_up = [each for each in self.in_hand if self.mono_s - self._handed_s[id(each)] >= HANGS_S]
        self.in_hand = [each for each in self.in_hand if each not in given_up]
        self._late += given_up
        self.told += [
            Done(each.action, each.slot, ok=False, error="no answer in time", container_id=each.container_id)
            for each in given_up
        ]

    def _done(self, decision: Decision) -> Done:
        spec = decision.spec
        if decision.action is not Action.CREATE or spec is None or not self.engine_up:
            if decision.action is Action.PULL and self.engine_up:
                return Done(decision.action, None, ok=self.image_is_there, error="registry cannot be reached")
            return super()._done(decision)
        holder = next((each for each in self.containers.values() if each.seen.name == spec.plan.name), None)
        if holder is not None and holder.seen.spec_hash == spec.hash and holder.seen.running:
            return Done(decision.action, decision.slot, ok=True, container_id=holder.seen.id)
        if error := self._refusal(decision):
            self.image_told = None  # the source looks again
            wide = "mismatch" in error or "No such image" in error
            obstacle = wide or spec.plan.index in self.foreign
            return Done(decision.action, decision.slot, ok=False, error=error, obstacle=obstacle, host_wide=wide)
        if holder is not None:
            if holder.seen.id in self.stuck:
                return Done(decision.action, decision.slot, ok=False, error="removing it: it does not end")
            del self.containers[holder.seen.id]
        return super()._done(decision)

    def _refusal(self, decision: Decision) -> str:
        """What a real engine answers, if it does not make the container."""
        assert decision.spec is not None
        plan = decision.spec.plan
        if plan.index in self.foreign:
            return f"{self.foreign[plan.index]} is taken"
        if not self.image_is_there:
            return f"No such image: {decision.spec.release.image_id}"
        cards = [self.card(uuid) for uuid in plan.gpus]
        if self.driver_problem == "driver mismatch":
            return "driver/library version mismatch"
        if self.driver_problem or not all(card is not None and card.sound for card in cards):
            return "nvidia-container-cli: initialization error"
        return ""

    def create(self, decision: Decision) -> str:
        made = super().create(decision)
        self.ours.add(made)
        assert decision.spec is not None
        if illness := self.cursed.get(decision.spec.plan.index, ""):
            container = self.containers[made]
            container.ill, container.ill_since_s = illness, self.mono_s
            if illness == "exits":
                container.seen = replace(container.seen, status="exited", exit_code=1, pid=0)
        return made

    # --- what is seen ------------------------------------------------------------------------------------------------

    def seen(self, done: Iterable[Done] = ()) -> Seen:
        return observe(self.config, self.host, self.news(done)).seen

    def news(self, done: Iterable[Done] = ()) -> News:
        evidence = {each.seen.slot: self.evidence(each) for each in self.containers.values() if each.seen.running}
        return News(
            engine=self._engine(),
            gpus=self._graphics(),
            evidence=self.evidence_before if self.blind else evidence,
            done=tuple(done),
            trusted_since_s=self.trusted_since_s,
        )

    def _engine(self) -> EngineSeen:
        if self.old_engine is not None:
            return self.old_engine
        if not self.engine_up:
            return replace(self.engine_told, up=False, because="the engine does not answer")
        what = {"name": "name ollama-{}", "port": "port 888{}"}
        self.image_told = self.image_told or (self.image_id if self.image_is_there else "")
        self.engine_told = EngineSeen(
            at_s=self.mono_s,
            up=True,
            since_s=1.0,
            epoch=self.epoch,
            facts=FACTS,
            containers=tuple(each.seen for each in self.containers.values()),
            obstacles=tuple(
                Obstacle(index, "somebody-elses", what[kind].format(index)) for index, kind in self.foreign.items()
            ),
            image=ImageSeen(IMAGE, self.image_told, "", 1, None),
        )
        return self.engine_told

    def _graphics(self) -> GpuSnapshot:
        problem = self.driver_problem or ("" if self.nvml_up else "NVML has not answered for 5 s")
        if problem:
            return GpuSnapshot(self.mono_s, up=False, because=problem, gpus=self.cards_told, xids=tuple(self.xids))
        gpus: list[Gpu] = []
        for index, card in enumerate(self.cards):
            gpus.append(Gpu(card.uuid, index, index, "T4", 16 * 1024**3))
            gpus += [
                Gpu(uuid, index, None, "1g.10gb", 8 * 1024**3, parent_uuid=card.uuid, gpu_instance=number)
                for number, uuid in enumerate(card.migs)
            ]
        readings = {
            card.uuid: GpuReading(
                self.mono_s,
                lost=card.lost,
                reset_required=card.reset_required,
                recovery_action=card.recovery,
                uncorrected_ecc_errors=card.ecc_errors,
                clock_event_reasons=card.clock_event_reasons,
                fabric_state=card.fabric_state,
                mig_enabled=bool(card.migs),
            )
            for card in self.cards
        }
        self.cards_told = tuple(gpus)
        return GpuSnapshot(self.mono_s, up=True, gpus=self.cards_told, readings=readings, xids=tuple(self.xids))

    def xid_of(self, card: Card, code: int, *, instance: int | None = None) -> None:
        self.xids.append(Xid(card.uuid, code, self.mono_s, instance))

    def _live(self) -> None:
        for each in self.containers.values():
            since_s = self.mono_s - each.born_s - 4
            due = since_s >= 0 and (not each.canaries or self.mono_s - each.canaries[-1].started_s >= 10)
            if each.seen.running and due and each.ill in ANSWERING:
                each.canaries.append(self._canary(each))

    def _canary(self, container: FakeContainer) -> Canary:
        failed = {
            "error_500": (Outcome.HTTP_ERROR, "500"),
            "busy": (Outcome.SERVER_BUSY, "503"),
            "overrun": (Outcome.SERVER_BUSY, "503"),
        }
        if container.ill in failed:
            outcome, detail = failed[container.ill]
            return Canary(self.mono_s, self.mono_s, outcome, detail)
        card = self.card(container.seen.gpus[0])
        throttled = card is not None and card.clock_event_reasons & THERMAL
        canary = super()._canary(container)
        rate = canary.tokens_per_s
        return replace(canary, tokens_per_s=rate * 0.3) if rate and throttled else canary

    def evidence(self, container: FakeContainer) -> Evidence:
        evidence = self._ill(container, super().evidence(container))
        last = self.served.get(container.seen.id, Evidence(container.seen.id, container.born_s))
        seen = replace(
            evidence,
            peers_s=self.mono_s if evidence.peers else last.peers_s,
            flow_s=evidence.flow_s or last.flow_s,
            compute_s=evidence.compute_s or last.compute_s,
        )
        self.served[container.seen.id] = seen
        return seen

    def _ill(self, container: FakeContainer, evidence: Evidence) -> Evidence:
        since_s = max(container.ill_since_s, container.born_s)
        on_gpu = evidence.on_gpu if self.nvml_up and not self.driver_problem else None
        evidence = replace(evidence, on_gpu=on_gpu)
        match container.ill:
            case "mute" if since_s - container.born_s < 4:
                return replace(evidence, answered_s=None, loaded=None, load=None)
            case "mute":
                return replace(evidence, answered_s=since_s, canary=Running(since_s))
            case "busy":
                return replace(evidence, peers=9, flow_s=self.mono_s, compute_ratio=0.9, compute_s=self.mono_s)
            case "overrun":
                return replace(evidence, peers=9, flow_s=None, compute_ratio=0.0, compute_s=None)
            case _:
                return evidence
