"""XIDs from the kernel's log: the log is a named pipe, what is read from it goes through the real source."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakenvml import FakeGpu, World, kernel_line
from gpuwatch import GpuHost

from appliance_agent.gpu_source import Patience
from appliance_agent.kernel_log import KernelLog
from appliance_agent.xid_log import Report


@pytest.fixture
def host(tmp_path: Path, nvml_library: Path) -> Iterator[GpuHost]:
    host = GpuHost(tmp_path, nvml_library, World([FakeGpu("GPU-aaaa"), FakeGpu("GPU-bbbb")]))
    yield host
    host.close()


def test_the_kernels_log_tells_of_xids_while_nvml_hangs(host: GpuHost) -> None:
    with host.watched(patience=Patience(answer_s=2.0, respawn_s=60)) as source:
        assert source.reads_kernel_log
        host.until_up()
        host.world.hangs = True
        host.change()
        woken = host.until_woken(lambda seen: "has not answered" in seen.because, "the hang")
        host.kernel("6,1,2,-;usb 1-1: new high-speed USB device\n")
        host.kernel(kernel_line(host.world.gpus[1], 119) + " SUBSYSTEM=pci\n")
        seen = host.until(lambda seen: bool(seen.xids), "the XID")

        assert [(xid.uuid, xid.code) for xid in seen.xids] == [("GPU-bbbb", 119)]
        assert host.until_woken(lambda seen: bool(seen.xids), "the XID") == woken + 1
        assert not seen.up


def test_what_nvml_and_the_kernel_both_tell_is_told_once(host: GpuHost) -> None:
    first, second = host.world.gpus
    with host.watched():
        host.until_up()
        host.until_later()
        host.kernel(kernel_line(first, 94))
        host.until(lambda seen: len(seen.xids) == 1, "the kernel's report")
        host.world.xid(first, 94)
        host.world.xid(second, 94)
        host.change()
        seen = host.until(lambda seen: len(seen.xids) == 2, "NVML's report of the other GPU")

        assert [xid.uuid for xid in seen.xids] == ["GPU-aaaa", "GPU-bbbb"]


def test_an_xid_of_a_gpu_nobody_knows_is_left_out(host: GpuHost) -> None:
    with host.watched():
        host.until_up()
        host.kernel(kernel_line(FakeGpu("GPU-x", pci_bus_id="00000000:FF:1F.0"), 79))
        host.kernel(kernel_line(host.world.gpus[0], 13))
        seen = host.until(lambda seen: bool(seen.xids), "the XID of ours")

        assert [xid.code for xid in seen.xids] == [13]


def test_the_kernels_log_tells_in_which_mig_instance_it_happened(host: GpuHost) -> None:
    with host.watched():
        host.until_up()
        host.kernel(kernel_line(host.world.gpus[0], 94, instance=5))
        seen = host.until(lambda seen: bool(seen.xids), "the XID")

        assert [(xid.uuid, xid.code, xid.instance) for xid in seen.xids] == [("GPU-aaaa", 94, 5)]


def test_a_kernel_log_that_may_not_be_read_is_done_without(tmp_path: Path) -> None:
    log = KernelLog(tmp_path / "none")
    log.open()
    log.close()

    assert log.descriptor == -1


def test_what_stood_in_the_log_before_is_not_news(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text(kernel_line(FakeGpu("GPU-a", pci_bus_id="00000000:3B:00.0"), 79))
    log = KernelLog(path)
    log.open()

    assert log.reports() == []
    assert log.descriptor == -1  # a file that ends is no log of a kernel


def test_a_record_that_comes_in_pieces_is_one(tmp_path: Path) -> None:
    path = tmp_path / "log"
    os.mkfifo(path)
    log = KernelLog(path)
    writer = os.open(path, os.O_RDWR)
    log.open()
    os.write(writer, b"NVRM: Xid (PCI:0000:3b:00): 1")
    assert log.reports() == []
    os.write(writer, b"3, Graphics\n")

    assert log.reports() == [Report((0, 0x3B, 0), 13)]
    log.close()
    os.close(writer)
