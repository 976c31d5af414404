"""A Debian 12 host with systemd as process 1, in a container of a test engine whose socket it finds at /run/docker.sock.

It shares the engine's network, as a real host would, so the slots' ports are on its loopback. Process ids are its own:
it cannot see the processes of the engine's other containers.
"""

import json
import shlex
import subprocess
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from debian_root import HOST, debian_root
from engines import Engine, EngineError, docker_program, wait_until

IMAGE = "systemd-host"
SHARED = "/shared"
_CGROUPS = Path("/sys/fs/cgroup")
_TOGETHER = "net_cls,net_prio"
_LEFT_OUT = ("./usr/*", "./dev/*", "./proc/*", "./sys/*", "./run/*", "./var/cache/apt/*", "./var/lib/apt/lists/*")
_LEFT_OUT_TOO = ("./var/lib/dpkg/info/*", "./var/log/*")


class HostError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    stdout: str
    stderr: str


class SystemdHost:
    def __init__(self, engine: Engine, container: str, shared: Path) -> None:
        self.engine = engine
        self.shared = shared  # is SHARED inside
        self._container = container

    def run(self, *words: str, timeout_s: float = 300, environment: Mapping[str, str] | None = None) -> Answer:
        """As root, whatever comes of it."""
        set_ = [f"--env={name}={value}" for name, value in (environment or {}).items()]
        result = self.engine.run_cli("exec", *set_, self._container, *words, check=False, timeout_s=timeout_s)
        return Answer(result.returncode, result.stdout, result.stderr)

    def must(self, *words: str, timeout_s: float = 300) -> str:
        answer = self.run(*words, timeout_s=timeout_s)
        if answer.status != 0:
            raise HostError(f"{shlex.join(words)}: status {answer.status}\n{answer.stdout}{answer.stderr}")
        return answer.stdout

    def systemctl(self, *words: str, timeout_s: float = 300) -> str:
        answer = self.run("systemctl", *words, timeout_s=timeout_s)
        if answer.status != 0:
            raise HostError(f"systemctl {shlex.join(words)}: {answer.stderr}{self.log(words[-1])}")
        return answer.stdout

    def write(self, path: str, text: str) -> None:
        (self.shared / "written").write_text(text)
        self.must("install", "-D", "-m", "644", f"{SHARED}/written", path)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        words = self.systemctl("show", unit, f"--property={','.join(properties)}").splitlines()
        return {name: value for name, _, value in (line.partition("=") for line in words)}

    def main_pid(self, unit: str) -> int:
        return int(self.show(unit, "MainPID")["MainPID"])

    def is_active(self, unit: str) -> bool:
        return self.run("systemctl", "is-active", "--quiet", unit).status == 0

    def wait_active(self, unit: str, *, timeout_s: float = 90) -> None:
        try:
            wait_until(lambda: self.is_active(unit), timeout_s=timeout_s, what=f"{unit} to be active")
        except TimeoutError as error:
            raise HostError(f"{error}\n{self.log(unit)}") from error

    def wait_status(self, unit: str, part: str, *, timeout_s: float = 90) -> str:
        """Until systemd's status line of the unit contains `part`."""
        text = ""

        def has_part() -> bool:
            nonlocal text
            text = self.show(unit, "StatusText")["StatusText"]
            return part in text

        try:
            wait_until(has_part, timeout_s=timeout_s, what=f"the status of {unit} to say {part!r}")
        except TimeoutError as error:
            raise HostError(f"{error}, it says {text!r}\n{self.log(unit)}") from error
        return text

    def journal(self, unit: str) -> list[dict[str, str]]:
        """Every field of what the unit logged, oldest first."""
        return [json.loads(line) for line in self._logged(unit, "json").splitlines()]

    def log(self, unit: str) -> str:
        return self._logged(unit, "short")

    def _logged(self, unit: str, form: str) -> str:
        """All of it: who wrote may have ended before the journal has read what it wrote."""
        self.must("journalctl", "--sync")
        return self.must("journalctl", "--unit", unit, f"--output={form}", "--no-pager", "--quiet")

    def close(self) -> None:
        self.engine.run_cli("rm", "--force", "--volumes", self._container, check=False)


def start_systemd_host(engine: Engine, shared: Path) -> SystemdHost:
    """Booted and idle. Call `close` in the end."""
    root = debian_root(HOST)
    if not engine.run_cli("image", "ls", "-q", IMAGE).stdout:
        _import(engine, root)
    name = f"systemd-{uuid.uuid4().hex[:8]}"
    host = SystemdHost(engine, name, shared)
    engine.socket.parent.chmod(0o711)  # the agent is not root, and has to get to the socket inside
    engine.run_cli("run", "--detach", "--name", name, *_options(engine, root, shared), IMAGE, "/lib/systemd/systemd")
    try:
        wait_until(lambda: _booted(host), timeout_s=120, what="systemd to boot")
        group = engine.socket.stat().st_gid
        host.must("ln", "-s", "/run/engine/docker.sock", "/run/docker.sock")
        host.must("groupadd", "--non-unique", f"--gid={group}", "docker")
    except BaseException:
        host.close()
        raise
    return host


def _booted(host: SystemdHost) -> bool:
    state = host.run("systemctl", "is-system-running").stdout.strip()
    return state in ("running", "degraded")


def _options(engine: Engine, root: Path, shared: Path) -> Sequence[str]:
    tmpfs = ("/run", "/run/lock", "/tmp", "/usr/local/bin:exec", "/opt:exec,size=256m", "/var/log/journal")
    volumes = {
        f"{root}/usr": "/usr:ro",
        str(engine.socket.parent): "/run/engine",
        str(shared): SHARED,
    }
    return (
        *("--network", "host", "--cgroupns", "host", "--cap-add", "SYS_ADMIN", "--env", "container=docker"),
        *("--cap-add", "SYSLOG", "--device", "/dev/kmsg"),
        *("--security-opt", "seccomp=unconfined", "--security-opt", "apparmor=unconfined"),
        *(word for place in tmpfs for word in ("--tmpfs", place)),
        *(word for source, place in volumes.items() for word in ("--volume", f"{source}:{place}")),
        *_control_groups(),
    )


def _control_groups() -> Sequence[str]:
    """Of version 1 those that are mounted here. systemd mounts the others itself if nothing is in its way, and then every
    process of the machine is in them; the engines beside this one do not find them mounted, and hear of no container any
    more that it is out of memory."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return ("--volume", f"{_CGROUPS}:{_CGROUPS}")
    mounted = [path for path in sorted(_CGROUPS.iterdir()) if path.is_mount()]
    rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines() if not line.startswith("#")]
    there = {name for path in mounted for name in path.name.split(",")}
    others = {name for name, *_, enabled in rows if enabled == "1"} - there
    ways = [_TOGETHER if name in _TOGETHER.split(",") else name for name in sorted(others)]
    return (
        *("--tmpfs", str(_CGROUPS)),
        *(word for path in mounted for word in ("--volume", f"{path}:{path}")),
        *(word for name in dict.fromkeys(ways) for word in ("--tmpfs", f"{_CGROUPS}/{name}")),
    )


def _import(engine: Engine, root: Path) -> None:
    """All but /usr, which is mounted: so a session does not copy 200 MB."""
    words = ["tar", "--directory", str(root), *(f"--exclude={pattern}" for pattern in (*_LEFT_OUT, *_LEFT_OUT_TOO))]
    with subprocess.Popen([*words, "--create", "."], stdout=subprocess.PIPE) as tar:
        imported = subprocess.run(
            [docker_program(), "import", "-", IMAGE],
            env=engine.environment, stdin=tar.stdout, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if tar.returncode != 0 or imported.returncode != 0:
        raise EngineError(f"the host's image cannot be made: {imported.stderr}")
