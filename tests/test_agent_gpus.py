"""GPUs as NVML tells of them: the real bindings and the real process, over a library that answers from a file."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fakenvml
import pytest
from fakenvml import GIB, FakeGpu, World
from gpuwatch import GpuHost

from appliance_agent.gpu_wire import Reader
from appliance_agent.gpus import GpuProcess, GpuSnapshot, RecoveryAction
from appliance_agent.nvml_process import COMMAND


@pytest.fixture
def host(tmp_path: Path, nvml_library: Path) -> Iterator[GpuHost]:
    host = GpuHost(tmp_path, nvml_library, World([FakeGpu("GPU-aaaa", used_gib=2), FakeGpu("GPU-bbbb")]))
    yield host
    host.close()


def test_every_number_of_a_gpu_arrives_in_its_base_unit(host: GpuHost) -> None:
    first = host.world.gpus[0]
    first.utilization_ratio, first.uncorrected_ecc_errors = 0.37, 2
    first.processes = [(4711, 3 * GIB), (4712, None)]
    host.change()
    with host.watched():
        seen = host.until_up()

    assert (seen.driver_version, seen.cuda_version, seen.because) == ("570.124.06", "12.8", "")
    assert [(gpu.uuid, gpu.index, gpu.minor) for gpu in seen.gpus] == [("GPU-aaaa", 0, 0), ("GPU-bbbb", 1, 1)]
    assert seen.gpus[0].name == "NVIDIA H100 80GB HBM3"
    assert seen.gpus[0].memory_bytes == 80 * GIB
    assert seen.gpus[0].pci_bus_id == first.pci_bus_id
    reading = seen.readings["GPU-aaaa"]
    assert reading.sound
    assert reading.utilization_ratio == pytest.approx(0.37)
    assert (reading.memory_total_bytes, reading.memory_used_bytes) == (80 * GIB, 2 * GIB)
    assert reading.memory_reserved_bytes == GIB // 2
    assert (reading.temperature_c, reading.power_w, reading.power_limit_w) == (40, 70.0, 700.0)
    assert reading.energy_j == pytest.approx(1000)
    assert (reading.sm_clock_hz, reading.memory_clock_hz) == (1.98e9, 2.619e9)
    assert (reading.clock_event_reasons, reading.uncorrected_ecc_errors) == (1, 2)
    assert reading.recovery_action is RecoveryAction.NONE
    assert (reading.persistence, reading.mig_enabled) == (True, False)
    assert reading.processes == (GpuProcess(4711, 3 * GIB), GpuProcess(4712, None))
    assert seen.readings["GPU-bbbb"].processes == ()


@pytest.mark.parametrize(
    "name",
    [
        "utilization_ratio",
        "temperature_c",
        "power_w",
        "power_limit_w",
        "energy_j",
        "clock_event_reasons",
        "uncorrected_ecc_errors",
        "recovery_action",
        "persistence",
        "mig_enabled",
        "processes",
    ],
)
def test_what_a_card_does_not_support_is_absent_and_no_fault(host: GpuHost, name: str) -> None:
    setattr(host.world.gpus[0], name, None)
    host.change()
    with host.watched():
        host.until_up()
        seen = host.until_later()

    assert getattr(seen.readings["GPU-aaaa"], name) is None
    assert getattr(seen.readings["GPU-bbbb"], name) is not None
    assert seen.readings["GPU-aaaa"].sound


@pytest.mark.parametrize(
    ("refused", "code"),
    [
        (("nvmlDeviceGetFieldValues",), 13),  # a driver older than the function
        (("field:185", "field:190", "field:83", "field:4"), 2),  # older than the fields
        (("nvmlDeviceGetCurrentClocksEventReasons", "nvmlDeviceGetComputeRunningProcesses_v3"), 13),
    ],
)
def test_an_older_driver_is_asked_in_the_older_way(host: GpuHost, refused: tuple[str, ...], code: int) -> None:
    host.world.gpus[0].errors = dict.fromkeys(refused, code)
    host.world.gpus[0].processes = [(4711, GIB)]
    host.change()
    with host.watched():
        host.until_up()
        reading = host.until_later().readings["GPU-aaaa"]

    assert (reading.power_w, reading.power_limit_w, reading.energy_j) == (70.0, 700.0, 1000.0)
    assert (reading.uncorrected_ecc_errors, reading.clock_event_reasons) == (0, 1)
    assert reading.processes == (GpuProcess(4711, GIB),)


def test_where_memory_is_told_in_the_old_way_the_reserved_part_is_unknown(host: GpuHost) -> None:
    host.world.gpus[0].errors = {"nvmlDeviceGetMemoryInfo_v2": 13}
    host.change()
    with host.watched():
        reading = host.until_up().readings["GPU-aaaa"]

    assert (reading.memory_used_bytes, reading.memory_reserved_bytes) == (2 * GIB + GIB // 2, None)


def test_a_gpu_is_not_asked_again_what_it_does_not_support(host: GpuHost) -> None:
    first = host.world.gpus[0]
    first.temperature_c = None
    host.change()
    with host.watched():
        host.until_up()
        first.temperature_c, first.sm_clock_mhz = 50, 1000
        host.change()
        host.until(lambda _: host.reading.sm_clock_hz == 1e9, "the new clock")

        assert host.reading.temperature_c is None


def test_a_moment_without_data_is_not_taken_for_a_lack_of_support(host: GpuHost) -> None:
    first = host.world.gpus[0]
    first.errors = {"nvmlDeviceGetUtilizationRates": 21}
    host.change()
    with host.watched():
        assert host.until_up().readings["GPU-aaaa"].utilization_ratio is None
        assert host.reading.sound
        first.errors = {}
        host.change()

        host.until(lambda _: host.reading.utilization_ratio == 0.0, "the utilisation")


@pytest.mark.parametrize(
    ("said", "understood"), [*((action.value, action) for action in RecoveryAction), (77, RecoveryAction.OTHER)]
)
def test_what_the_driver_itself_asks_for_is_read(host: GpuHost, said: int, understood: RecoveryAction) -> None:
    host.world.gpus[0].recovery_action = 99 if said < 0 else said
    host.change()
    with host.watched():
        host.until_up()

        assert host.reading.recovery_action is understood


def test_an_error_nobody_can_explain_is_told_with_its_call(host: GpuHost) -> None:
    with host.watched():
        host.until_up()
        host.world.gpus[0].errors = {"nvmlDeviceGetTemperature": fakenvml.UNKNOWN}
        host.change()

        host.until(lambda _: host.reading.error == "nvmlDeviceGetTemperature(0): unknown error", "the error")
        assert (host.reading.temperature_c, host.reading.sm_clock_hz) == (None, 1.98e9)
        assert host.seen.readings["GPU-bbbb"].sound


def test_one_look_can_be_had_as_the_agent_reads_it(host: GpuHost) -> None:
    done = subprocess.run([*COMMAND, "--once"], env=host.environment, capture_output=True, check=True)
    seen = Reader().parse(done.stdout.rstrip())

    assert done.stdout.count(b"\n") == 1
    assert isinstance(seen, GpuSnapshot)
    assert (seen.gpus[1].uuid, seen.readings["GPU-bbbb"].power_w) == ("GPU-bbbb", 70)


def test_one_look_can_be_printed_with_names(host: GpuHost) -> None:
    done = subprocess.run([*COMMAND, "--show"], env=host.environment, capture_output=True, check=True)
    shown = json.loads(done.stdout)

    assert done.stdout.count(b"\n") == 1
    assert (shown["gpus"][1]["uuid"], shown["readings"]["GPU-bbbb"]["power_w"]) == ("GPU-bbbb", 70)


@pytest.mark.parametrize("word", ["--once", "--show"])
def test_one_look_fails_where_nvml_does_not_work(host: GpuHost, word: str) -> None:
    host.world.init_error = fakenvml.DRIVER_NOT_LOADED
    host.change()
    done = subprocess.run([*COMMAND, word], env=host.environment, capture_output=True, check=False)

    assert done.returncode == 1
    assert "kernel module is not loaded" in json.loads(done.stdout)["because"]


def test_the_probe_names_every_call_with_its_answer_or_its_error(host: GpuHost) -> None:
    for gpu in host.world.gpus:
        gpu.retired_pages, gpu.fabric = (0, 0, False), (3, 0)
    host.world.gpus[1].temperature_c = host.world.gpus[1].recovery_action = None
    host.change()
    command = [*COMMAND, "--probe"]
    done = subprocess.run(command, env=host.environment, capture_output=True, text=True, check=True)

    first, _, second = done.stdout.partition("GPU-bbbb")
    assert "temperature_c=40" in first
    assert "recovery_action=RecoveryAction.NONE" in first
    assert "error 3: Not Supported" not in first
    assert second.count("error 3: Not Supported") == 2
    assert "a whole look" in second


def test_the_agent_itself_never_loads_the_bindings() -> None:
    program = "import sys, appliance_agent.gpu_source as _; sys.exit('pynvml' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", program], env=os.environ, check=False).returncode == 0
