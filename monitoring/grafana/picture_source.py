"""A Prometheus that is asked over HTTP."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

_DIRECT = build_opener(ProxyHandler({}))
_TIMEOUT_S = 30


@dataclass(frozen=True, slots=True)
class Series:
    labels: Mapping[str, str]
    points: tuple[tuple[float, float], ...]  # of seconds since the epoch and value


@dataclass(frozen=True, slots=True)
class PrometheusApi:
    """Every question raises OSError where there is no answer."""

    url: str

    def at(self, expr: str, at_s: float) -> list[Series]:
        found = self.ask("query", query=expr, time=f"{at_s:.3f}")["result"]
        return [Series(each["metric"], _points([each["value"]])) for each in found]

    def between(self, expr: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        words = {"start": f"{start_s:.3f}", "end": f"{end_s:.3f}", "step": f"{step_s:g}"}
        found = self.ask("query_range", query=expr, **words)["result"]
        return [Series(each["metric"], _points(each["values"])) for each in found]

    def label_values(self, label: str, series: str) -> list[str]:
        return [str(value) for value in self.ask(f"label/{label}/values", **{"match[]": series})]

    def ask(self, path: str, **words: str) -> Any:
        with _DIRECT.open(f"{self.url.rstrip('/')}/api/v1/{path}?{urlencode(words)}", timeout=_TIMEOUT_S) as answer:
            return json.load(answer)["data"]


def _points(values: list[list[Any]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(at_s), float(value)) for at_s, value in values)
