"""What is wrong with a dashboard of Grafana, as sentences. JSON in, findings out; knows the agent's catalogue."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from appliance_agent.catalogue import CATALOGUE
from appliance_agent.metric import Kind, Metric

Json = dict[str, Any]
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}
# Of the process itself, and of Prometheus.
_OTHERS: Final = {
    "process_cpu_seconds_total": Kind.COUNTER,
    "process_resident_memory_bytes": Kind.GAUGE,
    "up": Kind.GAUGE,
}
_TARGET_LABELS: Final = frozenset({"job", "instance"})
_SELECTOR: Final = re.compile(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}(\[[^\]]+\])?")
_MATCHER: Final = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')
_GROUPING: Final = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
_UNITS: Final = {
    "_celsius": "celsius", "_watts": "watt", "_bytes": "bytes", "_ratio": "percentunit", "_hertz": "hertz", "_seconds": "s",
}  # fmt: skip
_COLUMNS: Final = 24


@dataclass(frozen=True, slots=True)
class Selected:
    """One series of a query: its name, its matchers, its window, and what is written right before it."""

    name: str
    matchers: Mapping[str, str]
    window: str
    before: str


def selections(expr: str) -> list[Selected]:
    return [
        Selected(
            match[1],
            {label: sign + value for label, sign, value in _MATCHER.findall(match[2])},
            (match[3] or "")[1:-1],
            expr[: match.start()],
        )
        for match in _SELECTOR.finditer(expr)
    ]


def panels(board: Json) -> list[Json]:
    """Without the titles of rows."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def expressions(board: Json) -> Iterator[tuple[str, str]]:
    """Everything that is asked of Prometheus, and where it stands; of variables, the series that they look at."""
    for panel in panels(board):
        yield from ((panel["title"], target["expr"]) for target in panel["targets"])
    yield from ((note["name"], note["expr"]) for note in board["annotations"]["list"])
    for variable in board["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], label_values(variable["query"])[0]


def label_values(query: str) -> tuple[str, str]:
    """Of `label_values(series, label)`: the series with its selector, and the label."""
    match = re.fullmatch(r"label_values\((.*), (\w+)\)", query)
    assert match, query
    return match[1] if "{" in match[1] else match[1] + "{}", match[2]


def findings(board: Json) -> list[str]:
    found = [f"{where}: {what}" for where, expr in expressions(board) for what in _names(expr)]
    titles = [panel["title"] for panel in panels(board)]
    found += [f"{title}: twice" for title in sorted({title for title in titles if titles.count(title) > 1})]
    for panel in panels(board):
        found += [f"{panel['title']}: {what}" for what in _panel(panel)]
    return [*found, *_holes(board)]


def _panel(panel: Json) -> Iterator[str]:
    if not panel["title"]:
        yield "has no title"
    text = panel.get("description", "")
    if not re.fullmatch(r"[^\n]{20,200}\.", text):
        yield f"is not described in one sentence: {text!r}"
    if not panel["targets"]:
        yield "asks nothing"
    defaults = panel["fieldConfig"]["defaults"]
    if panel["type"] == "table":
        yield from _columns(panel)
    elif not defaults.get("unit"):
        yield "has no unit"
    if panel["datasource"] != SOURCE:
        yield "has a data source of its own"
    for target in panel["targets"]:
        if target["datasource"] != SOURCE:
            yield "has a query with a data source of its own"
        yield from _query(panel, target)


def _columns(panel: Json) -> Iterator[str]:
    titled = {override["matcher"]["options"]: override["properties"] for override in panel["fieldConfig"]["overrides"]}
    renamed = panel["transformations"][-1]["options"]["renameByName"]
    for target in panel["targets"] if len(panel["targets"]) > 1 else ():
        title = renamed.get(f"Value #{target['refId']}", "")
        if not any(each["id"] == "unit" for each in titled.get(title, [])):
            yield f"column {title or target['refId']!r} has no unit"


def _query(panel: Json, target: Json) -> Iterator[str]:
    expr = target["expr"]
    for chosen in selections(expr):
        wanted = {"job": "=~$job", "instance": "=~$instance"} | (
            {"gpu": "=~$gpu"} if "gpu" in _labels(chosen.name) else {}
        )
        yield from (
            f"{chosen.name} is not limited by ${name}" for name in wanted if chosen.matchers.get(name) != wanted[name]
        )
        yield from _window(chosen, _titles(panel, target))
    bare = _SELECTOR.fullmatch(expr)
    unit = next((unit for suffix, unit in _UNITS.items() if bare and bare[1].endswith(suffix)), None)
    if unit and panel["type"] != "table" and panel["fieldConfig"]["defaults"].get("unit") != unit:
        yield f"has not the unit of {expr}"
    known = _TARGET_LABELS | {"le"} | {label for chosen in selections(expr) for label in _labels(chosen.name)}
    for label in re.findall(r"\{\{(\w+)\}\}", target.get("legendFormat", "")):
        if label not in known or (_grouped(expr) and label not in _grouped(expr)):
            yield f"has no label {label} for its legend"


def _window(chosen: Selected, titles: str) -> Iterator[str]:
    counts = _kind(chosen.name) is not Kind.GAUGE
    inside = re.search(r"\b(rate|increase|irate)\($", chosen.before)
    if counts and not inside:
        yield f"{chosen.name} is a counter outside of rate and increase"
    if not counts and inside:
        yield f"{chosen.name} is a gauge inside of rate or increase"
    if inside and chosen.window != "$__rate_interval" and f"({chosen.window[:-1]} {chosen.window[-1:]})" not in titles:
        yield f"{chosen.name} has a window that neither title nor variable tells: {chosen.window}"


def _titles(panel: Json, target: Json) -> str:
    renamed = [each["options"].get("renameByName", {}) for each in panel.get("transformations", [])]
    return " ".join([panel["title"], *(names.get(f"Value #{target['refId']}", "") for names in renamed)])


def _grouped(expr: str) -> set[str]:
    """What is left of the labels by the outermost words of grouping, where the expression begins with them."""
    match = re.match(r"\(*(?:sum|max|min|avg|count) by \(([^)]*)\)", expr)
    return set(match[1].replace(" ", "").split(",")) if match else set()


def _holes(board: Json) -> Iterator[str]:
    """The grid is full: what stands side by side fills the page, and nothing lies on anything else."""
    taken: dict[tuple[int, int], str] = {}
    for panel in board["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                if (x, y) in taken:
                    yield f"{panel['title']} lies on {taken[x, y]}"
                    return
                taken[x, y] = panel["title"]
    height = max(y for _, y in taken) + 1
    if len(taken) != height * _COLUMNS:
        yield f"{height * _COLUMNS - len(taken)} places of the grid are empty"


# --- the catalogue ---------------------------------------------------------------------------------------------------


def _metric(name: str) -> Metric | None:
    base = re.sub(r"_(bucket|sum|count)$", "", name)
    for metric in CATALOGUE:
        if metric.name == name and metric.kind is not Kind.HISTOGRAM:
            return metric
        if metric.name == base and metric.kind is Kind.HISTOGRAM:
            return metric
    return None


def _kind(name: str) -> Kind:
    metric = _metric(name)
    return metric.kind if metric else _OTHERS.get(name, Kind.GAUGE)


def _labels(name: str) -> frozenset[str]:
    metric = _metric(name)
    return frozenset(metric.labels if metric else ()) | ({"le"} if name.endswith("_bucket") else frozenset())


def _names(expr: str) -> Iterator[str]:
    """Metrics and labels that nobody emits."""
    known: set[str] = set(_TARGET_LABELS)
    for chosen in selections(expr):
        if _metric(chosen.name) is None and chosen.name not in _OTHERS:
            yield f"no such metric: {chosen.name}"
            continue
        labels = _labels(chosen.name) | _TARGET_LABELS
        known |= labels
        yield from (f"{chosen.name} has no label {label}" for label in chosen.matchers if label not in labels)
    for group in _GROUPING.findall(expr):
        yield from (
            f"no series has the label {label}"
            for label in group.replace(" ", "").split(",")
            if label and label not in known
        )
    if "appliance_" in _SELECTOR.sub("", expr):
        yield "a series has no selector"
