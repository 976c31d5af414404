"""Columns of text: which of them fit into a window, and the lines that they make. Knows not what they say. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance_agent.terminal_text import Line, Piece, Tone, pad, width

GAP: Final = 2


@dataclass(frozen=True, slots=True)
class Column:
    title: str
    keep: int  # the column with the smallest number goes first when the window is narrow
    cells: tuple[Piece, ...]
    right: bool = False

    @property
    def columns(self) -> int:
        return max(width(text) for text in (self.title, *(cell.text for cell in self.cells)))


def fitting(columns: Sequence[Column], room: int) -> list[Column]:
    """The most useful ones first; a narrow one may still fit where a wide one did not."""
    chosen: list[Column] = []
    for column in sorted(columns, key=lambda column: -column.keep):
        if not chosen or total([*chosen, column]) <= room:
            chosen.append(column)
    return [column for column in columns if column in chosen]


def total(columns: Sequence[Column]) -> int:
    return sum(column.columns + GAP for column in columns) - GAP


def heading_of(columns: Sequence[Column]) -> Line:
    return _line(columns, [Piece(column.title, Tone.DIM) for column in columns])


def row_of(columns: Sequence[Column], row: int) -> Line:
    return _line(columns, [column.cells[row] for column in columns])


def before(columns: Sequence[Column], title: str) -> int:
    """How far from the left a column begins."""
    place = [column.title for column in columns].index(title)
    return sum(column.columns + GAP for column in columns[:place])


def _line(columns: Sequence[Column], cells: Sequence[Piece]) -> Line:
    pieces: list[Piece] = []
    for number, (column, cell) in enumerate(zip(columns, cells, strict=True)):
        gap = " " * (GAP if number else 0)
        pieces.append(Piece(gap + pad(cell.text, column.columns, right=column.right), cell.tone))
    return tuple(pieces)
