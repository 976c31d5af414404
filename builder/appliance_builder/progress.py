"""Progress for people and programs, always on stderr: bars on a terminal, quiet lines elsewhere, JSON lines on request."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import IO

from appliance_builder.ports import Reporter, Transfer

_QUIET_LINE_EVERY_S = 10.0
_UNITS = ("B", "kB", "MB", "GB", "TB")


def render_size(size: float) -> str:
    """Decimal units, as disks and `ollama list` count: `19.9 GB`."""
    for unit in _UNITS[:-1]:
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} {_UNITS[-1]}"


def render_duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


class _Counter:
    """Counts bytes and tells a callback now and then; the callback decides what to show."""

    def __init__(self, size: int, changed: Callable[[_Counter, str], None], now: Callable[[], float]) -> None:
        self.size, self.done, self.text = size, 0, ""
        self._changed, self._now = changed, now
        self._lock = threading.Lock()
        self.began_s = self._told_s = now()

    def advance(self, size: int) -> None:
        with self._lock:
            self.done += size
            if self._now() - self._told_s < _QUIET_LINE_EVERY_S:
                return
            self._told_s = self._now()
        self._changed(self, "progress")

    def restart(self, done: int) -> None:
        with self._lock:
            self.done = done

    def note(self, text: str) -> None:
        with self._lock:
            if text == self.text:
                return
            self.text = text
        if text:
            self._changed(self, "note")

    @property
    def elapsed_s(self) -> float:
        return self._now() - self.began_s

    @property
    def rate(self) -> float:
        return self.done / max(self.elapsed_s, 1e-3)


class LineReporter:
    """For logs: a line when something begins to matter, one every ten seconds of a long transfer, one at its end."""

    def __init__(self, stream: IO[str], *, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, now

    def step(self, message: str) -> None:
        self._line(message)

    def warning(self, message: str, *, hint: str) -> None:
        self._line(f"warning: {message}\nhint: {hint}")

    @contextmanager
    def transfer(self, name: str, *, size: int) -> Generator[Transfer, None, None]:
        def changed(counter: _Counter, event: str) -> None:
            left_s = (counter.size - counter.done) / max(counter.rate, 1)
            state = f"{render_size(counter.done)} of {render_size(counter.size)}, {render_size(counter.rate)}/s"
            tail = counter.text if event == "note" else f"{render_duration(left_s)} left"
            self._line(f"{name}: {state}, {tail}")

        counter = _Counter(size, changed, self._now)
        yield counter
        took = render_duration(counter.elapsed_s)
        self._line(f"{name}: {render_size(counter.done)} in {took}, {render_size(counter.rate)}/s")

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()


class JsonReporter:
    """One JSON object a line: `event` is step, warning, begin, progress, note or end; sizes in bytes, times in seconds."""

    def __init__(self, stream: IO[str], *, now: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._now = stream, now
        self._lock = threading.Lock()

    def step(self, message: str) -> None:
        self.event("step", message=message)

    def warning(self, message: str, *, hint: str) -> None:
        self.event("warning", message=message, hint=hint)

    @contextmanager
    def transfer(self, name: str, *, size: int) -> Generator[Transfer, None, None]:
        def changed(counter: _Counter, event: str) -> None:
            self.event(event, name=name, size=size, done=counter.done, note=counter.text)

        counter = _Counter(size, changed, self._now)
        self.event("begin", name=name, size=size)
        yield counter
        self.event("end", name=name, size=size, done=counter.done, seconds=round(counter.elapsed_s, 3))

    def event(self, event: str, **fields: object) -> None:
        with self._lock:
            self._stream.write(json.dumps({"event": event, **fields}, ensure_ascii=False) + "\n")
            self._stream.flush()


def choose(stream: IO[str], *, as_json: bool) -> AbstractContextManager[Reporter]:
    if as_json:
        return nullcontext(JsonReporter(stream))
    if not stream.isatty():
        return nullcontext(LineReporter(stream))
    from appliance_builder.bars import BarReporter  # noqa: PLC0415 - rich takes 0.1 s to import, only terminals need it

    return BarReporter(stream)
