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
_DEFAULT_MIRROR = ""


def cache_directory() -> Path:
    return Path(os.environ.get("APPLIANCE_TEST_CACHE", "/var/cache/ollama-appliance-tests"))


def mirror() -> str:
    return os.environ.get("APPLIANCE_TEST_DEBIAN_MIRROR", _DEFAULT_MIRROR)


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
