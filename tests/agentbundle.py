"""What `install-agent --make-wheels` makes, and copies of it that differ."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "scripts" / "install-agent"


def make_bundle(directory: Path) -> str:
    """What the program said."""
    made = subprocess.run([SCRIPT, "--make-wheels", directory], capture_output=True, text=True, check=False)
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
