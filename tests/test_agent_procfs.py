"""What the kernel says of a container, from files as kernels write them and from this machine's own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from appliance_agent.procfs import Group, Processes, parse_connections, parse_groups, parse_sent

ID = "3f1c" * 16
HEAD = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets errs\n"
V1 = f"""\
12:pids:/docker/{ID}
4:cpu,cpuacct:/docker/{ID}
3:memory:/docker/{ID}
2:blkio:/docker/{ID}
1:name=systemd:/docker/{ID}
0::/
"""
V2 = f"0::/system.slice/docker-{ID}.scope\n"


@pytest.fixture
def files(tmp_path: Path) -> Processes:
    return Processes(tmp_path / "proc", tmp_path / "cgroup")


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def device(name: str, sent: int, packets: int) -> str:
    return f"{name:>6}: 9999 99 0 0 0 0 0 0 {sent} {packets} 0 0 0 0 0 0\n"


def test_payload_of_all_interfaces_but_the_loopback_is_sent() -> None:
    text = HEAD + device("lo", 5000, 1) + device("eth0", 10_000, 10) + device("eth1", 1066, 1)

    assert parse_sent(text) == 10_000 - 660 + 1000


def test_acknowledgements_are_no_payload() -> None:
    assert parse_sent(HEAD + device("eth0", 66 * 1000, 1000)) == 0


@pytest.mark.parametrize("text", ["", HEAD, HEAD + device("lo", 1, 1), HEAD + "  eth0: many\n"])
def test_without_an_interface_nothing_can_be_said_of_bytes(text: str) -> None:
    assert parse_sent(text) is None


def test_established_connections_to_the_port_are_counted() -> None:
    rows = [
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode",
        "   0: 00000000:2CAA 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0 0 1",
        "   1: 0500140A:2CAA 0100140A:D2F0 01 00000000:00000000 00:00000000 00000000  0 0 2",
        "   2: 0500140A:2CAA 0100140A:D2F1 06 00000000:00000000 00:00000000 00000000  0 0 3",
        "   3: 0100007F:9C40 0100007F:2CAA 01 00000000:00000000 00:00000000 00000000  0 0 4",
        "   4: broken",
        "",
    ]

    assert parse_connections("\n".join(rows), 11434) == 1


def test_cgroups_of_both_versions_are_found() -> None:
    assert parse_groups(V2) == {"": f"/system.slice/docker-{ID}.scope"}
    assert parse_groups(V1)["cpuacct"] == f"/docker/{ID}"
    assert parse_groups(V1)[""] == "/"


def test_a_group_of_version_two_is_read(files: Processes) -> None:
    put(files.proc / "7/cgroup", V2)
    place = files.cgroups / f"system.slice/docker-{ID}.scope"
    put(place / "cpu.stat", "usage_usec 2500000\nuser_usec 1\n")
    put(place / "io.stat", "8:0 rbytes=1000 wbytes=5 rios=1\n259:1 rbytes=500 wbytes=0\n")
    put(place / "memory.current", "4096\n")
    group = files.group(7)

    assert group is not None
    assert (group.cpu_s(), group.read_bytes(), group.memory_bytes()) == (2.5, 1500, 4096)


def test_a_group_of_version_one_is_read(files: Processes) -> None:
    put(files.proc / "7/cgroup", V1)
    put(files.cgroups / f"cpuacct/docker/{ID}/cpuacct.usage", "2500000000\n")
    put(files.cgroups / f"memory/docker/{ID}/memory.usage_in_bytes", "4096\n")
    blkio = "8:0 Read 1000\n8:0 Write 7\n8:16 Read 500\nTotal 1507\n"
    put(files.cgroups / f"blkio/docker/{ID}/blkio.throttle.io_service_bytes", blkio)
    group = files.group(7)

    assert group is not None
    assert (group.cpu_s(), group.read_bytes(), group.memory_bytes()) == (2.5, 1500, 4096)


@pytest.mark.parametrize("text", [V1, V2])
def test_a_process_belongs_to_the_container_that_its_cgroup_names(files: Processes, text: str) -> None:
    put(files.proc / "7/cgroup", text)

    assert files.same_container(7, ID) is True
    assert files.same_container(7, "ab" * 32) is False


def test_a_process_that_is_gone_gives_nothing(files: Processes) -> None:
    assert files.same_container(7, ID) is None
    assert files.sent_bytes(7) is None
    assert files.connections(7, 11434) is None
    assert files.group(7) is None
    assert Processes().same_container(0, ID) is None


def test_a_group_that_is_gone_gives_nothing(tmp_path: Path) -> None:
    for groups in (V1, V2):
        group = Group(tmp_path, parse_groups(groups))

        assert (group.cpu_s(), group.read_bytes(), group.memory_bytes()) == (None, None, None)


def test_this_machines_kernel_is_understood() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)), server.accept()[0]:
            connections = Processes().connections(os.getpid(), port)
    group = Processes().group(os.getpid())

    assert connections == 1
    assert group is not None


def test_a_process_that_has_ended_but_is_not_buried_gives_no_connections() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)

        assert not Processes().connections(ended.pid, 11434)
        assert Processes().sent_bytes(ended.pid) is None


AS_NOBODY = """
import os
from appliance_agent.procfs import Processes
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print([Processes().hides(pid) for pid in (1, os.getpid(), 2**22 + 1, 0)])
"""


@pytest.mark.parametrize("option", ["hidepid=0", "hidepid=1", "hidepid=2"])
def test_a_process_that_exists_and_is_not_shown_is_hidden(option: str) -> None:
    mounted = f'mount -t proc -o {option} proc /proc && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", AS_NOBODY]

    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout

    assert told == f"[{option != 'hidepid=0'}, False, False, False]\n"
