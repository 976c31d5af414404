"""What the agent's hands do at real engines: made, adopted, replaced, removed, and left alone with the right advice."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from agentengine import AgentSite, agent_site, overfill, shim_of
from conftest import CDI_GPUS, MakeEngine
from engines import Engine, PrivateEngine, docker_program, wait_until

from appliance_agent.container_json import render
from appliance_agent.gpus import Gpu, GpuSnapshot
from appliance_agent.spec import LABEL_MANAGED, Injection

GPU = "GPU-11111111-2222-3333-4444-555555555555"


@pytest.fixture
def site(engine: Engine, small_base: Path) -> Iterator[AgentSite]:
    with agent_site(engine, small_base) as made:
        yield made


def inspected(engine: Engine, container: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(engine.run_cli("inspect", container).stdout)[0]
    return found


def answers(site: AgentSite, index: int = 0) -> bool:
    try:
        return site.engine.http_get(site.config.base_port + index, "/api/version").status == 200
    except (OSError, http.client.HTTPException):
        return False  # whoever forwards the port is there first


def test_a_container_is_made_started_and_seen(site: AgentSite) -> None:
    done = site.create()
    seen = site.container(done.container_id)

    assert done.ok
    assert seen
    assert (seen.name, seen.slot, seen.status) == (site.plan().name, 0, "running")
    assert seen.spec_hash == site.spec().hash
    assert seen.release == site.release()
    assert seen.image_id == site.image_id
    assert seen.pid > 0
    wait_until(lambda: answers(site), timeout_s=20, what="the server to answer")


def test_a_container_is_what_the_specification_says(site: AgentSite) -> None:
    done = site.create()
    found = inspected(site.engine, done.container_id)
    host = found["HostConfig"]

    assert found["Config"]["User"] == "65534:65534"
    assert "NVIDIA_VISIBLE_DEVICES=void" in found["Config"]["Env"]
    assert "NVIDIA_VISIBLE_DEVICES=all" not in found["Config"]["Env"]
    assert "STANDIN_TEST=1" in found["Config"]["Env"]
    assert found["Config"]["Labels"][LABEL_MANAGED] == site.config.container.name_prefix
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert host["Init"] is True
    assert host["RestartPolicy"]["Name"] == "no"
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-size": "1048576", "max-file": "2"}}
    assert host["PortBindings"] == {"11434/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(site.config.base_port)}]}
    assert found["Config"]["StopTimeout"] == 10


def test_what_is_asked_twice_is_done_once(site: AgentSite) -> None:
    first = site.create()
    second = site.create()

    assert second.ok
    assert second.container_id == first.container_id
    assert site.names() == [site.plan().name]


def test_a_container_that_was_made_and_never_started_is_started(site: AgentSite) -> None:
    made = only_made(site)

    done = site.create()

    assert done.ok
    assert done.container_id == made
    assert inspected(site.engine, made)["State"]["Running"]


def only_made(site: AgentSite) -> str:
    """As an agent that was killed between making and starting leaves it."""
    with closing(docker.APIClient(site.engine.docker_host, version="auto")) as typed:
        client: Any = typed  # the stubs do not know every call
        body = dict(render(site.spec(), prefix=site.config.container.name_prefix))
        return str(client.create_container_from_config(body, site.plan().name)["Id"])


def test_a_dead_container_of_the_same_kind_is_replaced(site: AgentSite) -> None:
    first = site.create()
    site.engine.run_cli("kill", first.container_id)

    second = site.create()

    assert second.ok
    assert second.container_id != first.container_id
    assert site.names() == [site.plan().name]


def test_a_container_of_ours_with_another_specification_is_replaced(site: AgentSite) -> None:
    first = site.create()
    changed = site.spec(release=replace(site.release(), shm_bytes=128 * 1024 * 1024))

    second = site.create(changed)
    seen = site.container(second.container_id)

    assert second.ok
    assert second.container_id != first.container_id
    assert seen
    assert seen.spec_hash == changed.hash
    assert site.names() == [site.plan().name]


def test_a_foreign_container_with_our_name_is_left_alone(site: AgentSite) -> None:
    name = site.plan().name
    foreign = site.engine.run_cli("create", "--name", name, site.image_id).stdout.strip()

    done = site.create()

    assert not done.ok
    assert done.obstacle
    assert done.error == f"container {name} is there and not the agent's"
    assert f"docker rm -f {name}" in done.hint
    assert inspected(site.engine, name)["Id"] == foreign


def test_another_agents_container_is_foreign(site: AgentSite) -> None:
    name = site.plan().name
    site.engine.run_cli("create", "--name", name, "--label", f"{LABEL_MANAGED}=another", site.image_id)

    done = site.create()

    assert done.obstacle
    assert site.names() == [name]


def test_a_port_that_a_container_has_is_named_and_nothing_is_left_behind(site: AgentSite) -> None:
    port, taker = site.config.base_port, f"{site.config.container.name_prefix}-taker"
    site.engine.run_cli("run", "-d", "--name", taker, "-p", f"127.0.0.1:{port}:11434", site.image_id)

    done = site.create()

    assert not done.ok
    assert done.obstacle
    assert done.error == f"port {port} is published by another container"
    assert f"docker ps --filter publish={port}" in done.hint
    assert site.names() == [taker]


def test_a_port_that_a_program_has_is_named_and_nothing_is_left_behind(site: AgentSite) -> None:
    port = site.config.base_port
    program = f"import socket; s = socket.create_server(('127.0.0.1', {port})); print('on', flush=True); s.accept()"
    words = site.engine.command_inside([sys.executable, "-c", program])
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as listener:
        assert listener.stdout
        listener.stdout.readline()

        done = site.create()
        listener.kill()

    assert done.obstacle
    assert done.error == f"port {port} is in use by a program of this host"
    assert f"sport = :{port}" in done.hint
    assert site.names() == []


def test_an_address_of_another_host_is_named(site: AgentSite) -> None:
    done = site.create(site.spec(release=replace(site.release(), address="10.99.99.99")))

    assert done.obstacle
    assert done.error == "address 10.99.99.99 is none of this host's"
    assert site.names() == []


def test_an_image_that_is_not_there_is_an_error_that_says_so(site: AgentSite) -> None:
    done = site.create(site.spec(release=replace(site.release(), image_id=f"sha256:{'0' * 64}")))

    assert not done.ok
    assert done.obstacle
    assert done.host_wide
    assert "is not on this host any more" in done.error


def test_a_store_is_mounted_read_only(site: AgentSite, tmp_path: Path) -> None:
    assert isinstance(site.engine, PrivateEngine)
    store = site.engine.directory / f"store-{site.config.container.name_prefix}"
    store.mkdir()

    done = site.create(site.spec(release=replace(site.release(), store=str(store))))
    mounts = inspected(site.engine, done.container_id)["Mounts"]

    assert done.ok
    assert [(each["Source"], each["Destination"], each["RW"]) for each in mounts] == [(str(store), "/models", False)]


def test_a_store_that_is_not_there_is_named(site: AgentSite) -> None:
    done = site.create(site.spec(release=replace(site.release(), store="/nowhere/models")))

    assert done.obstacle
    assert done.error == "the store /nowhere/models is not there"


def test_a_container_is_removed_and_seen_to_be_gone(site: AgentSite) -> None:
    made = site.create()

    done = site.remove(made.container_id)

    assert done.ok
    assert site.container(made.container_id) is None
    assert site.names() == []


def test_a_container_that_is_gone_already_is_removed(site: AgentSite) -> None:
    assert site.remove("0" * 64).ok


def test_a_container_that_is_paused_is_removed(site: AgentSite) -> None:
    made = site.create()
    site.engine.run_cli("pause", made.container_id)

    done = site.remove(made.container_id)

    assert done.ok
    assert site.names() == []


def test_a_container_that_is_removed_by_somebody_at_the_same_time_is_removed(site: AgentSite) -> None:
    made = site.create()
    words = [docker_program(), "rm", "-f", made.container_id]
    with subprocess.Popen(words, env=site.engine.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        done = site.remove(made.container_id)

    assert done.ok
    assert site.names() == []


def test_a_container_that_the_kernel_killed_for_its_memory_says_so(site: AgentSite) -> None:
    made = site.create(site.spec(release=replace(site.release(), memory_bytes=64 * 1024 * 1024)))
    wait_until(lambda: answers(site), timeout_s=30, what="the server to listen")

    overfill(site.engine, site.plan().port)
    site.until(lambda seen: seen.containers[0].status == "exited", "the kernel to kill it")
    site.until(lambda seen: seen.containers[0].oom_killed, "the engine to say why, perhaps a moment later")

    seen = site.container(made.container_id)
    assert seen
    assert (seen.oom_killed, seen.exit_code) == (True, 137)


def test_a_container_that_ignores_sigterm_is_killed(site: AgentSite) -> None:
    made = site.create()
    pid = str(inspected(site.engine, made.container_id)["State"]["Pid"])
    assert isinstance(site.engine, PrivateEngine)
    for each in [pid, *children_inside(site.engine, pid)]:
        stop = ["sh", "-c", f"kill -STOP {each}"]
        subprocess.run(site.engine.command_inside(stop, network_only=False), check=True)

    done = site.remove(made.container_id, grace_s=1)

    assert done.ok
    assert site.names() == []


def children_inside(engine: PrivateEngine, pid: str) -> list[str]:
    words = ["cat", f"/proc/{pid}/task/{pid}/children"]
    ran = subprocess.run(engine.command_inside(words, network_only=False), check=True, capture_output=True, text=True)
    return ran.stdout.split()


def test_a_container_that_cannot_be_killed_is_reported_as_stuck_and_removed_later(
    engine: Engine, small_base: Path
) -> None:
    with agent_site(engine, small_base, kill_s=3) as site:
        made = site.create()
        shim = shim_of(made.container_id)
        os.kill(shim, signal.SIGSTOP)  # nobody reaps the process any more, as if it hung in the kernel
        try:
            done = site.remove(made.container_id, grace_s=0)
            others = site.create(site.spec(1))
        finally:
            os.kill(shim, signal.SIGCONT)
        later = site.remove(made.container_id, grace_s=0)

        assert done.stuck
        assert not done.ok
        assert "did not end within 3 s after SIGKILL" in done.error
        assert "reboot" in done.hint
        assert others.ok
        assert later.ok
        assert site.names() == [site.plan(1).name]


def test_an_engine_that_is_frozen_is_an_error_after_the_deadline(make_engine: MakeEngine, small_base: Path) -> None:
    engine = make_engine("classic")
    with agent_site(engine, small_base, timeout_s=2) as site:
        made = site.create()
        with engine.frozen():
            created = site.create(site.spec(1))
            removed = site.remove(made.container_id)
            pulled = site.pull()

        assert [done.ok for done in (created, removed, pulled)] == [False, False, False]
        assert not any(done.stuck or done.obstacle for done in (created, removed, pulled))
        assert created.error == "the Docker Engine has not answered for 2 s"
        assert site.create(site.spec(1)).ok
        assert site.remove(made.container_id).ok


def test_an_engine_that_is_gone_is_an_error_with_the_way_out(make_engine: MakeEngine, small_base: Path) -> None:
    engine = make_engine("classic")
    with agent_site(engine, small_base) as site:
        engine.stop()
        done = site.create()

        assert not done.ok
        assert done.error.startswith("no Docker Engine here: there is no socket")
        assert done.hint == "`systemctl start docker`"
        engine.start()


def gpu(uuid: str, index: int = 0) -> Gpu:
    return Gpu(uuid, index, index, "Tesla T4", 16 << 30)


def test_device_requests_reach_a_classic_engine(gpu_engine: PrivateEngine, small_base: Path) -> None:
    with agent_site(gpu_engine, small_base, gpus=GpuSnapshot(0.0, up=True, gpus=(gpu(GPU),))) as site:
        spec = site.spec(gpus=[GPU], release=site.release(Injection.DEVICE_REQUEST))

        done = site.create(spec)
        found = inspected(gpu_engine, done.container_id)

        assert done.ok
        assert gpu_engine.toolkit.hook_calls()[-1] == GPU
        assert f"NVIDIA_VISIBLE_DEVICES={GPU}" in found["Config"]["Env"]
        request = found["HostConfig"]["DeviceRequests"][0]
        assert (request["DeviceIDs"], request["Capabilities"]) == ([GPU], [["gpu"]])
        seen = site.container(done.container_id)
        assert seen
        assert seen.gpus == (GPU,)


def test_an_engine_without_the_toolkit_says_what_to_install(site: AgentSite) -> None:
    done = site.create(site.spec(gpus=[GPU], release=site.release(Injection.DEVICE_REQUEST)))

    assert done.obstacle
    assert "the Docker Engine knows no way to hand out GPUs" in done.error
    assert 'could not select device driver "" with capabilities: [[gpu]]' in done.error
    assert "systemctl restart docker" in done.hint
    assert site.names() == []


def test_an_engine_without_the_runtime_says_what_to_install(site: AgentSite) -> None:
    done = site.create(site.spec(gpus=[GPU], release=site.release(Injection.RUNTIME)))

    assert done.obstacle
    assert done.error == "the Docker Engine has no runtime `nvidia`"
    assert "nvidia-ctk runtime configure" in done.hint


@pytest.mark.parametrize(
    ("text", "message", "obstacle"),
    [
        ("nvidia-container-cli: initialization error: nvml error: driver/library version mismatch", "reboot", True),
        ("nvidia-container-cli: device error: GPU-x: unknown device", f"NVIDIA's toolkit does not find {GPU}", False),
        ("nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1", "libnvidia-ml", False),
    ],
)
def test_what_nvidias_hook_complains_of_is_told(
    make_engine: MakeEngine, small_base: Path, text: str, message: str, *, obstacle: bool
) -> None:
    engine = make_engine("classic", gpu_hook=True)
    engine.toolkit.fail(text)
    with agent_site(engine, small_base) as site:
        done = site.create(site.spec(gpus=[GPU], release=site.release(Injection.DEVICE_REQUEST)))

        assert not done.ok
        assert message in done.error
        assert done.obstacle is obstacle
        assert "nvidia-smi" in done.hint or "reboot" in done.hint
        assert site.names() == []


def test_cdi_devices_reach_a_container(cdi_engine: PrivateEngine, small_base: Path) -> None:
    with agent_site(cdi_engine, small_base) as site:
        uuids = [CDI_GPUS[2], CDI_GPUS[5]]
        done = site.create(site.spec(gpus=uuids, release=site.release(Injection.CDI)))
        found = inspected(cdi_engine, done.container_id)

        assert done.ok
        request = found["HostConfig"]["DeviceRequests"][0]
        assert (request["Driver"], request["Count"]) == ("cdi", 0)
        assert request["DeviceIDs"] == [f"nvidia.com/gpu={uuid}" for uuid in uuids]
        assert site.container(done.container_id)


def test_a_cdi_device_that_nothing_names_is_told(cdi_engine: PrivateEngine, small_base: Path) -> None:
    with agent_site(cdi_engine, small_base) as site:
        done = site.create(site.spec(gpus=[GPU], release=site.release(Injection.CDI)))

        assert not done.ok
        assert done.error == f"no CDI specification names {GPU}"
        assert "nvidia-ctk cdi generate" in done.hint
        assert site.names() == []


def test_the_nvidia_runtime_is_used(cdi_engine: PrivateEngine, small_base: Path) -> None:
    with agent_site(cdi_engine, small_base) as site:
        before = len(cdi_engine.toolkit.runtime_calls())

        done = site.create(site.spec(gpus=[CDI_GPUS[1]], release=site.release(Injection.RUNTIME)))
        found = inspected(cdi_engine, done.container_id)

        assert done.ok
        assert found["HostConfig"]["Runtime"] == "nvidia"
        assert f"NVIDIA_VISIBLE_DEVICES={CDI_GPUS[1]}" in found["Config"]["Env"]
        assert len(cdi_engine.toolkit.runtime_calls()) == before + 1
