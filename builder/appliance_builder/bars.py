"""Progress on a terminal: a bar for each transfer with rate and time left, through rich."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

from appliance_builder.ports import Transfer


class _Bar:
    def __init__(self, progress: Progress, task: TaskID) -> None:
        self._progress, self._task = progress, task

    def advance(self, size: int) -> None:
        self._progress.update(self._task, advance=size)

    def restart(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def note(self, text: str) -> None:
        self._progress.update(self._task, note=text)


class BarReporter:
    def __init__(self, stream: IO[str]) -> None:
        self._console = Console(file=stream, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[note]}", markup=False, style="yellow"),
            console=self._console,
            expand=True,
        )

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, message: str) -> None:
        self._console.print(Text(message))

    def warning(self, message: str, *, hint: str) -> None:
        self._console.print(Text(f"warning: {message}", style="yellow"))
        self._console.print(Text(f"hint: {hint}"))

    @contextmanager
    def transfer(self, name: str, *, size: int) -> Generator[Transfer, None, None]:
        task = self._progress.add_task(name, total=size, note="")
        yield _Bar(self._progress, task)
        self._progress.update(task, note="")
