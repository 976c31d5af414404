"""What can go wrong in a slot, on a GPU, in the engine and in the agent, at which phase of a slot's life, and what holds then.

`Ordeal(row).run()` brings a host of values to the phase, lets the faults of the row strike, lasts them out and ends them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import pytest
from troubledworld import THERMAL, Card, TroubledWorld

from appliance_agent.config import ConfigError, parse
from appliance_agent.gpus import RecoveryAction
from appliance_agent.slots import Decision
from appliance_agent.states import SICK_REASONS, TRANSITIONS, Action, Reason, State

SLOTS: Final = 4
WINDOW_S: Final = 60  # how long the faults last
CALM_S: Final = 3600
SLOT: Final = (
    "none", "exit 0", "exit 137", "out of memory", "segmentation fault", "hang at connect", "hang before first token",
    "stall", "slow", "garbage", "error 500", "busy 503", "dead 503", "on CPU", "never loads", "cannot be killed",
)  # fmt: skip
GPU: Final = (
    "none", "lost", "reset required", "drain and reset", "XID observe", "XID restart", "XID reset", "XID reboot", "ECC",
    "throttling", "NVML hang", "library missing", "driver mismatch", "one fewer", "one more", "MIG", "reshuffle",
)  # fmt: skip
ENGINE: Final = ("none", "restart", "frozen", "socket gone", "event gap", "image missing", "name taken", "port taken")
AGENT: Final = ("none", "kill", "bad file", "standstill")
PHASE: Final = ("start", "steady", "drain", "upgrade")
COLUMNS: Final = {"slot": SLOT, "gpu": GPU, "engine": ENGINE, "agent": AGENT, "phase": PHASE}
VARIED: Final = {
    "slot_at": ("0", "1"),  # 0 is the one that tries a new release
    "gpu_at": ("same", "other"),
    "spread": ("one", "all"),
    "lasting": ("once", "again"),  # does every new container fall ill, too
}
_ILLNESS: Final = {
    "hang at connect": "mute", "hang before first token": "wedged", "stall": "stalled", "slow": "slow",
    "garbage": "failing", "error 500": "error_500", "busy 503": "busy", "dead 503": "overrun", "on CPU": "on_cpu",
    "cannot be killed": "wedged",
}  # fmt: skip
_EXIT: Final = {"exit 0": 0, "exit 137": 137, "segmentation fault": 139, "out of memory": 137, "never loads": 1}
HARMLESS: Final = frozenset({"none", "slow", "busy 503"})
GPU_HARMLESS: Final = frozenset(
    {
        "none", "XID observe", "ECC", "throttling", "NVML hang", "library missing", "driver mismatch", "one more",
        "reshuffle",
    }
)  # fmt: skip
_PLANNED: Final = frozenset({Reason.DRIFT, Reason.ROLLBACK})
_ON_ITS_WAY: Final = frozenset({State.STOPPING, State.WAITING, State.STARTING, State.LOADING})
_TAKEN: Final = 3  # the slot whose name or port somebody else takes


class Ordeal:
    """One case: a host is brought to the phase, the faults strike, last for a while and end."""

    def __init__(self, row: Mapping[str, str]) -> None:
        self.row = row
        self.world = TroubledWorld(SLOTS)
        self.struck = range(SLOTS) if row["spread"] == "all" else [int(row["slot_at"])]
        self.card = self.world.cards[int(row["slot_at"]) if row["gpu_at"] == "same" else 2]
        self.touched = self._touched()
        self.ends: list[Callable[[], None]] = []

    def run(self) -> None:
        self._reach_phase()
        self._strike_gpu()
        self._strike_engine()
        for second in range(WINDOW_S):
            self._strike_slots(second)
            self._strike_agent(second)
            if second == 15:
                for container in self.world.containers.values():
                    container.users = 0
            self.tick()
        self._end()
        self._calm()

    def _touched(self) -> set[int]:
        """Slots that something happened to: all others are to be left alone."""
        touched = set(self.struck) if self.row["slot"] not in HARMLESS else set[int]()
        if self.row["gpu"] not in GPU_HARMLESS:
            touched.add(self.world.cards.index(self.card))
        if self.row["engine"] == "restart":
            touched |= set(range(SLOTS))
        if self.row["engine"] in ("name taken", "port taken"):
            touched.add(_TAKEN)
        return touched

    # --- the phases --------------------------------------------------------------------------------------------------

    def _reach_phase(self) -> None:
        world, phase = self.world, self.row["phase"]
        if phase == "start":
            return
        world.until(world.all_proven)
        world.log.clear()
        if phase == "steady":
            return
        for container in world.containers.values():
            container.users = 1 if phase == "drain" else 0
        world.image_id, world.image_told = "sha256:two", None
        if phase == "drain":
            world.until(lambda: any(slot.state is State.DRAINING for slot in world.host.slots))
        else:
            world.until(lambda: "sha256:two" in world.running().values())

    # --- the faults --------------------------------------------------------------------------------------------------

    def _strike_slots(self, second: int) -> None:
        """Where all are struck, one after the other, as it is when canaries find out."""
        for index in self.struck:
            if second == 2 + 3 * index:
                self._strike_slot(index)

    def _strike_slot(self, index: int) -> None:
        world, fault = self.world, self.row["slot"]
        if fault == "none":
            return
        if self.row["lasting"] == "again" or fault == "never loads":
            world.cursed[index] = "never_loads" if fault == "never loads" else _ILLNESS.get(fault, "exits")
        there = [each for each in world.containers.values() if each.seen.slot == index and each.seen.running]
        if not there:
            return
        if fault in _EXIT:
            world.end(index, code=_EXIT[fault], oom=fault == "out of memory")
        else:
            world.ill(index, _ILLNESS[fault])
        if fault == "cannot be killed":
            world.stuck.add(there[0].seen.id)

    def _strike_gpu(self) -> None:
        world, card, fault = self.world, self.card, self.row["gpu"]
        if xid := {"XID observe": 63, "XID restart": 31, "XID reset": 48, "XID reboot": 79}.get(fault):
            world.xid_of(card, xid)
            card.recovery = RecoveryAction.GPU_RESET if fault == "XID reset" else card.recovery
            card.recovery = None if fault == "XID reboot" else card.recovery
        elif fault in ("one fewer", "one more", "reshuffle"):
            self._count_anew(fault)
        elif fault == "NVML hang":
            world.nvml_up = False
        elif fault in ("library missing", "driver mismatch"):
            world.driver_problem = fault
        else:
            card.lost = fault == "lost"
            card.reset_required = fault == "reset required"
            card.recovery = RecoveryAction.DRAIN_AND_RESET if fault == "drain and reset" else card.recovery
            card.ecc_errors = 7 if fault == "ECC" else 0
            card.clock_event_reasons = THERMAL if fault == "throttling" else 0
            card.migs = ["MIG-0001", "MIG-0002"] if fault == "MIG" else []

    def _count_anew(self, fault: str) -> None:
        cards = self.world.cards
        if fault == "reshuffle":
            cards.reverse()
        elif fault == "one more":
            cards.insert(0, Card("GPU-more"))
        else:
            place = cards.index(self.card)
            cards.remove(self.card)
            self.ends.append(lambda: cards.insert(place, self.card))

    def _strike_engine(self) -> None:
        world, fault = self.world, self.row["engine"]
        match fault:
            case "restart":
                world.engine_up = False
                world.restart_engine()
            case "frozen":
                world.freeze()
            case "socket gone":
                world.engine_up = False
            case "event gap":
                world.list_anew()
            case "image missing":
                world.image_is_there = False
            case "name taken" | "port taken":
                self._take(fault)
            case _:
                pass

    def _take(self, fault: str) -> None:
        world = self.world
        world.foreign[_TAKEN] = fault.removesuffix(" taken")
        for container in [each for each in world.containers.values() if each.seen.slot == _TAKEN]:
            if fault == "name taken":
                del world.containers[container.seen.id]
            else:
                world.end(_TAKEN, code=0)

    def _strike_agent(self, second: int) -> None:
        """And what the engine does in the course of time."""
        world, fault = self.world, self.row["agent"]
        if fault == "kill" and second in (4, 24):
            self.tick(finish=False)
            world.restart_agent(done=second == 4)
        elif fault == "bad file" and second == 6:
            with pytest.raises(ConfigError):
                world.config = parse("immage = 'x'\n", where="agent.toml")
        elif fault == "standstill" and second == 10:
            self.check(world.standstill(90))
        if self.row["engine"] == "restart" and second == 5:
            world.engine_up = True
        if self.row["engine"] == "frozen" and second == 4:
            world.engine_up = False  # now it is noticed
        if self.row["engine"] == "event gap" and second % 10 == 9:
            world.list_anew()

    def _end(self) -> None:
        world = self.world
        for end in self.ends:
            end()
        for card in world.cards:
            card.mend()
        world.thaw()
        world.nvml_up, world.driver_problem, world.image_is_there, world.old_engine = True, "", True, None
        world.foreign.clear()
        world.stuck.clear()
        world.cursed.clear()
        for container in world.containers.values():
            container.ill, container.users = "", 0

    # --- what must hold ----------------------------------------------------------------------------------------------

    def tick(self, seconds: float = 1.0, *, finish: bool = True) -> None:
        before = {slot.plan: slot.state for slot in self.world.host.slots}
        self.check(self.world.tick(seconds, finish=finish))
        for slot in self.world.host.slots:
            old = before.get(slot.plan, State.ABSENT)
            assert slot.state is old or slot.state in TRANSITIONS[old], f"{old.name} to {slot.state.name}"

    def check(self, decisions: tuple[Decision, ...]) -> None:
        for decision in decisions:
            assert decision.because
            assert self.world.engine_up
            self._is_explained(decision)
            self._is_ours(decision)
        self._one_container_for_each_gpu()
        self._budgets_hold()
        self._not_in_a_body(decisions)
        self._no_release_is_blamed_for_the_host()

    def _is_explained(self, decision: Decision) -> None:
        if decision.action is Action.REMOVE and decision.slot is not None:
            evidence = self.world.seen().evidence.get(decision.slot)
            watched = evidence is not None and evidence.container_id == decision.container_id
            assert decision.evidence or not watched, decision

    def _is_ours(self, decision: Decision) -> None:
        if decision.action is Action.REMOVE:
            assert decision.container_id in self.world.ours, decision
        if decision.slot is None or decision.slot in self.touched or decision.slot >= SLOTS:
            return
        allowed = {Reason.START} if self.row["phase"] in ("start", "steady") else {*_PLANNED}
        if self.row["phase"] == "start":
            assert decision.action is Action.CREATE, decision
        assert decision.reason in allowed, decision
        assert self.row["phase"] != "steady", decision

    def _one_container_for_each_gpu(self) -> None:
        running = [each for each in self.world.containers.values() if each.seen.running]
        used = [uuid for each in running for uuid in each.seen.gpus]
        names = [each.seen.name for each in self.world.containers.values()]

        assert len(used) == len(set(used))
        assert len(names) == len(set(names))

    def _budgets_hold(self) -> None:
        config = self.world.config.healing
        for slot in self.world.host.slots:
            recent = [at_s for at_s in slot.failures if self.world.mono_s - at_s < config.budget_window_s]
            assert len(recent) < config.budget or slot.quarantine is not None
            assert not recent or slot.plan.index in self.touched, slot
        for index in range(SLOTS):
            made = [each for each in self.world.made(index) if each.reason not in _PLANNED | {Reason.START}]
            assert len(made) <= 2 * config.budget + 2, made

    def _not_in_a_body(self, decisions: tuple[Decision, ...]) -> None:
        """Of running containers that are ill: while some are treated, the others wait, unless most of the host is well."""
        if self.row["slot"] == "cannot be killed":
            return  # what cannot be killed is put aside, and all of it comes back when it has ended after all
        taken = [each.slot for each in decisions if each.action is Action.REMOVE and each.reason in SICK_REASONS]
        on_their_way = [
            slot.plan.index
            for slot in self.world.host.slots
            if slot.reason in SICK_REASONS and slot.state in _ON_ITS_WAY and slot.plan.index not in (*taken, _TAKEN)
        ]
        most = max(1, (len(self.world.host.slots) + 1) // 2 - 1)
        assert not taken or len(taken) + len(on_their_way) <= most, self.world.states()

    def _no_release_is_blamed_for_the_host(self) -> None:
        refused = self.world.host.refused
        own = self.row["slot"] not in ("none", "busy 503") and 0 in self.struck
        assert refused is None or own, refused

    def _calm(self) -> None:
        world = self.world
        quiet_s, began_s = 0.0, world.mono_s
        while quiet_s < 30:
            assert world.mono_s - began_s < CALM_S, world.states()
            decided = len(world.log)
            self.tick(5)
            quiet_s = quiet_s + 5 if world.all_proven() and len(world.log) == decided else 0.0
        wanted = world.host.good if world.host.refused else world.host.wanted

        assert wanted is not None
        assert {each.release_hash for each in world.containers.values()} == {wanted.hash}
        assert not world.foreign
        assert sorted(world.running()) == [slot.plan.index for slot in world.host.slots]
        assert {uuid for slot in world.host.slots for uuid in slot.plan.gpus} == {card.uuid for card in world.cards}
