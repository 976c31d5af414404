"""The overview as a picture, without Grafana: an SVG of what a Prometheus has.

.venv/bin/python monitoring/grafana/picture.py http://127.0.0.1:9090 dashboard.svg [--minutes 10] [--row GPUs]...
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from dashboard_overview import OVERVIEW
from dashboard_values import Board
from picture_ask import Period, Said, ask
from picture_page import picture
from picture_source import PrometheusApi

_STEPS: Final = 150  # as many points as there is room for in a panel
_SCRAPES: Final = 4  # in the window of a rate, as Grafana does it


def main() -> None:
    arguments = _arguments()
    try:
        text = drawn(PrometheusApi(arguments.prometheus), minutes=arguments.minutes, rows=arguments.row)
    except (OSError, ValueError, KeyError) as error:
        why = getattr(error, "reason", error)
        sys.exit(
            f"error: {arguments.prometheus} does not answer: {why}; give the address of a Prometheus, http://HOST:9090"
        )
    try:
        arguments.file.write_text(text)
    except OSError as error:
        sys.exit(f"error: {arguments.file} cannot be written: {error.strerror}")


def drawn(source: PrometheusApi, *, minutes: float, rows: Sequence[str] = ()) -> str:
    board = with_rows(rows)
    return picture(board, seen(source, board, minutes=minutes))


def with_rows(titles: Sequence[str]) -> Board:
    """None means all."""
    return replace(OVERVIEW, rows=tuple(row for row in OVERVIEW.rows if not titles or row.title in titles))


def seen(source: PrometheusApi, board: Board, *, minutes: float) -> Said:
    """Until now."""
    end_s = time.time()
    start_s = end_s - 60 * minutes
    step_s = max(1, round((end_s - start_s) / _STEPS))
    window_s = max(_SCRAPES * _interval_s(source), step_s)
    return ask(source, board, Period(start_s, end_s, step_s, window_s))


def _interval_s(source: PrometheusApi) -> float:
    """How often agents are scraped."""
    targets = source.ask("targets", state="active")["activeTargets"]
    every = [str(target["scrapeInterval"]) for target in targets if target["labels"].get("job") == "ollama-agent"]
    return max((_seconds(each) for each in every), default=15.0)


def _seconds(text: str) -> float:
    """Of `1m30s` and its like."""
    total, number = 0.0, ""
    for one in text.replace("ms", "f"):
        if one.isdigit():
            number += one
        else:
            total += float(number) * {"h": 3600, "m": 60, "s": 1, "f": 0.001}[one]
            number = ""
    return total


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw the overview as SVG from what a Prometheus has.")
    parser.add_argument("prometheus", help="its address, for example http://127.0.0.1:9090")
    parser.add_argument("file", type=Path, help="the SVG that is written")
    parser.add_argument("--minutes", type=float, default=10, help="how far back (10)")
    parser.add_argument("--row", action="append", default=[], help="a row by its title; again for more; all without it")
    return parser.parse_args()


if __name__ == "__main__":
    main()
