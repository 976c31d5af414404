"""`ollama-agent check`: looks at the host, prints what it finds to stdout, and to stderr why it takes long.

0: the agent can run; 1: it cannot."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Final

from appliance_agent import config_file
from appliance_agent.check_gather import gather
from appliance_agent.check_render import render_findings, render_json
from appliance_agent.findings import failed, findings

_WIDEST: Final = 120


def run_check(config_path: str | Path, *, as_json: bool = False) -> int:
    """Raises ConfigError."""
    found = findings(gather(config_file.load(Path(config_path)), tell=_tell))
    if as_json:
        sys.stdout.write(render_json(found))
    else:
        colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
        width = min(shutil.get_terminal_size().columns, _WIDEST) if sys.stdout.isatty() else _WIDEST
        sys.stdout.write(render_findings(found, colour=colour, width=width))
    return 1 if failed(found) else 0


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
