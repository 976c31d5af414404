"""Nights of a host as somebody saw them who watched for a minute: what `status --watch` has to show."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import snapshots
import soundhost

from appliance_agent.generated import Generated
from appliance_agent.slots import Cause, Quarantine
from appliance_agent.snapshot import Snapshot
from appliance_agent.states import State
from appliance_agent.status import GpuStatus, SlotStatus, Status
from appliance_agent.status_json import parse, render
from appliance_agent.status_table import Window, render_table
from appliance_agent.trends import Trends

CHINESE = "推理服务器"


def sixteen() -> Snapshot:
    """All is well, but for the last slots."""
    base = snapshots.good_night(16)
    slots = list(base.host.slots)
    since_s = soundhost.NOW.mono_s - 60
    slots[14] = replace(slots[14], state=State.LOADING, since_s=since_s, because="no token for 9 s")
    slots[15] = replace(
        slots[15], state=State.QUARANTINED, since_s=since_s,
        quarantine=Quarantine(Cause.GPU, "the GPU fell off the bus (XID 79)", since_s, since_s + 600, 1),
    )  # fmt: skip
    return replace(base, host=replace(base.host, slots=tuple(slots)))


def chinese() -> Snapshot:
    base = snapshots.good_night(2)
    first, second = base.gpus.gpus
    return replace(base, gpus=replace(base.gpus, gpus=(replace(first, name=CHINESE), second)))


NIGHTS = {
    "good": snapshots.good_night(),
    "bad": snapshots.bad_night(),
    "one": snapshots.good_night(1),
    "none": snapshots.good_night(0),
    "sixteen": sixteen(),
    "without_gpus": snapshots.without_gpus(),
    "unknown": snapshots.unknown(),
    "mig": snapshots.mig(),
    "chinese": chinese(),
}


def status_of(snapshot: Snapshot) -> Status:
    return parse(render(snapshot))


def busy(status: Status, second: int, *, tells: bool = False) -> Status:
    """Every slot is a little busier than the one before; every 20 s there is a pause of 5 s, and answers take 4 s."""

    def gpu(slot: SlotStatus, gpu: GpuStatus) -> GpuStatus:
        known = gpu.utilization_ratio is not None
        return replace(gpu, utilization_ratio=load(slot) if known else None)

    def load(slot: SlotStatus) -> float:
        return 0.0 if second % 20 < 5 else min((slot.slot + 1) * (1 + second % 7) / 56, 1.0)

    def told(slot: SlotStatus) -> Generated:
        answers = second // 4 * (slot.slot + 1)
        return Generated(answers, answers * 120, answers * 4.0)

    slots = (
        replace(
            slot,
            gpus=tuple(gpu(slot, each) for each in slot.gpus),
            sent_bytes_per_second=load(slot) * 9000 if slot.serving else None,
            generated=told(slot) if tells and slot.serving else None,
        )
        for slot in status.slots
    )
    return replace(status, slots=tuple(slots))


@cache
def watched(night: str, tells: bool) -> tuple[Status, Trends]:
    status = status_of(NIGHTS[night])
    trends = Trends(period_s=2)
    for second in range(0, 55, 2):
        trends.add(busy(status, second, tells=tells), 1000.0 + second)
    return busy(status, 54, tells=tells), trends


def shown(night: str, window: Window, *, tells: bool = False) -> str:
    status, trends = watched(night, tells)
    return render_table(status, replace(window, trends=trends))
