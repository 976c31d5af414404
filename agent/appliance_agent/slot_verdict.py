"""What the evidence says of a slot's container, and what is still believed of it before there is any. Pure."""

from __future__ import annotations

from typing import Final

from appliance_agent.evidence import Evidence
from appliance_agent.slot_view import View
from appliance_agent.slots import Slot
from appliance_agent.states import SERVING, Health
from appliance_agent.verdict import Case, Verdict, judge

_BELIEVED_S: Final = 30.0  # slots are asked one after the other, and one that serves users lets a question wait


def verdict_of(view: View, slot: Slot) -> Verdict:
    evidence = view.evidence
    if evidence is None:
        return Verdict(Health.UNKNOWN, "not watched yet")
    if _is_believed(view, evidence):
        return Verdict(Health.UNKNOWN, "not asked yet")
    case = Case(
        evidence,
        view.config.health,
        view.now.mono_s,
        trusted_since_s=view.seen.trusted_since_s,
        pace=slot.pace,
    )
    return judge(case)


def _is_believed(view: View, evidence: Evidence) -> bool:
    """A container that served under the agent before, and has been heard to do neither that nor anything else since."""
    slot, container = view.slot, view.container
    if container is None or slot.state not in SERVING or slot.container_id != container.id:
        return False
    if evidence.canaries or evidence.load is not None or evidence.refused_since_s is not None:
        return False
    canary, now_s = evidence.canary, view.now.mono_s
    if canary is not None and now_s - canary.started_s >= view.config.health.first_token_s:
        return False
    started_s = now_s - (view.now.wall_s - container.started_at_s)
    heard_s = max(evidence.watched_since_s, evidence.flow_s or 0.0, evidence.answer_line_s or 0.0)
    return started_s <= slot.since_s and now_s - heard_s < _BELIEVED_S
