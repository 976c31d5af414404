"""What the kernel tells of a container through its first process: bytes sent, connections, CPU time, disk reads, memory.

Parsers are pure. A process that is gone, a file that may not be read and one that says something else give None.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_FRAME_BYTES: Final = 66  # Ethernet, IPv4 and TCP headers with timestamps; an acknowledgement is nothing else
_ESTABLISHED: Final = "01"
_CHUNK_BYTES: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Processes:
    proc: Path = field(default=Path("/proc"))
    cgroups: Path = field(default=Path("/sys/fs/cgroup"))

    def same_container(self, pid: int, container_id: str) -> bool | None:
        """Whether the process belongs to the container, by the name of its cgroup."""
        text = self._of(pid, "cgroup")
        return None if text is None else container_id in text

    def hides(self, pid: int) -> bool:
        """Whether the process exists and cannot be seen, as where /proc is mounted with `hidepid`."""
        return pid > 0 and self._of(pid, "cgroup") is None and _exists(pid)

    def sent_bytes(self, pid: int) -> int | None:
        """Payload that left the network namespace of the process, without acknowledgements."""
        text = self._of(pid, "net/dev")
        return None if text is None else parse_sent(text)

    def connections(self, pid: int, port: int) -> int | None:
        """To a port of its network namespace, IPv4 and IPv6 together."""
        texts = [self._of(pid, f"net/{name}") for name in ("tcp", "tcp6")]
        found = [parse_connections(text, port) for text in texts if text is not None]
        return sum(found) if found else None

    def group(self, pid: int) -> Group | None:
        text = self._of(pid, "cgroup")
        return None if text is None else Group(self.cgroups, parse_groups(text))

    def _of(self, pid: int, name: str) -> str | None:
        return _text(f"{self.proc}/{pid}/{name}") if pid > 0 else None


@dataclass(frozen=True, slots=True)
class Group:
    """The cgroup of a container, whichever version; v1 has one hierarchy for each controller."""

    root: Path
    paths: Mapping[str, str]  # by controller, "" is v2

    def cpu_s(self) -> float | None:
        """CPU time used since the container began."""
        if text := self._unified("cpu.stat"):
            microseconds = parse_pairs(text).get("usage_usec")
            return None if microseconds is None else microseconds / 1e6
        nanoseconds = _number(self._of("cpuacct", "cpuacct.usage"))
        return None if nanoseconds is None else nanoseconds / 1e9

    def read_bytes(self) -> int | None:
        """Read from disks since the container began."""
        if (text := self._unified("io.stat")) is not None:
            return parse_io_stat(text)
        text = self._of("blkio", "blkio.throttle.io_service_bytes")
        return None if text is None else parse_blkio(text)

    def memory_bytes(self) -> int | None:
        """With the page cache: a model file that is read grows it."""
        unified = _number(self._unified("memory.current"))
        return unified if unified is not None else _number(self._of("memory", "memory.usage_in_bytes"))

    def _unified(self, name: str) -> str | None:
        path = self.paths.get("")
        return None if path is None else _text(f"{self.root}{path}/{name}")

    def _of(self, controller: str, name: str) -> str | None:
        path = self.paths.get(controller)
        return None if path is None else _text(f"{self.root}/{controller}{path}/{name}")


def parse_sent(text: str) -> int | None:
    """Of /proc/<pid>/net/dev, all interfaces but the loopback."""
    found = False
    total = 0
    for line in text.splitlines()[2:]:
        name, _, figures = line.partition(":")
        words = figures.split()
        if name.strip() == "lo" or len(words) < 10 or not (words[8].isdigit() and words[9].isdigit()):
            continue
        found = True
        total += max(0, int(words[8]) - _FRAME_BYTES * int(words[9]))
    return total if found else None


def parse_connections(text: str, port: int) -> int:
    """Established ones of /proc/<pid>/net/tcp whose local port it is."""
    suffix = f":{port:04X}"
    rows = (line.split(maxsplit=4) for line in text.splitlines()[1:])
    return sum(len(row) > 3 and row[3] == _ESTABLISHED and row[1].endswith(suffix) for row in rows)


def parse_groups(text: str) -> dict[str, str]:
    """Of /proc/<pid>/cgroup: the path for each controller, the one of v2 under the empty name."""
    found: dict[str, str] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"\d+:([^:]*):(/.*)", line)
        if match:
            found |= dict.fromkeys(match[1].split(","), match[2])
    return found


def parse_pairs(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdigit()}


def parse_io_stat(text: str) -> int:
    return sum(int(number) for number in re.findall(r"\brbytes=(\d+)", text))


def parse_blkio(text: str) -> int:
    rows = (line.split() for line in text.splitlines())
    return _sum(row[2] for row in rows if len(row) == 3 and row[1] == "Read")


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _sum(words: Iterable[str]) -> int:
    return sum(int(word) for word in words if word.isdigit())


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.strip().isdigit() else None


def _text(path: str) -> str | None:
    """Without pathlib and codecs, which take twice the time of the kernel: it is read for each slot every second."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        found = bytearray()
        while chunk := os.read(file, _CHUNK_BYTES):
            found += chunk
    except OSError:
        return None
    finally:
        os.close(file)
    return found.decode("utf-8", "replace")
