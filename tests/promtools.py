"""The promtools that there are: Debian's, and a current one where PROMTOOL_BIN names it."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

KINDS = ("debian", *(["current"] if os.environ.get("PROMTOOL_BIN") else []))


def promtool(kind: str, *words: str | Path, text: str | None = None) -> tuple[int, str]:
    """Exit status and all that it said."""
    program = os.environ["PROMTOOL_BIN"] if kind == "current" else shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: sudo apt-get install prometheus")
    ended = subprocess.run([program, *words], input=text, capture_output=True, text=True, check=False)
    return ended.returncode, ended.stdout + ended.stderr
