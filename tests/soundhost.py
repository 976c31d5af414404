"""The parts of a host with H100s in good order: its cards, containers, slots and what is known of them."""

from __future__ import annotations

from appliance_agent.containers import ContainerSeen
from appliance_agent.evidence import Canary, Evidence, Outcome
from appliance_agent.gpus import Gpu, GpuPids, GpuProcess, GpuReading, RecoveryAction
from appliance_agent.slots import Now, Pace, Slot
from appliance_agent.spec import Injection, Release, SlotPlan
from appliance_agent.states import Health, Reason, State

GIB = 1024**3
NOW = Now(mono_s=300_000.0, wall_s=1_795_867_391.0)  # 2026-11-28 12:03:11 UTC
BOOT_WALL_S = NOW.wall_s - NOW.mono_s
IMAGE = "registry.lan/ai/deepseek-r1:32b"
MODEL = "deepseek-r1:32b"


def uuid(index: int) -> str:
    return f"GPU-{index:08x}-5a1e-4c0f-9d3b-0123456789ab"


def gpu(index: int, *, name: str = "NVIDIA H100 80GB HBM3") -> Gpu:
    return Gpu(
        uuid(index), index, index, name, 80 * GIB, pci_bus_id=f"00000000:{0x10 + index:02X}:00.0",
        architecture="Hopper", compute_capability="9.0", vbios_version="96.00.74.00.01",
    )  # fmt: skip


def reading(index: int) -> GpuReading:
    """Of a card that tells everything; the last one is too old to remap rows."""
    old = index == 7
    return GpuReading(
        at_s=NOW.mono_s - 0.5,
        look_s=0.0015,
        failed_calls=0,
        utilization_ratio=round(0.11 * index, 2),
        memory_activity_ratio=round(0.07 * index, 2),
        busy_s=1000.5 + index,
        memory_total_bytes=80 * GIB,
        memory_used_bytes=(40 + index) * GIB,
        memory_reserved_bytes=GIB // 2,
        temperature_c=50.0 + index,
        memory_temperature_c=60.0 + index,
        thermal_margin_c=37.0 - index,
        power_w=300.5 + index,
        sm_clock_hz=1.98e9,
        memory_clock_hz=2.619e9,
        clock_event_reasons=0x4 if index % 2 else 0,
        sw_power_cap_s=12.5 + index,
        sync_boost_s=0.0,
        sw_thermal_s=1.25,
        hw_thermal_s=0.5,
        hw_power_brake_s=0.0,
        performance_state=0,
        recovery_action=RecoveryAction.NONE,
        pcie_transmit_bytes=10**12 + index,
        pcie_receive_bytes=2 * 10**12 + index,
        mig_enabled=False,
        processes=(GpuProcess(5000 + index, 40 * GIB), *((GpuProcess(9, GIB),) if index == 1 else ())),
        tens_at_s=NOW.mono_s - 4.5,
        power_limit_w=700.0,
        corrected_ecc_errors=index,
        uncorrected_ecc_errors=0,
        corrected_ecc_errors_lifetime=100 + index,
        uncorrected_ecc_errors_lifetime=1,
        pcie_generation=4 if index == 2 else 5,
        pcie_lanes=16,
        pcie_replays=3,
        persistence=True,
        sm_active_ratio=0.75,
        tensor_active_ratio=0.25,
        dram_active_ratio=0.875,
        nvlink_transmit_bytes=4096,
        nvlink_receive_bytes=8192,
        nvlink_crc_errors=0,
        nvlink_replay_errors=1,
        nvlink_recovery_errors=2,
        thirties_at_s=NOW.mono_s - 20.5,
        energy_j=1_234_567.25 + index,
        correctable_remapped_rows=None if old else 2,
        uncorrectable_remapped_rows=None if old else 1,
        row_remap_pending=None if old else False,
        row_remap_failed=None if old else False,
        correctable_retired_pages=4 if old else None,
        uncorrectable_retired_pages=5 if old else None,
        retired_pages_pending=True if old else None,
        sm_clock_max_hz=1.995e9,
        memory_clock_max_hz=2.625e9,
        pcie_generation_max=5,
        pcie_lanes_max=16,
    )


def release(*, image: str = IMAGE, image_id: str = "sha256:" + "ab" * 32) -> Release:
    return Release(
        image=image,
        image_id=image_id,
        model=MODEL,
        environment=(),
        store="",
        user="65534:65534",
        read_only=True,
        memory_bytes=0,
        shm_bytes=256 * 1024 * 1024,
        stop_timeout_s=30,
        log_max_bytes=50 * 1024 * 1024,
        log_max_files=3,
        address="127.0.0.1",
        injection=Injection.CDI,
    )


def canary(*, ended_s: float = NOW.mono_s - 4, outcome: Outcome = Outcome.OK, speed: float = 41.5) -> Canary:
    if outcome is not Outcome.OK:
        return Canary(ended_s - 8, ended_s, outcome, detail=f"no token within 8 s ({outcome.value})")
    return Canary(ended_s - 0.5, ended_s, outcome, first_token_s=0.21, tokens=8, tokens_per_s=speed)


def plan(index: int) -> SlotPlan:
    return SlotPlan(index, f"ollama-gpu{index}", (uuid(index),), 8880 + index)


def slot(index: int) -> Slot:
    return Slot(
        plan=plan(index),
        state=State.READY,
        since_s=NOW.mono_s - 3 * 86400 - 4 * 3600 - index,
        because="8 tokens after 0.21 s",
        health=Health.READY,
        container_id=f"{index:02x}" * 32,
        created_s=NOW.mono_s - 3 * 86400 - 5 * 3600,
        ready_since_s=NOW.mono_s - 3 * 86400 - 4 * 3600,
        proven=True,
        pace=Pace(release().hash, 42.0, 30),
        restarts={Reason.START: 1},
    )


def container(index: int, of: Release) -> ContainerSeen:
    return ContainerSeen(
        id=f"{index:02x}" * 32,
        name=f"ollama-gpu{index}",
        slot=index,
        spec_hash="0" * 16,
        release_hash=of.hash,
        image_id=of.image_id,
        gpus=(uuid(index),),
        status="running",
        pid=1000 + index,
        started_at_s=NOW.wall_s - 3 * 86400 - 5 * 3600,
        finished_at_s=0.0,
        exit_code=0,
        oom_killed=False,
        error="",
        release=of,
    )


def evidence(index: int) -> Evidence:
    return Evidence(
        container_id=f"{index:02x}" * 32,
        watched_since_s=NOW.mono_s - 86400,
        answered_s=NOW.mono_s - 1,
        ollama_version="0.13.5",
        loaded=True,
        model_bytes=(22 + index) * GIB,
        vram_bytes=22 * GIB,
        context_tokens=8192,
        gpu_pids=GpuPids(frozenset({5000 + index}), frozenset({9})),
        canaries=(canary(ended_s=NOW.mono_s - 14), canary(speed=41.5 - index / 10)),
    )
