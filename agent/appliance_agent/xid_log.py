"""Which XIDs were reported, when NVML and the kernel's log both tell, each sometimes, in any order. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple

from appliance_agent.gpus import Gpu, Xid

PAIR_S: Final = 60.0  # so far apart the two sources may be with one report
REPEAT_S: Final = 1.0  # one source tells of one error in several lines
_KEPT: Final = 200
_LINE = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9a-fA-F:.]+)(?: GPU-I:(\d+))?(?: GPU-CI:\d+)?\): (\d+)")
_PLACE = re.compile(r"(?:([0-9a-fA-F]{4,8}):)?([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.[0-9a-fA-F])?")

Place = tuple[int, int, int]  # domain, bus, device


class Report(NamedTuple):
    """What a line of the kernel tells."""

    place: Place
    code: int
    instance: int | None = None  # the GPU instance of MIG


class Source(Enum):
    NVML = "nvml"
    KERNEL = "kernel"


@dataclass(frozen=True, slots=True)
class Heard:
    xid: Xid
    source: Source
    paired: bool = False  # the other source told of it too


@dataclass(frozen=True, slots=True)
class XidLog:
    xids: tuple[Xid, ...] = ()  # oldest first
    heard: tuple[Heard, ...] = ()  # of the last minute

    def add(self, xid: Xid, source: Source) -> XidLog:
        """`xids` stays the same tuple if the report is already in it."""
        recent = tuple(heard for heard in self.heard if xid.at_s - heard.xid.at_s <= PAIR_S)
        same = [heard for heard in recent if (heard.xid.uuid, heard.xid.code) == (xid.uuid, xid.code)]
        exact = [heard for heard in same if heard.xid.instance == xid.instance]
        if any(heard.source is source and xid.at_s - heard.xid.at_s <= REPEAT_S for heard in exact):
            return self
        vague = [heard for heard in same if None in (heard.xid.instance, xid.instance)]  # one source knows where
        first = next((heard for heard in (*exact, *vague) if heard.source is not source and not heard.paired), None)
        if first is None:
            return XidLog((*self.xids, xid)[-_KEPT:], (*recent, Heard(xid, source)))
        met = tuple(Heard(heard.xid, heard.source, paired=True) if heard is first else heard for heard in recent)
        return XidLog(self.xids, (*met, Heard(xid, source, paired=True)))


def kernel_report(line: str) -> Report | None:
    """Of a line such as `NVRM: Xid (PCI:0000:3b:00): 79, pid=…`; with MIG it reads `(PCI:0000:3b:00 GPU-I:05)`."""
    match = _LINE.search(line)
    place = place_of(match[1]) if match else None
    return Report(place, int(match[3]), int(match[2]) if match[2] else None) if match and place else None


def place_of(bus_id: str) -> Place | None:
    """NVML writes `00000000:3B:00.0`, the kernel `0000:3b:00`."""
    match = _PLACE.fullmatch(bus_id)
    return (int(match[1] or "0", 16), int(match[2], 16), int(match[3], 16)) if match else None


def uuid_at(place: Place, gpus: Iterable[Gpu]) -> str:
    """Empty if no GPU is known to be there."""
    return next((gpu.uuid for gpu in gpus if not gpu.is_mig and place_of(gpu.pci_bus_id) == place), "")
