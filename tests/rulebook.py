"""The rules of Prometheus as a file says them, and `promtool test rules` over copies of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

PROMETHEUS = Path(__file__).parent.parent / "monitoring" / "prometheus"
RULES = PROMETHEUS / "rules" / "ollama-appliance.rules.yml"
COMPAT = (PROMETHEUS / "compat" / "dcgm.rules.yml", PROMETHEUS / "compat" / "vllm.rules.yml")
TESTS = PROMETHEUS / "tests"
RECORDED = re.compile(r"\b\w+:\w+(?::\w+)*\b")  # names with a colon are those of recording rules
_FOREIGN = 'job="somebody-elses"'
_OWN = 'job="ollama-agent"'
_RESULT = re.compile(r"^Unit Testing:\s+(\S+)\n(.*?)(?=^Unit Testing:|\Z)", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Rule:
    name: str
    expr: str
    alert: bool
    wait: str  # `for`, or ""
    labels: Mapping[str, str]
    annotations: Mapping[str, str]

    @property
    def needs(self) -> frozenset[str]:
        return frozenset(RECORDED.findall(re.sub(r'"[^"]*"', "", self.expr)))


def rules_of(path: Path) -> tuple[Rule, ...]:
    content = yaml.load(path.read_text(), yaml.CSafeLoader)
    return tuple(_rule(each) for group in content["groups"] for each in group["rules"])


def _rule(each: Mapping[str, Any]) -> Rule:
    return Rule(
        name=each.get("alert") or each["record"],
        expr=each["expr"].strip(),
        alert="alert" in each,
        wait=each.get("for", ""),
        labels=each.get("labels", {}),
        annotations=each.get("annotations", {}),
    )


def render(rules: Iterable[Rule]) -> str:
    """JSON is YAML. Without annotations: promtool compares those word by word, and a test of words is not one of rules."""
    written = [
        {"alert" if rule.alert else "record": rule.name, "expr": rule.expr, "labels": dict(rule.labels)}
        | ({"for": rule.wait} if rule.wait else {})
        for rule in rules
    ]
    return json.dumps({"groups": [{"name": "all", "rules": written}]}, indent=1)


def cases_of(path: Path) -> dict[str, Any]:
    """A file of unit tests, with all series a second time under another job: that must never matter."""
    content: dict[str, Any] = yaml.load(path.read_text(), yaml.CSafeLoader)
    for test in content["tests"]:
        test["input_series"] = [
            copy for each in test.get("input_series", []) for copy in (each, *_foreign(each))
        ]  # fmt: skip
    return content


def _foreign(series: Mapping[str, str]) -> list[dict[str, str]]:
    name = series["series"]
    return [{"series": name.replace(_OWN, _FOREIGN), "values": series["values"]}] if _OWN in name else []


def expecting(cases: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, Any]:
    """Only what is expected of these rules."""
    alerts = {rule.name for rule in rules if rule.alert}
    recorded, kept = {rule.name for rule in rules} - alerts, list[dict[str, Any]]()
    for test in cases["tests"]:
        checks = [_of(each, rules) for each in test.get("alert_rule_test", ()) if each["alertname"] in alerts]
        values = [each for each in test.get("promql_expr_test", ()) if set(RECORDED.findall(each["expr"])) & recorded]
        if checks or values:
            kept.append({**test, "alert_rule_test": checks, "promql_expr_test": values})
    return {**cases, "tests": kept}


def _of(check: Mapping[str, Any], rules: Sequence[Rule]) -> dict[str, Any]:
    """Some alerts have several rules, which labels tell apart."""
    ours = [rule.labels.items() for rule in rules if rule.name == check["alertname"]]
    kept = [alert for alert in check["exp_alerts"] if any(labels <= alert["exp_labels"].items() for labels in ours)]
    return {**check, "exp_alerts": kept}


def world(rules: Sequence[Rule], place: int, changed: Rule) -> list[Rule]:
    """One rule exchanged for another, and those that it is made of."""
    names = _parts(rules, [rules[place]])
    return [changed if at == place else rule for at, rule in enumerate(rules) if at == place or rule.name in names]


def mentioned(rules: Sequence[Rule], cases: Mapping[str, Any]) -> list[Rule]:
    """The rules of which these unit tests expect something, and those that they are made of."""
    checks = [each for test in cases["tests"] for each in test.get("alert_rule_test", ())]
    asked = " ".join(each["expr"] for test in cases["tests"] for each in test.get("promql_expr_test", ()))
    kept = [rule for rule in rules if rule.name in asked or rule.name in {each["alertname"] for each in checks}]
    names = _parts(rules, kept)
    return [rule for rule in rules if rule in kept or rule.name in names]


def _parts(rules: Sequence[Rule], made: Sequence[Rule]) -> frozenset[str]:
    """What these rules are made of, and so on."""
    found, more = frozenset[str](), frozenset(part for rule in made for part in rule.needs)
    while more - found:
        found |= more
        more = frozenset(part for rule in rules if rule.name in found for part in rule.needs)
    return found


def promtool() -> str:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: sudo apt-get install prometheus")
    return program


def run_promtool(*words: str | Path) -> subprocess.CompletedProcess[str]:
    """One stream: what fails goes to stderr, where and what is tested to stdout."""
    return subprocess.run(
        [promtool(), *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )  # fmt: skip


def _tested(paths: Sequence[Path]) -> subprocess.CompletedProcess[str]:
    return run_promtool("test", "rules", *paths)


def failures(paths: Sequence[Path], *, workers: int = 2) -> dict[Path, str]:
    """What promtool says of each file of unit tests that does not hold."""
    shares = [share for start in range(workers) if (share := paths[start::workers])]
    with ThreadPoolExecutor(workers) as pool:
        ended = list(pool.map(_tested, shares))
    told = {Path(path): text for each in ended for path, text in _RESULT.findall(each.stdout)}
    assert set(told) == set(paths), "promtool did not come to its end"
    return {path: text.strip() for path, text in told.items() if text.strip() != "SUCCESS"}
