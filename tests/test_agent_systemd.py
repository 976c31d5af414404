"""The agent as systemd runs it: its unit, its user, its sandbox, on a host with systemd as process 1."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import fakenvml
import pytest
from agentbundle import copied
from agentgraphics import containers
from agenthost import MODEL, ONE, QUICK, TWO, build_images
from authority import make_authority
from engines import PrivateEngine, wait_until
from systemd_host import SHARED, SystemdHost
from webguard import WITH_TLS, basic

UNIT = "ollama-agent.service"
CONFIGURATION = "/etc/ollama-appliance/agent.toml"
DROP_INS = f"/etc/systemd/system/{UNIT}.d"
INSTALL = f"{SHARED}/bundle/install-agent"
PORT = 8880
CONFIG = f"""
image = "{ONE}"
pull = "never"
gpus = "none"
{QUICK}
[container]
stop_timeout_s = 5
[container.environment]
STANDIN_TOKEN_S = "0.01"
"""


@pytest.fixture(scope="module")
def installed(
    systemd_host: SystemdHost, agent_bundle: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SystemdHost]:
    """The agent is installed and not running; the engine has the images."""
    host = systemd_host
    if not (host.shared / "bundle").exists():
        copied(agent_bundle, host.shared / "bundle")
    build_images(tmp_path_factory.mktemp("images"), engine(host))
    host.must("rm", "-f", CONFIGURATION)
    host.must(INSTALL)
    yield host
    host.must(INSTALL, "--uninstall")
    host.must("rm", "-f", CONFIGURATION)


@pytest.fixture
def host(installed: SystemdHost) -> Iterator[SystemdHost]:
    """A good configuration, and nothing of the agent left from the test before."""
    installed.write(CONFIGURATION, CONFIG)
    yield installed
    installed.must("rm", "-rf", DROP_INS)
    installed.systemctl("daemon-reload")
    installed.run("systemctl", "kill", "--signal=KILL", UNIT)
    installed.systemctl("stop", UNIT)
    installed.must("sh", "-c", "rm -rf /var/lib/ollama-agent")
    if found := [each.id for each in containers(engine(installed))]:
        engine(installed).run_cli("rm", "-f", "-v", *found)


@pytest.fixture
def serving(host: SystemdHost) -> SystemdHost:
    host.systemctl("start", UNIT)
    host.wait_status(UNIT, "1/1 ready")
    return host


def engine(host: SystemdHost) -> PrivateEngine:
    assert isinstance(host.engine, PrivateEngine)
    return host.engine


def running(host: SystemdHost) -> list[str]:
    return [each.id for each in containers(engine(host)) if each.running]


def slots(host: SystemdHost) -> list[Mapping[str, Any]]:
    return list(json.loads(host.engine.http_get(9440, "/status").body)["slots"])


def restarted(host: SystemdHost, old_pid: int) -> Callable[[], bool]:
    return lambda: host.main_pid(UNIT) not in (0, old_pid) and host.is_active(UNIT)


class Stream:
    """A user's chat that lasts some seconds."""

    def __init__(self, host: SystemdHost, tokens: int) -> None:
        self.body = b""
        self.error: Exception | None = None
        self._connection = http.client.HTTPConnection("127.0.0.1", PORT)
        self._connection.sock = host.engine.connect(PORT, timeout_s=30)
        messages = [{"role": "user", "content": "你好"}]
        request = {"model": MODEL, "messages": messages, "options": {"num_predict": tokens}}
        self._connection.request("POST", "/api/chat", json.dumps(request))
        self._answer = self._connection.getresponse()
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        try:
            self.body = self._answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.error = error
        finally:
            self._connection.close()

    def finished(self) -> bool:
        """It ended as an answer should."""
        self._thread.join()
        return self.error is None and bool(json.loads(self.body.splitlines()[-1])["done"])


PROBE = """
import ctypes, grp, json, mmap, os
import appliance_agent.run, docker, pynvml

def tried(work):
    try:
        return work()
    except Exception as error:
        return type(error).__name__

told = {
    "callback": ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(lambda number: number + 1)(41),
    "writable and executable memory": tried(lambda: str(mmap.mmap(-1, 4096, prot=7))),
    "gpus": tried(lambda: (pynvml.nvmlInit(), pynvml.nvmlDeviceGetCount())[1]),
    "engine": tried(lambda: bool(docker.APIClient("unix:///run/docker.sock").version()["Version"])),
    "groups": sorted(grp.getgrgid(group).gr_name for group in os.getgroups()),
    "home": os.path.expanduser("~"),
    "configuration": tried(lambda: bool(open("/etc/ollama-appliance/agent.toml").read())),
    "processes of others": tried(lambda: open("/proc/1/cgroup").read() != "" and open("/proc/1/net/dev").read() != ""),
    "control groups": tried(lambda: os.listdir("/sys/fs/cgroup") != []),
    "kernel's log": tried(lambda: os.read(os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK), 8192) != b""),
    "state": tried(lambda: open(os.environ["STATE_DIRECTORY"] + "/probe", "w").close()),
    "elsewhere": [tried(lambda: open(path, "w")) for path in ("/etc/probe", "/opt/probe", "/usr/local/bin/probe", "/var/probe")],
    "homes": tried(lambda: os.listdir("/root")),
    "becoming root": tried(lambda: os.setuid(0)),
    "capabilities": [line.split()[1] for line in open("/proc/self/status") if line.startswith("CapEff")],
    "a device": tried(lambda: open("/dev/fuse", "rb")),
}
open("/run/ollama-agent/told", "w").write(json.dumps(told))
"""


@pytest.fixture
def graphics(host: SystemdHost, tmp_path_factory: pytest.TempPathFactory) -> SystemdHost:
    """Two GPUs, for whatever the unit starts."""
    try:
        library = fakenvml.build(tmp_path_factory.mktemp("nvml"))
    except fakenvml.GccMissingError as error:
        pytest.skip(str(error))
    if not (host.shared / "nvml").exists():
        copied(library.parent, host.shared / "nvml").chmod(0o755)
    fakenvml.World([fakenvml.FakeGpu("GPU-aaaa"), fakenvml.FakeGpu("GPU-bbbb")]).write(host.shared / "world")
    variables = fakenvml.environment(Path(SHARED, "nvml", library.name), Path(SHARED, "world"))
    lines = [f"Environment={name}={value}\n" for name, value in variables.items()]
    host.write(f"{DROP_INS}/graphics.conf", "[Service]\n" + "".join(lines))
    host.systemctl("daemon-reload")
    return host


def test_the_sandbox_lets_through_what_the_agent_needs_and_nothing_else(graphics: SystemdHost) -> None:
    host = graphics
    probe = "/opt/ollama-appliance/probe.py"
    host.write(probe, PROBE)
    program = host.must("readlink", "-f", "/opt/ollama-appliance/bin").strip() + "/python"
    once = f"ExecStart=\nExecStart={program} {probe}\nType=oneshot\nRestart=no\nRemainAfterExit=yes\nWatchdogSec=0\n"
    host.write(f"{DROP_INS}/probe.conf", f"[Service]\n{once}")
    host.systemctl("daemon-reload")

    host.systemctl("start", UNIT)

    told = json.loads(host.must("cat", "/run/ollama-agent/told"))
    host.must("rm", probe)
    assert told.pop("a device") in ("PermissionError", "FileNotFoundError")
    assert told == {
        "callback": 42,
        "writable and executable memory": "PermissionError",
        "gpus": 2,
        "engine": True,
        "groups": ["docker", "ollama-agent"],
        "home": "/var/lib/ollama-agent",
        "configuration": True,
        "processes of others": True,
        "control groups": True,
        "kernel's log": True,
        "state": None,
        "elsewhere": ["OSError"] * 4,
        "homes": "PermissionError",
        "becoming root": "PermissionError",
        "capabilities": [f"{1 << 34:016x}"],  # CAP_SYSLOG alone
    }


def test_the_gpus_are_seen_from_inside_the_sandbox(graphics: SystemdHost) -> None:
    graphics.write(CONFIGURATION, CONFIG.replace('gpus = "none"', 'gpus = "all"'))

    graphics.systemctl("start", UNIT)

    wait_until(lambda: len(slots(graphics)) == 2, timeout_s=60, what="a slot for each GPU")
    assert [gpu["uuid"] for slot in slots(graphics) for gpu in slot["gpus"]] == ["GPU-aaaa", "GPU-bbbb"]


def test_a_start_gives_a_working_server_a_status_line_and_a_journal_that_tells_why(host: SystemdHost) -> None:
    host.systemctl("start", UNIT)

    assert host.is_active(UNIT), "systemctl start waits until the agent has said that it is ready"
    assert host.show(UNIT, "Type", "WatchdogUSec") == {"Type": "notify", "WatchdogUSec": "30s"}
    assert host.wait_status(UNIT, "1/1 ready").isascii()
    assert [slot["state"] for slot in slots(host)] == ["ready"]
    assert Stream(host, 8).finished()
    (created,) = [line for line in host.journal(UNIT) if line.get("ACTION") == "create"][-1:]
    assert created["SLOT"] == "0"
    assert created["BECAUSE"]
    assert created["PRIORITY"] == "5"
    assert created["SYSLOG_IDENTIFIER"] == "ollama-agent"
    assert created["REASON"] == "start"
    assert created["_TRANSPORT"] == "journal"


def test_the_status_command_works_for_anybody_on_the_host(serving: SystemdHost) -> None:
    told = serving.must("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ollama-agent", "status")

    assert "ready" in told


def test_behind_tls_and_a_password_root_and_the_group_still_see_the_status(host: SystemdHost, tmp_path: Path) -> None:
    """With the hash made and the files protected as the documentation says."""
    authority = make_authority(tmp_path)
    host.write("/etc/ollama-appliance/server.crt", authority.server_certificate.read_text())
    host.write("/etc/ollama-appliance/server.key", authority.server_key.read_text())
    script = "import bcrypt; print(bcrypt.hashpw(b'sesame', bcrypt.gensalt(10)).decode())"
    digest = host.must("sh", "-c", f'"$(readlink -f /opt/ollama-appliance/bin)/python" -c "{script}"').strip()
    host.write("/etc/ollama-appliance/web.yml", f"{WITH_TLS}basic_auth_users:\n  prometheus: {digest}\n")
    for file in ("web.yml", "server.key"):
        host.must("chgrp", "ollama-agent", f"/etc/ollama-appliance/{file}")
        host.must("chmod", "640", f"/etc/ollama-appliance/{file}")
    host.write(CONFIGURATION, f'{CONFIG}[metrics]\nweb_config = "/etc/ollama-appliance/web.yml"\n')
    host.systemctl("start", UNIT)
    host.wait_status(UNIT, "1/1 ready")

    context = ssl.create_default_context(cafile=authority.certificate)
    statuses: list[int] = []
    for headers in ({}, {"Authorization": basic("prometheus", "sesame")}):
        connection = http.client.HTTPConnection("127.0.0.1", 9440)
        connection.sock = context.wrap_socket(host.engine.connect(9440, timeout_s=30), server_hostname="127.0.0.1")
        connection.request("GET", "/metrics", headers=headers)
        statuses.append(connection.getresponse().status)
        connection.close()
    group = host.must("id", "--group", "ollama-agent").strip()
    member = host.run("setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups", "ollama-agent", "status")
    stranger = host.run("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "ollama-agent", "status")

    assert statuses == [401, 200]
    assert "ready" in host.must("ollama-agent", "status")
    assert (member.status, "ready" in member.stdout) == (0, True)
    assert stranger.status == 1
    assert "permission denied" in stranger.stderr.lower()
    assert "hint: root and members of group ollama-agent may ask: `sudo ollama-agent status`" in stranger.stderr


def test_a_reload_with_mistakes_keeps_the_old_configuration_and_says_so(serving: SystemdHost) -> None:
    before = running(serving)
    serving.write(CONFIGURATION, CONFIG + 'image_ = "x"\n[metrics]\nport = 0\n')

    serving.systemctl("reload", UNIT)

    def told() -> list[str]:
        return [line["MESSAGE"] for line in serving.journal(UNIT) if line["PRIORITY"] == "3"]

    kept = "the old configuration stays in force"
    wait_until(lambda: kept in "".join(told()[-1:]), timeout_s=60, what="the journal to tell of the mistakes")
    assert "metrics.port: should be from 1 to 65535, not 0" in told()[-1]
    assert serving.show(UNIT, "ActiveState")["ActiveState"] == "active"
    assert running(serving) == before
    assert "stays in force" in serving.must("ollama-agent", "status")


def test_a_reload_with_another_image_replaces_the_container(serving: SystemdHost) -> None:
    before = running(serving)
    serving.write(CONFIGURATION, CONFIG.replace(ONE, TWO))

    serving.systemctl("reload", UNIT)

    wait_until(lambda: len(now := running(serving)) == 1 and now != before, timeout_s=60, what="a new container")
    serving.wait_status(UNIT, "1/1 ready")
    assert serving.show(UNIT, "NRestarts")["NRestarts"] == "0"


def test_a_start_with_mistakes_says_what_they_are_and_goes_on_trying(host: SystemdHost) -> None:
    host.write(CONFIGURATION, 'imag = "x"\n')

    assert host.run("systemctl", "start", UNIT).status != 0

    assert "imag: unknown key, did you mean `image`?" in host.log(UNIT)
    host.write(CONFIGURATION, CONFIG)
    host.wait_active(UNIT)


def test_a_stop_and_a_restart_leave_the_container_serving_and_cut_no_stream(serving: SystemdHost) -> None:
    before = running(serving)
    stream = Stream(serving, 600)

    serving.systemctl("stop", UNIT)

    assert running(serving) == before
    assert Stream(serving, 8).finished()
    assert serving.show(UNIT, "Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}
    serving.systemctl("start", UNIT)
    serving.systemctl("restart", UNIT)
    serving.wait_status(UNIT, "1/1 ready")
    assert running(serving) == before
    assert stream.finished()


def test_a_killed_agent_is_started_again_and_adopts(serving: SystemdHost) -> None:
    before = running(serving)
    stream = Stream(serving, 600)
    pid = serving.main_pid(UNIT)

    serving.must("kill", "-KILL", str(pid))

    wait_until(restarted(serving, pid), timeout_s=60, what="systemd to start the agent again")
    serving.wait_status(UNIT, "1/1 ready")
    assert running(serving) == before
    assert stream.finished()
    assert serving.show(UNIT, "NRestarts")["NRestarts"] == "1"


def test_an_agent_that_stands_still_is_ended_by_the_watchdog_and_started_again(host: SystemdHost) -> None:
    host.write(f"{DROP_INS}/impatient.conf", "[Service]\nWatchdogSec=5\n")
    host.systemctl("daemon-reload")
    host.systemctl("start", UNIT)
    host.wait_status(UNIT, "1/1 ready")
    before = running(host)
    pid = host.main_pid(UNIT)

    host.must("kill", "-STOP", str(pid))

    wait_until(restarted(host, pid), timeout_s=90, what="the watchdog to have the agent started again")
    host.wait_status(UNIT, "1/1 ready")
    assert "Watchdog timeout" in host.log(UNIT)
    assert running(host) == before


def test_an_agent_that_works_is_left_alone_by_an_impatient_watchdog(host: SystemdHost) -> None:
    host.write(f"{DROP_INS}/impatient.conf", "[Service]\nWatchdogSec=5\n")
    host.systemctl("daemon-reload")
    host.systemctl("start", UNIT)
    host.wait_status(UNIT, "1/1 ready")
    pid = host.main_pid(UNIT)

    for _ in range(2):  # a model that dies keeps the agent busy for longer than the watchdog waits
        engine(host).run_cli("kill", *running(host))
        wait_until(lambda: bool(running(host)), timeout_s=60, what="a new container")
        host.wait_status(UNIT, "1/1 ready")

    assert host.main_pid(UNIT) == pid


def test_down_by_root_takes_the_containers_away_and_the_service_can_start_afterwards(host: SystemdHost) -> None:
    host.systemctl("start", UNIT)
    host.wait_status(UNIT, "1/1 ready")
    host.systemctl("stop", UNIT)

    host.must("sh", "-c", "umask 077 && ollama-agent down")

    assert containers(engine(host)) == []
    host.systemctl("start", UNIT)
    host.wait_status(UNIT, "1/1 ready")
    assert "could not be read" not in host.log(UNIT), "what root has left is the service's"


def test_down_by_root_before_the_first_start_is_no_obstacle_to_it(host: SystemdHost) -> None:
    host.must("sh", "-c", "umask 077 && ollama-agent down")

    host.systemctl("start", UNIT)

    host.wait_status(UNIT, "1/1 ready")


def test_an_upgrade_restarts_the_agent_and_no_container(serving: SystemdHost) -> None:
    before = running(serving)
    pid = serving.main_pid(UNIT)
    serving.must("sh", "-c", f"echo '# an older one' >> /etc/systemd/system/{UNIT}")

    serving.must(INSTALL)

    assert serving.main_pid(UNIT) not in (0, pid)
    serving.wait_status(UNIT, "1/1 ready")
    assert running(serving) == before


def test_a_removal_leaves_the_container_serving_unless_it_is_asked_to_take_it_away(serving: SystemdHost) -> None:
    before = running(serving)

    serving.must(INSTALL, "--uninstall")

    assert running(serving) == before
    assert Stream(serving, 8).finished()
    serving.must(INSTALL)
    serving.wait_status(UNIT, "1/1 ready")
    assert running(serving) == before

    serving.must(INSTALL, "--uninstall", "--containers")

    assert containers(engine(serving)) == []
    serving.must(INSTALL, "--no-start")
