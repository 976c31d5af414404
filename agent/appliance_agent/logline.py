"""A line of the agent's log: what people read, and the same as the journal's native fields. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from appliance_agent.slots import Entry

_FIELD_MAX: Final = 64 * 1024  # characters
_BARE: Final = re.compile(r"[\w.,:;/@%+*()\[\]-]+")
_SECRETS: Final = (
    re.compile(r"(?<=://)[^\s/@\"']+(?=@)"),
    re.compile(r"(?<=\bauthorization: )[^\n\r\"']+", re.IGNORECASE),
    re.compile(r"(?<=\bbearer )[\w.~+/=-]{16,}", re.IGNORECASE),
    re.compile(
        r"(\b(?:password|passwd|secret|api[_-]?key|(?:access|identity|refresh)[_-]?token)[\"']?\s*[=:]\s*[\"']?)[^\s\"',;&]+",
        re.IGNORECASE,
    ),
)


class Priority(IntEnum):
    """syslog's."""

    ERROR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


@dataclass(frozen=True, slots=True)
class Line:
    priority: Priority
    message: str  # may be empty where the fields say it all
    fields: tuple[tuple[str, str], ...] = ()  # none of them empty, secrets taken out


def line(priority: Priority, message: str, fields: Mapping[str, str | int | None]) -> Line:
    kept = tuple((key, _clean(str(value))) for key, value in fields.items() if value not in (None, ""))
    parts = (part.strip() for part in _clean(message).splitlines())
    return Line(priority, "; ".join(part for part in parts if part), kept)


def line_of(entry: Entry, *, reason: str, priority: Priority) -> Line:
    fields = {
        "slot": entry.slot,
        "gpu": ",".join(entry.gpus),
        "action": entry.action,
        "reason": reason,
        "because": entry.because,
        "evidence": entry.evidence,
    }
    return line(priority, "", fields)


def render_line(what: Line) -> str:
    """For people and grep; always one line."""
    words = [_printable(what.message)] if what.message else []
    return " ".join(words + [f"{key}={_quoted(value)}" for key, value in what.fields])


def render_native(what: Line, *, identifier: str) -> bytes:
    """The journal's protocol: `KEY=value`, or for values with line ends the key, a length and the bytes."""
    fields = {
        "MESSAGE": render_line(what),
        "PRIORITY": str(int(what.priority)),
        "SYSLOG_IDENTIFIER": identifier,
        **{key.upper(): value for key, value in what.fields},
    }
    return b"".join(_native(key, value) for key, value in fields.items())


def _native(key: str, value: str) -> bytes:
    name, content = key.encode(), value.encode("utf-8", "backslashreplace")
    if b"\n" in content:
        return name + b"\n" + len(content).to_bytes(8, "little") + content + b"\n"
    return name + b"=" + content + b"\n"


def _clean(text: str) -> str:
    text = text if len(text) <= _FIELD_MAX else f"{text[:_FIELD_MAX]}…"
    for secret in _SECRETS:
        text = secret.sub(lambda match: f"{match[1] if match.lastindex else ''}***", text)
    return text


def _quoted(value: str) -> str:
    return value if _BARE.fullmatch(value) else _printable(json.dumps(value, ensure_ascii=False))


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(char if char.isprintable() else "?" for char in text)
