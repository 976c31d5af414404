"""How GPUs get into containers: the choice by what the engine says, the names on disk, the nodes, the body of the call."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance_agent.cdi_files import cdi_names
from appliance_agent.container_json import render
from appliance_agent.containers import EngineFacts
from appliance_agent.device_nodes import device_nodes
from appliance_agent.gpus import Gpu
from appliance_agent.injection import choose
from appliance_agent.spec import ContainerSpec, Injection, Release, SlotPlan

ONE, TWO = "GPU-11111111-2222-3333-4444-555555555555", "GPU-22222222-2222-3333-4444-555555555555"
MIG = "MIG-33333333-2222-3333-4444-555555555555"
FACTS = EngineFacts(
    version="28.5.2",
    api_version=(1, 51),
    runtimes=("runc",),
    devices=(),
    cdi_directories=("/etc/cdi", "/var/run/cdi"),
    cgroup_driver="systemd",
    cgroup_version="2",
    root="/var/lib/docker",
    live_restore=False,
)
OLD = replace(FACTS, version="20.10.24", api_version=(1, 41), cdi_directories=(), cgroup_driver="cgroupfs")
MIDDLE = replace(FACTS, version="26.1.5", api_version=(1, 45))


def gpu(uuid: str, index: int = 0) -> Gpu:
    return Gpu(uuid, index, index, "Tesla T4", 16 << 30)


def named(*uuids: str) -> tuple[str, ...]:
    return tuple(f"nvidia.com/gpu={uuid}" for uuid in uuids)


CASES = {
    "the engine reports the device": (replace(FACTS, devices=named(ONE, TWO)), Injection.CDI, "engine reports"),
    "it reports another one": (replace(FACTS, devices=named(TWO)), Injection.DEVICE_REQUEST, f"not discovered {named(ONE)[0]}"),
    "an index is no UUID": (replace(FACTS, devices=("nvidia.com/gpu=0",)), Injection.DEVICE_REQUEST, "not discovered"),
    "the runtime is second": (replace(FACTS, runtimes=("nvidia", "runc")), Injection.RUNTIME, "the engine has it"),
    "CDI is first": (replace(FACTS, devices=named(ONE), runtimes=("nvidia",)), Injection.CDI, "engine reports"),
    "a file names it": (replace(MIDDLE, specified=named(ONE)), Injection.CDI, "specification in the engine's directories"),
    "no file names it": (MIDDLE, Injection.DEVICE_REQUEST, "no specification in /etc/cdi, /var/run/cdi names"),
    "files count only where the engine does not tell": (replace(FACTS, specified=named(ONE)), Injection.DEVICE_REQUEST, "not discovered"),
    "CDI is switched off": (replace(MIDDLE, cdi_directories=(), specified=named(ONE)), Injection.DEVICE_REQUEST, "`features.cdi`"),
    "too old for CDI": (replace(OLD, specified=named(ONE)), Injection.DEVICE_REQUEST, "20.10.24 is older than 25.0"),
    "old with the runtime": (replace(OLD, runtimes=("nvidia",)), Injection.RUNTIME, "the engine has it"),
}  # fmt: skip


@pytest.mark.parametrize(("facts", "injection", "because"), CASES.values(), ids=CASES)
def test_the_best_way_that_the_engine_supports_is_taken(facts: EngineFacts, injection: Injection, because: str) -> None:
    choice = choose(facts, "auto", [gpu(ONE)])

    assert choice.injection is injection
    assert because in choice.because
    assert choice.sound


def test_all_gpus_of_a_group_must_be_there_for_cdi() -> None:
    facts = replace(FACTS, devices=named(ONE))

    assert choose(facts, "auto", [gpu(ONE), gpu(TWO, 1)]).injection is Injection.DEVICE_REQUEST
    assert choose(replace(facts, devices=named(ONE, TWO)), "auto", [gpu(ONE), gpu(TWO, 1)]).injection is Injection.CDI


def test_a_mig_device_is_found_by_its_own_uuid() -> None:
    device = replace(gpu(MIG), parent_uuid=ONE, gpu_instance=1, compute_instance=0)

    assert choose(replace(FACTS, devices=named(MIG)), "auto", [device]).injection is Injection.CDI


def test_without_gpus_nothing_is_injected() -> None:
    assert choose(replace(FACTS, devices=named(ONE)), "auto", []).injection is Injection.NONE


@pytest.mark.parametrize("wanted", ["cdi", "runtime", "device-request"])
def test_what_the_configuration_names_is_taken_and_what_speaks_against_it_told(wanted: str) -> None:
    choice = choose(OLD, wanted, [gpu(ONE)])

    assert choice.injection is Injection(wanted)
    assert choice.sound is (wanted == "device-request")


NVIDIA_YAML = """\
---
cdiVersion: 0.5.0
containerEdits:
  deviceNodes:
  - path: /dev/nvidiactl
  env:
  - NVIDIA_VISIBLE_DEVICES=void
  hooks:
  - args:
    - nvidia-cdi-hook
    - create-symlinks
    hookName: createContainer
    path: /usr/bin/nvidia-cdi-hook
devices:
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: "0"
- containerEdits:
    deviceNodes:
    - path: /dev/nvidia0
  name: GPU-11111111-2222-3333-4444-555555555555
- name: 'all'
kind: nvidia.com/gpu
"""


def test_the_names_in_specifications_are_read_from_yaml_and_json(tmp_path: Path) -> None:
    (tmp_path / "nvidia.yaml").write_text(NVIDIA_YAML)
    other = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": [{"name": TWO}], "containerEdits": {}}
    (tmp_path / "other.json").write_text(json.dumps(other))
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "nvidia.yaml.bak").write_text("kind: nvidia.com/gpu\ndevices:\n- name: old\n")
    (tmp_path / "folder.yaml").mkdir()

    assert cdi_names([str(tmp_path), "/nowhere"]) == {*named("0", ONE, "all", TWO)}


def host_with(directory: Path, *nodes: str) -> Path:
    for node in nodes:
        (directory / "dev" / node).parent.mkdir(parents=True, exist_ok=True)
        (directory / "dev" / node).touch()
    return directory


def test_only_nodes_that_exist_are_given(tmp_path: Path) -> None:
    root = host_with(tmp_path, "nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm")

    assert device_nodes([gpu(ONE)], root=root) == ("/dev/nvidia0", "/dev/nvidiactl", "/dev/nvidia-uvm")
    assert device_nodes([gpu(ONE), gpu(TWO, 1)], root=root)[:2] == ("/dev/nvidia0", "/dev/nvidia1")
    assert device_nodes([], root=root) == ()
    assert device_nodes([replace(gpu(ONE), minor=None)], root=root) == ("/dev/nvidiactl", "/dev/nvidia-uvm")


def test_a_mig_device_gets_its_parents_node_and_those_of_its_instances(tmp_path: Path) -> None:
    root = host_with(tmp_path, "nvidia2", "nvidiactl", "nvidia-caps/nvidia-cap30", "nvidia-caps/nvidia-cap31")
    minors = tmp_path / "proc/driver/nvidia-caps/mig-minors"
    minors.parent.mkdir(parents=True)
    minors.write_text("config 1\nmonitor 2\ngpu2/gi3/access 30\ngpu2/gi3/ci0/access 31\ngpu2/gi4/access 39\n")
    device = replace(gpu(MIG, 2), parent_uuid=ONE, gpu_instance=3, compute_instance=0)

    assert device_nodes([device], root=root) == (
        "/dev/nvidia2",
        "/dev/nvidiactl",
        "/dev/nvidia-caps/nvidia-cap30",
        "/dev/nvidia-caps/nvidia-cap31",
    )


RELEASE = Release(
    image="registry.lan/ai/r1:32b",
    image_id=f"sha256:{'1' * 64}",
    model="r1:32b",
    environment=(("OLLAMA_DEBUG", "1"),),
    store="",
    user="65534:65534",
    read_only=True,
    memory_bytes=1 << 30,
    shm_bytes=1 << 28,
    stop_timeout_s=30,
    log_max_bytes=50 << 20,
    log_max_files=3,
    address="127.0.0.1",
    injection=Injection.CDI,
)


def body(injection: Injection, *gpus: str, nodes: tuple[str, ...] = (), store: str = "") -> dict[str, Any]:
    release = replace(RELEASE, injection=injection, store=store)
    return dict(render(ContainerSpec(SlotPlan(3, "ollama-gpu3", gpus, 8883), release), prefix="ollama", nodes=nodes))


def environment(body: dict[str, Any]) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in body["Env"])


def test_a_body_is_json_and_says_what_no_default_may_decide() -> None:
    made = body(Injection.CDI, ONE)

    assert json.loads(json.dumps(made)) == made
    assert made["Image"] == RELEASE.image_id
    assert made["Healthcheck"] == {"Test": ["NONE"]}
    assert made["HostConfig"]["RestartPolicy"] == {"Name": "no"}
    assert made["HostConfig"]["SecurityOpt"] == ["no-new-privileges"]
    assert made["HostConfig"]["Memory"] == 1 << 30
    assert made["HostConfig"]["PortBindings"]["11434/tcp"] == [{"HostIp": "127.0.0.1", "HostPort": "8883"}]
    assert environment(made)["OLLAMA_HOST"] == "0.0.0.0:11434"
    assert environment(made)["OLLAMA_DEBUG"] == "1"


def test_the_image_never_decides_which_gpus_are_visible() -> None:
    """Its own default is `all`."""
    for injection in Injection:
        assert environment(body(injection, ONE, TWO))["NVIDIA_VISIBLE_DEVICES"] == f"{ONE},{TWO}"
        assert environment(body(injection))["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_a_slot_on_the_cpu_asks_for_no_device() -> None:
    for injection in Injection:
        host = body(injection, nodes=("/dev/nvidia0",))["HostConfig"]

        assert not {"DeviceRequests", "Devices", "Runtime"} & set(host)


def test_each_way_asks_for_the_devices_as_the_engine_expects() -> None:
    cdi = body(Injection.CDI, ONE, TWO)["HostConfig"]
    runtime = body(Injection.RUNTIME, ONE)["HostConfig"]
    request = body(Injection.DEVICE_REQUEST, ONE, nodes=("/dev/nvidia0", "/dev/nvidiactl"))["HostConfig"]

    assert cdi["DeviceRequests"] == [{"Driver": "cdi", "DeviceIDs": list(named(ONE, TWO))}]
    assert runtime["Runtime"] == "nvidia"
    assert "DeviceRequests" not in runtime
    assert request["DeviceRequests"] == [{"Driver": "", "DeviceIDs": [ONE], "Capabilities": [["gpu"]]}]
    assert [node["PathOnHost"] for node in request["Devices"]] == ["/dev/nvidia0", "/dev/nvidiactl"]
    assert {node["CgroupPermissions"] for node in request["Devices"]} == {"rwm"}


def test_a_store_brings_the_contracts_environment_and_a_baked_image_has_it() -> None:
    stored, baked = body(Injection.CDI, ONE, store="/srv/models"), body(Injection.CDI, ONE)

    assert stored["HostConfig"]["Mounts"] == [
        {"Type": "bind", "Source": "/srv/models", "Target": "/models", "ReadOnly": True}
    ]
    assert environment(stored)["OLLAMA_MODELS"] == "/models"
    assert environment(stored)["OLLAMA_NOPRUNE"] == "1"
    assert baked["HostConfig"]["Mounts"] == []
    assert "OLLAMA_MODELS" not in environment(baked)
