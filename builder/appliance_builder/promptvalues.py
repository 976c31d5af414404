"""What is known of a value while a prompt template is followed, and what Go's functions make of it.

Roles, positions and flags are known; what people and models say is not, and what is not known stays so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    calls_tools: bool = False


@dataclass(frozen=True, slots=True)
class Turns:
    items: tuple[Turn, ...]


@dataclass(frozen=True, slots=True)
class Said:
    """What a turn says: not empty, otherwise unknown."""

    turn: Turn


@dataclass(frozen=True, slots=True)
class Data:
    """What `$` is: names that Ollama sets, all else unknown."""

    known: tuple[tuple[str, str | bool | Turns], ...]


@dataclass(frozen=True, slots=True)
class Unknown:
    """With a name it is the same thing wherever it is asked for."""

    name: str = ""


Value = str | int | float | bool | None | Turn | Turns | Said | Data | Unknown
Assumed = frozenset[tuple[str, bool]]
UNKNOWN: Final = Unknown()


def truth(value: Value, assumed: Assumed) -> bool | None:
    """Whether Go's `if` takes it for true; None where that is not known."""
    match value:
        case Unknown(name):
            return next((yes for known, yes in assumed if name and known == name), None)
        case Turns(items):
            return bool(items)
        case Turn() | Said() | Data():
            return True
        case _:
            return bool(value)


def member(value: Value, path: Sequence[str]) -> Value:
    if not path:
        return value
    match value:
        case Data(known):
            found = dict(known).get(path[0], Unknown("$." + ".".join(path)))
            return found if len(path) == 1 or isinstance(found, Unknown) else UNKNOWN
        case Turn() if len(path) == 1:
            return _of_turn(value, path[0])
        case _:
            return UNKNOWN


def _of_turn(turn: Turn, name: str) -> Value:
    match name:
        case "Role":
            return turn.role
        case "Content":
            return "" if turn.calls_tools else Said(turn)
        case "Thinking":
            return ""
        case "ToolCalls":
            return turn.calls_tools
        case _:
            return UNKNOWN


def call(name: str, values: Sequence[Value], assumed: Assumed) -> Value:
    if name in {"and", "or"} and values:
        return _logic(values, assumed, stops_at=name == "or")
    if name == "not" and len(values) == 1:
        known = truth(values[0], assumed)
        return UNKNOWN if known is None else not known
    function = _FUNCTIONS.get(name)
    return function(values) if function else UNKNOWN


def _logic(values: Sequence[Value], assumed: Assumed, *, stops_at: bool) -> Value:
    """`or` gives the first true value, `and` the first untrue one, both the last if there is none."""
    truths = [truth(value, assumed) for value in values]
    for value, known in zip(values, truths, strict=True):
        if known is None:
            # An unknown before it does not save an `and` that has a false in it: as a condition the result is known.
            return stops_at if stops_at in truths else UNKNOWN
        if known is stops_at:
            return value
    return values[-1]


def _equal(values: Sequence[Value]) -> Value:
    if len(values) < 2 or not all(isinstance(value, (str, int)) for value in values):
        return UNKNOWN
    return any(values[0] == other for other in values[1:])


def _unequal(values: Sequence[Value]) -> Value:
    equal = _equal(values)
    return not equal if isinstance(equal, bool) else UNKNOWN


def _comparing(holds: Callable[[int, int], bool]) -> Callable[[Sequence[Value]], Value]:
    def compare(values: Sequence[Value]) -> Value:
        match values:
            case [int() as left, int() as right]:
                return holds(left, right)
            case _:
                return UNKNOWN

    return compare


def _len(values: Sequence[Value]) -> Value:
    match values:
        case [Turns(items)]:
            return len(items)
        case [str() as text]:
            return len(text.encode())
        case _:
            return UNKNOWN


def _slice(values: Sequence[Value]) -> Value:
    match values:
        case [Turns(items), int() as start]:
            return Turns(items[start:])
        case [Turns(items), int() as start, int() as end]:
            return Turns(items[start:end])
        case [str() as text, int() as start, int() as end] if text.isascii():
            return text[start:end]
        case _:
            return UNKNOWN


def _index(values: Sequence[Value]) -> Value:
    match values:
        case [Turns(items), int() as at] if 0 <= at < len(items):
            return items[at]
        case _:
            return UNKNOWN


_FUNCTIONS: Final[dict[str, Callable[[Sequence[Value]], Value]]] = {
    "eq": _equal,
    "ne": _unequal,
    "lt": _comparing(lambda left, right: left < right),
    "le": _comparing(lambda left, right: left <= right),
    "gt": _comparing(lambda left, right: left > right),
    "ge": _comparing(lambda left, right: left >= right),
    "len": _len,
    "slice": _slice,
    "index": _index,
}
