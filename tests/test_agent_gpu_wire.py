"""What the NVML process writes is what the agent reads."""

import json
from dataclasses import replace
from typing import Any

import pytest

from appliance_agent.gpu_wire import Line, Reader, Starting, WireError, Writer, for_people
from appliance_agent.gpus import Gpu, GpuProcess, GpuReading, GpuSnapshot, RecoveryAction, Xid

NUMBERED: dict[str, Any] = {
    name: 100 + place
    for place, name in enumerate(GpuReading._fields)
    if name not in ("error", "recovery_action", "processes")
}
FULL = GpuReading(
    **NUMBERED,
    error="nvmlDeviceGetTemperature: unknown error",
    recovery_action=RecoveryAction.DRAIN_AND_RESET,
    processes=(GpuProcess(1234, 5), GpuProcess(1, None)),
)
CARD = Gpu("GPU-a", 0, 0, "NVIDIA H100", 80 * 1024**3, "00000000:3B:00.0", architecture="Hopper", vbios_version="96.00")
SLICE = Gpu("MIG-a", 0, None, "NVIDIA H100 MIG 1g.10gb", 10, "00000000:3B:00.0", "GPU-a", 1, 0)


def snapshot(reading: GpuReading, *more: GpuReading) -> GpuSnapshot:
    readings = {"GPU-a": reading, **{f"GPU-{place}": each for place, each in enumerate(more)}}
    return GpuSnapshot(1.0, True, "", "570.1", "12.8", (CARD, SLICE), readings, 1.5, 4096)


def told(*lines: Line) -> list[Line]:
    writer, reader = Writer(), Reader()
    return [reader.parse(writer.render(line)) for line in lines]


def test_the_sample_fills_every_field_of_a_reading() -> None:
    assert [name for name, default in GpuReading._field_defaults.items() if getattr(FULL, name) == default] == []


@pytest.mark.parametrize(
    "line",
    [
        Starting(3.25),
        Xid("GPU-a", 79, 1.5),
        Xid("GPU-a", 94, 1.5, 7),
        snapshot(FULL),
        snapshot(GpuReading(1.0)),
        snapshot(GpuReading(1.0), FULL),
        GpuSnapshot(0.0, False, "no NVIDIA driver: libnvidia-ml.so.1 was not found"),
    ],
    ids=lambda line: type(line).__name__,
)
def test_a_line_comes_back_as_it_was(line: Line) -> None:
    assert told(line) == [line]


@pytest.mark.parametrize("name", GpuReading._field_defaults)
def test_what_a_gpu_does_not_support_any_more_is_absent_and_not_what_it_was(name: str) -> None:
    without = snapshot(FULL._replace(**{name: GpuReading._field_defaults[name]}))

    assert told(snapshot(FULL), without, snapshot(FULL)) == [snapshot(FULL), without, snapshot(FULL)]


def test_no_processes_are_not_the_same_as_unknown_ones() -> None:
    assert told(snapshot(GpuReading(1.0, processes=()))) == [snapshot(GpuReading(1.0, processes=()))]


def test_what_is_read_seldom_is_sent_when_it_is_new() -> None:
    writer, reader = Writer(), Reader()
    first, second = snapshot(FULL), snapshot(FULL._replace(at_s=2.0, power_w=5.5))
    third = snapshot(FULL._replace(at_s=3.0, energy_j=7e9))
    lines = [writer.render(each) for each in (first, second, third)]

    assert [reader.parse(line) for line in lines] == [first, second, third]
    assert len(lines[1]) < 0.6 * len(lines[0])
    assert len(lines[1]) < len(lines[2])
    assert b"Hopper" in lines[0]
    assert b"Hopper" not in lines[1]


def test_gpus_that_come_and_go_and_a_driver_that_was_down_are_told_anew() -> None:
    down = GpuSnapshot(0.0, False, "the driver is gone")
    lines: list[Line] = [
        snapshot(FULL, FULL), snapshot(FULL), snapshot(FULL, FULL), down, snapshot(FULL, FULL), Xid("GPU-a", 79, 1.5),
        replace(snapshot(FULL), gpus=(replace(CARD, index=1),)),
    ]  # fmt: skip

    assert told(*lines) == lines


def test_a_process_of_another_version_is_refused_before_its_first_reading() -> None:
    line = Writer().render(Starting(1.0)).replace(b'"layout":', b'"layout":1')

    with pytest.raises(WireError, match="of another version"):
        Reader().parse(line)


def test_a_line_for_people_has_names_and_no_holes() -> None:
    shown = json.loads(for_people(snapshot(GpuReading(1.0, power_w=70.5, recovery_action=RecoveryAction.NONE))))

    assert shown["gpus"][1]["uuid"] == "MIG-a"
    assert shown["readings"]["GPU-a"]["power_w"] == 70.5
    assert shown["readings"]["GPU-a"]["recovery_action"] == 0
    assert "energy_j" not in shown["readings"]["GPU-a"]


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
        Writer().render(snapshot(FULL)).replace(b"[100,", b"["),
        Writer().render(snapshot(FULL)).replace(b"[100,", b"[100,100,"),
        Writer().render(snapshot(FULL)).replace(b"117,4,119", b"117,77,119"),
        Writer().render(snapshot(FULL))[:-20],
        2 * Writer().render(snapshot(FULL)),
        b'{"at":1,"up":true,"because":"","process":[1,2],"readings":{"GPU-a":[0,0,0,0,0]}}',
    ],
)  # fmt: skip
def test_what_is_no_line_of_ours_is_refused(line: bytes) -> None:
    with pytest.raises(WireError):
        Reader().parse(line)
