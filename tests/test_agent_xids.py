"""XIDs: what they ask for, and that a report which two sources give is one."""

import pytest

from appliance_agent.gpus import Gpu, Xid
from appliance_agent.states import Reaction
from appliance_agent.xid_log import Report, Source, XidLog, kernel_report, place_of, uuid_at
from appliance_agent.xids import catalogue, describe, reaction

NVML, KERNEL = Source.NVML, Source.KERNEL


@pytest.mark.parametrize(
    ("wanted", "codes"),
    [
        (Reaction.RESTART_SLOT, (13, 31, 32, 69, 94)),
        (Reaction.OBSERVE, (43, 45, 63, 92, 154)),
        (Reaction.RESET_GPU, (46, 48, 62, 64, 74, 95, 109, 110, 119, 120, 140, 143, 155, 156, 158)),
        (Reaction.REBOOT, (79,)),
        (Reaction.OBSERVE, (0, 1, 999)),  # not in the catalogue
    ],
)
def test_an_xid_asks_for_what_nvidia_says(wanted: Reaction, codes: tuple[int, ...]) -> None:
    assert {code: reaction(code, {}) for code in codes} == dict.fromkeys(codes, wanted)


def test_the_operator_has_the_last_word() -> None:
    overrides = {79: Reaction.OBSERVE, 999: Reaction.REBOOT}

    assert reaction(79, overrides) is Reaction.OBSERVE
    assert reaction(999, overrides) is Reaction.REBOOT
    assert reaction(94, overrides) is Reaction.RESTART_SLOT


def test_every_xid_of_the_catalogue_is_described() -> None:
    assert all(entry.means and entry.means[-1] != "." for entry in catalogue().values())
    assert describe(79) == "XID 79: the GPU has fallen off the bus"
    assert describe(999).startswith("XID 999: ")


def report(at_s: float, code: int = 94, uuid: str = "GPU-a", instance: int | None = None) -> Xid:
    return Xid(uuid, code, at_s, instance)


@pytest.mark.parametrize(
    ("reports", "counted"),
    [
        ([(NVML, report(0))], 1),
        ([(NVML, report(0)), (KERNEL, report(0.1))], 1),
        ([(KERNEL, report(0)), (NVML, report(59))], 1),
        ([(KERNEL, report(0)), (NVML, report(61))], 2),  # too late to be the same
        ([(NVML, report(0)), (NVML, report(5))], 2),  # one source alone: it happened twice
        ([(NVML, report(0)), (KERNEL, report(0)), (NVML, report(5)), (KERNEL, report(5))], 2),
        ([(NVML, report(0)), (NVML, report(5)), (KERNEL, report(6)), (KERNEL, report(8))], 2),
        ([(NVML, report(0)), (KERNEL, report(0)), (KERNEL, report(5))], 2),  # the second only stands in the log
        ([(KERNEL, report(0)), (KERNEL, report(0.1)), (KERNEL, report(0.2)), (NVML, report(0.3))], 1),  # many lines
        ([(NVML, report(0)), (KERNEL, report(0, code=95))], 2),
        ([(NVML, report(0)), (KERNEL, report(0, uuid="GPU-b"))], 2),
        ([(NVML, report(0, instance=5)), (KERNEL, report(0, instance=5))], 1),
        ([(NVML, report(0, instance=5)), (NVML, report(0, instance=6))], 2),  # two programs in two parts of the card
        ([(NVML, report(0, instance=5)), (KERNEL, report(0, instance=6))], 2),
        ([(NVML, report(0, instance=5)), (KERNEL, report(0))], 1),  # only one of the two knows where
        ([(KERNEL, report(0, instance=5)), (NVML, report(0))], 1),
        ([(NVML, report(0)), (NVML, report(0, instance=5)), (KERNEL, report(0, instance=5)), (KERNEL, report(0))], 2),
    ],
)
def test_a_report_that_both_sources_give_is_one(reports: list[tuple[Source, Xid]], counted: int) -> None:
    log = XidLog()
    for source, xid in reports:
        log = log.add(xid, source)

    assert len(log.xids) == counted


def test_only_the_last_two_hundred_are_kept() -> None:
    log = XidLog()
    for second in range(0, 1000, 2):
        log = log.add(report(float(second)), NVML)

    assert len(log.xids) == 200
    assert log.xids[-1].at_s == 998
    assert len(log.heard) < 60


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("4,1,2,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.", Report((0, 0x3B, 0), 79)),
        ("NVRM: Xid (PCI:0000:af:00): 31, pid='<unknown>', name=<unknown>, Ch 00000008", Report((0, 0xAF, 0), 31)),
        ("[ 12.3] NVRM: Xid (PCI:0001:00:00.0): 94, Contained: SM (0x1)", Report((1, 0, 0), 94)),
        ("NVRM: Xid (0000:03:00): 13, Graphics Exception", Report((0, 3, 0), 13)),
        ("NVRM: Xid (PCI:0008:06:00): 154, GPU recovery action changed from 0x0 (None) to 0x2", Report((8, 6, 0), 154)),
        ("NVRM: Xid (PCI:0000:01:00 GPU-I:05): 94, pid=7194, Contained: CE User Channel", Report((0, 1, 0), 94, 5)),
        ("NVRM: Xid (PCI:0000:01:00 GPU-I:01 GPU-CI:02): 13, pid=7, name=a", Report((0, 1, 0), 13, 1)),
        ("NVRM: Xid (PCI:0000:01:00 GPU-I:x): 13", None),
        ("NVRM: GPU at PCI:0000:3b:00: GPU-8f6e", None),
        ("nvidia-nvswitch0: SXid (PCI:0000:c1:00.0): 20034, Fatal, Link 30", None),
        ("NVRM: Xid (PCI:garbage): 79", None),
        ("NVRM: Xid (PCI:0000:3b:00): x", None),
        ("", None),
    ],
)
def test_the_kernels_line_names_the_gpu_and_the_code(line: str, found: object) -> None:
    assert kernel_report(line) == found


def test_nvml_and_the_kernel_mean_the_same_place() -> None:
    card = Gpu("GPU-a", 0, 0, "", 0, pci_bus_id="00000000:3B:00.0")
    part = Gpu("MIG-a", 0, 0, "", 0, pci_bus_id="00000000:3B:00.0", parent_uuid="GPU-a")

    assert place_of("00000000:3B:00.0") == place_of("0000:3b:00")
    assert uuid_at((0, 0x3B, 0), (part, card)) == "GPU-a"
    assert uuid_at((0, 0x3C, 0), (part, card)) == ""
    assert place_of("") is None


@pytest.mark.parametrize(
    ("instance", "concerned"),
    [(1, ["GPU-a", "MIG-1", "MIG-?"]), (2, ["GPU-a", "MIG-2", "MIG-?"]), (None, ["GPU-a", "MIG-1", "MIG-2", "MIG-?"])],
)
def test_an_xid_concerns_the_card_and_those_parts_of_it_that_it_may_have_happened_in(
    instance: int | None, concerned: list[str]
) -> None:
    card = Gpu("GPU-a", 0, 0, "", 0)
    parts = [
        Gpu(uuid, 0, 0, "", 0, parent_uuid="GPU-a", gpu_instance=number)
        for uuid, number in (("MIG-1", 1), ("MIG-2", 2), ("MIG-?", None))
    ]
    xid = report(0, instance=instance)

    assert [gpu.uuid for gpu in (card, *parts, Gpu("GPU-b", 1, 1, "", 0)) if xid.concerns(gpu)] == concerned
