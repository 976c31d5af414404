"""What is no graph: single numbers with their trend, states over time, heat maps and the table, as SVG. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from dashboard_values import Column, Panel, Step, Word
from picture_ask import Line, Period
from picture_charts import SMALL, Plot, time_axis, unbroken, word_legend
from picture_scale import Axis, written
from picture_svg import (
    EDGE,
    FAINT,
    HEAT,
    STRONG,
    TEXT,
    Box,
    area,
    fitting,
    line,
    path,
    rect,
    shade,
    text,
    width_of,
)

_COLUMNS: Final = 60  # of a heat map
_ANYTHING: Final = 0.05
_BOLD: Final = 1.1  # as wide as the same letters otherwise


def number(panel: Panel, lines: Sequence[Line], box: Box, period: Period) -> Iterator[str]:
    last = lines[0].last if lines else None
    word = _word(panel.words, last)
    if last is None:
        yield text(
            box.x + box.width / 2,
            box.y + box.height / 2 + 6,
            panel.nothing or "no data",
            size=15,
            fill=FAINT,
            anchor="middle",
        )
        return
    colour = shade(word.colour) if word else _colour(panel.steps, last)
    if word:
        yield rect(box.inside(-7, -2, -7, -5), colour, round_px=3)
    else:
        yield from _trend(lines[0], box, period, colour)
    words = word.text if word else written(last, panel.unit, panel.decimals)
    figure, _, unit = words.partition(" ") if not word else (words, "", "")
    size = min(30.0, box.height * 0.62)
    size = min(size, size * (box.width - 16) / max(width_of(figure, size) * _BOLD + width_of(unit, size * 0.55), 1))
    x = box.x + box.width / 2 - (width_of(unit, size * 0.55) / 2 + 2 if unit else 0)
    y = box.y + (box.height * 0.5 if word else box.height * 0.38) + size * 0.36
    yield text(x, y, figure, size=round(size, 1), fill=STRONG if word else colour, anchor="middle", bold=True)
    if unit:
        beside = x + width_of(figure, size) * _BOLD / 2 + 5
        yield text(beside, y, unit, size=round(size * 0.5, 1), fill=colour, bold=True)


def _trend(shown: Line, box: Box, period: Period, colour: str) -> Iterator[str]:
    values = [value for _, value in shown.points]
    low, high = min(values), max(values)
    strip = Box(box.x - 6, box.y + box.height * 0.62, box.width + 12, box.height * 0.38 + 4)
    plot = Plot(strip, period, Axis(low - (high - low or 1) * 0.15, high + (high - low or 1) * 0.05, ()))
    for part in unbroken(shown.points, period.step_s):
        way = [(plot.x(at_s), plot.y(value)) for at_s, value in part]
        if len(way) > 1:
            yield area(way, [(x, strip.bottom) for x, _ in way], colour, 0.18)
            yield path(way, colour, width=1.2)


def states(panel: Panel, lines: Sequence[Line], box: Box, period: Period) -> Iterator[str]:
    """One bar a line, in pieces with the word of each state."""
    left = max((width_of(each.name, 11) for each in lines), default=0) + 14
    plot = Plot(box.inside(left, 2, 8, 32), period, Axis(0, 1, ()))
    tall = plot.box.height / max(len(lines), 1)
    seen: dict[str, str] = {}
    for index, each in enumerate(lines):
        y = plot.box.y + index * tall
        yield text(plot.box.x - 8, y + tall / 2 + 4, each.name, anchor="end")
        for word, begin_s, end_s in _pieces(panel.words, each, period):
            colour = shade(word.colour)
            seen[word.text] = colour
            piece = Box(plot.x(begin_s), y + 2, plot.x(end_s) - plot.x(begin_s), tall - 4)
            yield rect(piece, colour, round_px=1.5, opacity=0.85)
            if width_of(word.text, 11) < piece.width - 8:
                yield text(piece.x + 5, y + tall / 2 + 4, word.text, fill=STRONG)
    yield from time_axis(plot)
    order = [word.text for word in panel.words if word.text in seen]
    yield from word_legend([(name, seen[name]) for name in order], box)


def _pieces(words: Sequence[Word], shown: Line, period: Period) -> Iterator[tuple[Word, float, float]]:
    begin: tuple[Word, float] | None = None
    before_s = period.start_s
    for at_s, value in shown.points:
        word = _word(words, value)
        if begin and (word is not begin[0] or at_s - before_s > 1.5 * period.step_s):
            yield begin[0], begin[1], at_s if word is not begin[0] else before_s
            begin = None
        if word and begin is None:
            begin = (word, at_s)
        before_s = at_s
    if begin:
        yield begin[0], begin[1], min(before_s + period.step_s, period.end_s)


def heat(panel: Panel, lines: Sequence[Line], box: Box, period: Period) -> Iterator[str]:
    """Of cumulative buckets, those that hold anything at all and one on each side."""
    buckets = _buckets(panel, lines, period)
    used = [index for index, (_, row) in enumerate(buckets) if max(row) > _ANYTHING]
    if not used:
        yield text(box.x + box.width / 2, box.y + box.height / 2, "no data", fill=FAINT, anchor="middle")
        return
    shown = buckets[max(used[0] - 1, 0) : used[-1] + 2]
    most = max(max(row) for _, row in shown)
    plot = Plot(box.inside(62, 4, 8, 32), period, Axis(0, 1, ()))
    wide, tall = plot.box.width / _COLUMNS, plot.box.height / len(shown)
    for place, (name, row) in enumerate(shown):
        y = plot.box.bottom - (place + 1) * tall
        if len(shown) <= 9 or place % 2 == 0:
            yield text(plot.box.x - 6, y + tall / 2 + 3.5, name, size=SMALL, fill=FAINT, anchor="end")
        for number_of, value in enumerate(row):
            if value > _ANYTHING:
                shade_of = HEAT[min(int(value / most * len(HEAT)), len(HEAT) - 1)]
                yield rect(Box(plot.box.x + number_of * wide, y + 0.5, wide - 0.7, tall - 1), shade_of)
    yield from time_axis(plot)
    yield from _heat_legend(most, box)


def _buckets(panel: Panel, lines: Sequence[Line], period: Period) -> list[tuple[str, list[float]]]:
    """Of each its bound in words, and what it alone holds in each column."""
    found: list[tuple[str, list[float]]] = []
    below = [0.0] * _COLUMNS
    for each in sorted(lines, key=_bound):
        counted = _columns(each, period, _COLUMNS)
        name = f"≤ {written(_bound(each), panel.unit)}" if _bound(each) != float("inf") else "longer"
        found.append((name, [max(here - less, 0.0) for less, here in zip(below, counted, strict=True)]))
        below = counted
    return found


def _bound(shown: Line) -> float:
    return float(shown.labels.get("le", "inf"))


def _columns(shown: Line, period: Period, columns: int) -> list[float]:
    """The mean of what was seen in each column."""
    found: list[list[float]] = [[] for _ in range(columns)]
    for at_s, value in shown.points:
        index = int((at_s - period.start_s) / (period.end_s - period.start_s) * columns)
        found[min(max(index, 0), columns - 1)].append(value)
    return [sum(values) / len(values) if values else 0.0 for values in found]


def _heat_legend(most: float, box: Box) -> Iterator[str]:
    y = box.bottom - 10
    yield text(box.x + 56, y + 6, "0", size=SMALL, fill=FAINT)
    for index, colour in enumerate(HEAT):
        yield rect(Box(box.x + 66 + index * 14, y - 1, 14, 7), colour)
    yield text(box.x + 70 + len(HEAT) * 14, y + 6, f"{written(most, 'short')} in a window", size=SMALL, fill=FAINT)


def table(panel: Panel, columns: Sequence[Sequence[Line]], box: Box) -> Iterator[str]:
    """One line for each host and GPU, as Grafana joins them."""
    values: dict[tuple[str, str], dict[int, float]] = {}
    for index, lines in enumerate(columns):
        for each in lines:
            key = (each.labels.get("instance", ""), each.labels.get("gpu", ""))
            values.setdefault(key, {})[index] = each.last or 0.0
    titles = ["Host", "GPU", *(column.title for column in panel.columns)]
    wide = _widths(titles, box.width - 16)
    tall = min(29.0, (box.height - 22) / max(len(values), 1))
    x = box.x + 8
    for title, width in zip(titles, wide, strict=True):
        yield text(x, box.y + 12, title, size=10.5, fill="#6e9fff", bold=True)
        x += width
    for number_of, (key, found) in enumerate(
        sorted(values.items(), key=lambda item: (item[0][0], item[0][1].zfill(4)))
    ):
        y = box.y + 20 + number_of * tall
        yield line(box.x + 4, y, box.right - 4, y, EDGE)
        x = box.x + 8
        for (words, colour, bold), width in zip(_cells(panel.columns, key, found), wide, strict=True):
            yield text(x, y + tall / 2 + 4, fitting(words, 11.5, width - 4), size=11.5, fill=colour, bold=bold)
            x += width


def _cells(
    columns: Sequence[Column], key: tuple[str, str], found: Mapping[int, float]
) -> Iterator[tuple[str, str, bool]]:
    """Their words, their colour, and whether that means something."""
    yield from ((words, TEXT, False) for words in key)
    for index, column in enumerate(columns):
        value = found.get(index)
        word = _word(column.words, value)
        if value is None:
            yield "", TEXT, False
        elif word:
            yield word.text, shade(word.colour), True
        elif column.steps:
            yield written(value, column.unit, column.decimals), _colour(column.steps, value), True
        else:
            yield written(value, column.unit, column.decimals), TEXT, False


def _widths(titles: Sequence[str], room: float) -> list[float]:
    needed = [width_of(title, 10.5) + 26 for title in titles]
    return [each * room / sum(needed) for each in needed]


def _word(words: Sequence[Word], value: float | None) -> Word | None:
    return next((word for word in words if value is not None and word.value == round(value)), None)


def _colour(steps: Sequence[Step], value: float) -> str:
    found = [step for step in steps if step.value is None or value >= step.value - 1e-9]
    return shade(found[-1].colour) if found else TEXT
