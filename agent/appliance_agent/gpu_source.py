"""Watches the GPUs through a process of its own and the kernel's log, and keeps the newest snapshot. It decides nothing.

NVML may hang in the driver, and a process in such a call cannot be killed: it is abandoned and another one started.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Final

from appliance_agent.gpu_wire import Line, Starting, WireError
from appliance_agent.gpus import NO_GPUS, GpuSnapshot, Xid
from appliance_agent.kernel_log import KERNEL_LOG, KernelLog
from appliance_agent.nvml_process import COMMAND, Kill, NvmlProcess, kill
from appliance_agent.ports import Wake
from appliance_agent.values import updated
from appliance_agent.xid_log import Source, XidLog, uuid_at

_POLL_S: Final = 1.5  # a line comes every second
_CONDITION: Final = attrgetter("lost", "reset_required", "error", "recovery_action")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Patience:
    answer_s: float = 10.0  # without a look at the GPUs for so long, NVML hangs
    init_s: float = 60.0  # without persistence mode, every GPU takes seconds
    respawn_s: float = 30.0  # from one start of the NVML process to the next
    abandoned: int = 3  # so many that cannot be killed, and no more are started


class NvmlSource:
    """The `GpuSource` of a host with NVIDIA's driver, or without: then the snapshot says why."""

    def __init__(
        self,
        wake: Wake,
        *,
        patience: Patience = Patience(),
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str] | None = None,
        kernel_log: Path = KERNEL_LOG,
        kill: Kill = kill,
    ) -> None:
        self._wake = wake
        self._patience = patience
        self._start_process = partial(NvmlProcess, command, environment, kill)
        self._kernel_log = KernelLog(kernel_log)
        self._snapshot = NO_GPUS
        self._news = _news(NO_GPUS)
        self._xids = XidLog()
        self._process: NvmlProcess | None = None
        self._started_s = float("-inf")
        self._heard_s = 0.0
        self._limit_s = patience.init_s
        self._abandoned: list[NvmlProcess] = []
        self._over = threading.Event()
        self._doorbell = -1
        self._thread = threading.Thread(target=self._run, name="gpus", daemon=True)

    def start(self) -> None:
        self._doorbell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._kernel_log.open()
        self._thread.start()

    def snapshot(self) -> GpuSnapshot:
        return self._snapshot

    @property
    def abandoned(self) -> int:
        """NVML processes that were killed and live."""
        return len(self._abandoned)

    @property
    def pid(self) -> int | None:
        """Of the NVML process that is asked now."""
        process = self._process
        return process.pid if process else None

    @property
    def reads_kernel_log(self) -> bool:
        return self._kernel_log.descriptor >= 0

    def close(self) -> None:
        if self._doorbell < 0:
            return
        self._over.set()
        os.eventfd_write(self._doorbell, 1)
        self._thread.join()
        if self._process:
            self._process.abandon()
            self._process.end()
        self._kernel_log.close()
        os.close(self._doorbell)
        self._doorbell = -1

    def _run(self) -> None:
        try:
            turn_s = time.monotonic()
            while not self._over.is_set():
                now_s = time.monotonic()
                if now_s - turn_s > 2 * _POLL_S:  # we were stopped ourselves: silence then proves nothing
                    self._heard_s += now_s - turn_s
                turn_s = now_s
                self._supervise(now_s)
                self._listen()
        except Exception as error:  # noqa: BLE001 - the snapshot must say so
            _LOG.exception("the GPU observer failed, please report it as a bug")
            self._down(f"the GPU observer failed, please report it as a bug: {error}")

    def _supervise(self, now_s: float) -> None:
        self._abandoned = [process for process in self._abandoned if process.alive]
        if self._process and now_s - self._heard_s > self._limit_s:
            self._abandon(f"NVML has not answered for {self._limit_s:g} s: the driver hangs, see `dmesg | grep -i xid`")
        if self._process or now_s - self._started_s < self._patience.respawn_s:
            return
        if len(self._abandoned) >= self._patience.abandoned:
            self._down(
                f"NVML hangs, and {len(self._abandoned)} processes that asked it cannot be killed: "
                "see `dmesg | grep -i xid`, then reboot"
            )
            return
        self._started_s = self._heard_s = now_s
        self._limit_s = self._patience.init_s
        try:
            self._process = self._start_process()
        except OSError as error:
            self._down(f"the process that asks NVML cannot be started: {error.strerror}")

    def _listen(self) -> None:
        poll = select.poll()
        process, log = self._process, self._kernel_log.descriptor
        for descriptor in (self._doorbell, log, process.descriptor if process else -1):
            if descriptor >= 0:
                poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(_POLL_S * 1000)}
        if process and process.descriptor in ready:
            self._read(process)
        if log in ready:
            for report in self._kernel_log.reports():
                uuid = uuid_at(report.place, self._snapshot.gpus)
                if uuid:
                    self._report(Xid(uuid, report.code, time.monotonic(), report.instance), Source.KERNEL)
                else:
                    _LOG.warning("XID %d of a GPU that NVML does not know, on bus %02x", report.code, report.place[1])

    def _read(self, process: NvmlProcess) -> None:
        try:
            lines = process.lines()
        except WireError as error:
            self._abandon(str(error))
            return
        if lines is None:
            how = process.end()
            self._abandon(f"the process that asks NVML {how}")
            return
        for line in lines:
            self._take(line)

    def _take(self, line: Line) -> None:
        match line:
            case Starting():
                self._heard_s, self._limit_s = time.monotonic(), self._patience.init_s
                if self._snapshot is NO_GPUS:
                    self._snapshot = replace(NO_GPUS, because="NVML is being initialised")
            case Xid():
                self._report(line, Source.NVML)
            case GpuSnapshot():
                self._heard_s, self._limit_s = time.monotonic(), self._patience.answer_s
                if line.up:
                    self._publish(updated(line, xids=self._xids.xids))
                else:
                    self._down(line.because)

    def _report(self, xid: Xid, source: Source) -> None:
        before = self._xids.xids
        self._xids = self._xids.add(xid, source)
        if self._xids.xids is not before:
            self._publish(replace(self._snapshot, xids=self._xids.xids))

    def _abandon(self, because: str) -> None:
        process, self._process = self._process, None
        if process:
            process.abandon()
            self._abandoned.append(process)
            _LOG.warning("gave up the NVML process pid=%d because=%r", process.pid, because)
        self._down(because)

    def _down(self, because: str) -> None:
        """What was known stays: a driver that hangs has not lost its GPUs."""
        self._publish(replace(self._snapshot, up=False, because=because))

    def _publish(self, snapshot: GpuSnapshot) -> None:
        self._snapshot = snapshot
        before, self._news = self._news, _news(snapshot)
        if before != self._news:
            self._wake()


def _news(snapshot: GpuSnapshot) -> object:
    """What the loop should not wait for; readings that only go up and down are none."""
    conditions = {uuid: _CONDITION(reading) for uuid, reading in snapshot.readings.items()}
    return snapshot.up, snapshot.because, snapshot.gpus, snapshot.xids, conditions
