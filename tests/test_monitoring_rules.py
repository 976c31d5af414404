"""Alerts and recording rules: promtool's unit tests, and what can be said of them by reading."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rulebook import RULES, TESTS, cases_of, failures, render, rules_of


@pytest.mark.parametrize("name", sorted(path.name for path in TESTS.glob("*.yml") if not path.name.startswith("compat")))
def test_alerts_fire_when_they_should_and_only_then(name: str, tmp_path: Path) -> None:
    (tmp_path / RULES.name).write_text(render(rules_of(RULES)))
    copy = tmp_path / name
    copy.write_text(yaml.dump(cases_of(TESTS / name)))

    assert failures([copy], workers=1) == {}
