"""Which disk a Docker Engine's images go to, as far as it can be known from this machine. Asks no engine."""

from __future__ import annotations

import os
import tomllib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

CONFIGURATION: Final = Path("/etc/containerd/config.toml")
_USUAL: Final = Path("/var/lib/containerd")
_SYSTEMS: Final = ("/run/containerd/containerd.sock", "/var/run/containerd/containerd.sock")
_ENGINES_OWN: Final = "/docker/containerd/containerd.sock"  # below /run, or a user's directory there


@dataclass(frozen=True, slots=True)
class ImageRoots:
    """`sure`: images go to the one directory of `paths`. Else to one of them, or to another."""

    paths: tuple[Path, ...]
    sure: bool

    def __str__(self) -> str:
        return " or ".join(map(str, self.paths))


@dataclass(frozen=True, slots=True)
class Disk:
    place: Path
    free_bytes: int
    sure: bool


def containerd_roots(data_root: Path, address: str | None, configuration: bytes | None) -> ImageRoots:
    """For an engine with a containerd store. `address` is containerd's, which engines tell from 27 on;
    `configuration` is that of the system's containerd, empty if it has none, None if nobody knows."""
    if address and address.endswith(_ENGINES_OWN):
        return ImageRoots((data_root,), sure=True)
    system, sure = _root(configuration)
    if address in _SYSTEMS:
        return ImageRoots((system,), sure)
    return ImageRoots((data_root, system), sure=False)


def read_configuration(path: Path = CONFIGURATION) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError:
        return None


def fullest_disk(roots: ImageRoots) -> Disk | None:
    disks: list[Disk] = []
    for path in roots.paths:
        with suppress(OSError):  # not there, or not for this user to see
            disk = os.statvfs(path)
            disks.append(Disk(path, disk.f_bavail * disk.f_frsize, roots.sure))
    return min(disks, key=lambda disk: disk.free_bytes, default=None)


def _root(configuration: bytes | None) -> tuple[Path, bool]:
    if configuration is None:
        return _USUAL, False
    try:
        table = tomllib.loads(configuration.decode())
    except ValueError:
        return _USUAL, False
    root = table.get("root") or str(_USUAL)
    return Path(str(root)), not table.get("imports")  # another file may say something else
