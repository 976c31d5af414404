"""The dashboards say what the code says, and keep the rules of dashboards; the linter that says so finds what is wrong."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dashboard
import pytest
from dashboardlint import findings, panels
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

Json = dict[str, Any]
MONITORING = Path(__file__).parent.parent / "monitoring"
FOLDER = MONITORING / "grafana/dashboards"
OVERVIEW, ONE_GPU = "ollama-appliance-overview", "ollama-appliance-gpu"
both = pytest.mark.parametrize("uid", [OVERVIEW, ONE_GPU])


def committed(uid: str) -> Json:
    loaded: Json = json.loads((FOLDER / f"{uid}.json").read_text())
    return loaded


def test_what_is_committed_is_what_the_code_makes() -> None:
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == {
        path.name: text for path, text in dashboard.files().items()
    }, "run `.venv/bin/python monitoring/grafana/dashboard.py`"


@both
def test_grafanas_types_read_it_and_write_it_again(uid: str) -> None:
    read = Dashboard.from_json(committed(uid))
    again = json.loads(JSONEncoder().encode(read))

    assert read.uid == uid
    assert Dashboard.from_json(again).panels is not None
    assert json.loads(JSONEncoder().encode(Dashboard.from_json(again))) == again
    assert [panel["title"] for panel in again["panels"]] == [panel["title"] for panel in committed(uid)["panels"]]


@both
def test_it_keeps_the_rules(uid: str) -> None:
    assert findings(committed(uid)) == []


def test_the_overview_answers_the_questions_in_their_order() -> None:
    rows = [panel["title"] for panel in committed(OVERVIEW)["panels"] if panel["type"] == "row"]

    assert rows == [
        "Can users work?", "User traffic", "Tokens and models", "Probes", "GPUs", "What the agent did", "Agent",
    ]  # fmt: skip


@both
def test_every_variable_can_be_chosen_and_the_job_is_the_agents(uid: str) -> None:
    variables = {each["name"]: each for each in committed(uid)["templating"]["list"]}

    assert list(variables) == ["datasource", "job", "instance", "gpu", "runbooks"]
    assert variables["job"]["current"]["value"] == "ollama-agent"


@both
def test_every_link_to_a_runbook_leads_to_a_file(uid: str) -> None:
    names = re.findall(r"\$\{runbooks\}/([\w.-]+)", json.dumps(committed(uid)))

    assert names
    assert {name for name in names if not (MONITORING / "runbooks" / name).is_file()} == set()


def test_a_gpu_of_the_overview_leads_to_its_page() -> None:
    linked = re.findall(r'"url": "(/d/[^"]+)"', json.dumps(committed(OVERVIEW)))

    assert len(linked) > 10
    assert {link.partition("?")[0] for link in linked} == {f"/d/{ONE_GPU}"}
    assert all("var-instance=" in link and "var-gpu=" in link for link in linked)


def test_the_files_for_provisioning_lead_to_the_dashboards() -> None:
    provider = (MONITORING / "grafana/provisioning/dashboards/ollama-appliance.yaml").read_text()
    source = (MONITORING / "grafana/provisioning/datasources/prometheus.yaml.example").read_text()

    assert re.findall(r"^ +path: (.+)$", provider, re.MULTILINE) == ["/var/lib/grafana/dashboards/ollama-appliance"]
    assert "type: prometheus" in source
    assert "timeInterval:" in source  # without it $__rate_interval is made for 15 s


# --- the linter ------------------------------------------------------------------------------------------------------


def _panel(board: Json, title: str) -> Json:
    found: Json = next(panel for panel in panels(board) if panel["title"] == title)
    return found


def _asked(board: Json, old: str, new: str) -> None:
    target = _panel(board, "Requests by status")["targets"][0]
    assert old in target["expr"]
    target["expr"] = target["expr"].replace(old, new)


def _described(board: Json) -> None:
    _panel(board, "Power")["description"] = "Watts"


def _without_unit(board: Json) -> None:
    del _panel(board, "Power")["fieldConfig"]["defaults"]["unit"]


def _wrong_unit(board: Json) -> None:
    _panel(board, "Power")["fieldConfig"]["defaults"]["unit"] = "bytes"


def _own_source(board: Json) -> None:
    _panel(board, "Power")["targets"][0]["datasource"] = {"type": "prometheus", "uid": "abc"}


def _renamed(board: Json) -> None:
    _panel(board, "Power")["title"] = "Temperature"


def _legend(board: Json) -> None:
    _panel(board, "Requests by status")["targets"][0]["legendFormat"] = "{{gpu}}"


def _narrowed(board: Json) -> None:
    _panel(board, "Power")["gridPos"]["w"] -= 1


def _moved(board: Json) -> None:
    _panel(board, "Power")["gridPos"]["x"] += 1


def _untitled_window(board: Json) -> None:
    _panel(board, "Errors (30 m)")["title"] = "Errors"


def _column(board: Json) -> None:
    del _panel(board, "Every GPU")["fieldConfig"]["overrides"][0]


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (lambda board: _asked(board, "requests_total", "requets_total"), "no such metric: appliance_requets_total"),
        (lambda board: _asked(board, "sum by (code)", "sum by (status)"), "no series has the label status"),
        (lambda board: _asked(board, 'job=~"$job", ', ""), "is not limited by $job"),
        (lambda board: _asked(board, ', gpu=~"$gpu"', ""), "is not limited by $gpu"),
        (lambda board: _asked(board, 'gpu=~"$gpu"', 'gpu=~"$gpu", vendor="x"'), "has no label vendor"),
        (lambda board: _asked(board, "$__rate_interval", "5m"), "a window that neither title nor variable tells: 5m"),
        (lambda board: _asked(board, "rate(", "max_over_time("), "is a counter outside of rate and increase"),
        (lambda board: _asked(board, "requests_total", "gpu_up"), "is a gauge inside of rate or increase"),
        (lambda board: _asked(board, "rate(", "rate(appliance_gpu_up + "), "a series has no selector"),
        (_described, "Power: is not described in one sentence"),
        (_without_unit, "Power: has no unit"),
        (_wrong_unit, "Power: has not the unit of"),
        (_own_source, "Power: has a query with a data source of its own"),
        (_renamed, "Temperature: twice"),
        (_legend, "Requests by status: has no label gpu for its legend"),
        (_narrowed, "places of the grid are empty"),
        (_moved, "lies on"),
        (_untitled_window, "has a window that neither title nor variable tells: 30m"),
        (_column, "column 'State' has no unit"),
    ],
)  # fmt: skip
def test_the_linter_finds(broken: Callable[[Json], None], said: str) -> None:
    board = copy.deepcopy(committed(OVERVIEW))
    broken(board)

    assert any(said in finding for finding in findings(board)), findings(board)
