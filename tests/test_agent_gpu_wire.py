"""What the NVML process writes is what the agent reads."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest

from appliance_agent.gpu_wire import Line, Starting, WireError, parse, render
from appliance_agent.gpus import Gpu, GpuProcess, GpuReading, GpuSnapshot, RecoveryAction, Xid

FULL = GpuReading(
    at_s=12.5,
    lost=True,
    reset_required=True,
    error="nvmlDeviceGetTemperature: unknown error",
    utilization_ratio=0.5,
    memory_total_bytes=80 * 1024**3,
    memory_used_bytes=0,
    memory_reserved_bytes=5,
    temperature_c=40,
    power_w=70.5,
    power_limit_w=700,
    energy_j=1e9,
    sm_clock_hz=1.98e9,
    memory_clock_hz=2.6e9,
    clock_event_reasons=0x40,
    uncorrected_ecc_errors=3,
    recovery_action=RecoveryAction.DRAIN_AND_RESET,
    persistence=False,
    mig_enabled=True,
    processes=(GpuProcess(1234, 5), GpuProcess(1, None)),
)
CARD = Gpu("GPU-a", 0, 0, "NVIDIA H100", 80 * 1024**3, "00000000:3B:00.0")
SLICE = Gpu("MIG-a", 0, None, "NVIDIA H100 MIG 1g.10gb", 10, "00000000:3B:00.0", "GPU-a", 1, 0)


def snapshot(reading: GpuReading) -> GpuSnapshot:
    return GpuSnapshot(1.0, True, "", "570.1", "12.8", (CARD, SLICE), {"GPU-a": reading})


def test_the_sample_fills_every_field_of_a_reading() -> None:
    assert [field.name for field in fields(GpuReading) if getattr(FULL, field.name) == field.default] == []


@pytest.mark.parametrize(
    "line",
    [
        Starting(3.25),
        Xid("GPU-a", 79, 1.5),
        snapshot(FULL),
        snapshot(GpuReading(1.0)),
        GpuSnapshot(0.0, False, "no NVIDIA driver: libnvidia-ml.so.1 was not found"),
    ],
    ids=lambda line: type(line).__name__,
)
def test_a_line_comes_back_as_it_was(line: Line) -> None:
    assert parse(render(line)) == line


@pytest.mark.parametrize("name", [field.name for field in fields(GpuReading) if field.name != "at_s"])
def test_what_a_gpu_does_not_support_is_absent_and_not_zero(name: str) -> None:
    field = next(field for field in fields(GpuReading) if field.name == name)
    default: Any = field.default
    line = render(snapshot(replace(FULL, **{name: default})))

    assert name not in json.loads(line)["readings"]["GPU-a"]


def test_no_processes_are_not_the_same_as_unknown_ones() -> None:
    assert parse(render(snapshot(GpuReading(1.0, processes=())))) == snapshot(GpuReading(1.0, processes=()))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"{}",
        b"[]",
        b"5",
        b'"starting"',
        b'{"xid":[1]}',
        b'{"starting":null}',
        b"\xff\xfe",
        render(snapshot(FULL)).replace(b'"power_w"', b'"power_mw"'),
        render(snapshot(FULL)).replace(b'"recovery_action":4', b'"recovery_action":77'),
        render(snapshot(FULL))[:-20],
    ],
)
def test_what_is_no_line_of_ours_is_refused(line: bytes) -> None:
    with pytest.raises(WireError):
        parse(line)
