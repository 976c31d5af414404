"""The device names in CDI specifications on this host's disk, for engines that do not list what they discovered."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

_FILE_BYTES_MAX: Final = 4 * 1024 * 1024
_KIND = re.compile(r"^kind:\s*[\"']?([\w.-]+/[\w.-]+)", re.MULTILINE)
_NAME = re.compile(r"^\s*(?:-\s+)?name:\s*[\"']?([\w.:/-]+)", re.MULTILINE)


def cdi_names(directories: Iterable[str]) -> frozenset[str]:
    """Fully qualified, such as `nvidia.com/gpu=GPU-…`. What cannot be read names nothing."""
    return frozenset(name for directory in directories for file in _files(directory) for name in _names(file))


def _files(directory: str) -> Iterator[Path]:
    try:
        yield from sorted(path for path in Path(directory).iterdir() if path.suffix in (".json", ".yaml", ".yml"))
    except OSError:
        return


def _names(file: Path) -> list[str]:
    try:
        if file.stat().st_size > _FILE_BYTES_MAX:
            return []
        text = file.read_text(errors="replace")
    except OSError:
        return []
    try:
        return _from_json(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError):
        return _from_yaml(text)


def _from_json(whole: Any) -> list[str]:
    return [f"{whole['kind']}={device['name']}" for device in whole["devices"]]


def _from_yaml(text: str) -> list[str]:
    """As `nvidia-ctk cdi generate` writes it: only devices have a `name`."""
    kind = _KIND.search(text)
    return [f"{kind[1]}={name}" for name in _NAME.findall(text)] if kind else []
