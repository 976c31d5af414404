"""`ollama-agent check` against real engines, registries and processes: what it sees is what is there."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import fakenvml
import pytest
from conftest import BASE_VERSION, CDI_GPUS, MakeEngine, MakeRegistry
from engines import PrivateEngine, wait_until
from fakegpus import HOOK
from fakenvml import VERSION_MISMATCH, FakeGpu, World
from freeport import free_port
from heldengine import held_engine
from loadedimages import load_standin
from registries import PASSWORD, USER, Options

from appliance_agent.check_command import run_check
from appliance_agent.check_engine import EngineDoor, engine_state
from appliance_agent.check_facts import Answer, Reach
from appliance_agent.check_gather import gather
from appliance_agent.config import Config, Engine, MetricsConfig
from appliance_agent.finding import Finding, Severity
from appliance_agent.findings import findings

SAID = 'could not select device driver "" with capabilities: [[gpu]]'
IMAGE = "test/ollama:standin"
PORT, METRICS_PORT = 19880, 19950  # nothing of this machine's
PATIENT_S = 60  # for what is there and may be slow


def config(engine: PrivateEngine | Path, **values: object) -> Config:
    path = engine.socket if isinstance(engine, PrivateEngine) else engine
    base = Config(image=IMAGE, gpus="none", model="tiny:1b", base_port=PORT, engine=Engine(socket=str(path)))
    base = replace(base, metrics=MetricsConfig(port=METRICS_PORT))
    return replace(base, **values)  # type: ignore[arg-type]


def trouble(config: Config, *, deadline_s: float = PATIENT_S) -> dict[str, Finding]:
    """Besides what this machine's own clock, memory and ports have to say."""
    found = findings(gather(config, deadline_s=deadline_s))
    own = ("clock", "memory-small", "image-plain")
    return {f.code: f for f in found if f.severity is not Severity.OK and f.code not in own}


@pytest.fixture
def gpus(nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """Two GPUs under the real NVML binding; after a change, `write` it to `world_file`."""
    world = World([FakeGpu(CDI_GPUS[0]), FakeGpu(CDI_GPUS[1])])
    world.write(tmp_path / "world")
    for name, value in fakenvml.environment(nvml_library, tmp_path / "world").items():
        monkeypatch.setenv(name, value)
    return world


def test_an_engine_without_the_toolkit_says_what_check_says(
    classic_engine: PrivateEngine, small_base: Path, gpus: World
) -> None:
    load_standin(classic_engine, small_base, version=BASE_VERSION)

    real = classic_engine.run_cli("run", "--rm", "--gpus", "all", "--entrypoint", "/bin/true", IMAGE, check=False)
    found = trouble(config(classic_engine, gpus="all"))

    assert SAID in real.stderr
    assert SAID in found["toolkit-missing"].sentence
    assert "nvidia-container-toolkit" in found["toolkit-missing"].fix[0]


def test_a_toolkit_installed_too_late_is_told_and_a_restart_mends_it(
    make_engine: MakeEngine, small_base: Path, gpus: World
) -> None:
    engine = make_engine("classic")
    load_standin(engine, small_base, version=BASE_VERSION)
    looked_s = (gather(config(engine, gpus="all"), deadline_s=PATIENT_S).engine.started_s or 0) + 1.5
    wait_until(lambda: time.time() > looked_s, timeout_s=20, what="an engine that looks for no toolkit any more")
    engine.toolkit.install_hook()

    real = engine.run_cli("run", "--rm", "--gpus", "all", "--entrypoint", "/bin/true", IMAGE, check=False)
    found = trouble(config(engine, gpus="all"))
    engine.stop()
    engine.start()
    after = trouble(config(engine, gpus="all"))

    assert SAID in real.stderr
    assert set(found) == {"toolkit-later"}
    assert f"looks for {engine.toolkit.programs}/{HOOK} only then" in found["toolkit-later"].sentence
    assert "sudo systemctl restart docker" in found["toolkit-later"].fix[0]
    assert after == {}


def test_cdi_is_chosen_where_the_engine_has_the_devices(
    cdi_engine: PrivateEngine, small_base: Path, gpus: World, tmp_path: Path
) -> None:
    load_standin(cdi_engine, small_base, version=BASE_VERSION)

    gpus.gpus = [FakeGpu(uuid) for uuid in CDI_GPUS]
    gpus.write(tmp_path / "world")

    found = findings(gather(config(cdi_engine, gpus=CDI_GPUS[:2]), deadline_s=PATIENT_S))

    told = [finding.sentence for finding in found if finding.code == "injection"]
    assert told == ["GPUs reach containers by CDI: a specification in the engine's directories names the devices"]


def test_a_specification_of_gpus_that_are_gone_is_stale(cdi_engine: PrivateEngine, gpus: World) -> None:
    found = trouble(config(cdi_engine, gpus="all"))

    assert f"names a GPU that is not there: {CDI_GPUS[2]}, {CDI_GPUS[3]} and 4 more" in found["cdi-stale"].sentence
    assert found["cdi-stale"].fix == (
        f"sudo nvidia-ctk cdi generate --output={cdi_engine.toolkit.specifications}/nvidia.yaml",
    )


def test_an_engine_of_25_with_cdi_switched_off_is_told(make_engine: MakeEngine, small_base: Path, gpus: World) -> None:
    engine = make_engine("containerd", gpu_hook=True)
    load_standin(engine, small_base, version=BASE_VERSION)

    found = trouble(config(engine, gpus="all"))

    assert set(found) == {"cdi-off"}
    assert "CDI is off in Docker Engine 26." in found["cdi-off"].sentence


def test_a_driver_that_was_updated_without_a_reboot_is_told_by_nvml(
    classic_engine: PrivateEngine, gpus: World, nvml_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus.init_error = VERSION_MISMATCH
    gpus.write(tmp_path / "world")

    seen = gather(config(classic_engine, gpus="all"), deadline_s=PATIENT_S).nvml

    assert seen.snapshot is not None
    assert not seen.snapshot.up
    assert "of different versions: reboot" in seen.snapshot.because


def test_an_nvml_that_hangs_delays_nothing_else(classic_engine: PrivateEngine, gpus: World, tmp_path: Path) -> None:
    gpus.hangs = True
    gpus.write(tmp_path / "world")

    facts = gather(config(classic_engine, gpus="all"), deadline_s=PATIENT_S, nvml_s=4)

    assert facts.nvml.snapshot is None
    assert facts.nvml.problem == "no answer within 4 s"
    assert facts.engine.reach is Reach.UP
    assert facts.late == ()


def test_a_driver_that_wakes_its_gpus_first_is_waited_for_and_it_is_said_why(
    classic_engine: PrivateEngine, gpus: World, tmp_path: Path
) -> None:
    gpus.init_delay_ms = 5500
    gpus.write(tmp_path / "world")
    told: list[str] = []

    facts = gather(config(classic_engine, gpus="all"), tell=told.append)

    assert facts.nvml.snapshot is not None
    assert len(facts.nvml.snapshot.gpus) == 2
    assert told == ["waiting for the driver; without persistence mode its first answer takes a while (at most 45 s)"]


def test_ctrl_c_while_the_driver_is_waited_for_leaves_nothing_behind(gpus: World, tmp_path: Path) -> None:
    gpus.hangs = True
    gpus.write(tmp_path / "world")
    file = tmp_path / "agent.toml"
    file.write_text(f'image = "{IMAGE}"\n[engine]\nsocket = "{tmp_path}/nothing.sock"\n')
    words = [str(Path(sys.executable).parent / "ollama-agent"), "check", "--config", str(file)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as check:
        assert check.stdout is not None
        assert check.stderr is not None
        told = check.stderr.readline()
        os.killpg(check.pid, signal.SIGINT)
        rest = check.stdout.read() + check.stderr.read()

    assert told.startswith("waiting for the driver")
    assert (rest, check.returncode) == ("\ninterrupted\n", 130)
    wait_until(lambda: not members(check.pid), timeout_s=30, what="the NVML process to be gone")


def members(group: int) -> list[int]:
    """Processes of it that run."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            found += [int(stat.parent.name)] if int(its_group) == group and state != "Z" else []
    return found


def test_a_port_that_a_process_has_is_told_with_the_process(classic_engine: PrivateEngine) -> None:
    port = free_port()
    with listening(port) as process:
        found = trouble(config(classic_engine, base_port=port))

    assert f"port {port} for slot 0 is taken by `python" in found["port-taken"].sentence
    assert f"(process {process}, user root)" in found["port-taken"].sentence


@contextmanager
def listening(port: int) -> Iterator[int]:
    """A process that listens there."""
    program = (
        "import socket, sys\n"
        f"with socket.create_server(('127.0.0.1', {port})):\n"
        "    print('ready', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    words = [sys.executable, "-c", program]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        yield process.pid


def test_a_port_and_a_name_that_containers_have_are_told(classic_engine: PrivateEngine, small_base: Path) -> None:
    load_standin(classic_engine, small_base, version=BASE_VERSION)
    publish = f"127.0.0.1:{PORT}:11434"
    classic_engine.run_cli("run", "-d", "--name=webui", "-p", publish, IMAGE)
    classic_engine.run_cli("create", "--name=check-0", IMAGE)
    try:
        found = trouble(
            replace(config(classic_engine), container=replace(Config(image="x").container, name_prefix="check"))
        )
    finally:
        classic_engine.run_cli("rm", "-f", "webui", "check-0")

    assert found["port-taken"].sentence == f"port {PORT} for slot 0 is taken by the container `webui`"
    assert found["port-taken"].fix[0] == "docker stop webui"
    assert found["name-taken"].fix[0] == "docker rename check-0 check-0-old"


@pytest.mark.parametrize("engine_kind", ["classic_engine", "containerd_engine"])
@pytest.mark.parametrize("auth", ["none", "basic", "token"])
def test_what_the_registry_says_of_an_absent_image_is_told(
    request: pytest.FixtureRequest, engine_kind: str, auth: str, make_registry: MakeRegistry, tmp_path: Path
) -> None:
    engine: PrivateEngine = request.getfixturevalue(engine_kind)
    registry = make_registry(Options(auth=auth))
    engine.expose(*registry.ports)
    wanted = replace(config(engine), image=f"{registry.host}/ai/none:1", model="")

    anonymous = gather(wanted, deadline_s=PATIENT_S).image
    known = replace(wanted, engine=replace(wanted.engine, docker_config=str(log_in(tmp_path, registry.host))))
    logged_in = gather(known, deadline_s=PATIENT_S).image

    assert anonymous.seen is not None
    assert anonymous.seen.id == ""
    assert anonymous.answer is (Answer.NO_SUCH_IMAGE if auth == "none" else Answer.DENIED)
    assert logged_in.answer is Answer.NO_SUCH_IMAGE
    assert logged_in.credentials


def log_in(directory: Path, host: str) -> Path:
    secret = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (directory / "config.json").write_text(json.dumps({"auths": {host: {"auth": secret}}}))
    return directory


@pytest.mark.parametrize("auth", ["none", "basic", "token"])
def test_the_size_of_an_image_that_can_be_pulled_is_known_before(
    classic_engine: PrivateEngine, small_base: Path, auth: str, make_registry: MakeRegistry, tmp_path: Path
) -> None:
    registry = make_registry(Options(auth=auth))
    classic_engine.expose(*registry.ports)
    load_standin(classic_engine, small_base, version=BASE_VERSION)
    reference = f"{registry.host}/ai/there:1"
    classic_engine.run_cli("login", "-u", USER, "-p", PASSWORD, registry.host) if auth != "none" else None
    classic_engine.run_cli("tag", IMAGE, reference)
    classic_engine.run_cli("push", reference)
    classic_engine.run_cli("image", "rm", reference)

    wanted = replace(config(classic_engine), image=reference)
    wanted = replace(wanted, engine=replace(wanted.engine, docker_config=str(log_in(tmp_path, registry.host))))
    image = gather(wanted, deadline_s=PATIENT_S).image

    assert image.answer is Answer.THERE
    assert image.download_bytes is not None
    assert image.download_bytes > 1_000_000


def test_a_registry_that_is_down_is_told(classic_engine: PrivateEngine) -> None:
    found = trouble(replace(config(classic_engine), image="127.0.0.1:9/ai/r1:32b", model=""))

    assert "cannot reach 127.0.0.1:9" in found["registry-unreachable"].sentence
    assert "connection refused" in found["registry-unreachable"].sentence


def test_a_disk_too_small_for_the_image_is_told(
    make_engine: MakeEngine, classic_engine: PrivateEngine, small_base: Path, make_registry: MakeRegistry
) -> None:
    registry = make_registry(Options())
    classic_engine.expose(*registry.ports)
    load_standin(classic_engine, small_base, version=BASE_VERSION)
    reference = f"{registry.host}/ai/there:1"
    classic_engine.run_cli("tag", IMAGE, reference)
    classic_engine.run_cli("push", reference)
    classic_engine.run_cli("image", "rm", reference)
    facts = gather(replace(config(classic_engine), image=reference), deadline_s=PATIENT_S)
    assert facts.image.download_bytes
    assert facts.engine.free_bytes

    full = replace(facts, engine=replace(facts.engine, free_bytes=facts.image.download_bytes))

    assert "disk-small" in {finding.code for finding in findings(full)}


def test_the_free_bytes_are_those_of_the_engines_own_disk(make_engine: MakeEngine) -> None:
    engine = make_engine("classic")

    state = gather(config(engine), deadline_s=PATIENT_S).engine

    there = os.statvfs(engine.data_root)
    assert state.images_root == str(engine.data_root)
    assert state.free_bytes is not None
    assert abs(state.free_bytes - there.f_bavail * there.f_frsize) < 1 << 30


def test_a_frozen_engine_is_told_within_the_deadline(make_engine: MakeEngine) -> None:
    engine = make_engine("classic")

    with engine.frozen():
        found = trouble(config(engine), deadline_s=4)
    after = trouble(config(engine, image="127.0.0.1:9/x"))

    assert set(found) == {"engine-frozen"}
    assert "engine-frozen" not in after


def test_an_engine_that_is_slow_to_tell_its_settings_is_not_called_frozen(
    classic_engine: PrivateEngine, tmp_path: Path
) -> None:
    with held_engine(classic_engine.socket, tmp_path / "held", what="/info") as held:
        facts = gather(config(held.socket), deadline_s=PATIENT_S, info_s=1)
        held.go.set()
        door = EngineDoor(str(held.socket), timeout_s=PATIENT_S)
        late = engine_state(door, str(held.socket), slow_s=0, info_s=PATIENT_S)

    (told,) = [finding for finding in findings(facts) if finding.topic == "engine"]
    assert (told.severity, told.code) == (Severity.WARNING, "engine-slow")
    assert "has not answered `docker info` within 1 s, and answers other questions" in told.sentence
    assert not any("restart" in line for line in told.fix)
    assert late.facts is not None
    assert late.slow.endswith(" s for `docker info`")


def test_no_socket_a_dead_socket_and_a_stranger_are_told_apart(tmp_path: Path) -> None:
    nothing = trouble(config(tmp_path / "none.sock"))
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "dead.sock"))
    left_behind = trouble(config(tmp_path / "dead.sock"))
    with stranger(tmp_path / "strange.sock", b"SSH-2.0-OpenSSH_9.2\r\n"):
        other = trouble(config(tmp_path / "strange.sock"))
    with stranger(tmp_path / "web.sock", b"HTTP/1.0 200 OK\r\n\r\n<html>"):
        web = trouble(config(tmp_path / "web.sock"))

    assert set(nothing) == {"socket-missing"}
    assert set(left_behind) == {"engine-down"}
    assert set(other) == {"engine-broken"}
    assert set(web) == {"engine-broken"}


@contextmanager
def stranger(path: Path, answer: bytes) -> Iterator[None]:
    """Something that listens and is no engine."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)
            self.request.sendall(answer)

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


AS_NOBODY = """
import encodings.idna, encodings.utf_8_sig, os, sys
from appliance_agent.check_command import run_check
import appliance_agent.check_image
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
sys.exit(run_check(sys.argv[1], as_json=True))
"""


def test_a_socket_without_permission_is_told_to_nobody_with_the_group(make_engine: MakeEngine) -> None:
    engine = make_engine("classic")
    engine.directory.chmod(0o755)
    with tempfile.TemporaryDirectory(prefix="check-") as name:
        Path(name).chmod(0o755)
        file = Path(name, "agent.toml")
        file.write_text(
            f'image = "x"\ngpus = "none"\nbase_port = {PORT}\n[engine]\nsocket = "{engine.socket}"\n[metrics]\nport = {METRICS_PORT}\n'
        )
        ran = subprocess.run(
            [sys.executable, "-c", AS_NOBODY, str(file)], check=False, capture_output=True, text=True, timeout=60
        )

    assert ran.returncode == 1
    assert ran.stderr == ""
    found = {each["code"]: each for each in json.loads(ran.stdout)["findings"]}
    assert {"socket-forbidden", "group-missing"} & set(found)
    told = found.get("socket-forbidden") or found["group-missing"]
    assert "user `nobody` may not use" in told["sentence"]
    assert "usermod -aG docker nobody" in told["fix"][0]
    assert "engine" not in [each["topic"] for each in found.values() if each["severity"] == "ok"]


def test_a_healthy_host_is_checked_without_a_fault_and_in_little_time(
    gpu_engine: PrivateEngine, small_base: Path, gpus: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load_standin(gpu_engine, small_base, version=BASE_VERSION)
    file = tmp_path / "agent.toml"
    file.write_text(
        f'image = "{IMAGE}"\nmodel = "tiny:1b"\nbase_port = {PORT}\n[engine]\nsocket = "{gpu_engine.socket}"\n'
        f"[metrics]\nport = {METRICS_PORT}\n"
    )

    began_s = time.process_time()
    status = run_check(file)
    used_s = time.process_time() - began_s

    lines = capsys.readouterr().out.splitlines()
    assert status == 0, lines
    assert any(line.startswith("ok       driver   driver 570.124.06, 2 x NVIDIA H100 80GB HBM3") for line in lines)
    assert any("GPUs reach containers by device requests" in line for line in lines)
    assert used_s < 3
