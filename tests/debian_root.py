"""A Debian root directory with a newer Docker Engine, made once by debootstrap and kept outside the checkout."""

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

SUITE = "trixie"
PACKAGES = ("docker.io", "iptables", "iproute2", "ca-certificates")
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")


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
        raise RuntimeError("no Debian mirror among apt's sources; name one in APPLIANCE_TEST_DEBIAN_MIRROR")
    return own[0]


def debian_root(directory: Path | None = None) -> Path:
    """The root, made now if it is not there; a second caller waits for the first."""
    root = (directory or cache_directory()) / SUITE
    root.parent.mkdir(parents=True, exist_ok=True)
    with (root.parent / f"{SUITE}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _complete(root):
            _make(root)
    return root


def _complete(root: Path) -> bool:
    return (root / "usr/sbin/dockerd").exists() and _stamp(root).exists() and _stamp(root).read_text() == _recipe()


def _recipe() -> str:
    return f"{SUITE} {' '.join(PACKAGES)}\n"


def _stamp(root: Path) -> Path:
    return root / "etc/ollama-appliance-tests"


def _make(root: Path) -> None:
    print(f"making {root} by debootstrap, once: about a minute", file=sys.stderr, flush=True)
    unfinished = root.with_name(f"{root.name}.unfinished")
    for old in (unfinished, root):
        if old.exists():
            shutil.rmtree(old)
    words = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
    if KEYRING.exists():
        words.append(f"--keyring={KEYRING}")
    result = subprocess.run(
        [*words, SUITE, str(unfinished), mirror()],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if result.returncode != 0:
        raise RuntimeError(f"debootstrap failed:\n{result.stdout[-2000:]}")
    _stamp(unfinished).write_text(_recipe())
    unfinished.rename(root)
