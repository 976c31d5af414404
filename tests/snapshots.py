"""Snapshots as a loop would publish them: a host with H100s in good order, and the same host on a bad night."""

from __future__ import annotations

from dataclasses import replace

from soundhost import (
    GIB,
    IMAGE,
    NOW,
    canary,
    container,
    evidence,
    gpu,
    plan,
    reading,
    release,
    slot,
    uuid,
)

from appliance_agent.config import Config, MetricsConfig
from appliance_agent.containers import EngineFacts, EngineSeen, ImageSeen
from appliance_agent.evidence import Outcome
from appliance_agent.gpus import GpuReading, GpuSnapshot, RecoveryAction, Xid
from appliance_agent.slots import Cause, Entry, Host, Quarantine, Refused
from appliance_agent.snapshot import Snapshot
from appliance_agent.spec import SlotPlan
from appliance_agent.states import Action, Health, Reason, State


def good_night(count: int = 8) -> Snapshot:
    indexes = range(count)
    wanted = release()
    facts = EngineFacts("28.5.2", (1, 51), ("nvidia", "runc"), (), (), "systemd", "2", "/var/lib/docker", True)
    return Snapshot(
        now=NOW,
        version="0.1.0",
        started_wall_s=NOW.wall_s - 3 * 86400 - 5 * 3600,
        config=Config(image=IMAGE, metrics=MetricsConfig()),
        config_path="/etc/ollama-appliance/agent.toml",
        reloaded_wall_s=NOW.wall_s - 86400,
        host=Host(
            slots=tuple(slot(index) for index in indexes),
            wanted=wanted,
            good=wanted,
            history=tuple(
                Entry(
                    NOW.wall_s - 3 * 86400 - 5 * 3600 + index, index, (uuid(index),), "create", "there was no container"
                )
                for index in indexes
            ),
        ),
        engine=EngineSeen(
            at_s=NOW.mono_s - 0.2,
            up=True,
            since_s=NOW.mono_s - 4 * 86400 + 86400,
            facts=facts,
            containers=tuple(container(index, wanted) for index in indexes),
            image=ImageSeen(IMAGE, wanted.image_id, "", 20 * 10**9, None),
        ),
        gpus=GpuSnapshot(
            at_s=NOW.mono_s - 0.5,
            up=True,
            driver_version="580.126.09",
            cuda_version="13.0",
            gpus=tuple(gpu(index) for index in indexes),
            readings={uuid(index): reading(index) for index in indexes},
            process_cpu_s=412.25,
            process_memory_bytes=21 * 1024 * 1024,
        ),
        evidence={index: evidence(index) for index in indexes},
        tick_s=0.002,
        late_s=0.0005,
        ticks=277_000,
        hostname="gpuhost7",
    )


def bad_night() -> Snapshot:
    """Slot 1 is slow, slot 2 was wedged and loads again, slot 3 lost its GPU, slot 5 waits, slot 6 tries a new image."""
    base = good_night()
    new = release(image="registry.lan/ai/deepseek-r1:32b-v2", image_id="sha256:" + "cd" * 32)
    slots = list(base.host.slots)
    slots[1] = replace(
        slots[1],
        state=State.DEGRADED,
        since_s=NOW.mono_s - 95,
        health=Health.SLOW,
        because="19.3 tokens/s, 46 % of usual",
    )
    slots[2] = replace(
        slots[2],
        state=State.LOADING,
        since_s=NOW.mono_s - 21,
        because="no token for 9 s with requests waiting and the GPU idle, second time within 12 min",
        restarts={Reason.START: 1, Reason.WEDGED: 2, Reason.EXIT: 1},
    )
    slots[3] = replace(
        slots[3],
        state=State.QUARANTINED,
        since_s=NOW.mono_s - 312,
        because="GPU lost",
        container_id="",
        quarantine=Quarantine(Cause.GPU, "the GPU fell off the bus (XID 79)", NOW.mono_s - 312, NOW.mono_s + 288, 1),
        restarts={Reason.START: 1, Reason.GPU_LOST: 1},
    )
    slots[5] = replace(
        slots[5],
        state=State.WAITING,
        since_s=NOW.mono_s - 6,
        because="exit status 1: 模型加载失败, out of memory",
        container_id="",
        not_before_s=NOW.mono_s + 10,
        restarts={Reason.START: 1, Reason.EXIT: 4},
    )
    slots[6] = replace(
        slots[6],
        state=State.STARTING,
        since_s=NOW.mono_s - 2,
        because="another image is wanted",
        pending=Action.CREATE,
        pending_since_s=NOW.mono_s - 2,
    )
    containers = [each for each in base.engine.containers if each.slot not in (3, 5, 6)]
    readings = dict(base.gpus.readings) | {
        uuid(3): GpuReading(at_s=NOW.mono_s - 0.5, lost=True),
        uuid(4): reading(4)._replace(recovery_action=RecoveryAction.GPU_RESET, temperature_c=91.0, power_w=None),
    }
    evidence_seen = dict(base.evidence)
    del evidence_seen[3], evidence_seen[5], evidence_seen[6]
    evidence_seen[0] = replace(
        evidence(0), running=3, expires_wall_s=NOW.wall_s + 240, others_bytes=GIB, others_vram_bytes=0
    )
    evidence_seen[1] = replace(evidence(1), canaries=(canary(speed=19.3),))
    evidence_seen[2] = replace(evidence(2), canaries=(canary(ended_s=NOW.mono_s - 40), canary(outcome=Outcome.TIMEOUT)))
    return replace(
        base,
        host=replace(
            base.host,
            slots=tuple(slots),
            wanted=new,
            trial=6,
            refused=Refused("0123456789abcdef", "slot 0 gave 27 tokens/s instead of 42", NOW.wall_s - 7200),
            history=(
                *base.host.history,
                _entry(7200, 0, "remove", "slot 0 gave 27 tokens/s instead of 42: back to the release before"),
                _entry(312, 3, "remove", "the GPU fell off the bus (XID 79)", "NVML says GPU is lost; 1 container"),
                _entry(45, None, "reload", "SIGHUP: another image is wanted"),
                _entry(
                    31, 2, "remove", "no token for 9 s with requests waiting and the GPU idle, second time within 12 min",
                    "canary timeout after 8.0 s, 3 connections, 0 B/s, utilisation 0 %",
                ),
                _entry(22, 2, "create", "no token for 9 s with requests waiting and the GPU idle, second time within 12 min"),
                _entry(6, 5, "remove", "exit status 1: 模型加载失败, out of memory"),
                _entry(2, 6, "create", "another image is wanted"),
            ),
        ),
        engine=replace(base.engine, containers=tuple(containers)),
        gpus=replace(base.gpus, readings=readings, xids=(Xid(uuid(3), 79, NOW.mono_s - 312), Xid(uuid(0), 31, 5.0))),
        evidence=evidence_seen,
        rolling="slot 6 tries deepseek-r1:32b-v2; 2 of 8 slots have it",
        problems=("clock of this host and of the registry differ by 9 min",),
    )  # fmt: skip


def half_way() -> Snapshot:
    """The new release is good, slot 0 runs it, and slot 1 still what was good before."""
    base = good_night(2)
    new = release(image=f"{IMAGE}-v2", image_id="sha256:" + "cd" * 32)
    return replace(
        base,
        host=replace(base.host, wanted=new, good=new),
        engine=replace(base.engine, containers=(container(0, new), container(1, release()))),
    )


def _entry(ago_s: float, index: int | None, action: str, because: str, facts: str = "") -> Entry:
    return Entry(NOW.wall_s - ago_s, index, (uuid(index),) if index is not None else (), action, because, facts)


def without_gpus() -> Snapshot:
    """One slot on the CPU of a machine that has no driver, just started."""
    base = good_night(1)
    cpu = replace(
        base.host.slots[0],
        plan=SlotPlan(0, "ollama-cpu0", (), 8880),
        state=State.LOADING,
        since_s=NOW.mono_s - 3,
        pace=None,
        because="the model is on its way into memory",
    )
    return replace(
        base,
        config=replace(base.config, gpus="none"),
        host=replace(base.host, slots=(cpu,), history=()),
        gpus=GpuSnapshot(at_s=0.0, up=False, because="no NVIDIA driver: libnvidia-ml.so.1 is missing"),
        evidence={},
    )


def unknown() -> Snapshot:
    """Before the first look at anything."""
    return Snapshot(now=NOW, version="0.1.0", started_wall_s=NOW.wall_s - 1, config=Config(image=IMAGE), config_path="")


def in_groups() -> Snapshot:
    """Two slots of four GPUs each."""
    base = good_night()
    slots = tuple(
        replace(
            base.host.slots[index], plan=replace(plan(index), gpus=tuple(uuid(index * 4 + each) for each in range(4)))
        )
        for index in range(2)
    )
    return replace(base, host=replace(base.host, slots=slots))


def mig() -> Snapshot:
    """Two MIG devices of one card; only the card knows temperature and power."""
    base = good_night(2)
    devices = tuple(f"MIG-{index:08x}-5a1e-4c0f-9d3b-0123456789ab" for index in range(2))
    parent = gpu(0)
    children = tuple(
        replace(
            parent, uuid=device, name=f"{parent.name} MIG 3g.40gb", memory_bytes=40 * GIB, parent_uuid=parent.uuid,
            gpu_instance=index + 1, compute_instance=0,
        )
        for index, device in enumerate(devices)
    )  # fmt: skip
    readings = {
        parent.uuid: reading(0),
        **{
            device: GpuReading(
                at_s=NOW.mono_s - 0.5, memory_total_bytes=40 * GIB, memory_used_bytes=20 * GIB, dram_active_ratio=0.5
            )
            for device in devices
        },
    }
    slots = tuple(
        replace(slot, plan=replace(slot.plan, gpus=(device,)))
        for slot, device in zip(base.host.slots, devices, strict=True)
    )
    return replace(
        base,
        host=replace(base.host, slots=slots),
        gpus=replace(
            base.gpus, gpus=(parent, *children), readings=readings, xids=(Xid(parent.uuid, 79, NOW.mono_s - 9),)
        ),
    )
