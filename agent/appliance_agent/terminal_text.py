"""Text in a terminal's columns: widths, cutting, wrapping, tones. Knows no table and no terminal. Pure.

What comes from engines and containers may hold control characters: `clean` takes them away before anything is shown.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from enum import Enum
from typing import Final

CUT: Final = ".."  # ASCII: the width of an ellipsis is ambiguous on a Chinese terminal
_INVISIBLE = frozenset({"Mn", "Me", "Cf"})


class Tone(Enum):
    """What a text means; the value is its SGR code."""

    PLAIN = ""
    STRONG = "1"
    DIM = "2"
    GOOD = "32"
    CARE = "33"
    BAD = "1;31"


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    tone: Tone = Tone.PLAIN


Line = tuple[Piece, ...]


def clean(text: str) -> str:
    """On one line and without a character that moves the cursor."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(_visible(character) for character in " ".join(text.split()))


def width(text: str) -> int:
    return len(text) if text.isascii() else sum(_columns(character) for character in text)


def fit(text: str, columns: int) -> str:
    """The text, cut at its end if it is wider."""
    if width(text) <= columns:
        return text
    mark = CUT[: max(columns, 0)]
    return _head(text, columns - len(mark)) + mark


def pad(text: str, columns: int, *, right: bool = False) -> str:
    space = " " * (columns - width(text))
    return space + text if right else text + space


def wrap(text: str, columns: int, *, lines: int) -> list[str]:
    """Broken between words, where there is one, into at most so many lines; the last one is cut."""
    found: list[str] = []
    rest = text
    while len(found) < lines - 1 and width(rest) > columns:
        head = _head(rest, columns)
        if not head:
            break
        space = head.rfind(" ") if rest[len(head) : len(head) + 1] != " " else len(head)
        cut = space if space > columns // 2 else len(head)
        found.append(rest[:cut].rstrip())
        rest = rest[cut:].lstrip()
    return [*found, fit(rest, columns)]


def line_width(line: Line) -> int:
    return sum(width(piece.text) for piece in line)


def render(line: Line, *, columns: int, colour: bool) -> str:
    """Never wider than the columns, without space at the end."""
    rendered: list[str] = []
    room = columns
    for piece in line:
        text = fit(piece.text, room)
        room -= width(text)
        rendered.append(f"\x1b[{piece.tone.value}m{text}\x1b[0m" if colour and piece.tone.value and text else text)
    return "".join(rendered).rstrip(" ")


def _head(text: str, columns: int) -> str:
    used = 0
    for place, character in enumerate(text):
        used += _columns(character)
        if used > columns:
            return text[:place]
    return text


def _columns(character: str) -> int:
    if character.isascii():
        return 1
    if unicodedata.category(character) in _INVISIBLE:
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _visible(character: str) -> str:
    if character.isprintable():
        return character
    return "" if unicodedata.category(character) == "Cf" else "?"
