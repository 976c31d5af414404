"""What only some cards and some hosts have: GPM, MIG devices, NVLink where it is wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from engines import wait_until
from fakenvml import GIB, FakeGpu, FakeMig, World
from gpuwatch import FAST, GpuHost

from appliance_agent.config import Config, MetricsConfig
from appliance_agent.gpu_switch import GpuSwitch
from appliance_agent.gpus import GpuReading


@pytest.fixture
def host(tmp_path: Path, nvml_library: Path) -> Iterator[GpuHost]:
    host = GpuHost(tmp_path, nvml_library, World([FakeGpu("GPU-aaaa"), FakeGpu("GPU-bbbb")]))
    yield host
    host.close()


MIB = 1024 * 1024
OF_THE_LOOK = {"at_s", "look_s", "tens_at_s", "thirties_at_s"}


def told(reading: GpuReading) -> set[str]:
    names = (name for name in reading._fields if name not in OF_THE_LOOK)
    return {name for name in names if getattr(reading, name) not in (None, False, 0, "")}


def test_activity_is_told_from_each_pair_of_samples(host: GpuHost) -> None:
    first = host.world.gpus[0]
    first.gpm = (0.2, 0.1, 0.4)
    host.change()
    with host.watched():
        host.until(lambda seen: seen.up and host.reading.sm_active_ratio == pytest.approx(0.2), "a pair")
        first.gpm = (0.6, 0.3, 0.8)
        host.change()
        host.until(lambda _: host.reading.dram_active_ratio == pytest.approx(0.8), "pairs of the new time")

        assert (host.reading.sm_active_ratio, host.reading.tensor_active_ratio) == (0.6, 0.3)


def test_gpm_counts_busy_time_and_bytes_of_the_bus_where_it_can(host: GpuHost) -> None:
    """Not the fields that wrap after 4 GiB, nor the samples, which cost the driver milliseconds."""
    first = host.world.gpus[0]
    first.gpm_more, first.samples = (0.5, 3.0, 200.0), None
    host.change()
    with host.watched():
        host.until(lambda seen: seen.up and (host.reading.busy_s or 0) > 0.5, "half a second of two")
        first.pcie_transmit_bytes = first.pcie_receive_bytes = 10**9
        host.change()
        received: list[int | None] = []

        def passes(_: object) -> bool:
            received.append(host.reading.pcie_receive_bytes)
            return (received[-1] or 0) > 200 * MIB

        host.until(passes, "a second of bytes")
        reading = host.until_later().readings["GPU-aaaa"]

    assert None not in received
    assert reading.pcie_receive_bytes
    assert reading.pcie_transmit_bytes
    assert reading.pcie_receive_bytes / reading.pcie_transmit_bytes == pytest.approx(200 / 3, rel=1e-3)


def test_a_mig_device_has_its_own_memory_and_activity_and_no_temperature_even_of_a_driver_that_tells_one(
    host: GpuHost,
) -> None:
    first = host.world.gpus[0]
    first.mig_enabled, first.gpm = True, (0.9, 0.9, 0.9)
    first.migs = [
        FakeMig("MIG-1", 3, used_gib=1, gpm=(0.1, 0.2, 0.3), leaks=True, processes=[(4711, GIB)]),
        FakeMig("MIG-2", 5, used_gib=2, gpm=(0.4, 0.5, 0.6)),
    ]
    host.change()
    with host.watched():
        seen = host.until(lambda seen: seen.up and seen.readings["MIG-2"].sm_active_ratio is not None, "a pair")

    one, two, card = (seen.readings[uuid] for uuid in ("MIG-1", "MIG-2", "GPU-aaaa"))
    assert told(one) == {
        "memory_total_bytes", "memory_used_bytes", "processes", "sm_active_ratio", "tensor_active_ratio", "dram_active_ratio",
    }  # fmt: skip
    assert (one.sm_active_ratio, one.tensor_active_ratio, one.dram_active_ratio) == (0.1, 0.2, 0.3)
    assert (two.sm_active_ratio, two.dram_active_ratio, two.memory_used_bytes) == (0.4, 0.6, 2 * GIB)
    assert (card.temperature_c, card.power_w, card.sm_active_ratio) == (40, 70, None)


def test_nvlink_is_told_where_it_is_wanted_in_bytes(host: GpuHost) -> None:
    host.world.gpus[0].nvlink = (5, 6, 7, 8, 9)
    host.change()
    with host.watched(command=(*FAST, "--nvlink")):
        host.until_up()

        assert (host.reading.nvlink_transmit_bytes, host.reading.nvlink_receive_bytes) == (5 * 1024, 6 * 1024)
        errors = (
            host.reading.nvlink_crc_errors, host.reading.nvlink_replay_errors, host.reading.nvlink_recovery_errors,
        )  # fmt: skip
        assert errors == (7, 8, 9)


def test_newer_nvlink_has_its_errors_in_other_fields(host: GpuHost) -> None:
    first = host.world.gpus[0]
    first.nvlink, first.errors = (5, 6, 7, 8, 9), {"field:45": 3, "field:52": 3, "field:59": 3}
    host.change()
    with host.watched(command=(*FAST, "--nvlink")):
        host.until(lambda seen: seen.up and host.reading.nvlink_crc_errors == 7, "the other fields")

        assert (host.reading.nvlink_replay_errors, host.reading.nvlink_recovery_errors) == (8, 9)


def test_a_reload_that_wants_nvlink_begins_to_ask_for_it(host: GpuHost, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in host.environment.items():
        monkeypatch.setenv(name, value)
    host.world.gpus[0].nvlink = (1, 2, 0, 0, 0)
    host.change()
    switch = GpuSwitch(lambda: None)

    def answers(config: Config) -> Callable[[], bool]:
        switch.configure(config)
        return lambda: switch.snapshot().up and bool(switch.snapshot().readings)

    try:
        wait_until(answers(Config(image="a")), timeout_s=30, what="NVML")
        without = switch.snapshot().readings["GPU-aaaa"]
        wait_until(
            answers(Config(image="a", metrics=MetricsConfig(nvlink=True))), timeout_s=30, what="NVML with NVLink"
        )
        with_it = switch.snapshot().readings["GPU-aaaa"]
    finally:
        switch.close()

    assert without.nvlink_transmit_bytes is None
    assert with_it.nvlink_transmit_bytes == 1024
