"""The whole agent on an engine with CDI: every way to choose GPUs, to hand them to a container, and to find weights."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from agentgraphics import ask
from agenthost import ONE, AgentHost, build_images
from conftest import BASE_VERSION
from engines import PrivateEngine
from fakenvml import FakeMig
from loadedimages import load_standin
from ollamastore import lay_model
from tinygguf import write_tiny_gguf

from appliance_image.contract import LABEL_GPU_MEMORY_BYTES

PLAIN = "test/ollama:standin"
LARGE = "agent-test:large"
GIB = 1024**3


@pytest.fixture(scope="module")
def slots_engine(
    cdi_engine: PrivateEngine, small_base: Path, tmp_path_factory: pytest.TempPathFactory
) -> PrivateEngine:
    build_images(tmp_path_factory.mktemp("agent-images"), cdi_engine)
    load_standin(cdi_engine, small_base, version=BASE_VERSION)
    return cdi_engine


@pytest.fixture
def host(slots_engine: PrivateEngine, nvml_library: Path, tmp_path: Path) -> Iterator[AgentHost]:
    made = AgentHost(slots_engine, tmp_path, nvml_library)
    try:
        yield made
    finally:
        made.close()


def with_gpus(host: AgentHost, count: int) -> list[str]:
    """The host's GPUs, all alike; before it starts only."""
    made = AgentHost(host.engine, host.directory, host.library, gpus=count)
    host.graphics, host.count = made.graphics, count
    return [gpu.uuid for gpu in host.graphics.world.gpus]


def reload(host: AgentHost, head: str, **words: Any) -> None:
    host.write_config(head=head, **words)
    host.send(signal.SIGHUP)


def inspected(host: AgentHost) -> dict[int, dict[str, Any]]:
    return {slot: ask(host.engine, f"/containers/{container}/json") for slot, container in sorted(host.ids().items())}


def devices(host: AgentHost, slot: int) -> set[str]:
    """As the slot's processes see them."""
    listed = Path(f"/proc/{pid_outside(host, slot)}/root/dev").iterdir()
    return {entry.name for entry in listed if entry.name.startswith("nvidia")}


def pid_outside(host: AgentHost, slot: int) -> int:
    """Of a process of the container, as it is numbered here."""
    container = host.ids()[slot]
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                if container in (entry / "cgroup").read_text():
                    return int(entry.name)
            except OSError:
                continue
    raise AssertionError("no process")


def test_cdi_is_chosen_and_a_reload_goes_over_to_the_runtime(host: AgentHost) -> None:
    uuids = with_gpus(host, 2)
    host.start()
    host.wait_ready()
    by_cdi, seen, first = inspected(host), [devices(host, slot) for slot in (0, 1)], host.ids()
    calls = len(host.engine.toolkit.runtime_calls())
    reload(host, 'injection = "runtime"')
    host.wait(lambda: not set(host.ids().values()) & set(first.values()), "both slots to be replaced")
    host.wait_ready()
    by_runtime = inspected(host)

    assert [each["HostConfig"]["DeviceRequests"][0]["DeviceIDs"] for each in by_cdi.values()] == [
        [f"nvidia.com/gpu={uuid}"] for uuid in uuids
    ]
    assert seen == [{"nvidia0", "nvidiactl"}, {"nvidia1", "nvidiactl"}]
    assert [each["HostConfig"]["Runtime"] for each in by_runtime.values()] == ["nvidia", "nvidia"]
    assert [f"NVIDIA_VISIBLE_DEVICES={uuid}" in by_runtime[slot]["Config"]["Env"] for slot, uuid in enumerate(uuids)]
    assert len(host.engine.toolkit.runtime_calls()) == calls + 2
    assert all(slot["restarts"] == {"start": 1, "config": 1} for slot in host.slots())


def test_groups_of_two_become_a_list_and_nobody_else_s_gpu_is_used(host: AgentHost) -> None:
    uuids = with_gpus(host, 4)
    host.count = 2
    host.write_config(head="gpus_per_instance = 2")
    host.start()
    host.wait_ready()
    groups = {found.slot: found.gpus for found in host.containers()}
    seen = [devices(host, slot) for slot in (0, 1)]
    reload(host, "gpus = [3, 1]")
    host.wait(lambda: sorted(found.gpus for found in host.containers()) == [(uuids[1],), (uuids[3],)], "the list")
    host.wait_ready()

    assert groups == {0: (uuids[0], uuids[1]), 1: (uuids[2], uuids[3])}
    assert seen == [{"nvidia0", "nvidia1", "nvidiactl"}, {"nvidia2", "nvidia3", "nvidiactl"}]
    assert len(host.ids()) == 2
    assert host.chat(0)[0] == host.chat(1)[0] == 200


def test_one_slot_on_the_cpu_gets_no_gpu_and_gives_way_to_gpus(host: AgentHost) -> None:
    host.count = 1
    host.write_config(head='gpus = "none"')
    host.start()
    host.wait_ready()
    found = inspected(host)[0]
    assert found["HostConfig"]["DeviceRequests"] in (None, [])
    assert "NVIDIA_VISIBLE_DEVICES=void" in found["Config"]["Env"]
    assert devices(host, 0) == set()
    assert host.chat(0)[0] == 200

    host.count = 2
    reload(host, "")
    host.wait(lambda: [bool(found.gpus) for found in host.containers()] == [True, True], "two slots with GPUs")
    host.wait_ready()

    assert [devices(host, slot) for slot in (0, 1)] == [{"nvidia0", "nvidiactl"}, {"nvidia1", "nvidiactl"}]


def test_weights_of_a_store_of_the_host_are_served_by_a_plain_image(host: AgentHost) -> None:
    store = host.engine.directory / "store"
    weights = host.directory / "weights.gguf"
    write_tiny_gguf(weights)
    lay_model(store, "tutorial:1", {"model": weights})
    host.count = 1
    host.write_config(PLAIN, head=f'store = "{store}"\nmodel = "tutorial:1"\ngpus = [0]')
    host.start()
    host.wait_ready()
    found = inspected(host)[0]
    mounts = [(each["Source"], each["Destination"], each["RW"]) for each in found["Mounts"] if each["Type"] == "bind"]

    assert mounts == [(str(store), "/models", False)]
    assert host.slots()[0]["model"] == "tutorial:1"
    assert "OLLAMA_KEEP_ALIVE=-1" in found["Config"]["Env"]

    reload(host, f'store = "{store}-gone"\nmodel = "tutorial:1"\ngpus = [0]', image=PLAIN)
    host.wait(lambda: host.status()["host"]["refused"] is not None, "the mistake to be refused")
    host.wait_ready()
    assert "is not there" in host.status()["host"]["refused"]["because"]


def test_a_model_that_is_too_large_is_blocked_until_the_group_or_the_operator_allows_it(host: AgentHost) -> None:
    with_gpus(host, 4)
    with host.graphics.changing() as world:
        for gpu in world.gpus:
            gpu.memory_gib = 1.5
    large(host)
    host.write_config(LARGE)
    host.start()
    host.wait(lambda: host.states() == ["blocked"] * 4, "all slots to be blocked")
    because = host.slots()[0]["because"]
    assert "needs" in because
    assert "set `gpus_per_instance = 2`" in because
    assert host.containers() == []

    host.count = 2
    reload(host, "gpus_per_instance = 2", image=LARGE)
    host.wait_ready()
    host.count = 4
    reload(host, "partial_offload = true", image=LARGE)
    host.wait(lambda: len(host.ids()) == 4, "four slots")
    host.wait_ready()


def large(host: AgentHost) -> None:
    """An image whose label says that it needs 2 GiB."""
    container = host.engine.run_cli("create", ONE).stdout.strip()
    host.engine.run_cli("commit", f"--change=LABEL {LABEL_GPU_MEMORY_BYTES}={2 * GIB}", container, LARGE)
    host.engine.run_cli("rm", container)


def test_each_mig_device_is_a_slot(host: AgentHost) -> None:
    with_gpus(host, 1)
    uuids = ["MIG-00000000-1111-4000-8000-000000000000", "MIG-00000000-2222-4000-8000-000000000000"]
    with host.graphics.changing() as world:
        world.gpus[0].mig_enabled = True
        world.gpus[0].migs = [FakeMig(uuid, number) for number, uuid in enumerate(uuids, 1)]
    host.count = 2
    host.write_config(head='injection = "runtime"')
    host.start()
    host.wait_ready()
    found = inspected(host)

    assert [each.gpus for each in host.containers()] == [(uuids[0],), (uuids[1],)]
    assert [f"NVIDIA_VISIBLE_DEVICES={uuid}" in found[slot]["Config"]["Env"] for slot, uuid in enumerate(uuids)]
    before = host.ids()
    with host.graphics.changing() as world:
        world.xid(world.gpus[0], 31, instance=2)
    host.wait(lambda: host.ids().get(1, before[1]) != before[1], "the slot of that instance to be restarted")
    host.wait_ready()
    assert host.ids()[0] == before[0]
    with host.graphics.changing() as world:
        world.xid(world.gpus[0], 31)
    host.wait(lambda: not set(host.ids().values()) & set(before.values()), "both slots to be restarted")
    host.wait_ready()


def waits_for_fabric(host: AgentHost) -> bool:
    return any("NVSwitch fabric" in text for text in host.status().get("host", {}).get("problems", ()))


def test_no_container_is_made_before_fabric_manager_has_set_up_the_fabric(host: AgentHost) -> None:
    with_gpus(host, 2)
    with host.graphics.changing() as world:
        for gpu in world.gpus:
            gpu.fabric = (2, 0)
    host.start()
    host.wait(lambda: host.states() == ["waiting"] * 2, "both slots to wait")
    host.wait(lambda: waits_for_fabric(host), "the host to say for what")
    before = host.containers()
    with host.graphics.changing() as world:
        for gpu in world.gpus:
            gpu.fabric = (3, 0)
    host.wait_ready()

    assert before == []
    host.wait(lambda: not waits_for_fabric(host), "the host to say that it waits no longer")
