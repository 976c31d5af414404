"""Metrics of GPUs: owners of processes, ages, reasons, and what an interval that was not reached yet leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import snapshots
import soundhost
from scraped import Scraped

from appliance_agent.gpus import GpuPids, GpuProcess, GpuReading
from appliance_agent.snapshot import Snapshot

GIB = 1024**3
WHO = {"gpu": "0", "uuid": soundhost.uuid(0)}


def with_reading(reading: GpuReading, *, base: Snapshot | None = None) -> Snapshot:
    base = base or snapshots.good_night(1)
    return replace(base, gpus=replace(base.gpus, readings={soundhost.uuid(0): reading}))


def with_processes(*processes: GpuProcess, pids: GpuPids | None, has_container: bool = True) -> Scraped:
    base = snapshots.good_night(1)
    slot = base.host.slots[0] if has_container else replace(base.host.slots[0], container_id="")
    base = replace(
        base,
        host=replace(base.host, slots=(slot,)),
        evidence={0: replace(soundhost.evidence(0), gpu_pids=pids)} if has_container else {},
    )
    return Scraped(with_reading(soundhost.reading(0)._replace(processes=processes), base=base))


def owners(scraped: Scraped) -> dict[str, tuple[float, float | None]]:
    counts, memory = (scraped.values(name, "owner") for name in ("gpu_processes", "gpu_process_memory_bytes"))
    return {owner: (count, memory.get(owner)) for owner, count in counts.items()}


OURS, ALSO_OURS, ALIEN, NEW = GpuProcess(1, 3 * GIB), GpuProcess(2, GIB), GpuProcess(3, 5), GpuProcess(4, 7)
PIDS = GpuPids(frozenset({1, 2}), frozenset({3}))


def test_processes_are_counted_by_whose_they_are() -> None:
    assert owners(with_processes(OURS, ALSO_OURS, ALIEN, pids=PIDS)) == {"backend": (2, 4 * GIB), "foreign": (1, 5)}
    assert owners(with_processes(pids=PIDS)) == {"backend": (0, 0), "foreign": (0, 0)}


def test_a_process_that_nobody_has_looked_at_yet_is_nobodys() -> None:
    assert owners(with_processes(OURS, NEW, pids=PIDS)) == {"backend": (1, 3 * GIB), "foreign": (0, 0)}


def test_while_it_cannot_be_seen_whose_processes_are_nothing_is_said() -> None:
    assert owners(with_processes(OURS, ALIEN, pids=None)) == {}


def test_on_the_gpu_of_a_slot_without_a_container_everybody_is_foreign() -> None:
    assert owners(with_processes(OURS, ALIEN, pids=None, has_container=False)) == {
        "backend": (0, 0), "foreign": (2, 3 * GIB + 5),
    }  # fmt: skip


def test_what_was_seen_of_the_container_before_says_nothing_of_the_one_of_now() -> None:
    base = snapshots.good_night(1)
    old = replace(soundhost.evidence(0), container_id="old")

    assert owners(Scraped(replace(base, evidence={0: old}))) == {}


def test_processes_whose_memory_the_driver_does_not_tell_are_counted_all_the_same() -> None:
    assert owners(with_processes(GpuProcess(1, None), pids=PIDS)) == {"backend": (1, None), "foreign": (0, 0)}


def test_every_interval_tells_when_it_was_read() -> None:
    scraped = Scraped(snapshots.good_night(1))

    assert scraped.values("gpu_last_collect_timestamp_seconds", "interval") == {
        "1s": soundhost.NOW.wall_s - 0.5,
        "10s": soundhost.NOW.wall_s - 4.5,
        "30s": soundhost.NOW.wall_s - 20.5,
    }


def test_each_reason_that_holds_the_clocks_down_is_told() -> None:
    scraped = Scraped(with_reading(soundhost.reading(0)._replace(clock_event_reasons=0x1 | 0x40 | 0x100 | 0x8000)))
    active = scraped.values("gpu_clock_event_active", "reason")

    assert len(active) == 9
    assert {reason for reason, value in active.items() if value} == {"gpu_idle", "hw_thermal", "display_clocks"}


@pytest.mark.parametrize(
    ("name", "labels", "value"),
    [
        ("gpu_clock_event_seconds_total", {"reason": "sw_power_cap"}, 12.5),
        ("gpu_clock_event_seconds_total", {"reason": "hw_thermal"}, 0.5),
        ("gpu_temperature_celsius", {"sensor": "memory"}, 60),
        ("gpu_clock_max_hertz", {"domain": "memory"}, 2.625e9),
        ("gpu_clock_hertz", {"domain": "sm"}, 1.98e9),
        ("gpu_ecc_errors_lifetime_total", {"error": "corrected"}, 100),
        ("gpu_remapped_rows_total", {"cause": "uncorrectable"}, 1),
        ("gpu_nvlink_errors_total", {"error": "recovery"}, 2),
        ("gpu_performance_state", {}, 0),
        ("gpu_pcie_receive_bytes_total", {}, 2e12),
        ("gpu_collect_duration_seconds", {}, 0.0015),
        ("gpu_busy_seconds_total", {}, 1000.5),
    ],
)
def test_a_value_stands_under_its_labels(name: str, labels: dict[str, str], value: float) -> None:
    assert Scraped(snapshots.good_night(1)).value(name, **WHO, **labels) == value


def test_before_the_nvml_process_has_counted_itself_it_has_no_series() -> None:
    base = snapshots.good_night(1)
    scraped = Scraped(replace(base, gpus=replace(base.gpus, process_cpu_s=None, process_memory_bytes=None)))

    assert scraped.value("nvml_process_cpu_seconds_total") is None
    assert Scraped(base).value("nvml_process_cpu_seconds_total") == 412.25
