"""The picture of the dashboard: numbers as Grafana writes them, round ticks, and an SVG that says what was asked."""

from __future__ import annotations

import math
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from dashboard_overview import OVERVIEW
from dashboard_values import COLUMNS, Board, Panel, places
from freeport import free_port
from picture import _seconds, with_rows
from picture_ask import Line, Period, Said, ask
from picture_charts import unbroken
from picture_page import picture
from picture_scale import axis, time_ticks, written
from picture_source import Series
from picture_svg import fitting, width_of

SHORT = ("Can users work?", "User traffic", "What the agent did")  # of the README
ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"
PERIOD = Period(1_795_867_380.0, 1_795_867_980.0, 4.0, 16.0)
GPUS = ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("value", "unit", "decimals", "text"),
    [
        (1, "percentunit", 0, "100%"),
        (0.0049, "percentunit", 1, "0.5%"),
        (0.25, "percentunit", None, "25%"),
        (0.0123, "s", None, "12.3 ms"),
        (0.000_05, "s", None, "50 µs"),
        (0, "s", None, "0 s"),
        (2.5, "s", None, "2.5 s"),
        (90, "s", None, "90 s"),
        (600, "s", None, "10 min"),
        (7200, "s", None, "2 h"),
        (1024**3 * 1.5, "bytes", None, "1.5 GiB"),
        (0, "bytes", None, "0 B"),
        (2048, "Bps", None, "2 KiB/s"),
        (1_980_000_000, "hertz", None, "1.98 GHz"),
        (431.7, "watt", None, "432 W"),
        (1500, "watt", None, "1.5 kW"),
        (71, "celsius", 0, "71 °C"),
        (1234, "suffix:tokens/s", None, "1.23 k tokens/s"),
        (7.5, "reqps", None, "7.5 req/s"),
        (3, "short", None, "3"),
        (-2, "short", 0, "-2"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_people_read_them(value: float, unit: str, decimals: int | None, text: str) -> None:
    assert written(value, unit, decimals) == text


@pytest.mark.parametrize(
    ("least", "most", "unit", "fixed", "ticks"),
    [
        (0, 1, "percentunit", True, (0, 0.25, 0.5, 0.75, 1)),
        (0, 7.3, "short", False, (0, 2, 4, 6, 8)),
        (0, 0.031, "s", False, (0, 0.01, 0.02, 0.03, 0.04)),
        (0, 80 * 1024**3, "bytes", False, tuple(number * 32 * 1024**3 for number in range(4))),
        (34, 71, "celsius", False, (30, 40, 50, 60, 70, 80)),
        (5, 5, "short", False, (5.0, 5.2, 5.4, 5.6)),
    ],
)  # fmt: skip
def test_ticks_are_round_and_hold_all_values(
    least: float, most: float, unit: str, fixed: bool, ticks: tuple[float, ...]
) -> None:
    made = axis(least, most, unit, fixed=fixed)

    assert made.ticks == pytest.approx(ticks)
    assert made.least <= least <= most <= made.most


def test_times_are_full_minutes() -> None:
    assert [label for _, label in time_ticks(PERIOD.start_s, PERIOD.end_s, 5)] == [
        "12:04", "12:06", "12:08", "12:10", "12:12",
    ]  # fmt: skip


@pytest.mark.parametrize(("text", "seconds"), [("15s", 15), ("1m30s", 90), ("500ms", 0.5), ("1h", 3600)])
def test_an_interval_of_prometheus_is_understood(text: str, seconds: float) -> None:
    assert _seconds(text) == pytest.approx(seconds)


def test_a_line_is_broken_where_there_was_nothing() -> None:
    points = tuple((float(at_s), 1.0) for at_s in (0, 4, 8, 20, 24, 40))

    assert [len(part) for part in unbroken(points, 4.0)] == [3, 2, 1]


def test_what_does_not_fit_is_cut() -> None:
    assert fitting("gpuhost7 GPU 0", 10, 1000) == "gpuhost7 GPU 0"
    assert fitting("gpuhost7 GPU 0", 10, 60).endswith("…")
    assert width_of(fitting("gpuhost7 GPU 0", 10, 60), 10) <= 60
    assert fitting("x", 10, 0) == ""


# --- the page --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Always:
    """A Prometheus in which every query has a value for each GPU, and that value is this."""

    value: float
    series: int = len(GPUS)

    def at(self, expr: str, at_s: float) -> list[Series]:
        assert "$" not in expr
        return [Series(labels, ((at_s, self.value),)) for labels in self._labels()]

    def between(self, expr: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        assert "$" not in expr
        count = int((end_s - start_s) / step_s) + 1
        points = tuple((start_s + number * step_s, self.value) for number in range(count))
        return [Series(labels, points) for labels in self._labels()]

    def _labels(self) -> Sequence[Mapping[str, str]]:
        return [
            {"instance": "a<b&c", "gpu": gpu, "le": bound, "reason": "exit", "xid": "94"}
            for gpu, bound in zip(GPUS[: self.series], ("0.5", "1.0", "2.5", "+Inf"), strict=False)
        ]


def texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter(f"{SVG}text")]


def drawn(source: Always, board: Board = OVERVIEW) -> str:
    return picture(board, ask(source, board, PERIOD))


def test_every_row_and_every_panel_has_its_title() -> None:
    shown = texts(drawn(Always(1.0)))

    assert {row.title for row in OVERVIEW.rows} <= set(shown)
    assert {panel.title for panel in OVERVIEW.panels} <= set(shown)
    assert "2026-11-28 12:03 to 12:13 UTC" in shown
    assert "no data" not in shown


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-12, 1e15, math.nan, math.inf])
def test_any_value_makes_a_well_formed_picture_without_a_number_that_is_none(value: float) -> None:
    svg = drawn(Always(value))

    ET.fromstring(svg)
    assert not {"nan", "inf", "None"} & set(svg.replace('"', " ").replace("L", " ").replace("M", " ").split())


def test_without_an_answer_panels_say_so() -> None:
    shown = texts(drawn(Always(1.0, series=0)))

    assert shown.count("no data") > 10
    assert "no requests" in shown


def test_names_from_labels_cannot_break_the_picture() -> None:
    assert any("a<b&c" in text for text in texts(drawn(Always(1.0))))


def test_what_is_drawn_stays_inside_the_page() -> None:
    root = ET.fromstring(drawn(Always(1.0)))
    wide, tall = float(root.attrib["width"]), float(root.attrib["height"])

    for element in root.iter(f"{SVG}rect"):
        x, y = float(element.attrib["x"]), float(element.attrib["y"])
        assert -0.1 <= x <= x + float(element.attrib["width"]) <= wide + 0.1
        assert -0.1 <= y <= y + float(element.attrib["height"]) <= tall + 0.1


def test_the_same_answers_make_the_same_picture() -> None:
    assert drawn(Always(0.5)) == drawn(Always(0.5))


def test_panels_lie_beside_each_other_and_fill_the_page() -> None:
    for row, head, panels in places(OVERVIEW):
        assert head.width == COLUMNS, row.title
        assert {place.x + place.width for _, place in panels} >= {COLUMNS}


def test_values_that_are_no_number_are_left_out_of_lines() -> None:
    panel: Panel = OVERVIEW.rows[1].panels[0]
    said: Said = ask(Always(math.nan), OVERVIEW, PERIOD)
    lines: Sequence[Sequence[Line]] = said.lines[panel.title]

    assert [line for each in lines for line in each] == []


def test_the_committed_pictures_are_of_this_page() -> None:
    for file, board in (("dashboard.svg", OVERVIEW), ("dashboard-short.svg", with_rows(SHORT))):
        shown = set(texts((ROOT / "docs" / file).read_text()))

        assert {row.title for row in board.rows} | {panel.title for panel in board.panels} <= shown


def test_a_prometheus_that_does_not_answer_is_one_sentence(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    program = ROOT / "monitoring/grafana/picture.py"

    done = subprocess.run(
        [sys.executable, program, url, tmp_path / "x.svg"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {url} does not answer: ")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "x.svg").exists()
