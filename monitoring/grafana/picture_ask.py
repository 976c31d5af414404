"""What Prometheus says to the queries of a board over a time, with the names that a legend gives. Asks, decides nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from dashboard_values import Board, Look, Panel

Points = tuple[tuple[float, float], ...]
_SUBSTITUTED: Final = {"$job": "ollama-agent", "$instance": ".+", "$gpu": ".+"}


class Answer(Protocol):
    @property
    def labels(self) -> Mapping[str, str]: ...
    @property
    def points(self) -> Points: ...


class Source(Protocol):
    def at(self, expr: str, at_s: float) -> Sequence[Answer]: ...
    def between(self, expr: str, start_s: float, end_s: float, step_s: float) -> Sequence[Answer]: ...


@dataclass(frozen=True, slots=True)
class Period:
    start_s: float
    end_s: float
    step_s: float
    window_s: float  # of rates


@dataclass(frozen=True, slots=True)
class Line:
    name: str
    labels: Mapping[str, str]
    points: Points

    @property
    def last(self) -> float | None:
        return self.points[-1][1] if self.points else None


@dataclass(frozen=True, slots=True)
class Said:
    """To all that a board asks: lines by panel, of a table by column; times of what is marked."""

    period: Period
    lines: Mapping[str, tuple[tuple[Line, ...], ...]]
    marks: Mapping[str, tuple[float, ...]]


def ask(source: Source, board: Board, period: Period) -> Said:
    lines = {panel.title: _panel(source, panel, period) for panel in board.panels}
    marks = {each.title: _times(source, each.expr, period) for each in board.marks}
    return Said(period, lines, marks)


def _panel(source: Source, panel: Panel, period: Period) -> tuple[tuple[Line, ...], ...]:
    found: list[tuple[Line, ...]] = []
    for query in panel.asked:
        expr = _plain(query.expr, period)
        if panel.look is Look.TABLE:
            answers = source.at(expr, period.end_s)
        else:
            answers = source.between(expr, period.start_s, period.end_s, period.step_s)
        lines = [Line(_name(query.legend, each.labels), each.labels, _finite(each.points)) for each in answers]
        found.append(tuple(sorted((line for line in lines if line.points), key=lambda line: _natural(line.name))))
    return tuple(found)


def _times(source: Source, expr: str, period: Period) -> tuple[float, ...]:
    answers = source.between(_plain(expr, period), period.start_s, period.end_s, period.step_s)
    times = {value / 1000 for each in answers for _, value in each.points}
    return tuple(sorted(at_s for at_s in times if period.start_s <= at_s <= period.end_s))


def _plain(expr: str, period: Period) -> str:
    for name, value in {**_SUBSTITUTED, "$__rate_interval": f"{period.window_s:g}s"}.items():
        expr = expr.replace(name, value)
    return expr


def _name(legend: str, labels: Mapping[str, str]) -> str:
    return re.sub(r"\{\{(\w+)\}\}", lambda match: labels.get(match[1], ""), legend).strip()


def _finite(points: Points) -> Points:
    return tuple(point for point in points if point[1] - point[1] == 0)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
