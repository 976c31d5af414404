"""The client commands of the stand-in: `list`, `ps` and `--version`, against the server at OLLAMA_HOST."""

from __future__ import annotations

import http.client
import json
import os
import re
import sys
import time
from calendar import timegm
from typing import TYPE_CHECKING

from standin_store import as_list, as_object

if TYPE_CHECKING:
    from collections.abc import Mapping

    from standin_settings import Settings

_STEPS = (  # (seconds of one, below how many of it, unit)
    (1, 60, "seconds"), (60, 60, "minutes"), (3600, 48, "hours"), (86400, 14, "days"), (7 * 86400, 8, "weeks"),
    (30 * 86400, 24, "months"),
)  # fmt: skip


class ClientError(Exception):
    """The command fails with this text."""


def environment() -> Mapping[str, str]:
    return os.environ


def run(words: list[str], settings: Settings) -> int:
    try:
        return _run(words, settings)
    except ClientError as error:
        sys.stderr.write(f"Error: {error}\n")
        return 1


def _run(words: list[str], settings: Settings) -> int:
    if words in (["--version"], ["-v"]):
        _version(settings)
    elif words[:1] in (["list"], ["ls"]):
        _print_table(["NAME", "ID", "SIZE", "MODIFIED"], [_listed(row) for row in _models(settings, "/api/tags")])
    elif words[:1] == ["ps"]:
        columns = ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
        _print_table(columns, [_running(row) for row in _models(settings, "/api/ps")])
    else:
        raise ClientError(f'unknown command "{" ".join(words)}" for "ollama"')
    return 0


def _get(settings: Settings, path: str) -> dict[str, object]:
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=30)
    try:
        if path != "/api/version":
            connection.request("HEAD", "/")  # the real one asks whether anybody is there
            connection.getresponse().read()
        connection.request("GET", path)
        answer = connection.getresponse()
        document = as_object(json.loads(answer.read()))
    except (OSError, http.client.HTTPException, ValueError) as error:
        text = "could not connect to ollama server, run 'ollama serve' to start it"
        raise ClientError(text if settings.profile.old else f"ollama server not responding - {text}") from error
    finally:
        connection.close()
    if answer.status != http.client.OK:
        raise ClientError(str(document.get("error", answer.status)))
    return document


def _models(settings: Settings, path: str) -> list[dict[str, object]]:
    return [as_object(row) for row in as_list(_get(settings, path).get("models"))]


def _version(settings: Settings) -> None:
    try:
        served = str(_get(settings, "/api/version").get("version", ""))
    except ClientError:
        print("Warning: could not connect to a running Ollama instance")
        served = ""
    if served:
        print(f"ollama version is {served}")
    if served != settings.profile.version:
        print(f"Warning: client version is {settings.profile.version}")


def _listed(row: dict[str, object]) -> list[str]:
    return [str(row["name"]), str(row["digest"])[:12], _size(row), _age(str(row["modified_at"]))]


def _running(row: dict[str, object]) -> list[str]:
    size, video = int(str(row["size"])), int(str(row["size_vram"]))
    share = round((size - video) / size * 100) if size else 0
    processor = {0: "100% CPU", size: "100% GPU"}.get(video, f"{share}%/{100 - share}% CPU/GPU")
    until = _age(str(row["expires_at"]))
    until = "Stopping..." if until.endswith("ago") else until
    context = str(row.get("context_length", ""))
    return [str(row["name"]), str(row["digest"])[:12], _size(row), processor, context, until]


def _size(row: dict[str, object]) -> str:
    size = int(str(row["size"]))
    for unit, step in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= step:
            value = size / step
            return f"{int(value)} {unit}" if value >= 10 or value == int(value) else f"{value:.1f} {unit}"
    return f"{size} B"


def _age(stamp: str) -> str:
    seconds = timegm(time.strptime(re.sub(r"\.\d+", "", stamp), "%Y-%m-%dT%H:%M:%SZ")) - time.time()
    if seconds > 20 * 365 * 86400:
        return "Forever"
    return f"{_span(int(abs(seconds)))} {'from now' if seconds > 0 else 'ago'}"


def _span(seconds: int) -> str:
    if seconds < 1:
        return "Less than a second"
    if 60 <= seconds < 120:
        return "About a minute"
    if 59 * 60 + 30 <= seconds < 90 * 60:
        return "About an hour"
    for size, limit, unit in _STEPS:
        if seconds < size * limit:
            count = seconds // size
            return f"{count} {unit[:-1] if count == 1 else unit}"
    return f"{seconds // 86400 // 365} years"


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    table = [columns, *rows]
    widths = [max(len(row[at]) for row in table) for at in range(len(columns))]
    for row in table:
        print("".join(cell.ljust(widths[at]) + "    " for at, cell in enumerate(row)))
