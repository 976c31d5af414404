"""Every rule with every small mistake in it: some unit test must notice."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rulebook import RULES, TESTS, Rule, cases_of, expecting, failures, render, rules_of, run_promtool, world
from rulemutants import mutants

Suites = Mapping[str, Mapping[str, Any]]
# Mistakes that change nothing: how the mutant's name begins, and why.
EQUIVALENT = {
    'OllamaApplianceCollectStale: without interval="30s"': "what is asked more often and is that old is late anyway",
}


def test_no_mistake_in_a_rule_goes_unnoticed(tmp_path: Path) -> None:
    rules = rules_of(RULES)
    suites = {path.stem: cases_of(path) for path in TESTS.glob("*.yml") if not path.stem.startswith("compat")}
    every = [(place, each) for place, rule in enumerate(rules) for each in mutants(rule, _fires_for(rule, suites))]
    made = [
        (mutant, _write(tmp_path / str(number), world(rules, place, mutant.rule), suites))
        for number, (place, mutant) in enumerate(every)
    ]
    sound = {
        place: _write(tmp_path / f"sound-{place}", world(rules, place, rule), suites)
        for place, rule in enumerate(rules)
    }
    checked = run_promtool("check", "rules", *(tmp_path.glob(f"*/{RULES.name}")))
    assert checked.returncode == 0, checked.stdout

    failed = failures([path for paths in (*(paths for _, paths in made), *sound.values()) for path in paths])
    assert [rules[place].name for place, paths in sound.items() if failed.keys() & set(paths)] == [], (
        "not the mistake's fault"
    )
    unnoticed = [mutant.what for mutant, paths in made if not failed.keys() & set(paths)]

    print(f"{len(made)} mutants, {len(unnoticed)} unnoticed")
    assert "\n".join(what for what in unnoticed if not what.startswith(tuple(EQUIVALENT))) == ""
    assert len(unnoticed) == len(EQUIVALENT), "a reason for what no mutant does"


def _write(folder: Path, rules: Sequence[Rule], suites: Suites) -> list[Path]:
    """The changed rules, and the unit tests that have something to say of them."""
    folder.mkdir()
    (folder / RULES.name).write_text(render(rules))
    paths, windows = list[Path](), {f"budget-{rule.labels['long']}" for rule in rules if "long" in rule.labels}
    for name, cases in suites.items():
        kept = expecting(cases, rules)
        if kept["tests"] and (name in windows or not windows):
            paths.append(folder / f"{name}.yml")
            paths[-1].write_text(json.dumps(kept))
    return paths


def _fires_for(rule: Rule, suites: Suites) -> Mapping[str, str]:
    for labels in _expected(rule, suites):
        if rule.labels.items() <= labels.items():
            return {name: value for name, value in labels.items() if name not in rule.labels}
    return {"job": "ollama-agent", "instance": "h1"}


def _expected(rule: Rule, suites: Suites) -> Iterator[Mapping[str, str]]:
    for cases in suites.values():
        for test in cases["tests"]:
            for each in test.get("alert_rule_test", ()):
                if each["alertname"] == rule.name:
                    yield from (alert["exp_labels"] for alert in each["exp_alerts"])
