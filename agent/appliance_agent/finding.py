"""A finding of `ollama-agent check`: how bad, one sentence, what to type, and where it is explained. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class Severity(IntEnum):
    OK = 0
    WARNING = 1
    ERROR = 2


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    topic: str  # driver, gpu, toolkit, engine, image, store, slots, ports or host
    code: str  # for programs; never reused
    sentence: str
    fix: tuple[str, ...] = ()  # lines to type; what cannot be typed begins with "#"
    see: str = ""


def fine(topic: str, code: str, sentence: str) -> Finding:
    return Finding(Severity.OK, topic, code, sentence)


def warning(topic: str, code: str, sentence: str, *fix: str, see: str = "") -> Finding:
    return Finding(Severity.WARNING, topic, code, sentence, fix, see)


def error(topic: str, code: str, sentence: str, *fix: str, see: str = "") -> Finding:
    return Finding(Severity.ERROR, topic, code, sentence, fix, see)


def size(count: int) -> str:
    for unit, power in (("TiB", 4), ("GiB", 3), ("MiB", 2)):
        if count >= 1024**power:
            return f"{count / 1024**power:.1f} {unit}"
    return f"{count} bytes"
