"""A file that a program opens for writing and then hangs, as on a disk that does not answer: a pipe that nobody reads."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from engines import wait_until


class HangingFile:
    """Whoever opens it waits until `release`; what it then writes fails, and the next one finds a sound disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._aside = path.with_suffix(".hangs")
        self._reader = -1
        wait_until(self._is_laid, timeout_s=60, what="a moment in which nobody writes there")

    def _is_laid(self) -> bool:
        try:
            os.mkfifo(self._path)
        except FileExistsError:
            return False
        return True

    def release(self) -> None:
        if self._reader < 0:
            self._path.rename(self._aside)
            self._reader = os.open(self._aside, os.O_RDONLY | os.O_NONBLOCK)

    def close(self) -> None:
        self.release()
        os.close(self._reader)
        with contextlib.suppress(FileNotFoundError):
            self._aside.unlink()
