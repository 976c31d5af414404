"""The agent's memory as a text that outlives it: failures, quarantines, releases. Pure; `state_store` touches the disk.

Times are written as seconds since the epoch, because the other clock begins anew with each boot.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any, Final, cast

from appliance_agent.config import HealingConfig
from appliance_agent.healing import as_remembered
from appliance_agent.slots import Cause, Entry, Host, Now, Pace, Quarantine, Refused, Slot
from appliance_agent.spec import Release, SlotPlan
from appliance_agent.states import Reason, State

VERSION: Final = 1
_ENTRIES: Final = 100
_PASSING: Final = {  # sentences and moments
    "because", "since_s", "pending_since_s", "hold_until_s", "slowed_s", "learned_s", "drain_since_s", "quarantine",
}  # fmt: skip
_LASTING: Final = attrgetter(*(field.name for field in fields(Slot) if field.name not in _PASSING))
_OF_QUARANTINE: Final = attrgetter("cause", "since_s", "level")


class MemoryError_(ValueError):  # noqa: N801, N818 - MemoryError is Python's own
    """The text is not one that `render` wrote."""


def render(host: Host, now: Now) -> str:
    node = {
        "version": VERSION,
        "slots": [_slot_node(slot, now) for slot in host.slots],
        "good": None if host.good is None else host.good.render(),
        "refused": None if host.refused is None else [host.refused.release, host.refused.because, host.refused.wall_s],
        "trial": host.trial,
        "history": [
            [entry.wall_s, entry.slot, list(entry.gpus), entry.action, entry.because, entry.evidence]
            for entry in host.history[-_ENTRIES:]
        ],
    }
    return json.dumps(node, ensure_ascii=False, separators=(",", ":")) + "\n"


def parse(text: str, now: Now, healing: HealingConfig) -> Host:
    """Raises MemoryError_; a file of a newer version is not understood either."""
    try:
        node = cast("dict[str, Any]", json.loads(text))
        if node["version"] != VERSION:
            raise MemoryError_(f"version {node['version']}, this program knows {VERSION}")
        refused = node["refused"]
        return Host(
            slots=tuple(as_remembered(_slot(entry, now), healing, now.mono_s) for entry in node["slots"]),
            good=None if node["good"] is None else Release.parse(node["good"]),
            refused=None if refused is None else Refused(str(refused[0]), str(refused[1]), float(refused[2])),
            trial=node["trial"],
            history=tuple(_entry(entry) for entry in node["history"]),
        )
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise MemoryError_(f"not a state file of the agent: {error}") from error


def lasting(host: Host) -> object:
    """What is worth a write: equal as long as only sentences with counting seconds in them have changed."""
    slots = tuple((_LASTING(slot), slot.quarantine and _OF_QUARANTINE(slot.quarantine)) for slot in host.slots)
    return slots, host.good, host.refused, host.trial, host.history


def _slot_node(slot: Slot, now: Now) -> dict[str, object]:
    def wall(mono_s: float) -> float:
        return round(now.wall_s + mono_s - now.mono_s, 3)

    quarantine, pace, before = slot.quarantine, slot.pace, slot.pace_before
    return {
        "plan": [slot.plan.index, slot.plan.name, list(slot.plan.gpus), slot.plan.port, list(slot.plan.chosen)],
        "state": slot.state.value,
        "since": wall(slot.since_s),
        "because": slot.because,
        "reason": slot.reason.value,
        "cause": slot.cause,
        "container": slot.container_id,
        "leaving": slot.leaving,
        "host_wide": slot.host_wide,
        "proven": slot.proven,
        "failures": [wall(at_s) for at_s in slot.failures],
        "not_before": wall(slot.not_before_s),
        "ready_since": None if slot.ready_since_s is None else wall(slot.ready_since_s),
        "quarantine": quarantine
        and [
            quarantine.cause.value,
            quarantine.because,
            wall(quarantine.since_s),
            wall(quarantine.until_s),
            quarantine.level,
        ],
        "quarantines": slot.quarantines,
        "pace": pace and [pace.release, pace.tokens_per_s, pace.canaries],
        "pace_before": before and [before.release, before.tokens_per_s, before.canaries],
        "restarts": {reason.value: count for reason, count in slot.restarts.items()},
    }


def _slot(node: Mapping[str, Any], now: Now) -> Slot:
    def mono(wall_s: float) -> float:
        return float(wall_s) - now.wall_s + now.mono_s

    index, name, gpus, port, chosen = node["plan"]
    quarantine = node["quarantine"]
    return Slot(
        SlotPlan(int(index), str(name), tuple(gpus), int(port), tuple(chosen)),
        state=State(node["state"]),
        since_s=mono(node["since"]),
        because=str(node["because"]),
        reason=Reason(node["reason"]),
        cause=str(node["cause"]),
        container_id=str(node["container"]),
        leaving=str(node.get("leaving", "")),
        host_wide=bool(node.get("host_wide", False)),
        proven=bool(node["proven"]),
        failures=tuple(mono(wall_s) for wall_s in node["failures"]),
        not_before_s=mono(node["not_before"]),
        ready_since_s=None if node["ready_since"] is None else mono(node["ready_since"]),
        quarantine=quarantine
        and Quarantine(
            Cause(quarantine[0]), str(quarantine[1]), mono(quarantine[2]), mono(quarantine[3]), int(quarantine[4])
        ),
        quarantines=int(node["quarantines"]),
        pace=_pace(node["pace"]),
        pace_before=_pace(node["pace_before"]),
        restarts={Reason(reason): int(count) for reason, count in node["restarts"].items()},
    )


def _pace(node: list[Any] | None) -> Pace | None:
    return None if node is None else Pace(str(node[0]), float(node[1]), int(node[2]))


def _entry(node: list[Any]) -> Entry:
    wall_s, slot, gpus, action, because, evidence = node
    return Entry(float(wall_s), slot, tuple(gpus), str(action), str(because), str(evidence))
