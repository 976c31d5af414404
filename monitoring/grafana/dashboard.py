"""Writes the dashboards of this folder anew: `.venv/bin/python monitoring/grafana/dashboard.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from dashboard_gpu import ONE_GPU
from dashboard_json import rendered
from dashboard_overview import OVERVIEW

BOARDS: Final = (OVERVIEW, ONE_GPU)
_FOLDER: Final = Path(__file__).parent / "dashboards"


def files() -> dict[Path, str]:
    return {_FOLDER / f"{board.uid}.json": rendered(board) for board in BOARDS}


def main() -> None:
    _FOLDER.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
