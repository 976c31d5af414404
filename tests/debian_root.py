"""Debian root directories, made once by debootstrap and kept outside the checkout."""

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Recipe:
    name: str  # of the directory
    suite: str
    packages: tuple[str, ...]

    def render(self) -> str:
        return f"{self.suite} {' '.join(self.packages)}\n"


ENGINE = Recipe("trixie", "trixie", ("docker.io", "iptables", "iproute2", "ca-certificates"))
HOST = Recipe("bookworm-host", "bookworm", ("systemd", "systemd-sysv", "dbus", "procps", "python3", "python3-venv"))
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


class MirrorUnknownError(Exception):
    """As on Ubuntu; the message says what to set."""


def cache_directory() -> Path:
    return Path(os.environ.get("APPLIANCE_TEST_CACHE", "/var/cache/ollama-appliance-tests"))


def mirror() -> str:
    """Where this machine's own packages come from, unless APPLIANCE_TEST_DEBIAN_MIRROR names another place."""
    if named := os.environ.get("APPLIANCE_TEST_DEBIAN_MIRROR"):
        return named
    words = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)", "Created-By: Packages"]
    listed = subprocess.run(words, check=False, capture_output=True, text=True).stdout.splitlines()
    own = [line.removeprefix("Debian ") for line in listed if line.startswith("Debian ") and "security" not in line]
    if not own:
        raise MirrorUnknownError("no Debian mirror among apt's sources; name one in APPLIANCE_TEST_DEBIAN_MIRROR")
    return own[0]


def debian_root(recipe: Recipe = ENGINE) -> Path:
    """The root, made now if it is not there; a second caller waits for the first."""
    root = cache_directory() / recipe.name
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f"{recipe.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _complete(root, recipe):
            _make(root, recipe)
    return root


def _complete(root: Path, recipe: Recipe) -> bool:
    return _stamp(root).exists() and _stamp(root).read_text() == recipe.render()


def _stamp(root: Path) -> Path:
    return root / "etc/ollama-appliance-tests"


def _make(root: Path, recipe: Recipe) -> None:
    print(f"making {root} by debootstrap, once: about a minute", file=sys.stderr, flush=True)
    unfinished = root.with_name(f"{root.name}.unfinished")
    for old in (unfinished, root):
        if old.exists():
            shutil.rmtree(old)
    words = ["debootstrap", "--variant=minbase", f"--include={','.join(recipe.packages)}"]
    if KEYRING.exists():
        words.append(f"--keyring={KEYRING}")
    result = subprocess.run(
        [*words, recipe.suite, str(unfinished), mirror()],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(f"debootstrap failed:\n{result.stdout[-2000:]}")
    _stamp(unfinished).write_text(recipe.render())
    unfinished.rename(root)
