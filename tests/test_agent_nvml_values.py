"""Every value that NVML gives, from the real bindings over a library that answers from a file: units, intervals, absence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakenvml import GIB, FakeGpu, World
from gpuwatch import GpuHost

from appliance_agent.gpus import GpuProcess, GpuReading, RecoveryAction
from appliance_agent.nvml_process import COMMAND

SECOND = 1_000_000


@pytest.fixture
def host(tmp_path: Path, nvml_library: Path) -> Iterator[GpuHost]:
    host = GpuHost(tmp_path, nvml_library, World([FakeGpu("GPU-aaaa"), FakeGpu("GPU-bbbb")]))
    yield host
    host.close()


def odd(gpu: FakeGpu) -> None:
    """A card of which no two values are alike."""
    gpu.used_gib, gpu.utilization_ratio, gpu.memory_activity_ratio = 7, 0.37, 0.21
    gpu.temperature_c, gpu.memory_temperature_c, gpu.thermal_margin_c = 41, 52, 38
    gpu.power_w, gpu.power_limit_w, gpu.energy_j = 301.234, 650, 123456.789
    gpu.clock_event_reasons, gpu.performance_state = 0x44, 2
    gpu.corrected_ecc_errors, gpu.uncorrected_ecc_errors = 11, 12
    gpu.corrected_ecc_errors_lifetime, gpu.uncorrected_ecc_errors_lifetime = 13, 14
    gpu.remapped_rows, gpu.pcie_replays, gpu.gpm = (3, 4, True, False), 15, (0.61, 0.22, 0.83)
    gpu.processes, gpu.fabric = [(4711, 3 * GIB), (4712, None)], (3, 999)


WANTED = GpuReading(
    at_s=0.0,
    failed_calls=0,
    utilization_ratio=0.37,
    memory_activity_ratio=0.21,
    memory_total_bytes=80 * GIB,
    memory_used_bytes=7 * GIB,
    memory_reserved_bytes=GIB // 2,
    temperature_c=41,
    memory_temperature_c=52,
    thermal_margin_c=38,
    power_w=301.234,
    sm_clock_hz=1.98e9,
    memory_clock_hz=2.619e9,
    clock_event_reasons=0x44,
    sw_power_cap_s=1.5,
    sync_boost_s=2.5,
    sw_thermal_s=3.5,
    hw_thermal_s=4.5,
    hw_power_brake_s=5.5,
    performance_state=2,
    recovery_action=RecoveryAction.NONE,
    mig_enabled=False,
    processes=(GpuProcess(4711, 3 * GIB), GpuProcess(4712, None)),
    power_limit_w=650,
    corrected_ecc_errors=11,
    uncorrected_ecc_errors=12,
    corrected_ecc_errors_lifetime=13,
    uncorrected_ecc_errors_lifetime=14,
    pcie_generation=4,
    pcie_lanes=8,
    pcie_replays=15,
    persistence=True,
    sm_active_ratio=0.61,
    tensor_active_ratio=0.22,
    dram_active_ratio=0.83,
    energy_j=123456.789,
    correctable_remapped_rows=3,
    uncorrectable_remapped_rows=4,
    row_remap_pending=True,
    row_remap_failed=False,
    fabric_state=3,
    fabric_status=999,
    sm_clock_max_hz=1.995e9,
    memory_clock_max_hz=2.625e9,
    pcie_generation_max=5,
    pcie_lanes_max=16,
)
MOVING = {"at_s", "look_s", "busy_s", "tens_at_s", "thirties_at_s", "pcie_transmit_bytes", "pcie_receive_bytes"}
ABSENT_HERE = {name for name in GpuReading._fields if "nvlink" in name or "retired" in name}


def values(reading: GpuReading) -> dict[str, object]:
    return {name: value for name, value in reading._asdict().items() if name not in MOVING}


def test_every_value_has_its_unit_and_its_field(host: GpuHost) -> None:
    odd(host.world.gpus[0])
    host.change()
    with host.watched():
        host.until(lambda seen: seen.up and host.reading.sm_active_ratio is not None, "a pair of samples")

        assert values(host.reading) == values(WANTED)
        assert {name for name in ABSENT_HERE if getattr(host.reading, name) is not None} == set()
        assert {name for name in MOVING if getattr(host.reading, name) is None} == set()
        assert host.seen.process_cpu_s
        assert host.seen.process_memory_bytes


def test_the_memory_of_the_nvml_process_is_what_the_kernel_says(host: GpuHost) -> None:
    """statm counts pages, and these have 64 KiB on many an ARM server."""
    with host.watched() as source:
        host.until_up()
        told = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{source.pid}/status").read_text())

        assert told
        assert host.seen.process_memory_bytes == pytest.approx(int(told[1]) * 1024, rel=0.5)


def test_a_gpu_tells_what_it_is(host: GpuHost) -> None:
    with host.watched():
        gpu = host.until_up().gpus[0]

    assert (gpu.architecture, gpu.compute_capability, gpu.vbios_version) == ("Hopper", "9.0", "96.00.74.00.01")


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ("samples", ("busy_s",)),
        ("memory_temperature_c", ("memory_temperature_c",)),
        ("sw_power_cap_s", ("sw_power_cap_s",)),
        ("sync_boost_s", ("sync_boost_s",)),
        ("hw_thermal_s", ("hw_thermal_s",)),
        ("hw_power_brake_s", ("hw_power_brake_s",)),
        ("performance_state", ("performance_state",)),
        ("corrected_ecc_errors_lifetime", ("corrected_ecc_errors_lifetime",)),
        ("uncorrected_ecc_errors_lifetime", ("uncorrected_ecc_errors_lifetime",)),
        ("remapped_rows", ("correctable_remapped_rows", "row_remap_pending", "row_remap_failed")),
        ("pcie_generation", ("pcie_generation", "pcie_generation_max")),
        ("pcie_lanes", ("pcie_lanes", "pcie_lanes_max")),
        ("pcie_replays", ("pcie_replays",)),
        ("pcie_transmit_bytes", ("pcie_transmit_bytes",)),
        ("pcie_receive_bytes", ("pcie_receive_bytes",)),
        ("sm_clock_max_mhz", ("sm_clock_max_hz",)),
        ("gpm", ("sm_active_ratio", "tensor_active_ratio", "dram_active_ratio")),
    ],
)
def test_what_a_card_does_not_support_is_absent_and_counted_as_no_failure(
    host: GpuHost, told: str, names: tuple[str, ...]
) -> None:
    setattr(host.world.gpus[0], told, None)
    host.change()
    with host.watched():
        seen = host.until(lambda seen: seen.up and seen.readings["GPU-bbbb"].sm_active_ratio is not None, "a pair")

    one, other = seen.readings["GPU-aaaa"], seen.readings["GPU-bbbb"]
    assert {name for name in names if getattr(one, name) is not None} == set()
    assert {name for name in names if getattr(other, name) is None} == set()
    assert (one.sound, one.failed_calls) == (True, 0)


def test_a_card_without_a_margin_has_its_distance_to_the_slowdown_threshold(host: GpuHost) -> None:
    first, second = host.world.gpus
    first.thermal_margin_c = second.thermal_margin_c = second.slowdown_c = None
    first.temperature_c = 61
    host.change()
    with host.watched():
        host.until_up()
        seen = host.until_later()

    assert seen.readings["GPU-aaaa"].thermal_margin_c == 90 - 61
    assert seen.readings["GPU-bbbb"].thermal_margin_c is None


def test_a_card_without_a_memory_sensor_is_not_at_zero_degrees(host: GpuHost) -> None:
    host.world.gpus[0].memory_temperature_c = 0
    host.change()
    with host.watched():
        host.until_up()

        assert host.reading.memory_temperature_c is None


def test_an_older_driver_tells_thermal_slowdowns_in_the_older_field(host: GpuHost) -> None:
    host.world.gpus[0].sw_thermal_s = None
    host.change()
    with host.watched():
        host.until(lambda seen: seen.up and host.reading.sw_thermal_s is not None, "the older field")

        assert host.reading.sw_thermal_s == 6.5
        assert host.seen.readings["GPU-bbbb"].sw_thermal_s == 3.5


def test_only_an_old_card_has_retired_pages(host: GpuHost) -> None:
    first, second = host.world.gpus
    first.remapped_rows, first.retired_pages, second.retired_pages = None, (6, 7, True), (8, 9, True)
    host.change()
    with host.watched():
        seen = host.until_up()

    old, new = seen.readings["GPU-aaaa"], seen.readings["GPU-bbbb"]
    assert (old.correctable_retired_pages, old.uncorrectable_retired_pages, old.retired_pages_pending) == (6, 7, True)
    assert (new.correctable_retired_pages, new.retired_pages_pending) == (None, None)


@pytest.mark.parametrize("bits", [32, 64])
def test_bytes_of_the_bus_are_counted_from_the_start_and_across_a_wrap(host: GpuHost, bits: int) -> None:
    first = host.world.gpus[0]
    first.pcie_bits = bits
    first.pcie_transmit_bytes, first.pcie_receive_bytes = 2**bits - 1000, 5000
    host.change()
    with host.watched():
        host.until_up()
        assert (host.reading.pcie_transmit_bytes, host.reading.pcie_receive_bytes) == (0, 0)
        first.pcie_transmit_bytes, first.pcie_receive_bytes = 500, 6000
        host.change()
        host.until(lambda _: host.reading.pcie_receive_bytes == 1000, "the bytes that were received")

        assert host.reading.pcie_transmit_bytes == 1500


def test_busy_time_is_added_up_from_samples_that_come_irregularly_with_gaps(host: GpuHost) -> None:
    first = host.world.gpus[0]
    first.generates_samples = False
    first.samples = [(50 * SECOND, 100)]
    host.change()
    with host.watched():
        host.until_up()
        assert host.reading.busy_s == 0
        first.samples = [*first.samples, (50 * SECOND + 200_000, 50), (50 * SECOND + 700_000, 100)]
        host.change()
        host.until(lambda _: host.reading.busy_s == pytest.approx(0.6), "two samples")
        first.samples = [*first.samples, (90 * SECOND, 100), (91 * SECOND, 10)]
        host.change()

        host.until(lambda _: host.reading.busy_s == pytest.approx(0.7), "the sample behind the gap")


def test_more_samples_than_there_is_room_for_are_asked_for_again(host: GpuHost) -> None:
    first = host.world.gpus[0]
    first.generates_samples = False
    first.samples = [(50 * SECOND, 0)]
    host.change()
    with host.watched():
        host.until_up()
        first.samples = [(50 * SECOND + place * 10_000, 50) for place in range(1, 401)]
        host.change()

        host.until(lambda _: host.reading.busy_s == pytest.approx(2.0), "400 samples")


def test_a_busy_card_is_busy_for_as_long_as_it_is_watched(host: GpuHost) -> None:
    host.world.gpus[0].utilization_ratio = 1.0
    host.change()
    with host.watched():
        host.until_up()
        host.until(lambda _: (host.reading.busy_s or 0) > 0.5, "half a second")

        assert host.seen.readings["GPU-bbbb"].busy_s == 0


def test_many_processes_are_all_told(host: GpuHost) -> None:
    host.world.gpus[0].processes = [(1000 + place, GIB + place) for place in range(100)]
    host.change()
    with host.watched():
        host.until_up()

        assert host.reading.processes == tuple(GpuProcess(1000 + place, GIB + place) for place in range(100))


def test_an_obscure_call_that_fails_is_counted_and_makes_no_gpu_unsound(host: GpuHost) -> None:
    with host.watched():
        host.until_up()
        host.world.gpus[0].errors = {"nvmlDeviceGetMarginTemperature": 999}
        host.change()
        host.until(lambda _: (host.reading.failed_calls or 0) >= 3, "failures")

        assert host.reading.sound
        assert host.seen.readings["GPU-bbbb"].failed_calls == 0


def test_what_is_asked_seldom_is_as_old_as_it_says(host: GpuHost) -> None:
    first = host.world.gpus[0]
    with host.watched():
        host.until_up()
        before = host.reading
        first.power_limit_w, first.energy_j = 555, 5555
        host.change()
        later = host.until(lambda _: host.reading.energy_j == 5555, "the seldom value").readings["GPU-aaaa"]

    assert before.thirties_at_s is not None
    assert before.tens_at_s is not None
    assert before.thirties_at_s <= before.tens_at_s <= before.at_s
    assert later.power_limit_w == 555
    assert later.thirties_at_s is not None
    assert before.thirties_at_s < later.thirties_at_s <= later.at_s


def test_fields_are_asked_for_in_one_call_of_those_that_are_due(host: GpuHost) -> None:
    """The dear ones are not among those of every second."""
    with host.watched(command=COMMAND):
        host.until_up()
        energy_at_s = host.reading.thirties_at_s
        host.world.gpus[0].energy_j, host.world.gpus[0].power_limit_w = 77, 77
        host.world.gpus[0].power_w = 333
        host.change()
        host.until(lambda _: host.reading.power_w == 333, "the power of now")

        assert (host.reading.energy_j, host.reading.power_limit_w) == (1000, 700)
        assert host.reading.thirties_at_s == energy_at_s


def test_an_xid_is_in_the_publication_that_it_wakes_the_loop_for(host: GpuHost) -> None:
    with host.watched(command=(*COMMAND, "--faster=0.01")):  # no look of every second brings it
        woken = host.until_woken(lambda seen: seen.up, "NVML")
        host.world.xid(host.world.gpus[0], 79)
        host.change()

        assert host.until_woken(lambda seen: bool(seen.xids), "the XID") == woken + 1
        assert [xid.code for xid in host.seen_when_woken.xids] == [79]
