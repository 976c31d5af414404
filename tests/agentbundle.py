"""What `install-agent --make-wheels` makes, and copies of it that differ."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "install-agent"


def make_bundle(directory: Path) -> str:
    """What the program said. On a host where nothing in /tmp may be executed, as hardening guides want it."""
    with tempfile.TemporaryDirectory(prefix="noexec-") as temporary:
        mounted = f'mount -t tmpfs -o noexec tmpfs {temporary} && TMPDIR={temporary} exec "$@"'
        words = ["unshare", "--mount", "sh", "-c", mounted, "sh", str(SCRIPT), "--make-wheels", str(directory)]
        made = subprocess.run(words, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        raise RuntimeError(f"install-agent --make-wheels: {made.stderr}")
    return made.stderr


def copied(bundle: Path, to: Path) -> Path:
    return Path(shutil.copytree(bundle, to))


def another_version(bundle: Path) -> None:
    """Other bytes and the same content, as a new build may be."""
    (wheel,) = bundle.glob("sdnotify-*.whl")
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.comment = b"another build"
    (bundle / "SHA256SUMS").unlink()
