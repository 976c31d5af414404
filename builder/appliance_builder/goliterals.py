"""What Go's string, character and number literals are worth; None for those that Go refuses."""

from __future__ import annotations

import math
import re
from typing import Final

_LETTERS: Final = {"a": 7, "b": 8, "f": 12, "n": 10, "r": 13, "t": 9, "v": 11, "\\": 92, "'": 39, '"': 34}
_ESCAPE = re.compile(
    r"""\\(?:([abfnrtv\\'"])|([0-3][0-7]{2})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8}))?"""
)

_INTEGER = re.compile(
    r"[+-]?(?:0[xX](?:_?[0-9a-fA-F])+|0[oO]?(?:_?[0-7])+|0[bB](?:_?[01])+|0|[1-9](?:_?[0-9])*)",
)
_OLD_OCTAL = re.compile(r"[+-]?0[0-7_]+")
_FLOAT = re.compile(
    r"[+-]?(?:[0-9](?:_?[0-9])*\.?(?:[0-9](?:_?[0-9])*)?|\.[0-9](?:_?[0-9])*)(?:[eE][+-]?[0-9](?:_?[0-9])*)?"
)
_HEX_FLOAT = re.compile(r"[+-]?0[xX](?:_?[0-9a-fA-F])*\.?(?:[0-9a-fA-F](?:_?[0-9a-fA-F])*)?[pP][+-]?[0-9]+")


def unquote(literal: str) -> str | None:
    quote, inner = literal[0], literal[1:-1]
    if quote == "`":
        return inner.replace("\r", "")

    def value(match: re.Match[str]) -> str:
        if match[0] == "\\" or (match[1] and match[1] in "\"'" and match[1] != quote):
            raise ValueError(match[0])
        return _escaped(match)

    try:
        # Bytes written one by one (`"\xe4\xbd\xa0"`) become the character they are together.
        return _ESCAPE.sub(value, inner).encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    except ValueError:
        return None


def _escaped(match: re.Match[str]) -> str:
    letter, octal, byte, short, long = match.groups()
    if letter:
        return chr(_LETTERS[letter])
    if short or long:
        return chr(int(short or long, 16))
    return bytes([int(byte, 16) if byte else int(octal, 8)]).decode("ascii", "surrogateescape")


def number(text: str) -> int | float | None:
    if _INTEGER.fullmatch(text):
        value = int(text.replace("_", ""), 8 if _OLD_OCTAL.fullmatch(text) else 0)
        return value if -(2**63) <= value < 2**64 else None
    looks_whole = not any(mark in text for mark in ".eEpPi")  # too large, or an octal with an 8 in it
    return None if looks_whole else _float(text.removesuffix("i"))


def _float(text: str) -> float | None:
    if _HEX_FLOAT.fullmatch(text):
        return float.fromhex(text.replace("_", ""))
    if not _FLOAT.fullmatch(text) or math.isinf(value := float(text.replace("_", ""))):
        return None
    return value
