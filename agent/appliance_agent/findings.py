"""What `ollama-agent check` makes of what it saw: facts in, findings out, the gravest first. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from appliance_agent import gpu_choice
from appliance_agent.check_facts import CheckFacts
from appliance_agent.config import GpuChoice
from appliance_agent.finding import Finding, Severity
from appliance_agent.findings_driver import driver_findings, without_parts
from appliance_agent.findings_engine import engine_findings
from appliance_agent.findings_host import host_findings, port_findings, slot_findings
from appliance_agent.findings_image import image_findings, store_findings
from appliance_agent.findings_toolkit import toolkit_findings
from appliance_agent.gpus import Gpu
from appliance_agent.slot_plan import plan_slots
from appliance_agent.spec import SlotPlan


def findings(facts: CheckFacts) -> tuple[Finding, ...]:
    plans, problems = planned(facts)
    found = [
        *driver_findings(facts),
        *engine_findings(facts),
        *toolkit_findings(facts, _wanted(facts, plans)),
        *image_findings(facts),
        *store_findings(facts),
        *slot_findings(facts, plans, problems),
        *port_findings(facts, plans),
        *host_findings(facts, plans),
    ]
    return tuple(sorted(found, key=lambda finding: -finding.severity))


def _wanted(facts: CheckFacts, plans: Sequence[SlotPlan]) -> list[Gpu]:
    snapshot = facts.nvml.snapshot
    return [gpu for gpu in snapshot.gpus if any(gpu.uuid in plan.gpus for plan in plans)] if snapshot else []


def failed(found: Sequence[Finding]) -> bool:
    return any(finding.severity is Severity.ERROR for finding in found)


def planned(facts: CheckFacts) -> tuple[tuple[SlotPlan, ...], tuple[str, ...]]:
    """As the agent would plan them, from what its containers tell of earlier plans; no problem twice."""
    config, snapshot = facts.config, facts.nvml.snapshot
    if config.gpus != GpuChoice.NONE and (snapshot is None or not snapshot.up):
        return (), ()  # the driver's own finding says why
    known = [
        SlotPlan(each.slot, each.name, each.gpus, 0) for each in facts.containers if each.mine and each.slot is not None
    ]
    if snapshot is None:
        return plan_slots(config, (), known)
    empty = without_parts(snapshot)
    in_mig_mode = {uuid for uuid, reading in snapshot.readings.items() if reading.mig_enabled}
    plans, problems = plan_slots(config, snapshot.gpus, known, mig_enabled=in_mig_mode)
    told = gpu_choice.undivided(empty, in_mig_mode)
    return plans, tuple(problem for problem in problems if problem not in told)
