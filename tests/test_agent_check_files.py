"""What check reads from files, sockets and processes, each laid out as a driver, a toolkit or an Ollama server leaves them."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from freeport import free_port

from appliance_agent import check_driver, check_host
from appliance_agent.check_store import store_state
from appliance_image.reference import ModelName

NVRM = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024\n"
NVRM_OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n"
CDI_YAML = """---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidia-uvm
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args: [nvidia-cdi-hook, update-ldcache]
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
  mounts:
  - containerPath: /usr/lib/x86_64-linux-gnu/libcuda.so.535.183.01
    hostPath: /usr/lib/x86_64-linux-gnu/libcuda.so.535.183.01
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: GPU-8f6e1d3c-0000-4000-8000-000000000000
- name: all
kind: nvidia.com/gpu
"""


def lay(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(("text", "version"), [(NVRM, "535.183.01"), (NVRM_OPEN, "550.54.15"), ("", "")])
def test_the_loaded_drivers_version_is_read(tmp_path: Path, text: str, version: str) -> None:
    lay(tmp_path, {"proc/driver/nvidia/version": text} if text else {})

    assert check_driver.driver_state(tmp_path).module_version == version


def test_a_driver_is_seen_in_all_its_parts(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {
            "proc/driver/nvidia/version": NVRM,
            "proc/modules": "nouveau 1 0 - Live\nnvidia 2 0 - Live\n",
            "lib/modules/6.1/modules.dep": "updates/dkms/nvidia.ko.xz: \nkernel/x.ko:\n",
            "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:01:00.0/class": "0x030200\n",
            "sys/bus/pci/devices/0000:01:00.1/vendor": "0x10de\n",
            "sys/bus/pci/devices/0000:01:00.1/class": "0x040300\n",
            "usr/lib64/libnvidia-ml.so.550.54.15": "",
            "dev/nvidia-uvm": "",
        },
    )
    (tmp_path / "usr/lib64/libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.550.54.15")

    state = check_driver.driver_state(tmp_path, release="6.1")

    assert (state.cards, state.module_built, state.nouveau, state.uvm_node) == (1, True, True, True)
    assert state.library_version == "550.54.15"
    assert check_driver.driver_state(tmp_path, release="6.2").module_built is None


def test_a_bare_host_has_nothing_of_nvidia(tmp_path: Path) -> None:
    state = check_driver.driver_state(tmp_path)
    tools = check_driver.toolkit(tmp_path)

    assert (state.cards, state.module_version, state.library, state.nouveau) == (0, "", "", False)
    assert (tools.ctk, tools.hook, tools.runtime, tools.cdi) == (None, None, None, ())


def test_specifications_are_read_as_nvidias_tool_writes_them(tmp_path: Path) -> None:
    lay(
        tmp_path,
        {"etc/cdi/nvidia.yaml": CDI_YAML, "etc/cdi/other.yaml": "kind: vendor.com/net\n", "etc/cdi/notes": "x"},
    )

    (file,) = check_driver.toolkit(tmp_path).cdi

    assert file.path == "/etc/cdi/nvidia.yaml"
    assert file.devices == ("0", "GPU-8f6e1d3c-0000-4000-8000-000000000000", "all")
    assert file.driver_version == "535.183.01"


def test_a_program_counts_from_when_it_was_installed_not_built(tmp_path: Path) -> None:
    file = tmp_path / "usr/bin/nvidia-ctk"
    lay(tmp_path, {"usr/bin/nvidia-ctk": ""})
    file.chmod(0o755)
    os.utime(file, (1_000_000, 1_000_000))

    found = check_driver.program("nvidia-ctk", check_driver.DEFAULT_PATH, tmp_path)

    assert found is not None
    assert found.path == "/usr/bin/nvidia-ctk"
    assert found.installed_s == file.stat().st_ctime > 1_000_000


def lay_store(store: Path, model: str = "deepseek-r1:32b") -> None:
    blob = "sha256:" + "a" * 64
    manifest = {"config": {"digest": blob}, "layers": [{"digest": blob, "size": 1}]}
    lay(
        store,
        {f"manifests/{ModelName.parse(model).path}": json.dumps(manifest), f"blobs/{blob.replace(':', '-')}": "x"},
    )
    for path in (store, *store.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_a_store_is_seen_as_the_containers_user_sees_it(tmp_path: Path) -> None:
    store = tmp_path / "models"
    lay_store(store)
    blobs = store / "blobs"

    whole = store_state(store, "deepseek-r1:32b", "65534:65534")
    blobs.chmod(stat.S_IRWXU)
    closed = store_state(store, "deepseek-r1:32b", "65534:65534")
    roots = store_state(store, "deepseek-r1:32b", f"{os.getuid()}:0")
    named = store_state(store, "deepseek-r1:32b", "ollama")

    assert (whole.problem, whole.unreadable, whole.manifest, whole.missing_blobs) == ("", "", True, 0)
    assert whole.models == ("deepseek-r1:32b",)
    assert closed.unreadable == str(blobs)
    assert roots.unreadable == ""
    assert named.unreadable == ""  # only the image knows who that is


def test_what_is_wrong_with_a_store_is_told(tmp_path: Path) -> None:
    store = tmp_path / "models"
    lay_store(store)
    (store / "file").write_text("")

    assert store_state(tmp_path / "none", "x", "0").problem == "there is no such directory"
    assert store_state(store / "file", "x", "0").problem == "it is no directory"
    assert not store_state(store, "deepseek-r1:8b", "0").manifest
    assert store_state(store, "DeepSeek-R1:32b", "0").manifest
    next((store / "blobs").iterdir()).unlink()
    assert store_state(store, "deepseek-r1:32b", "0").missing_blobs == 2
    next((store / "manifests").rglob("32b")).write_text("[]")
    assert "damaged" in store_state(store, "deepseek-r1:32b", "0").problem


def test_a_link_out_of_the_store_leads_nowhere_in_a_container(tmp_path: Path) -> None:
    store = tmp_path / "models"
    lay_store(store)
    blob = next((store / "blobs").iterdir())
    blob.rename(tmp_path / "elsewhere")
    blob.symlink_to(tmp_path / "elsewhere")

    assert (
        store_state(store, "deepseek-r1:32b", "65534:65534").unreadable == f"{blob}, which is a link out of the store"
    )


def test_listeners_are_seen_on_both_families_with_their_process() -> None:
    families = [("127.0.0.1", socket.AF_INET), *([("::1", socket.AF_INET6)] if _has_ipv6() else [])]
    port = free_port()  # one for both: a port of one family may be somebody's in the other
    with ExitStack() as stack:
        for at, family in families:
            stack.enter_context(socket.create_server((at, port), family=family))

        found = check_host.listeners([port])

    assert [each.address for each in found] == [at for at, _ in families]
    assert {each.pid for each in found} == {os.getpid()}
    assert check_host.listeners([]) == ()


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


def test_a_process_started_before_now_and_after_the_boot() -> None:
    started_s = check_host.started_s(os.getpid())

    assert started_s is not None
    assert time.time() - 3600 * 24 < started_s <= time.time() + 1
    assert check_host.started_s(2**22 + 1) is None


def test_the_hosts_own_state_is_readable() -> None:
    state = check_host.host_state("docker")

    assert state.memory_bytes > state.free_memory_bytes > 0
    assert state.root == (os.geteuid() == 0)
    assert state.open_files > 0
    assert state.synchronized in (True, False, None)


@pytest.mark.parametrize(
    ("options", "groups", "told"),
    [
        ("rw,relatime", {1000}, ""),
        ("rw,relatime,hidepid=0", {1000}, ""),
        ("rw,relatime,hidepid=off", {1000}, ""),
        ("rw,relatime,hidepid=2", {1000}, "hidepid=2"),
        ("rw,hidepid=noaccess", {1000}, "hidepid=noaccess"),
        ("rw,gid=990,hidepid=invisible", {1000}, "hidepid=invisible"),
        ("rw,gid=990,hidepid=invisible", {1000, 990}, ""),
        ("rw,hidepid=invisible", {0}, "hidepid=invisible"),
        ("rw,hidepid=invisible", None, ""),
    ],
)
def test_what_hides_processes_is_told_to_whom_they_are_hidden_from(
    options: str, groups: set[int] | None, told: str
) -> None:
    mounts = f"sysfs /sys sysfs rw 0 0\nproc /proc proc {options} 0 0\nproc /var/chroot/proc proc rw 0 0\n"

    assert check_host.hiding(mounts, groups) == told


def test_of_two_that_are_mounted_over_each_other_the_later_counts() -> None:
    mounts = "proc /proc proc rw,hidepid=2 0 0\nproc /proc proc rw 0 0\n"

    assert check_host.hiding(mounts, {1000}) == ""


AS_NOBODY = """
import os
from appliance_agent import check_host
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(check_host.host_state("docker").hides)
"""


@pytest.mark.parametrize("option", ["hidepid=2", "hidepid=2,gid=65534"])
def test_a_proc_that_hides_processes_is_seen_to_do_so(option: str) -> None:
    mounted = f'mount -t proc -o {option} proc /proc && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", mounted, "sh", sys.executable, "-c", AS_NOBODY]

    told = subprocess.run(words, check=True, capture_output=True, text=True).stdout

    assert told.strip() in (("hidepid=2", "hidepid=invisible") if "gid" not in option else ("",))
