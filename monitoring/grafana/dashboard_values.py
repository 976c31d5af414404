"""What a dashboard is: rows of panels, each with what it asks Prometheus and how the answer is to be read. Data only.

Grafana's JSON is made of this by `dashboard_json`, and the picture by `picture`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

COLUMNS = 24  # of Grafana's grid


class Look(Enum):
    NUMBER = "stat"
    LINES = "timeseries"
    STATES = "state-timeline"
    HEAT = "heatmap"
    TABLE = "table"


class Colour(Enum):
    """By meaning; the names are Grafana's."""

    GOOD = "green"
    NOTICE = "yellow"
    WARNING = "orange"
    BAD = "red"
    WORST = "dark-red"
    CALM = "blue"
    SOON = "light-blue"
    LEAVING = "purple"
    AWAY = "#7a8291"


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """From this value on the colour is this; the first step has no value."""

    colour: Colour
    value: float | None = None


@dataclass(frozen=True, slots=True)
class Word:
    """What a value is shown as."""

    value: int
    text: str
    colour: Colour


@dataclass(frozen=True, slots=True)
class Column:
    """Of a table: one row for each GPU, joined from one query a column."""

    title: str
    expr: str
    unit: str = "short"
    decimals: int | None = None
    steps: tuple[Step, ...] = ()
    words: tuple[Word, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    title: str
    text: str  # one sentence: what it means, and what to do
    unit: str = "short"
    queries: tuple[Query, ...] = ()
    look: Look = Look.LINES
    width: int = 8
    height: int = 7
    least: float | None = 0
    most: float | None = None
    decimals: int | None = None
    steps: tuple[Step, ...] = ()
    words: tuple[Word, ...] = ()
    colours: tuple[tuple[str, Colour], ...] = ()  # of the series whose legend the expression matches
    stacked: bool = False
    bars: bool = False  # for what happens now and then
    points: bool = False  # for values that are there now and then
    nothing: str = ""  # shown where there is no value
    columns: tuple[Column, ...] = ()
    runbooks: tuple[str, ...] = ()  # names of alerts
    by_gpu: bool = False  # the series lead to the board of one GPU

    @property
    def asked(self) -> tuple[Query, ...]:
        return self.queries or tuple(Query(column.expr) for column in self.columns)


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    name: str
    label: str
    query: str
    current: str = ""  # "" is all
    many: bool = True


@dataclass(frozen=True, slots=True)
class Marks:
    """Vertical lines through every graph; the values are times in milliseconds."""

    title: str
    expr: str
    text: str
    colour: Colour


@dataclass(frozen=True, slots=True)
class Board:
    uid: str
    title: str
    text: str
    rows: tuple[Row, ...]
    variables: tuple[Variable, ...]
    marks: tuple[Marks, ...]
    since: str = "now-3h"

    @property
    def panels(self) -> list[Panel]:
        return [panel for row in self.rows for panel in row.panels]


@dataclass(frozen=True, slots=True)
class Place:
    x: int
    y: int
    width: int
    height: int


def places(board: Board) -> list[tuple[Row, Place, list[tuple[Panel, Place]]]]:
    """Of each row's title and of its panels, from left to right and down."""
    found: list[tuple[Row, Place, list[tuple[Panel, Place]]]] = []
    y = 0
    for row in board.rows:
        head, x, tallest = Place(0, y, COLUMNS, 1), 0, 0
        y += 1
        placed: list[tuple[Panel, Place]] = []
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            placed.append((panel, Place(x, y, panel.width, panel.height)))
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest
        found.append((row, head, placed))
    return found
