"""From the published snapshot to what a person is told. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from types import MappingProxyType

from appliance_agent.containers import ContainerSeen
from appliance_agent.evidence import Canary, Evidence, Outcome
from appliance_agent.generated import Generated, tells_tokens
from appliance_agent.gpus import RecoveryAction
from appliance_agent.slots import Entry, Quarantine, Slot
from appliance_agent.snapshot import Snapshot
from appliance_agent.spec import Release
from appliance_agent.states import SERVING
from appliance_agent.status import (
    SCHEMA,
    AgentStatus,
    CanaryStatus,
    DriverStatus,
    EngineStatus,
    EntryStatus,
    GpuStatus,
    HostStatus,
    PendingStatus,
    PullStatus,
    QuarantineStatus,
    RefusedStatus,
    SlotStatus,
    Status,
    moment,
)


def status_of(snapshot: Snapshot, generated: Mapping[int, Generated] = MappingProxyType({})) -> Status:
    engine, gpus = snapshot.engine, snapshot.gpus
    return Status(
        schema=SCHEMA,
        time=moment(snapshot.now.wall_s),
        agent=_agent(snapshot),
        engine=EngineStatus(
            up=engine.up,
            because=engine.because or None,
            since=_time(snapshot, engine.since_s),
            version=engine.facts.version if engine.facts else None,
        ),
        driver=DriverStatus(
            up=gpus.up,
            because=gpus.because or None,
            version=gpus.driver_version or None,
            cuda_version=gpus.cuda_version or None,
        ),
        host=_host(snapshot),
        slots=tuple(_slot(snapshot, slot, generated.get(slot.plan.index)) for slot in snapshot.host.slots),
        history=tuple(_entry(entry) for entry in snapshot.host.history),
    )


def release_of(snapshot: Snapshot, container: ContainerSeen | None) -> Release | None:
    """What the container was made from, by its own label or as the agent knows it; without one, what is wanted."""
    if container is None:
        return snapshot.host.wanted
    if container.release is not None:
        return container.release
    for release in (snapshot.host.wanted, snapshot.host.good):
        if release and release.hash == container.release_hash:
            return release
    return None


def container_of(snapshot: Snapshot, slot: Slot) -> ContainerSeen | None:
    return next((seen for seen in snapshot.engine.containers if seen.id == slot.container_id), None)


def wall_s(snapshot: Snapshot, mono_s: float) -> float:
    """To the millisecond, so that the same moment reads the same after every tick."""
    return round(snapshot.now.wall_s - (snapshot.now.mono_s - mono_s), 3)


def _time(snapshot: Snapshot, mono_s: float | None) -> datetime | None:
    """None for a moment that never was: the values that are in use say 0.0 for it."""
    return moment(wall_s(snapshot, mono_s)) if mono_s else None


def _ahead(snapshot: Snapshot, mono_s: float) -> datetime | None:
    return _time(snapshot, mono_s) if mono_s > snapshot.now.mono_s else None


def _wall(seconds: float) -> datetime | None:
    return moment(seconds) if seconds else None


def _agent(snapshot: Snapshot) -> AgentStatus:
    return AgentStatus(
        version=snapshot.version,
        started=_wall(snapshot.started_wall_s),
        config_path=snapshot.config_path or None,
        reload_problem=snapshot.reload_problem or None,
        ticks=snapshot.ticks,
        tick_seconds=snapshot.tick_s,
        late_seconds=snapshot.late_s,
    )


def _host(snapshot: Snapshot) -> HostStatus:
    host, image, pull = snapshot.host, snapshot.engine.image, snapshot.engine.pull
    wanted, refused = host.wanted, host.refused
    return HostStatus(
        name=snapshot.hostname or None,
        serving=snapshot.ready,
        down=host.down,
        image=snapshot.config.image or None,
        image_id=(wanted.image_id if wanted else image.id if image else "") or None,
        model=(wanted.model if wanted else snapshot.config.model) or None,
        rolling=snapshot.rolling or None,
        problems=snapshot.problems,
        refused=RefusedStatus(refused.release, refused.because, _wall(refused.wall_s)) if refused else None,
        pull=PullStatus(pull.running, pull.done_bytes, pull.total_bytes, pull.error or None, pull.hint or None)
        if pull
        else None,
    )


def _slot(snapshot: Snapshot, slot: Slot, generated: Generated | None) -> SlotStatus:
    container = container_of(snapshot, slot)
    release = release_of(snapshot, container)
    evidence = snapshot.evidence.get(slot.plan.index)
    canaries = evidence.canaries if evidence else ()
    good = [canary for canary in canaries if canary.outcome is Outcome.OK]
    return SlotStatus(
        slot=slot.plan.index,
        state=slot.state.name.lower(),
        state_number=int(slot.state),
        since=_time(snapshot, slot.since_s),
        because=slot.because or None,
        health=slot.health.value if slot.health else None,
        serving=slot.state in SERVING,
        gpus=tuple(_gpu(snapshot, uuid) for uuid in slot.plan.gpus),
        model=release.model if release else None,
        image=release.image if release else None,
        image_id=container.image_id if container else None,
        ollama_version=(evidence.ollama_version or None) if evidence else None,
        container_name=slot.plan.name,
        container_id=slot.container_id or None,
        container_started=_wall(container.started_at_s) if container else None,
        address=snapshot.config.address,
        port=slot.plan.port,
        canary=_canary(snapshot, canaries[-1]) if canaries else None,
        good_canary=_canary(snapshot, good[-1]) if good else None,
        baseline_tokens_per_second=slot.pace.tokens_per_s if slot.pace else None,
        restarts={reason.value: count for reason, count in slot.restarts.items() if count},
        pending=PendingStatus(slot.pending.value, _time(snapshot, slot.pending_since_s)) if slot.pending else None,
        quarantine=_quarantine(snapshot, slot.quarantine) if slot.quarantine else None,
        next_try=_ahead(snapshot, max(slot.not_before_s, slot.hold_until_s)),
        sent_bytes_per_second=evidence.bytes_per_s if evidence and container else None,
        generated=_told(generated, evidence),
    )


def _told(generated: Generated | None, evidence: Evidence | None) -> Generated | None:
    """Whoever has told of answers tells of all; of any other its version says it."""
    tells = evidence is not None and tells_tokens(evidence.ollama_version)
    return generated if generated and (generated.answers or tells) else None


def _gpu(snapshot: Snapshot, uuid: str) -> GpuStatus:
    gpu, reading = snapshot.gpus.gpu(uuid), snapshot.gpus.readings.get(uuid)
    parent = snapshot.gpus.readings.get(gpu.parent_uuid) if gpu and gpu.is_mig else None
    card = parent or reading  # a MIG device has no temperature and no power of its own
    xids = [xid for xid in snapshot.gpus.xids if (xid.concerns(gpu) if gpu else xid.uuid == uuid)]
    action = card.recovery_action if card else None
    return GpuStatus(
        uuid=uuid,
        index=gpu.index if gpu else None,
        name=gpu.name if gpu else None,
        up=snapshot.gpus.up and reading is not None and reading.sound,
        problem=_gpu_problem(snapshot, uuid),
        utilization_ratio=reading.utilization_ratio if reading else None,
        memory_used_bytes=reading.memory_used_bytes if reading else None,
        memory_total_bytes=(reading.memory_total_bytes if reading else None) or (gpu.memory_bytes if gpu else None),
        temperature_celsius=card.temperature_c if card else None,
        power_watts=card.power_w if card else None,
        power_limit_watts=card.power_limit_w if card else None,
        recovery_action=action.name.lower() if action not in (None, RecoveryAction.NONE) else None,
        last_xid=xids[-1].code if xids else None,
        last_xid_time=_time(snapshot, xids[-1].at_s) if xids else None,
    )


def _gpu_problem(snapshot: Snapshot, uuid: str) -> str | None:
    reading = snapshot.gpus.readings.get(uuid)
    if not snapshot.gpus.up:
        return snapshot.gpus.because or "NVML does not answer"
    if reading is None:
        return "the driver does not list it"
    if reading.lost:
        return "lost: the driver cannot reach it"
    if reading.reset_required:
        return "the driver asks for a reset"
    return reading.error or None


def _canary(snapshot: Snapshot, canary: Canary) -> CanaryStatus:
    return CanaryStatus(
        time=_time(snapshot, canary.ended_s),
        outcome=canary.outcome.value,
        detail=canary.detail or None,
        time_to_first_token_seconds=canary.first_token_s,
        tokens_per_second=canary.tokens_per_s,
    )


def _quarantine(snapshot: Snapshot, quarantine: Quarantine) -> QuarantineStatus:
    return QuarantineStatus(
        cause=quarantine.cause.value,
        because=quarantine.because,
        since=_time(snapshot, quarantine.since_s),
        until=_time(snapshot, quarantine.until_s),
        level=quarantine.level,
    )


def _entry(entry: Entry) -> EntryStatus:
    return EntryStatus(
        time=_wall(entry.wall_s),
        slot=entry.slot,
        gpus=entry.gpus,
        action=entry.action,
        because=entry.because,
        evidence=entry.evidence or None,
    )
