"""Reads the kernel's log for XIDs from now on, where this user may. It decides nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from appliance_agent.xid_log import Report, kernel_report

KERNEL_LOG: Final = Path("/dev/kmsg")
_RECORD_BYTES: Final = 16384  # a shorter buffer makes the kernel refuse long records
_RECORDS: Final = 1000  # at most, before somebody else gets a turn


class KernelLog:
    def __init__(self, path: Path = KERNEL_LOG) -> None:
        self._path = path
        self._rest = b""
        self.descriptor = -1  # to be polled, -1 while it cannot be read

    def open(self) -> None:
        """What stands in it already is not read: the log of a host goes back for months."""
        try:
            self.descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return
        try:
            os.lseek(self.descriptor, 0, os.SEEK_END)
        except OSError as error:
            if error.errno != errno.ESPIPE:
                self.close()

    def reports(self) -> list[Report]:
        """New XIDs."""
        found: list[Report] = []
        for _ in range(_RECORDS):
            try:
                data = os.read(self.descriptor, _RECORD_BYTES)
            except BlockingIOError:
                return found
            except OSError as error:
                if error.errno == errno.EPIPE:  # the kernel has overwritten what we did not read in time
                    continue
                data = b""
            if not data:
                self.close()
                return found
            *lines, self._rest = (self._rest + data).split(b"\n")
            reports = (kernel_report(line.decode(errors="replace")) for line in lines)
            found += [report for report in reports if report]
        return found

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
        self.descriptor = -1
