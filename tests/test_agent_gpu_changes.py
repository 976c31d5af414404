"""GPUs that are lost, return, come, go, change places or are cut into MIG devices, and the XIDs that they report."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fakenvml
import pytest
from engines import wait_until
from fakenvml import GIB, FakeGpu, FakeMig, World
from gpuwatch import GpuHost

from appliance_agent.gpus import GpuProcess, GpuSnapshot
from appliance_agent.nvml_process import COMMAND


@pytest.fixture
def host(tmp_path: Path, nvml_library: Path) -> Iterator[GpuHost]:
    host = GpuHost(tmp_path, nvml_library, World([FakeGpu("GPU-aaaa", used_gib=2), FakeGpu("GPU-bbbb")]))
    yield host
    host.close()


def test_a_gpu_that_is_lost_is_marked_and_keeps_its_name_until_it_returns(host: GpuHost) -> None:
    with host.watched():
        woken = host.until_woken(lambda seen: seen.up, "NVML")
        host.world.gpus[0].lost = True
        host.change()
        lost = host.until(lambda _: host.reading.lost, "the loss")
        assert host.until_woken(lambda seen: seen.readings["GPU-aaaa"].lost, "the loss") > woken
        assert [gpu.uuid for gpu in lost.gpus] == ["GPU-aaaa", "GPU-bbbb"]
        assert lost.readings["GPU-bbbb"].sound
        assert lost.readings["GPU-aaaa"].temperature_c is None
        for _ in range(4):  # NVML is initialised anew meanwhile
            host.until_later()
        host.world.gpus[0].lost = False
        host.change()

        host.until(lambda seen: seen.readings["GPU-aaaa"].sound and seen.readings["GPU-aaaa"].temperature_c == 40, "it")


def test_a_lost_gpu_keeps_its_name_when_nvml_is_initialised_anew(host: GpuHost) -> None:
    with host.watched():
        host.until_up()
        host.world.gpus[0].lost = True
        host.change()
        host.until(lambda _: host.reading.lost, "the loss")
        host.world.init_error = fakenvml.DRIVER_NOT_LOADED
        host.change()
        host.until(lambda seen: not seen.up, "NVML to go down")
        host.world.init_error = 0
        host.change()
        host.until_up()

        assert [gpu.uuid for gpu in host.seen.gpus] == ["GPU-aaaa", "GPU-bbbb"]
        assert host.reading.lost


def test_xids_of_a_gpu_that_returned_are_heard(host: GpuHost) -> None:
    first = host.world.gpus[0]
    with host.watched():
        host.until_up()
        first.lost = True
        host.change()
        host.until(lambda _: host.reading.lost, "the loss")
        first.lost = False
        host.change()
        host.until(lambda _: host.reading.sound, "its return")

        def reported() -> bool:
            """Again and again: NVML is closed and opened meanwhile, and what happens then is for the kernel's log."""
            host.world.xid(first, 31)
            host.change()
            return bool(host.seen.xids)

        wait_until(reported, timeout_s=30, what="the XID")


def test_a_gpu_that_was_lost_before_the_start_hides_no_other(host: GpuHost) -> None:
    host.world.gpus[0].lost = True
    host.change()
    with host.watched():
        seen = host.until_up()

        assert [gpu.uuid for gpu in seen.gpus] == ["GPU-bbbb"]
        assert seen.because == "GPU 0 does not tell who it is: gpu is lost"
        host.world.gpus[0].lost = False
        host.change()
        host.until(lambda seen: len(seen.gpus) == 2 and not seen.because, "the other GPU")


def test_a_gpu_that_needs_a_reset_says_so(host: GpuHost) -> None:
    with host.watched():
        host.until_up()
        host.world.gpus[1].reset_required = True
        host.change()

        host.until(lambda seen: seen.readings["GPU-bbbb"].reset_required, "the need")
        assert host.seen.up
        assert host.reading.sound


def test_gpus_that_come_and_go_are_seen(host: GpuHost) -> None:
    with host.watched():
        host.until_up()
        host.world.gpus.append(FakeGpu("GPU-cccc"))
        host.change()
        host.until(lambda seen: [gpu.index for gpu in seen.gpus] == [0, 1, 2], "the third GPU")
        del host.world.gpus[0]
        host.change()

        host.until(lambda seen: [gpu.uuid for gpu in seen.gpus] == ["GPU-bbbb", "GPU-cccc"], "the first one to go")
        host.until(lambda seen: seen.readings.keys() == {"GPU-bbbb", "GPU-cccc"}, "its reading to go")


def test_an_index_is_not_an_identity(host: GpuHost) -> None:
    host.world.gpus[1].temperature_c = 77
    host.change()
    with host.watched():
        host.until_up()
        host.world.gpus.reverse()
        host.change()
        seen = host.until(lambda seen: seen.gpus[0].uuid == "GPU-bbbb", "the new order")

        assert {gpu.uuid: gpu.index for gpu in seen.gpus} == {"GPU-bbbb": 0, "GPU-aaaa": 1}
        assert seen.readings["GPU-bbbb"].temperature_c == 77
        assert seen.readings["GPU-aaaa"].temperature_c == 40


def test_mig_devices_stand_behind_their_gpu_and_follow_its_mode(host: GpuHost) -> None:
    first = host.world.gpus[0]
    first.migs = [FakeMig("MIG-1", 7, 0, used_gib=1, processes=[(4711, GIB)]), FakeMig("MIG-2", 8, 1)]
    first.utilization_ratio = 0.5
    host.change()
    with host.watched():
        assert len(host.until_up().gpus) == 2
        first.mig_enabled, first.utilization_ratio = True, None
        host.change()
        seen = host.until(lambda seen: len(seen.gpus) == 4, "the MIG devices")
        assert [gpu.uuid for gpu in seen.gpus] == ["GPU-aaaa", "MIG-1", "MIG-2", "GPU-bbbb"]
        one = seen.gpus[1]
        assert (one.is_mig, one.parent_uuid, one.gpu_instance, one.compute_instance) == (True, "GPU-aaaa", 7, 0)
        assert (one.index, one.minor, one.memory_bytes) == (0, 0, 10 * GIB)
        assert seen.readings["MIG-1"].processes == (GpuProcess(4711, GIB),)
        assert seen.readings["MIG-1"].memory_used_bytes == GIB
        assert seen.readings["MIG-1"].utilization_ratio is None
        assert seen.readings["MIG-1"].sound
        host.until(lambda _: host.reading.utilization_ratio is None, "what MIG takes away")
        first.mig_enabled, first.utilization_ratio = False, 0.25
        host.change()

        host.until(lambda seen: len(seen.gpus) == 2, "them to go")
        host.until(lambda _: host.reading.utilization_ratio == 0.25, "what MIG had taken away")


def test_an_xid_arrives_at_once_and_wakes_the_loop(host: GpuHost) -> None:
    with host.watched(command=(*COMMAND, "--faster=0.01")):  # a look in 100 s: it cannot bring the XID
        woken = host.until_woken(lambda seen: seen.up, "NVML")
        host.world.xid(host.world.gpus[1], 94)
        host.change()
        seen = host.until(lambda seen: bool(seen.xids), "the XID")

        assert [(xid.uuid, xid.code) for xid in seen.xids] == [("GPU-bbbb", 94)]
        assert host.until_woken(lambda seen: bool(seen.xids), "the XID") == woken + 1


def test_a_wait_for_xids_that_hangs_is_abandoned_with_its_process_when_nvml_must_be_opened_anew(host: GpuHost) -> None:
    with host.watched() as source:
        host.until_up()
        host.world.gpus[0].lost, host.world.hanging = True, {"nvmlEventSetWait_v2"}
        host.change()
        host.until(lambda seen: not seen.readings["GPU-aaaa"].sound, "the loss")
        before = source.pid
        host.world.gpus[0].lost = False
        host.change()

        wait_until(lambda: source.pid not in (None, before), timeout_s=30, what="another process")
        host.until(lambda seen: seen.up and seen.readings["GPU-aaaa"].sound, "the GPU")


def reports(code: int, seen: GpuSnapshot) -> bool:
    return any(xid.code == code for xid in seen.xids)


def test_no_xid_is_missed_while_gpus_come_and_go(host: GpuHost) -> None:
    codes = [*range(100, 148)]
    with host.watched():
        host.until_up()
        host.until_later()
        for code in codes:
            host.world.xid(host.world.gpus[0], code)
            if code % 12 == 0:
                host.world.gpus[2:] = [] if host.world.gpus[2:] else [FakeGpu("GPU-cccc")]
            host.change()
            host.until(partial(reports, code), f"XID {code}")

        assert [xid.code for xid in host.seen.xids] == codes


def test_nvml_tells_in_which_mig_instance_an_xid_happened(host: GpuHost) -> None:
    with host.watched():
        host.until_up()
        host.until_later()
        host.world.xid(host.world.gpus[0], 31, instance=7)
        host.world.xid(host.world.gpus[0], 13)
        host.change()
        seen = host.until(lambda seen: len(seen.xids) == 2, "both")

        assert [(xid.code, xid.instance) for xid in seen.xids] == [(31, 7), (13, None)]


def test_a_gpu_that_reports_no_xids_keeps_no_other_from_it(host: GpuHost) -> None:
    host.world.gpus[0].reports_xids = False
    host.change()
    with host.watched():
        host.until_up()
        host.until_later()
        host.world.xid(host.world.gpus[0], 13)
        host.world.xid(host.world.gpus[1], 31)
        host.change()

        host.until(lambda seen: [xid.code for xid in seen.xids] == [31], "the XID of the other")


def test_readings_that_go_up_and_down_wake_nobody(host: GpuHost) -> None:
    with host.watched():
        woken = host.until_woken(lambda seen: seen.up, "NVML")
        first = host.world.gpus[0]
        first.temperature_c, first.utilization_ratio, first.used_gib, first.processes = 90, 1.0, 70, [(1, 2)]
        host.change()
        host.until(lambda _: host.reading.processes == (GpuProcess(1, 2),), "the new reading")

        assert host.woken == woken


def test_the_newest_xid_stands_last(host: GpuHost) -> None:
    with host.watched():
        host.until_up()
        host.until_later()
        for code in (43, 45, 13):
            host.world.xid(host.world.gpus[0], code)
        host.change()
        seen = host.until(lambda seen: len(seen.xids) == 3, "three XIDs")

        assert [xid.code for xid in seen.xids] == [43, 45, 13]
        assert seen.xids[-1].at_s <= host.until_later().at_s
