"""A board with what Prometheus said to it, as one SVG: head, rows, panels. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Final

from dashboard_values import COLUMNS, Board, Look, Panel, Place, places
from picture_ask import Said
from picture_charts import graph
from picture_scale import long_unit
from picture_svg import EDGE, FAINT, PANEL, STRONG, TEXT, Box, line, page, rect, shade, text, width_of
from picture_tiles import heat, number, states, table

WIDTH: Final = 1240.0
_UNIT: Final = 26.0  # of the grid, downwards
_GAP: Final = 6.0
_EDGE: Final = 14.0
_HEAD: Final = 52.0


def picture(board: Board, said: Said) -> str:
    rows = places(board)
    height = _HEAD + max(place.y + place.height for _, _, panels in rows for _, place in panels) * _UNIT + _EDGE
    elements = [*_head(board, said)]
    for row, head, panels in rows:
        box = _box(head)
        elements.append(text(box.x + 2, box.y + 18, "▾", size=12, fill=FAINT))
        elements.append(text(box.x + 18, box.y + 18, row.title, size=14, fill=STRONG, bold=True))
        for panel, place in panels:
            elements.extend(_panel(board, panel, _box(place), said))
    return page(WIDTH, height, f"{board.title}: {board.text}", elements)


def _box(place: Place) -> Box:
    wide = (WIDTH - 2 * _EDGE + _GAP) / COLUMNS
    return Box(_EDGE + place.x * wide, _HEAD + place.y * _UNIT, place.width * wide - _GAP, place.height * _UNIT - _GAP)


def _head(board: Board, said: Said) -> Iterator[str]:
    yield text(_EDGE + 2, 31, board.title, size=17, fill=STRONG, bold=True)
    x = _EDGE + width_of(board.title, 17) * 1.1 + 30
    for marks in board.marks:
        yield line(x, 19, x, 36, shade(marks.colour), width=1.4, dashes="2 3")
        yield text(x + 8, 31, marks.title, size=11.5, fill=FAINT)
        x += width_of(marks.title, 11.5) + 28
    start, end = (datetime.fromtimestamp(at_s, UTC) for at_s in (said.period.start_s, said.period.end_s))
    x = WIDTH - _EDGE
    for words in _reversed_chips(board, f"{start:%Y-%m-%d %H:%M} to {end:%H:%M} UTC"):
        wide = width_of(words, 11.5) + 20
        x -= wide
        yield rect(Box(x, 15, wide, 24), PANEL, edge=EDGE, round_px=3)
        yield text(x + wide / 2, 31, words, size=11.5, fill=TEXT, anchor="middle")
        x -= 8


def _reversed_chips(board: Board, time: str) -> Sequence[str]:
    chosen = [f"{variable.label}: {variable.current or 'All'}" for variable in board.variables]
    return [time, *reversed(chosen)]


def _panel(board: Board, panel: Panel, box: Box, said: Said) -> Iterator[str]:
    yield rect(box, PANEL, edge=EDGE, round_px=3)
    answers = said.lines[panel.title]
    lines = [shown for each in answers for shown in each]
    inside = box.inside(8, 26, 8, 6)
    if panel.look is Look.NUMBER:
        yield from number(panel, lines, inside, said.period)
    yield text(box.x + 10, box.y + 18, panel.title, size=12, fill=STRONG if _filled(panel, lines) else TEXT, bold=True)
    if panel.look is Look.LINES and (unit := long_unit(panel.unit)):
        yield text(box.x + 20 + width_of(panel.title, 12) * 1.13, box.y + 18, unit, size=11, fill=FAINT)
    match panel.look:
        case Look.LINES:
            marks = {shade(each.colour): said.marks[each.title] for each in board.marks}
            yield from graph(panel, lines, inside, said.period, marks)
        case Look.STATES:
            yield from states(panel, lines, inside, said.period)
        case Look.HEAT:
            yield from heat(panel, lines, inside, said.period)
        case Look.TABLE:
            yield from table(panel, answers, inside)
        case Look.NUMBER:
            pass


def _filled(panel: Panel, lines: Sequence[object]) -> bool:
    return panel.look is Look.NUMBER and bool(panel.words) and bool(lines)
