"""Graphs over time as SVG: lines, areas one on the other, bars and single points, with axes and legend. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from dashboard_values import Panel
from picture_ask import Line, Period, Points
from picture_scale import Axis, axis, time_ticks, without_unit
from picture_svg import FAINT, GRID, PALETTE, TEXT, Box, area, dot, fitting, line, path, rect, shade, text, width_of

SMALL: Final = 10.0
_TAIL: Final = 14.0  # below the plot, for the times
_LEGEND_LINE: Final = 14.0
_LEGEND_LINES: Final = 2


@dataclass(frozen=True, slots=True)
class Plot:
    box: Box
    period: Period
    axis: Axis

    def x(self, at_s: float) -> float:
        share = (at_s - self.period.start_s) / (self.period.end_s - self.period.start_s)
        return self.box.x + share * self.box.width

    def y(self, value: float) -> float:
        return self.box.bottom - self.axis.share(value) * self.box.height


def graph(
    panel: Panel, lines: Sequence[Line], box: Box, period: Period, marks: Mapping[str, Sequence[float]]
) -> Iterator[str]:
    """`marks` are times by the colour of their lines."""
    colours = colours_of(panel, lines)
    legend, legend_height = _legend(_entries(panel, lines, period), colours, box)
    low, high = _range(panel, lines)
    scale = axis(low, high, panel.unit, fixed=panel.most is not None, wanted=3 if box.height < 130 else 4)
    labels = [without_unit(tick, panel.unit) for tick in scale.ticks]
    left = max(width_of(label, SMALL) for label in labels) + 10
    plot = Plot(box.inside(left, 4, 6, legend_height + _TAIL), period, scale)
    yield from _frame(plot, labels)
    yield from _steps(panel, plot)
    for colour, times in marks.items():
        yield from (
            line(plot.x(at_s), plot.box.y, plot.x(at_s), plot.box.bottom, colour, dashes="2 3", opacity=0.8)
            for at_s in times
        )
    if not any(each.points for each in lines):
        yield text(
            plot.box.x + plot.box.width / 2,
            plot.box.y + plot.box.height / 2 + 4,
            panel.nothing or "no data",
            fill=FAINT,
            anchor="middle",
        )
    elif panel.stacked or panel.bars:
        yield from _stacked(panel, lines, colours, plot)
    else:
        for each, colour in zip(lines, colours, strict=True):
            yield from _single(panel, each, colour, plot, filled=len(lines) == 1)
    yield from legend


def colours_of(panel: Panel, lines: Sequence[Line]) -> list[str]:
    """Of a GPU the same in every panel that has one line for each."""
    gpus = [each.labels.get("gpu", "") for each in lines]
    numbered = len(set(gpus)) == len(gpus) and all(gpu.isdigit() for gpu in gpus)
    found = [PALETTE[(int(gpu) if numbered else index) % len(PALETTE)] for index, gpu in enumerate(gpus)]
    for index, each in enumerate(lines):
        for pattern, colour in panel.colours:
            if re.fullmatch(pattern, each.name):
                found[index] = shade(colour)
    return found


# --- what is around the data -----------------------------------------------------------------------------------------


def _frame(plot: Plot, labels: Sequence[str]) -> Iterator[str]:
    for tick, label in zip(plot.axis.ticks, labels, strict=True):
        y = plot.y(tick)
        yield line(plot.box.x, y, plot.box.right, y, GRID)
        yield text(plot.box.x - 5, y + 3.5, label, size=SMALL, fill=FAINT, anchor="end")
    for at_s, label in time_ticks(plot.period.start_s, plot.period.end_s, max(3, int(plot.box.width / 62))):
        x = plot.x(at_s)
        yield line(x, plot.box.y, x, plot.box.bottom, GRID)
        if plot.box.x + 12 < x < plot.box.right - 12:
            yield text(x, plot.box.bottom + 12, label, size=SMALL, fill=FAINT, anchor="middle")


def _steps(panel: Panel, plot: Plot) -> Iterator[str]:
    for step in panel.steps:
        if step.value is not None and plot.axis.least < step.value < plot.axis.most:
            y = plot.y(step.value)
            yield line(plot.box.x, y, plot.box.right, y, shade(step.colour), dashes="6 4", opacity=0.7)


def _range(panel: Panel, lines: Sequence[Line]) -> tuple[float, float]:
    if panel.stacked or panel.bars:
        sums: dict[float, float] = {}
        for each in lines:
            for at_s, value in each.points:
                sums[at_s] = sums.get(at_s, 0.0) + value
        values = list(sums.values())
    else:
        values = [value for each in lines for _, value in each.points]
    high = panel.most if panel.most is not None else max(values, default=1.0)
    low = panel.least if panel.least is not None else min(values, default=0.0)
    if high <= low:
        high = low + (1.0 if panel.unit != "s" else 0.001)
    return low, high


def _entries(panel: Panel, lines: Sequence[Line], period: Period) -> list[tuple[str, str]]:
    """Names, and the values of those that have one now."""
    wanted = not (panel.bars or panel.points) and len(lines) <= 4
    found: list[tuple[str, str]] = []
    for each in lines:
        goes_on = bool(each.points) and period.end_s - each.points[-1][0] < 2 * period.step_s
        shown = without_unit(each.last or 0, panel.unit, panel.decimals) if wanted and goes_on else ""
        found.append((each.name, f"  {shown}" if shown else ""))
    return found


def _legend(entries: Sequence[tuple[str, str]], colours: Sequence[str], box: Box) -> tuple[list[str], float]:
    """Its elements and its height: two lines at most, and how many more names there are."""
    placed: list[tuple[int, float, str, str]] = []
    row, x = 0, 0.0
    for (name, value), colour in zip(entries, colours, strict=True):
        words = fitting(name, SMALL, box.width - 30 - width_of(value, SMALL)) + value
        wide = width_of(words, SMALL) + 24
        if x and x + wide > box.width - 6:
            row, x = row + 1, 0.0
        if row >= _LEGEND_LINES:
            break
        placed.append((row, x, words, colour))
        x += wide
    rows = min(row + 1, _LEGEND_LINES)
    top = box.bottom - rows * _LEGEND_LINE
    found: list[str] = []
    for number, x, words, colour in placed:
        y = top + number * _LEGEND_LINE + 9
        found.append(rect(Box(box.x + x + 4, y - 4.5, 11, 3), colour, round_px=1.5))
        found.append(text(box.x + x + 19, y, words, size=SMALL))
    if left_out := len(entries) - len(placed):
        found.append(text(box.right - 4, box.bottom - 5, f"+{left_out}", size=SMALL, fill=FAINT, anchor="end"))
    return found, rows * _LEGEND_LINE + 3


# --- the data --------------------------------------------------------------------------------------------------------


def _single(panel: Panel, shown: Line, colour: str, plot: Plot, *, filled: bool) -> Iterator[str]:
    if panel.points:
        yield from (
            dot(plot.x(at_s), plot.y(value), 2.6, colour) for at_s, value in _beginnings(shown.points, plot.period)
        )
        return
    base = plot.box.bottom
    for part in unbroken(shown.points, plot.period.step_s):
        way = [(plot.x(at_s), plot.y(value)) for at_s, value in part]
        if len(way) == 1:
            yield dot(*way[0], 1.6, colour)
            continue
        if filled:
            yield area(way, [(x, base) for x, _ in way], colour, 0.12)
        yield path(way, colour)


def _stacked(panel: Panel, lines: Sequence[Line], colours: Sequence[str], plot: Plot) -> Iterator[str]:
    sums: dict[float, float] = {}
    for each, colour in zip(lines, colours, strict=True):
        for part in unbroken(each.points, plot.period.step_s):
            lower = [(plot.x(at_s), plot.y(sums.get(at_s, 0.0))) for at_s, _ in part]
            upper = [(plot.x(at_s), plot.y(sums.get(at_s, 0.0) + value)) for at_s, value in part]
            if len(part) == 1:  # as wide as a step
                half = plot.box.width * plot.period.step_s / (plot.period.end_s - plot.period.start_s) / 2
                lower = [(lower[0][0] - half, lower[0][1]), (lower[0][0] + half, lower[0][1])]
                upper = [(upper[0][0] - half, upper[0][1]), (upper[0][0] + half, upper[0][1])]
            yield area(upper, lower, colour, 0.8 if panel.bars else 0.4)
            if not panel.bars:
                yield path(upper, colour)
        for at_s, value in each.points:
            sums[at_s] = sums.get(at_s, 0.0) + value


def unbroken(points: Points, step_s: float) -> Iterator[Points]:
    """Parts without a gap."""
    begin = 0
    for index in range(1, len(points) + 1):
        if index == len(points) or points[index][0] - points[index - 1][0] > 1.5 * step_s:
            yield points[begin:index]
            begin = index


def _beginnings(points: Points, period: Period) -> Iterator[tuple[float, float]]:
    """Of each part the first: a rate shows one event for as long as its window is."""
    yield from (part[0] for part in unbroken(points, period.step_s) if part)


def time_axis(plot: Plot) -> Iterator[str]:
    for at_s, label in time_ticks(plot.period.start_s, plot.period.end_s, max(3, int(plot.box.width / 90))):
        x = plot.x(at_s)
        if plot.box.x + 12 < x < plot.box.right - 12:
            yield text(x, plot.box.bottom + 12, label, size=SMALL, fill=FAINT, anchor="middle")


def word_legend(words: Sequence[tuple[str, str]], box: Box) -> Iterator[str]:
    """Of colours by what they mean."""
    x = box.x
    for name, colour in words:
        yield rect(Box(x + 4, box.bottom - 11.5, 8, 8), colour, round_px=2)
        yield text(x + 16, box.bottom - 4, name, size=SMALL, fill=TEXT)
        x += width_of(name, SMALL) + 28
