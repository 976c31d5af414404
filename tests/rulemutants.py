"""Rules with one mistake each: what somebody could type wrong in an expression or a duration. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final

from rulebook import Rule

_FLIPPED: Final = {"==": "!=", "!=": "==", ">": "<=", "<": ">=", ">=": "<", "<=": ">"}
_INVERTED: Final = {"=": "!=", "!=": "=", "=~": "!~", "!~": "=~"}
_WORDS: Final = {
    "and": ("or", "unless"), "or": ("and", "unless"), "unless": ("and", "or"), "max": ("min",), "min": ("max",),
    "sum": ("max",), "avg_over_time": ("max_over_time", "min_over_time"), "max_over_time": ("min_over_time",),
    "count": ("sum",), "rate": ("irate",), "changes": ("resets",), "absent": ("count",),
}  # fmt: skip
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_BRACES = re.compile(r"\{[^}]*\}")
_MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)("[^"]*")')
_WINDOW = re.compile(r"\[(\d+)([smhd])\]")
_COMPARISON = re.compile(r"[=!<>]=|[<>]")
_NUMBER = re.compile(r"(?<![\w.:\"])\d+(?:\.\d+)?(?![\w.\]\"])")
_WORD = re.compile(r"(?<![\w:])(" + "|".join(_WORDS) + r")(?![\w:])")


@dataclass(frozen=True)
class Mutant:
    what: str
    rule: Rule


def mutants(rule: Rule, fires_for: Mapping[str, str]) -> Iterator[Mutant]:
    """`fires_for` are labels of one alert that is expected of the rule."""
    seen, title = {rule.expr}, " ".join([rule.name, rule.labels.get("long", "")]).strip()
    for kind in (_constant, _comparisons, _numbers, _matchers, _windows, _words):
        for what, expr in kind(rule.expr, fires_for):
            if expr not in seen:
                seen.add(expr)
                yield Mutant(f"{title}: {what}: {' '.join(expr.split())}", replace(rule, expr=expr))
    if rule.wait:
        for text in ("", _times(rule.wait, 2), _times(rule.wait, 0.5)):
            yield Mutant(f"{title}: for {text or 'removed'}", replace(rule, wait=text))


_Made = Iterator[tuple[str, str]]


def _constant(expr: str, labels: Mapping[str, str]) -> _Made:
    always = "vector(1)"
    for name, value in labels.items():
        always = f'label_replace({always}, "{name}", "{value}", "", "")'
    yield "always", always
    yield "never", f"({expr}) and on () vector(1) > 2"


def _comparisons(expr: str, _: Mapping[str, str]) -> _Made:
    yield from _each(_COMPARISON, expr, lambda found: [_FLIPPED[found[0]]], "flipped")


def _numbers(expr: str, _: Mapping[str, str]) -> _Made:
    def others(found: re.Match[str]) -> list[str]:
        number = float(found[0])
        if number:
            return [f"{number / 2:g}", f"{number * 2:.10g}"]
        return ["1"] if expr[: found.start()].rstrip().endswith("==") else ["2"]

    yield from _each(_NUMBER, expr, others, "another number")


def _matchers(expr: str, _: Mapping[str, str]) -> _Made:
    for braces in _BRACES.finditer(expr):
        parts = list(_MATCHER.finditer(braces[0]))
        for left_out in parts:
            others = ",".join(part[0] for part in parts if part is not left_out)
            inverted = ",".join(
                part[1] + (_INVERTED[part[2]] if part is left_out else part[2]) + part[3] for part in parts
            )
            for what, inside in (("without", others), ("inverted", inverted)):
                yield f"{what} {left_out[0]}", f"{expr[: braces.start()]}{{{inside}}}{expr[braces.end() :]}"


def _windows(expr: str, _: Mapping[str, str]) -> _Made:
    def others(found: re.Match[str]) -> list[str]:
        return [f"[{_times(found[1] + found[2], factor)}]" for factor in (0.5, 2)]

    yield from _each(_WINDOW, expr, others, "another window")


def _words(expr: str, _: Mapping[str, str]) -> _Made:
    yield from _each(_WORD, expr, lambda found: list(_WORDS[found[0]]), "another word")


def _each(pattern: re.Pattern[str], expr: str, others: Callable[[re.Match[str]], list[str]], what: str) -> _Made:
    """Every place outside braces once, replaced by each of the others."""
    blind = _BRACES.sub(lambda braces: "{" + "\x00" * (len(braces[0]) - 2) + "}", expr)
    for found in pattern.finditer(blind):
        for other in others(found):
            yield what, f"{expr[: found.start()]}{other}{expr[found.end() :]}"


def _times(duration: str, factor: float) -> str:
    return f"{int(int(duration[:-1]) * _SECONDS[duration[-1]] * factor)}s"
