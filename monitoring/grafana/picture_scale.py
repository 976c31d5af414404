"""Numbers as Grafana writes them, and the ticks of axes. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

_NICE: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_THOUSANDS: Final = ("", "k", "M", "G", "T", "P")
_SUFFIXES: Final = {"watt": "W", "hertz": "Hz", "celsius": "°C", "reqps": "req/s", "short": "", "none": ""}
_TIME_STEPS_S: Final = (15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)
_MINUTE, _HOUR, _DAY = 60, 3600, 86400


def written(value: float, unit: str, decimals: int | None = None) -> str:
    match unit:
        case "percentunit":
            return f"{_plain(value * 100, decimals)}%"
        case "s":
            return _duration(value, decimals)
        case "bytes" | "Bps":
            return _binary(value, decimals) + ("/s" if unit == "Bps" else "")
        case _:
            suffix = unit.removeprefix("suffix:") if unit.startswith("suffix:") else _SUFFIXES.get(unit, unit)
            return _thousands(value, decimals, suffix)


def without_unit(value: float, unit: str, decimals: int | None = None) -> str:
    """Where `long_unit` is told elsewhere; short ones stay."""
    return written(value, "short" if long_unit(unit) else unit, decimals)


def long_unit(unit: str) -> str:
    return unit.removeprefix("suffix:") if unit.startswith("suffix:") else _SUFFIXES[unit] if unit == "reqps" else ""


def _plain(value: float, decimals: int | None) -> str:
    if decimals is None:
        decimals = (
            0 if abs(value) >= 100 or math.isclose(value, round(value), abs_tol=1e-9) else 1 if abs(value) >= 10 else 2
        )
    text = f"{value:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _duration(value: float, decimals: int | None) -> str:
    size = abs(value)
    if size == 0:
        return "0 s"
    for least, factor, name in (
        (_DAY, _DAY, "d"),
        (_HOUR, _HOUR, "h"),
        (2 * _MINUTE, _MINUTE, "min"),
        (1, 1, "s"),
        (1e-3, 1e-3, "ms"),
    ):
        if size >= least:
            return f"{_plain(value / factor, decimals)} {name}"
    return f"{_plain(value * 1e6, decimals)} µs"


def _binary(value: float, decimals: int | None) -> str:
    power = min(int(math.log(abs(value), 1024)), 4) if abs(value) >= 1 else 0
    return f"{_plain(value / 1024**power, decimals)} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _thousands(value: float, decimals: int | None, suffix: str) -> str:
    power = min(int(math.log(abs(value), 1000) + 1e-9), 5) if abs(value) >= 1000 else 0
    text = _plain(value / 1000**power, decimals)
    if suffix in {"W", "Hz"}:
        return f"{text} {_THOUSANDS[power]}{suffix}"
    return f"{text}{' ' if suffix or power else ''}{_THOUSANDS[power]}{' ' if power and suffix else ''}{suffix}"


@dataclass(frozen=True, slots=True)
class Axis:
    least: float
    most: float
    ticks: tuple[float, ...]

    def share(self, value: float) -> float:
        """Of the way up, 0 to 1."""
        return min(max((value - self.least) / (self.most - self.least), 0.0), 1.0)


def axis(least: float, most: float, unit: str, *, fixed: bool, wanted: int = 4) -> Axis:
    """With ticks at round numbers, and none above a fixed end."""
    if most <= least:
        most = least + (1.0 if least == 0 else abs(least) * 0.1)
    step = _step((most - least) / wanted, binary=unit in {"bytes", "Bps"})
    first = math.floor(least / step + 1e-9)
    last = math.floor(most / step + 1e-9) if fixed else math.ceil(most / step - 1e-9)
    ticks = tuple(number * step for number in range(first, last + 1))
    return Axis(min(least, ticks[0]), max(most, ticks[-1]), ticks)


def _step(rough: float, *, binary: bool) -> float:
    if binary:
        return float(2 ** math.ceil(math.log2(max(rough, 1))))
    power = 10.0 ** math.floor(math.log10(rough))
    return next(nice * power for nice in _NICE if nice * power >= rough * 0.999)


def time_ticks(start_s: float, end_s: float, wanted: int) -> list[tuple[float, str]]:
    step = next((step for step in _TIME_STEPS_S if (end_s - start_s) / step <= wanted), _TIME_STEPS_S[-1])
    first = math.ceil(start_s / step)
    form = "%H:%M" if step >= _MINUTE else "%H:%M:%S"
    return [
        (number * step, datetime.fromtimestamp(number * step, UTC).strftime(form))
        for number in range(first, math.floor(end_s / step) + 1)
    ]
