"""Real Docker Engines that belong to the tests alone: own namespaces, own data, own socket, gone with the process.

`classic` is the host's docker.io with a graph driver, `containerd` is Debian 13's docker.io with the containerd image
store. Each has a network of its own (see `enclosure`), so nothing of the host's engine, its bridge included, is
touched: reach a registry under test from the engine with `expose`, a published port from the tests with
`http_get`, `connect`, `forward` or a program run by `netns_exec`.
"""

import http.client
import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from debian_root import MirrorUnknownError, debian_root
from enclosure import LOOPBACK, Enclosure
from engine_directory import CGROUP_PREFIX, EngineDirectory, sweep
from fakegpus import Toolkit
from smallbase import MADE

EngineKind = Literal["classic", "containerd"]
KINDS: tuple[EngineKind, ...] = ("classic", "containerd")


class EngineError(Exception):
    pass


class EngineUnavailableError(EngineError):
    """This machine cannot give such an engine; the message says what to install or do."""


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    status: int
    headers: dict[str, str]
    body: bytes


class Engine:
    """What a test may do with any engine, private or the desktop's own."""

    def __init__(self, *, kind: EngineKind, docker_host: str, command_line_state: Path) -> None:
        self.kind = kind
        self.docker_host = docker_host
        self.socket = Path(docker_host.removeprefix("unix://"))
        self.version = ""
        self._command_line_state = command_line_state

    @property
    def environment(self) -> dict[str, str]:
        """For programs that talk to this engine: its address, and a client configuration that is not the user's."""
        return {**os.environ, "DOCKER_HOST": self.docker_host, "DOCKER_CONFIG": str(self._command_line_state)}

    def run_cli(
        self, *arguments: str, check: bool = True, timeout_s: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        result = subprocess.run(
            [docker_program(), *arguments],
            check=False,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
        if check and result.returncode != 0:
            raise EngineError(f"docker {shlex.join(arguments)}: {result.stderr.strip()}")
        return result

    def http_get(self, port: int, path: str = "/", *, timeout_s: float = 10) -> HttpAnswer:
        connection = http.client.HTTPConnection(LOOPBACK, port)
        connection.sock = self.connect(port, timeout_s=timeout_s)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return HttpAnswer(response.status, dict(response.getheaders()), response.read())
        finally:
            connection.close()

    def published_port(self, container: str, port: int) -> int:
        return int(self.run_cli("port", container, str(port)).stdout.splitlines()[0].rpartition(":")[2])

    def connect(self, port: int, *, timeout_s: float | None = None) -> socket.socket:
        return socket.create_connection((LOOPBACK, port), timeout=timeout_s)

    def expose(self, *ports: int) -> None:
        """Let the engine reach these ports of the host's loopback under the same addresses."""

    def forward(self, port: int) -> int:
        """A port on the host's loopback that leads to loopback `port` of the engine's network."""
        return port

    def command_inside(self, arguments: Sequence[str], *, network_only: bool = True) -> list[str]:
        return list(arguments)

    def netns_exec(self, arguments: Sequence[str], *, timeout_s: float = 300) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            self.command_inside(arguments),
            check=False,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )


class PrivateEngine(Engine):
    def __init__(self, *, kind: EngineKind, directory: EngineDirectory, enclosure: Enclosure) -> None:
        here = directory.path
        super().__init__(kind=kind, docker_host=f"unix://{here}/docker.sock", command_line_state=here / "client")
        self.directory = here
        self.data_root = here / "data"
        self.storage_driver = "overlayfs" if kind == "containerd" else "overlay2"
        self.toolkit = Toolkit.beside(here)
        self.cdi = False  # whether it looks for CDI devices
        self.runtimes: dict[str, Path] = {}  # by name, besides runc
        self.options: dict[str, object] = {}  # of daemon.json, over the tests' own
        self.listener: socket.socket | None = None  # held open for the engine, as systemd does with docker.socket
        self._own = directory
        self._enclosure = enclosure
        self._daemon: subprocess.Popen[bytes] | None = None

    def connect(self, port: int, *, timeout_s: float | None = None) -> socket.socket:
        return self._enclosure.connect(port, timeout_s=timeout_s)

    def expose(self, *ports: int) -> None:
        for port in ports:
            self._enclosure.expose(port)

    def forward(self, port: int) -> int:
        return self._enclosure.forward(port)

    def command_inside(self, arguments: Sequence[str], *, network_only: bool = True) -> list[str]:
        return self._enclosure.command(arguments, network_only=network_only)

    def command_beside(self, arguments: Sequence[str]) -> list[str]:
        """For a program of this machine that has to see the engine's processes, whatever root the engine has."""
        return self._enclosure.command_beside(arguments)

    def trust(self, host: str, certificate: Path) -> None:
        """Have the engine accept the certificate authority for registry `host` (with its port)."""
        place = self.directory / "etc/certs.d" / host
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(certificate, place / "ca.crt")

    def start(self) -> None:
        if self._daemon is not None:
            raise EngineError("the engine is running already")
        (self.directory / "daemon.json").write_text(json.dumps(self._configuration()))
        with (self.directory / "dockerd.log").open("ab") as log:
            # A process group of its own: Ctrl-C is for the tests, which then end it.
            self._daemon = subprocess.Popen(
                self._enclosure.command(self._daemon_words()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                pass_fds=[self.listener.fileno()] if self.listener else [],
            )
        wait_until(self._answers_or_died, timeout_s=120, what="the engine to answer")
        if self._daemon.poll() is not None:
            self._daemon = None
            raise EngineError(f"dockerd ended at once:\n{self.log_tail()}")
        self.version = self.run_cli("version", "--format", "{{.Server.Version}}").stdout.strip()

    def stop(self, *, how: signal.Signals = signal.SIGTERM) -> None:
        """End dockerd as `systemctl stop` would, or with SIGKILL as a crash would."""
        if self._daemon is None:
            raise EngineError("the engine is not running")
        self._signal(how)
        self._daemon.send_signal(signal.SIGCONT)  # nsenter, if it was frozen
        self._daemon.wait(timeout=60)
        self._daemon = None

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)
        stopped = f"until grep -q '^State:.*T' /proc/{self._pid}/status; do :; done"
        subprocess.run(self._enclosure.command(["sh", "-c", stopped]), check=True, timeout=60)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)
        if self._daemon is not None:
            self._daemon.send_signal(signal.SIGCONT)  # nsenter stopped with its child

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def remove_everything(self) -> None:
        """Back to an empty engine, for tests that count bytes."""
        for listing, removal in (
            (("ps", "-aq"), ("rm", "-f", "-v")),
            (("image", "ls", "-aq"), ("image", "rm", "-f")),
            (("volume", "ls", "-q"), ("volume", "rm", "-f")),
        ):
            if names := self.run_cli(*listing).stdout.split():
                self.run_cli(*removal, *dict.fromkeys(names), check=False)

    def log_tail(self) -> str:
        return (self.directory / "dockerd.log").read_text(errors="replace")[-3000:]

    def close(self) -> None:
        if not self.directory.exists():
            return
        if self._daemon is not None:
            # nsenter, dockerd's parent from outside: while it is stopped nobody could bury dockerd.
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None
        if self.listener:
            self.listener.close()
        self._enclosure.close()
        self._own.discard()

    def _answers_or_died(self) -> bool:
        if self._daemon is None or self._daemon.poll() is not None:
            return True
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(5)
            try:
                probe.connect(str(self.socket))
                probe.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
                return probe.recv(64).partition(b" ")[2].startswith(b"200")
            except OSError:
                return False

    @property
    def _pid(self) -> str:
        """As it is numbered inside."""
        return (self.directory / "dockerd.pid").read_text().strip()

    def _signal(self, which: signal.Signals) -> None:
        subprocess.run(self._enclosure.command(["sh", "-c", f"kill -{which.value} {self._pid}"]), check=True)

    def _configuration(self) -> dict[str, object]:
        configuration: dict[str, object] = {
            "features": {"containerd-snapshotter": self.kind == "containerd"} | ({"cdi": True} if self.cdi else {}),
            "storage-driver": self.storage_driver,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
        }
        if self.cdi:
            configuration["cdi-spec-dirs"] = [str(self.toolkit.specifications)]
        if self.runtimes:
            configuration["runtimes"] = {name: {"path": str(path)} for name, path in self.runtimes.items()}
        return configuration | self.options

    def _daemon_words(self) -> list[str]:
        here = self.directory
        # Published ports go through docker-proxy, so no kernel needs packet filters, and no host rule can be touched.
        network = ["--iptables=false", "--ip6tables=false", "--ip-masq=false"]
        places = [f"--data-root={here}/data", f"--exec-root={here}/exec", f"--pidfile={here}/dockerd.pid"]
        host, activation = self.docker_host, list[str]()
        if self.listener:
            passed = f'exec 3<&{self.listener.fileno()}; export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"'
            host, activation = "fd://", ["bash", "-c", passed, "bash"]  # sh knows no descriptors of two digits
        return [
            *activation,
            *("env", f"PATH={self.toolkit.programs}:{os.environ['PATH']}"),
            f"TMPDIR={here}/tmp",  # a containerd that ends too slowly for dockerd leaves its stacks there
            *("dockerd", f"--host={host}", f"--config-file={here}/daemon.json"),
            *(*places, *network, f"--cgroup-parent=/{CGROUP_PREFIX}{here.name}"),
        ]


class DesktopEngine(Engine):
    """The user's own engine, when the tests do not run as root: used with care, never stopped."""

    @contextmanager
    def tidied(self) -> Iterator[None]:
        """Afterwards the tests' images are gone: those that are new and as old as no image of the user's is."""
        before = self._images()
        try:
            yield
        finally:
            for image in self._images() - before:
                made = self.run_cli("image", "inspect", "--format={{.Created}}", image, check=False).stdout
                if made.startswith(MADE.removesuffix("Z")):
                    self.run_cli("image", "rm", "-f", image, check=False)

    def _images(self) -> set[str]:
        return set(self.run_cli("image", "ls", "-a", "-q", "--no-trunc").stdout.split())


def docker_program() -> str:
    """The distribution's client; another one may come first on PATH."""
    return "/usr/bin/docker" if Path("/usr/bin/docker").exists() else "docker"


def engines_directory() -> Path:
    return Path(os.environ.get("APPLIANCE_TEST_ENGINES", "/var/tmp/ollama-appliance-tests"))


def missing_for(kind: EngineKind) -> list[str]:
    """Debian packages that an engine of this kind still needs on this machine."""
    needs = {"docker.io": docker_program(), "iproute2": "ip", "util-linux": "nsenter"}
    needs |= {"docker.io ": "dockerd"} if kind == "classic" else {"debootstrap": "debootstrap"}
    return sorted({package.strip() for package, program in needs.items() if shutil.which(program) is None})


def start_engine(
    kind: EngineKind,
    *,
    disk_bytes: int | None = None,
    gpu_hook: bool = False,
    nvidia_runtime: bool = False,
    cdi: Sequence[str] = (),
    activated: bool = False,
    options: Mapping[str, object] | None = None,
) -> PrivateEngine:
    """A running engine; call `close` in the end.

    `disk_bytes`: its data lies on a file system of that size. `gpu_hook`: it accepts `--gpus device=GPU-…`, see
    `engine.toolkit` for what was asked and how to make it fail. `nvidia_runtime`: there is a runtime `nvidia`.
    `cdi`: the UUIDs of GPUs that a CDI specification names (containerd engines only, older ones know no CDI).
    `activated`: its socket is held by somebody else, who goes on listening when the engine ends, as systemd does.
    `options`: more of daemon.json.
    """
    if os.geteuid() != 0:
        raise EngineUnavailableError("a private Docker Engine needs root")
    if packages := missing_for(kind):
        raise EngineUnavailableError(f"install {' '.join(packages)}")
    try:
        root = debian_root() if kind == "containerd" else None
    except MirrorUnknownError as error:
        raise EngineUnavailableError(str(error)) from error
    base = engines_directory()
    base.mkdir(parents=True, exist_ok=True)
    sweep(base)
    directory = EngineDirectory(base, kind)
    for name in ("data", "exec", "etc", "client", "tmp"):
        (directory.path / name).mkdir()
    try:
        enclosure = Enclosure.open(_setup(directory.path, root, disk_bytes))
    except BaseException:
        directory.discard()
        raise
    engine = PrivateEngine(kind=kind, directory=directory, enclosure=enclosure)
    engine.options |= options or {}
    if activated:
        engine.listener = socket.socket(socket.AF_UNIX)
        engine.listener.bind(str(engine.socket))
        engine.listener.listen(128)
    engine.cdi = bool(cdi)
    engine.toolkit.write_cdi(cdi)
    if gpu_hook:
        engine.toolkit.install_hook()
    if nvidia_runtime:
        engine.runtimes["nvidia"] = engine.toolkit.install_runtime()
    try:
        _start_with_some_driver(engine)
    except BaseException:
        engine.close()
        raise
    return engine


def _start_with_some_driver(engine: PrivateEngine) -> None:
    try:
        engine.start()
    except EngineError as error:
        plain = "native" if engine.kind == "containerd" else "vfs"
        print(
            f"{engine.kind} engine: {engine.storage_driver} does not work here, using {plain}: {error}", file=sys.stderr
        )
        engine.storage_driver = plain
        engine.start()


def desktop_engine(state: Path) -> DesktopEngine | None:
    """The engine that the user's `docker` talks to, if it answers."""
    if shutil.which(docker_program()) is None:
        return None
    engine = DesktopEngine(kind="classic", docker_host=_desktop_host(), command_line_state=state)
    answer = engine.run_cli("info", "--format", "{{.ServerVersion}} {{json .DriverStatus}}", check=False, timeout_s=20)
    version, _, status = answer.stdout.partition(" ")  # without an engine newer clients print " null" and succeed
    if answer.returncode != 0 or not version:
        return None
    engine.version = version
    engine.kind = "containerd" if "io.containerd.snapshotter" in status else "classic"
    return engine


def _desktop_host() -> str:
    """Rootless engines and Docker Desktop are known by a context of the user's."""
    words = [docker_program(), "context", "inspect", "--format={{.Endpoints.docker.Host}}"]
    said = subprocess.run(words, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20)
    return os.environ.get("DOCKER_HOST") or said.stdout.strip() or "unix:///var/run/docker.sock"


def desktop_refusal() -> str:
    """Why `desktop_engine` has none, in the words of `docker`."""
    if shutil.which(docker_program()) is None:
        return "no `docker` on PATH"
    answer = subprocess.run([docker_program(), "version"], check=False, capture_output=True, text=True, timeout=20)
    return answer.stderr.strip().partition("\n")[0]


def wait_until(true: Callable[[], bool], *, timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:g} s for {what}")
        time.sleep(0.02)


def _setup(directory: Path, root: Path | None, disk_bytes: int | None) -> str:
    here = shlex.quote(str(directory))
    lines = []
    if disk_bytes is not None:
        lines += [f"truncate --size={disk_bytes} {here}/disk.img", f"mkfs.ext4 -q -m 0 {here}/disk.img"]
        lines += [f"mount -o loop {here}/disk.img {here}/data"]
    if root is None:
        # Over /run: otherwise dockerd would take the containerd it finds running there.
        lines += ["mount -t tmpfs tmpfs /run", "mkdir -p /etc/docker", f"mount --bind {here}/etc /etc/docker"]
        return "\n".join(lines)
    top = shlex.quote(str(root))
    base = shlex.quote(str(directory.parent))
    lines += [
        f"mount --bind {top} {top}",
        *(f"mount --rbind /{name} {top}/{name}" for name in ("proc", "sys", "dev")),
        f"mount -t tmpfs tmpfs {top}/run",
        f"mkdir -p {top}/etc/docker {top}{base}",
        f"mount --bind {here}/etc {top}/etc/docker",
        f"mount -t tmpfs tmpfs {top}{base}",
        f"mkdir {top}{here}",
        f"mount --rbind {here} {top}{here}",  # same path in and out, so that /info tells the truth
        # Not chroot: `docker exec` enters the namespace's root, which a chroot leaves to be the host's.
        f"cd {top}\npivot_root . mnt\numount -l /mnt",
    ]
    return "\n".join(lines)
