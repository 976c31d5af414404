"""Findings as people read them at night, and as programs do. Commands are never broken: they are there to be copied. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from appliance_agent.finding import Finding, Severity
from appliance_agent.terminal_text import Piece, Tone, clean, line_width, render, wrap

_WORDS: Final = {Severity.OK: "ok", Severity.WARNING: "warning", Severity.ERROR: "error"}
_TONES: Final = {Severity.OK: Tone.GOOD, Severity.WARNING: Tone.CARE, Severity.ERROR: Tone.BAD}
_INDENT: Final = 18  # of a sentence: the longest word and the longest topic before it
_NARROWEST: Final = 30
_MOST_LINES: Final = 20


def render_findings(findings: Sequence[Finding], *, colour: bool, width: int) -> str:
    lines = [line for finding in findings for line in _one(finding, colour=colour, width=width)]
    return "\n".join([*lines, "", _summary(findings, colour=colour)]) + "\n"


def render_json(findings: Sequence[Finding]) -> str:
    entries = [
        {
            "severity": _WORDS[finding.severity],
            "topic": finding.topic,
            "code": finding.code,
            "sentence": finding.sentence,
            "fix": list(finding.fix),
            "see": finding.see,
        }
        for finding in findings
    ]
    sound = all(finding.severity is not Severity.ERROR for finding in findings)
    return json.dumps({"ok": sound, "findings": entries}, indent=2, ensure_ascii=False) + "\n"


def _one(finding: Finding, *, colour: bool, width: int) -> Iterator[str]:
    room = max(width - _INDENT, _NARROWEST)
    head = Piece(f"{_WORDS[finding.severity]:8}", _TONES[finding.severity])
    sentence = wrap(clean(finding.sentence), room, lines=_MOST_LINES)
    yield _line(head, Piece(f" {finding.topic:8} "), Piece(sentence[0]), colour=colour)
    for rest in sentence[1:]:
        yield " " * _INDENT + rest
    for command in finding.fix:
        yield " " * _INDENT + _line(Piece(clean(command), Tone.STRONG), colour=colour)
    if finding.see:
        for line in wrap(f"see {clean(finding.see)}", room, lines=_MOST_LINES):
            yield " " * _INDENT + _line(Piece(line, Tone.DIM), colour=colour)


def _line(*pieces: Piece, colour: bool) -> str:
    return render(pieces, columns=line_width(pieces), colour=colour)


def _summary(findings: Sequence[Finding], *, colour: bool) -> str:
    errors = sum(finding.severity is Severity.ERROR for finding in findings)
    warnings = sum(finding.severity is Severity.WARNING for finding in findings)
    if not errors and not warnings:
        return _line(Piece("all is well", Tone.GOOD), colour=colour)
    counted = [_counted(errors, "error")] if errors else []
    counted += [_counted(warnings, "warning")] if warnings else []
    tone = Tone.BAD if errors else Tone.CARE
    advice = "" if errors else ": the agent can run"
    return _line(Piece(", ".join(counted) + advice, tone), colour=colour)


def _counted(count: int, word: str) -> str:
    return f"{count} {word}" + ("s" if count != 1 else "")
