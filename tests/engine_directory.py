"""The directory of an engine of the tests: whose it is, and how it goes when its owner ended without clearing up.

It belongs to whoever has its file `owner` locked. The kernel takes the lock back when a process ends, however it ends,
and of several who clear up at once only one gets it.
"""

import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path
from typing import IO

CGROUP_PREFIX = "ollama-appliance-test-"
_CGROUPS = Path("/sys/fs/cgroup")
_OWNER = "owner"
_DYING_S = 60.0


class EngineDirectory:
    def __init__(self, base: Path, kind: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=f"{kind}-", dir=base))
        self._lock = (self.path / "owner.new").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        Path(self._lock.name).rename(self.path / _OWNER)  # nobody finds it without its lock

    def discard(self) -> None:
        _discard(self.path)
        self._lock.close()


def sweep(base: Path) -> None:
    """Throw away what runs left behind that were killed: their processes die with them, their files do not."""
    for directory in base.iterdir():
        try:
            owner = (directory / _OWNER).open("r+")
        except FileNotFoundError:
            continue  # it is just being made, or thrown away
        with owner:
            if _is_ours_now(owner):
                _discard(directory)


def _is_ours_now(owner: IO[str]) -> bool:
    try:
        fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return os.fstat(owner.fileno()).st_nlink > 0  # or else another was quicker


def _discard(directory: Path) -> None:
    until_s = time.monotonic() + _DYING_S
    while True:
        try:
            return _remove(directory)
        except OSError:  # an engine that is just being killed still writes
            if time.monotonic() > until_s:
                raise
            time.sleep(0.05)


def _remove(directory: Path) -> None:
    name = f"{CGROUP_PREFIX}{directory.name}"
    for top in (*_CGROUPS.glob(f"*/{name}"), *_CGROUPS.glob(name)):
        for group, _, _ in os.walk(top, topdown=False):
            Path(group).rmdir()
    for each in directory.iterdir():
        if each.name != _OWNER:  # it goes last: what is broken off here is found again
            shutil.rmtree(each) if each.is_dir() and not each.is_symlink() else each.unlink()
    shutil.rmtree(directory)
