"""Real `docker-registry` processes on loopback, each behind a `FaultProxy` that counts, and misbehaves when told.

`host` is the proxy's: clients and engines go through it. `backend_port` is the registry itself, for benchmarks.
Debian has distribution 2.8 only, sid too; `REGISTRY3_BIN` names the program of a distribution 3 for the tests that want one.
"""

import json
import os
import shlex
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from authority import Authority, make_token_signer
from engines import wait_until
from faultproxy import Exchange, FaultProxy
from freeport import free_port
from tokenserver import ISSUER, SERVICE, TokenServer

USER = "builder"
PASSWORD = "open-sesame"
_PASSWORD_BCRYPT = "$2b$04$abcdefghijklmnopqrstuuXcjcm5avyCiJoD2uS24xa2lb6fjMB3G"
PROGRAM = "docker-registry"


class RegistryUnavailableError(Exception):
    """This machine cannot run such a registry; the message says what to install or do."""


@dataclass(frozen=True, slots=True)
class Options:
    """`auth` is "none", "basic" or "token" (USER and PASSWORD); `storage` may be shared between registries."""

    program: str = PROGRAM
    auth: str = "none"
    token_lifetime_s: int = 300
    read_only: bool = False
    delete: bool = True
    storage: Path | None = None
    storage_bytes: int | None = None
    tls: Authority | None = None


class Registry:
    def __init__(self, directory: Path, options: Options) -> None:
        self.directory = directory
        self.options = options
        self.storage = options.storage or directory / "storage"
        self.tokens: TokenServer | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def host(self) -> str:
        return self.proxy.host

    @property
    def url(self) -> str:
        return self.proxy.url

    @property
    def ports(self) -> tuple[int, ...]:
        """What an engine must be able to reach: `engine.expose(*registry.ports)`."""
        return (self.proxy.port, *((self.tokens.port,) if self.tokens else ()))

    def requests(self, method: str = "", path: str = "") -> list[Exchange]:
        return self.proxy.requests(method, path)

    def forget(self) -> None:
        self.proxy.forget()

    @property
    def files(self) -> Path:
        """The storage as the registry sees it: a small disk is mounted for it alone."""
        if self.options.storage_bytes is None or self._process is None:
            return self.storage
        return Path(f"/proc/{self._process.pid}/root{self.storage}")

    def resize(self, storage_bytes: int) -> None:
        """Another size for a small disk; what it holds stays."""
        assert self._process
        words = ["mount", "-o", f"remount,size={storage_bytes}", str(self.storage)]
        subprocess.run(["nsenter", "--mount", f"--target={self._process.pid}", *words], check=True)

    def has_blob(self, digest: str) -> bool:
        algorithm, _, text = digest.partition(":")
        return (self.files / f"docker/registry/v2/blobs/{algorithm}/{text[:2]}/{text}/data").exists()

    def open(self) -> "Registry":
        self.directory.mkdir(parents=True, exist_ok=True)
        self.storage.mkdir(parents=True, exist_ok=True)
        if self.options.auth == "token":
            signer = make_token_signer(self.directory)
            lifetime_s = self.options.token_lifetime_s
            self.tokens = TokenServer(signer, user=USER, password=PASSWORD, lifetime_s=lifetime_s).start()
        self.backend_port = free_port()
        self.start()
        tls = self.options.tls.server_context() if self.options.tls else None
        self.proxy = FaultProxy(("127.0.0.1", self.backend_port), tls=tls).start()
        return self

    def start(self) -> None:
        configuration = self.directory / "config.yml"
        configuration.write_text(json.dumps(self._configuration()))  # JSON is YAML
        serve = f"exec {shlex.quote(self.options.program)} serve {shlex.quote(str(configuration))}"
        enclosed: list[str] = []
        if self.options.storage_bytes is not None:
            enclosed = ["unshare", "--mount"]
            size = self.options.storage_bytes
            serve = f"mount -t tmpfs -o size={size} tmpfs {shlex.quote(str(self.storage))} && {serve}"
        with (self.directory / "registry.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *enclosed, "sh", "-c", serve],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._listens_or_died, timeout_s=30, what="the registry to listen")
        if self._process.poll() is not None:
            raise RuntimeError(f"{self.options.program} ended at once:\n{self._log_tail()}")

    def stop(self) -> None:
        """Uploads under way are cut; what is stored stays."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.proxy.close()
        self.stop()
        if self.tokens:
            self.tokens.close()

    def _listens_or_died(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            return True
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.backend_port)) == 0

    def _log_tail(self) -> str:
        return (self.directory / "registry.log").read_text(errors="replace")[-2000:]

    def _configuration(self) -> dict[str, object]:
        return {
            "version": "0.1",
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {
                "filesystem": {"rootdirectory": str(self.storage)},
                "delete": {"enabled": self.options.delete},
                "maintenance": {
                    "uploadpurging": {"enabled": False},
                    "readonly": {"enabled": self.options.read_only},
                },
            },
            "http": {"addr": f"127.0.0.1:{self.backend_port}", "secret": "a test's"},
            **self._auth(),
        }

    def _auth(self) -> dict[str, object]:
        if self.options.auth == "basic":
            users = self.directory / "htpasswd"
            users.write_text(f"{USER}:{_PASSWORD_BCRYPT}\n")
            return {"auth": {"htpasswd": {"realm": "test", "path": str(users)}}}
        if self.tokens:
            bundle = str(self.directory / "token.crt")
            place = {"realm": self.tokens.realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": bundle}
            return {"auth": {"token": place}}
        return {}


def start_registry(directory: Path, options: Options | None = None) -> Registry:
    """A running registry. Call `close` in the end."""
    options = options or Options()
    if shutil.which(options.program) is None:
        raise RegistryUnavailableError(
            "install docker-registry" if options.program == PROGRAM else f"no program {options.program}"
        )
    if options.storage_bytes is not None and os.geteuid() != 0:
        raise RegistryUnavailableError("a small disk for a registry needs root")
    return Registry(directory, options).open()
