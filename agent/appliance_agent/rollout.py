"""Which release each slot should run: one after the other, each proved before the next, back to the good one if not. Pure.

The first slot of a new release is its trial. What goes wrong there is the release's fault unless the GPU is to blame,
and sends the slot back to the good release; once the trial is proved, the others follow one at a time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from appliance_agent.config import RolloutConfig
from appliance_agent.containers import ContainerSeen
from appliance_agent.evidence import Canary, Evidence, Outcome
from appliance_agent.slots import Host, Now, Pace, Refused, Slot
from appliance_agent.spec import Injection, Release
from appliance_agent.states import SERVING, State
from appliance_agent.verdict import median

_LEARNED_FROM: Final = 20  # canaries; then the baseline stays, so that a slot that gets slower is noticed


def with_wanted(host: Host, wanted: Release | None) -> Host:
    """Another wish ends the refusal of the old one, and its trial."""
    if wanted is None or (host.wanted and wanted.hash == host.wanted.hash):
        return host
    refused = host.refused if host.refused and host.refused.release == wanted.hash else None
    return replace(host, wanted=wanted, refused=refused, trial=None)


def is_refused(host: Host) -> bool:
    return bool(host.wanted and host.refused and host.refused.release == host.wanted.hash)


def on_trial(host: Host) -> bool:
    """Whether a release is wanted that has not proved itself yet, while another one has."""
    if host.wanted is None or host.good is None or is_refused(host):
        return False
    return host.wanted.hash != host.good.hash and _on_gpus(host.wanted) is _on_gpus(host.good)


def _on_gpus(release: Release) -> bool:
    return release.injection is not Injection.NONE


def target(host: Host, slot: Slot) -> Release | None:
    """What the slot's next container should be made from; None while nothing is known to run.

    Between a slot on the CPU and slots on GPUs there is no way back: what is good for one gives the others no GPU.
    """
    release = host.wanted or host.good
    if is_refused(host) or (on_trial(host) and host.trial != slot.plan.index):
        release = host.good
    return release if release and _on_gpus(release) is bool(slot.plan.gpus) else None


def is_drifted(host: Host, slot: Slot, container: ContainerSeen, spec_hash: str | None) -> bool:
    """Whether the container should be another one, now. While a trial runs the others stay what they are."""
    if spec_hash is None or container.spec_hash == spec_hash:
        return False
    if on_trial(host) and host.trial != slot.plan.index:
        return host.wanted is not None and container.release_hash == host.wanted.hash
    return True


def choose_trial(host: Host, containers: Mapping[int, ContainerSeen], misfits: Collection[int]) -> Host:
    """The slot that tries a new release: one that does so already, else one that serves nobody, else the first."""
    if not on_trial(host) or host.wanted is None:
        return host if host.trial is None or on_trial(host) else replace(host, trial=None)
    if host.trial is not None and (slot := host.slot(host.trial)) and _may_try(slot, misfits):
        return host
    tried = [index for index, container in containers.items() if container.release_hash == host.wanted.hash]
    able = [slot for slot in host.slots if _may_try(slot, misfits)]
    able.sort(key=lambda slot: (slot.plan.index not in tried, slot.state in SERVING, slot.plan.index))
    return replace(host, trial=able[0].plan.index if able else None)


def _may_try(slot: Slot, misfits: Collection[int]) -> bool:
    if slot.plan.index in misfits:
        return False
    return slot.host_wide or slot.state not in (State.QUARANTINED, State.BLOCKED, State.STOPPED)


def refuse(host: Host, because: str, now: Now) -> Host:
    if host.wanted is None:
        return host
    return replace(host, refused=Refused(host.wanted.hash, because, now.wall_s), trial=None)


def accept(host: Host, container: ContainerSeen) -> Host:
    """A slot is proved: its release is good from now on."""
    if host.wanted is None or container.release_hash != host.wanted.hash:
        return host
    if host.good is not None and host.good.hash == host.wanted.hash:
        return host
    return replace(host, good=host.wanted, trial=None)


def good_canaries(evidence: Evidence | None, *, since_s: float = 0.0) -> list[Canary]:
    canaries = evidence.canaries if evidence else ()
    return [canary for canary in canaries if canary.outcome is Outcome.OK and canary.started_s > since_s]


def learned(slot: Slot, release_hash: str, evidence: Evidence | None) -> Slot:
    """The slot's pace under this release, from canaries that had the slot to themselves."""
    pace = slot.pace
    if pace and pace.release != release_hash:
        slot, pace = replace(slot, pace_before=pace, pace=None), None
    last = evidence.last_canary if evidence else None
    if last is None or last.started_s == slot.learned_s:
        return slot
    slot = replace(slot, learned_s=last.started_s)
    good = good_canaries(evidence, since_s=slot.slowed_s)
    rates = [canary.tokens_per_s for canary in good if canary.alone and canary.tokens_per_s]
    if not rates or (pace and pace.canaries >= _LEARNED_FROM and median(rates) <= pace.tokens_per_s * 1.1):
        return slot
    if pace and len(rates) < min(pace.canaries, _LEARNED_FROM):
        return slot  # a new container of a release that is known already
    return replace(slot, pace=Pace(release_hash, median(rates), len(rates)))


def too_slow(slot: Slot, config: RolloutConfig) -> str:
    """In words how much slower the release on trial is than the one before; empty if it is not."""
    now, before = slot.pace, slot.pace_before
    if now is None or before is None or now.canaries < config.canaries or before.canaries < config.canaries:
        return ""
    if now.tokens_per_s >= config.slower_ratio * before.tokens_per_s:
        return ""
    loss = 1 - now.tokens_per_s / before.tokens_per_s
    return f"{loss:.0%} slower: {now.tokens_per_s:.1f} tokens/s instead of {before.tokens_per_s:.1f}"
