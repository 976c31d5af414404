"""Alerts and recording rules: promtool's unit tests, and what can be said of them by reading."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from rulebook import (
    COMPAT,
    PROMETHEUS,
    RULES,
    TESTS,
    Rule,
    cases_of,
    failures,
    mentioned,
    render,
    rules_of,
    run_promtool,
)

from appliance_agent.catalogue import CATALOGUE
from appliance_agent.metric import Kind
from appliance_agent.states import Reason, State

MONITORING = PROMETHEUS.parent
RUNBOOKS = MONITORING / "runbooks"
ALERTS = [rule for rule in rules_of(RULES) if rule.alert]
EVERY_RULE = [rule for path in (RULES, *COMPAT) for rule in rules_of(path)]
SEVERITIES = ("critical", "warning", "info")
TARGET = {"job", "instance"}
_STRING = re.compile(r'"[^"]*"')
_SELECTOR = re.compile(r"(?<![\w:])(appliance_\w+|up|process_\w+)(?![\w:])(\{[^}]*\})?")
_MATCHER = re.compile(r'(\w+)(?:=~|!~|!=|=)"([^"]*)"')
_GROUPING = re.compile(r"\b(?:by|on|without|ignoring|group_left|group_right) \(([^)]*)\)")


def _series() -> dict[str, set[str]]:
    """Every series of the catalogue with its labels."""
    found = {"up": set[str](), "process_start_time_seconds": set[str]()}
    for metric in CATALOGUE:
        if metric.kind is Kind.HISTOGRAM:
            found |= {f"{metric.name}_{end}": set(metric.labels) for end in ("sum", "count")}
            found[f"{metric.name}_bucket"] = {*metric.labels, "le"}
        else:
            found[metric.name] = set(metric.labels)
    return found


SERIES = _series()


@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.glob("*.yml")))
def test_rules_say_what_they_should_and_only_then(name: str, tmp_path: Path) -> None:
    cases, copy = cases_of(TESTS / name), tmp_path / name
    copy.write_text(json.dumps(cases, indent=1))
    for path in (RULES, *COMPAT):
        (tmp_path / path.name).write_text(render(mentioned(rules_of(path), cases)))

    assert failures([copy], workers=1) == {}


def test_each_alert_is_expected_to_fire_by_one_test_and_to_be_silent_by_another() -> None:
    fires, silent = Counter[str](), Counter[str]()
    for path in TESTS.glob("*.yml"):
        for test in cases_of(path)["tests"]:
            for check in test.get("alert_rule_test", ()):
                (fires if check["exp_alerts"] else silent)[check["alertname"]] += 1

    assert set(fires) == set(silent) == {alert.name for alert in ALERTS}


def test_each_name_of_another_exporter_is_computed_from_known_values() -> None:
    asked = [each["expr"] for path in TESTS.glob("compat-*.yml") for each in _values(path)]
    names = {rule.name for path in COMPAT for rule in rules_of(path)}

    assert {name for name in names if not name.startswith("appliance:")} <= set(asked)


def _values(path: Path) -> list[dict[str, str]]:
    return [each for test in cases_of(path)["tests"] for each in test.get("promql_expr_test", ())]


def test_a_whole_configuration_is_sound_with_each_variant_of_the_example(tmp_path: Path) -> None:
    example = (PROMETHEUS / "scrape.example.yml").read_text()
    for path in (RULES, *COMPAT):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        (tmp_path / path.parent.name / path.name).write_text(path.read_text())
    for variant in ("", "discovery", "tls"):
        text = example
        if variant:
            lines = re.findall(rf"^# {variant}:(.*)$", example, re.MULTILINE)
            text = example[: example.index("scrape_configs:\n")] + "\n".join(["scrape_configs:", *lines]) + "\n"
        text = text.replace("/etc/prometheus/", f"{tmp_path}/")
        for secret in ("ollama-appliance-ca.crt", "ollama-appliance.password"):
            (tmp_path / secret).write_text("")
        (tmp_path / "prometheus.yml").write_text(text)

        checked = run_promtool("check", "config", tmp_path / "prometheus.yml")

        assert checked.returncode == 0, checked.stdout
        assert "FAILED" not in checked.stdout


@pytest.mark.parametrize("rule", EVERY_RULE, ids=lambda rule: rule.name)
def test_a_rule_asks_only_for_series_and_labels_that_there_are(rule: Rule) -> None:
    plain = _STRING.sub('""', rule.expr)
    for found in _SELECTOR.finditer(rule.expr):
        name = found[1]
        assert name in SERIES, f"{name} is not in the catalogue"
        for label, value in _MATCHER.findall(found[2] or ""):
            assert label in SERIES[name] | TARGET, f"{name} has no label {label}"
            if label == "job":
                assert value == "ollama-agent"
    known = (
        {label for labels in SERIES.values() for label in labels}
        | TARGET
        | set(re.findall(r'"(\w+)", "[^"]*", "\w*", "[^"]*"', rule.expr))
    )
    made = {"UUID", "device", "modelName", "Hostname", "hostname", "DCGM_FI_DRIVER_VERSION", "model_name", "engine"}
    grouped = {label.strip() for labels in _GROUPING.findall(plain) for label in labels.split(",") if label.strip()}
    assert grouped <= known | made


def test_states_and_reasons_are_those_of_the_agent() -> None:
    states, reasons = {state.name.lower() for state in State}, {reason.value for reason in Reason}
    asked = [_MATCHER.findall(found[2] or "") for rule in EVERY_RULE for found in _SELECTOR.finditer(rule.expr)]
    assert {
        word for pairs in asked for label, value in pairs if label == "state" for word in value.split("|")
    } <= states
    restarts = [found[2] for rule in EVERY_RULE for found in _SELECTOR.finditer(rule.expr) if "restarts" in found[1]]
    named = {word for braces in restarts for _, value in _MATCHER.findall(braces) for word in value.split("|")}
    assert named - {"ollama-agent"} <= reasons


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: " ".join(rule.labels.values()) + " " + rule.name)
def test_an_alert_says_what_is_wrong_and_what_to_do(alert: Rule) -> None:
    words, description = alert.annotations, alert.annotations["description"]

    assert re.fullmatch(r"OllamaAppliance[A-Z][A-Za-z]+", alert.name)
    assert alert.labels["severity"] in SEVERITIES
    assert set(words) == {"summary", "description", "runbook_url"}
    assert words["runbook_url"] == f"/monitoring/runbooks/{alert.name.lower()}.md"
    assert len(words["summary"]) <= 120
    assert words["summary"].endswith(".")
    assert re.search(
        r"`|\b(look|check|read|reset|reboot|mend|have|find|raise|use|compare|shut|update|do what|see|ask)\b",
        description,
        re.IGNORECASE,
    ), "no corrective action"


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: " ".join(rule.labels.values()) + " " + rule.name)
def test_templates_use_only_labels_that_the_alert_carries(alert: Rule) -> None:
    carried = {
        name
        for path in TESTS.glob("*.yml")
        for test in cases_of(path)["tests"]
        for check in test.get("alert_rule_test", ())
        if check["alertname"] == alert.name
        for expected in check["exp_alerts"]
        for name in expected["exp_labels"]
    }
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(alert.annotations.values())))

    assert used <= carried
    templates = re.findall(r"\{\{(.*?)\}\}", " ".join(alert.annotations.values()))
    pattern = r" \$(labels\.\w+|value( \| humanize(1024|Duration|Percentage)?)?) "
    assert all(re.fullmatch(pattern, template) for template in templates)


def test_each_alert_has_a_runbook_and_no_runbook_is_left_over() -> None:
    assert {path.name for path in RUNBOOKS.iterdir()} == {f"{alert.name.lower()}.md" for alert in ALERTS}


@pytest.mark.parametrize("name", sorted({alert.name for alert in ALERTS}))
def test_a_runbook_says_what_it_means_what_was_done_and_what_to_do(name: str) -> None:
    text = (RUNBOOKS / f"{name.lower()}.md").read_text()
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)

    assert headings[:5] == [name, "For users", "What the agent does", "Look", "Do"]
    assert headings[5:] in ([], ["When to call NVIDIA or the vendor"])
    for metric in re.findall(r"\bappliance_\w+", text):
        assert metric in SERIES
    others = {rule.name for rule in ALERTS}
    assert set(re.findall(r"\bOllamaAppliance\w+", text)) <= others
    for field in re.findall(r"journalctl -u ollama-agent ([A-Z]+)=", text):
        assert field in {"SLOT", "GPU", "ACTION", "STATE"}


def test_the_readme_lists_the_alerts_as_they_are() -> None:
    text = (MONITORING / "README.md").read_text()
    rows = re.findall(r"^\| \[(\w+)\]\(runbooks/(\w+)\.md\) \| ([a-z, ]+) \|", text, re.MULTILINE)
    severities = dict[str, set[str]]()
    for alert in ALERTS:
        severities.setdefault(alert.name, set()).add(alert.labels["severity"])

    assert [(name, file) for name, file, _ in rows] == [(name, name.lower()) for name in severities]
    assert {name: set(told.split(", ")) for name, _, told in rows} == severities


def test_what_the_readme_mutes_are_alerts() -> None:
    text = (MONITORING / "README.md").read_text()
    block = next(block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "inhibit_rules" in block)
    rules = yaml.safe_load(block)["inhibit_rules"]
    named = set(re.findall(r"OllamaAppliance\w+", str(rules)))

    assert named
    assert named <= {alert.name for alert in ALERTS}
