"""Which of the two text formats a scraper gets: what its Accept header says (RFC 9110, 12.5.1). Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

_OPENMETRICS: Final = "application/openmetrics-text"
_PARAMETER = re.compile(r';\s*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)\s*=\s*("(?:[^"\\]|\\.)*"|[^\s;,]*)\s*')
_RANGE = re.compile(rf"\s*([^\s;,]+)\s*((?:{_PARAMETER.pattern})*)(?:,|$)")


class Format(Enum):
    """The value is the content type."""

    TEXT = "text/plain; version=0.0.4; charset=utf-8"
    OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, slots=True)
class _Range:
    kind: str
    version: str  # "" is any
    quality: float


def chosen(accept: str) -> Format:
    """OpenMetrics for whoever names it and likes nothing better; the text format for all others, whatever they say."""
    ranges = list(_ranges(accept))
    openmetrics = _best(ranges, (_OPENMETRICS,), ("", "1.0.0"))
    text = _best(ranges, ("text/plain",), ("", "0.0.4", "1.0.0"))
    if text is None:
        text = _best(ranges, ("text/*", "*/*"), ("",))
    return Format.OPENMETRICS if openmetrics and openmetrics >= (text or 0) else Format.TEXT


def _best(ranges: list[_Range], kinds: tuple[str, ...], versions: tuple[str, ...]) -> float | None:
    return max((each.quality for each in ranges if each.kind in kinds and each.version in versions), default=None)


def _ranges(accept: str) -> Iterator[_Range]:
    for match in _RANGE.finditer(accept):
        parameters = {key.lower(): value.strip('"') for key, value in _PARAMETER.findall(match[2])}
        yield _Range(match[1].lower(), parameters.get("version", ""), _quality(parameters.get("q", "1")))


def _quality(word: str) -> float:
    return float(word) if re.fullmatch(r"0(\.\d{0,3})?|1(\.0{0,3})?", word) else 0.0
