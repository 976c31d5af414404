"""Reads the host from /proc: who listens on our ports, who computes on our GPUs, clock, memory, limits. Asks nobody."""

from __future__ import annotations

import ctypes
import grp
import ipaddress
import os
import pwd
import re
import resource
import shutil
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from appliance_agent.check_facts import SERVICE_USER, GpuUser, HostState, Listener
from appliance_agent.gpus import GpuSnapshot

_PROC: Final = Path("/proc")
_LISTENS: Final = "0A"
_CONTAINER = re.compile(r"[0-9a-f]{64}")
_UNSYNCHRONISED: Final = 0x40
_PACKAGES: Final = {"apt-get": "apt", "dnf": "dnf", "yum": "dnf", "zypper": "zypper"}


class _Timex(ctypes.Structure):
    """The beginning of the kernel's struct timex, and room for what follows."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def host_state(socket_group: str) -> HostState:
    memory = _memory()
    name = os.uname()
    user = _user(os.geteuid())
    return HostState(
        kernel=name.release,
        architecture=name.machine,
        distribution=next((kind for program, kind in _PACKAGES.items() if shutil.which(program)), ""),
        ubuntu="ID=ubuntu" in _read(Path("/etc/os-release")).split(),
        user=user,
        root=os.geteuid() == 0,
        now_s=time.time(),
        synchronized=synchronized(),
        memory_bytes=memory.get("MemTotal", 0),
        free_memory_bytes=memory.get("MemAvailable", 0),
        open_files=_open_files(),
        docker_group=user in _members(socket_group),
        service_home=service_home(),
        hides=hiding(_read(_PROC / "self/mounts"), _agents_groups(socket_group)),
    )


def service_home() -> str:
    try:
        return pwd.getpwnam(SERVICE_USER).pw_dir
    except KeyError:
        return ""


def hiding(mounts: str, groups: Collection[int] | None) -> str:
    """The option of /proc that hides others' processes from who is in these groups; None is root, who sees all."""
    rows = [line.split() for line in mounts.splitlines()]
    mounted = [row[3] for row in rows if len(row) > 3 and row[1:3] == ["/proc", "proc"]]
    options = ",".join(mounted[-1:]).split(",")  # the last one covers those before it
    values = {name: value for name, _, value in (option.partition("=") for option in options)}
    if groups is None or values.get("hidepid", "off") in ("off", "0") or int(values.get("gid") or -1) in groups:
        return ""
    return f"hidepid={values['hidepid']}"


def _agents_groups(socket_group: str) -> Collection[int] | None:
    """Of the service's user, whoever asks; where there is none, of this one."""
    try:
        service = pwd.getpwnam(SERVICE_USER)
    except KeyError:
        return None if os.geteuid() == 0 else {os.getegid(), *os.getgroups()}
    with suppress(KeyError):
        return {*os.getgrouplist(SERVICE_USER, service.pw_gid), grp.getgrnam(socket_group).gr_gid}
    return os.getgrouplist(SERVICE_USER, service.pw_gid)


def synchronized() -> bool | None:
    """None where the kernel may not be asked, as in some containers."""
    buffer = _Timex()
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "adjtimex") or library.adjtimex(ctypes.byref(buffer)) < 0:
        return None
    if not buffer.status & _UNSYNCHRONISED:
        return True
    return Path("/run/systemd/timesync/synchronized").exists()


def listeners(ports: Iterable[int]) -> tuple[Listener, ...]:
    wanted = set(ports)
    found = [each for name in ("tcp", "tcp6") for each in _table(_PROC / "net" / name) if each[1] in wanted]
    if not found:
        return ()
    owners = _owners({inode for _, _, inode, _ in found})
    return tuple(_listener(address, port, owners.get(inode), uid) for address, port, inode, uid in found)


def _listener(address: str, port: int, pid: int | None, uid: int) -> Listener:
    command = _read(_PROC / str(pid) / "cmdline").replace("\0", " ") if pid else ""
    agent = ("ollama-agent" in command or "appliance_agent" in command) and " run" in command
    return Listener(address, port, pid, process_name(pid) if pid else "", _user(uid), agent=agent)


def gpu_users(snapshot: GpuSnapshot) -> tuple[GpuUser, ...]:
    found: list[GpuUser] = []
    for uuid, reading in snapshot.readings.items():
        for process in reading.processes or ():
            container = _CONTAINER.search(_read(_PROC / str(process.pid) / "cgroup"))
            name = process_name(process.pid) or "?"
            found.append(GpuUser(uuid, process.pid, name, process.memory_bytes, container[0] if container else ""))
    return tuple(found)


def process_name(pid: int) -> str:
    return _read(_PROC / str(pid) / "comm").strip()


def processes(name: str) -> list[int]:
    return [
        int(each.name) for each in _PROC.iterdir() if each.name.isdecimal() and process_name(int(each.name)) == name
    ]


def environment(pid: int) -> Mapping[str, str]:
    """Empty where it may not be seen."""
    pairs = (entry.partition("=") for entry in _read(_PROC / str(pid) / "environ").split("\0"))
    return {name: value for name, equals, value in pairs if equals}


def started_s(pid: int) -> float | None:
    """Seconds since the epoch, by today's reckoning of when the host booted."""
    fields = _read(_PROC / str(pid) / "stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s


def _table(file: Path) -> Iterator[tuple[str, int, int, int]]:
    """Address, port, inode and owner of each socket that listens."""
    for line in _read(file).splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == _LISTENS:
            address, _, port = words[1].partition(":")
            yield _address(address), int(port, 16), int(words[9]), int(words[7])


def _address(text: str) -> str:
    """Words of four bytes, each in the order of the machine."""
    raw = b"".join(int(text[at : at + 8], 16).to_bytes(4, "little") for at in range(0, len(text), 8))
    if len(raw) == 4:
        return socket.inet_ntoa(raw)
    address = ipaddress.IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def _owners(inodes: set[int]) -> dict[int, int]:
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[int, int] = {}
    for process in _PROC.iterdir():
        if not process.name.isdecimal():
            continue
        with suppress(OSError):
            for link in (process / "fd").iterdir():
                with suppress(OSError):
                    if (inode := wanted.get(str(link.readlink()))) is not None:
                        found.setdefault(inode, int(process.name))
    return found


def _memory() -> dict[str, int]:
    pairs = (line.split() for line in _read(_PROC / "meminfo").splitlines())
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in pairs if len(words) == 3}


def _open_files() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1 << 20 if soft == resource.RLIM_INFINITY else max(soft, 0) or hard


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _members(group: str) -> list[str]:
    """Also those for whom it is the first group."""
    try:
        entry = grp.getgrnam(group)
    except KeyError:
        return []
    return [*entry.gr_mem, *(each.pw_name for each in pwd.getpwall() if each.pw_gid == entry.gr_gid)]


def _read(file: Path) -> str:
    try:
        return file.read_bytes().decode(errors="replace")
    except OSError:
        return ""
