"""The rows of a table with what stands below them, in a window that may be too low for all of it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from appliance_agent.terminal_text import Line, Piece, Tone

_URGENT_FIRST: Final = (Tone.BAD, Tone.CARE, Tone.PLAIN, Tone.STRONG, Tone.DIM, Tone.GOOD)


@dataclass(frozen=True, slots=True)
class Block:
    row: Line
    reasons: list[Line]
    state: str
    tone: Tone


def shown(blocks: Sequence[Block], room: int) -> list[Line]:
    """What is well goes first when there is no room: its reasons, then its rows. The order stays."""
    urgent = sorted(range(len(blocks)), key=lambda place: _URGENT_FIRST.index(blocks[place].tone))
    rows = len(blocks) if len(blocks) <= room else max(room - 1, 0)  # one line says what is left out
    kept = urgent[:rows]
    spare = max(room - len(blocks), 0)
    lines: dict[int, list[Line]] = {}
    for place in kept:
        reasons = blocks[place].reasons[:spare]
        spare -= len(reasons)
        lines[place] = [blocks[place].row, *reasons]
    left = [blocks[place].state for place in urgent[rows:]]
    return [*chain.from_iterable(lines[place] for place in sorted(kept)), *_left_out(left)]


def faded(line: Line) -> Line:
    """As what was true once."""
    return tuple(replace(piece, tone=Tone.DIM) for piece in line)


def _left_out(states: Sequence[str]) -> list[Line]:
    if not states:
        return []
    counts = ", ".join(f"{count} {state}" for state, count in Counter(states).most_common())
    return [(Piece(f"{len(states)} more slot{'s' * (len(states) > 1)} in a higher window: {counts}", Tone.DIM),)]
