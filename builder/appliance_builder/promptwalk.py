"""The ways in which a chat prompt can end, read off a template: literal text, and the node that emits it.

Follows one conversation through the tree with what Ollama passes in. A condition on anything unknown is followed both
ways, so nothing is said that does not hold for every prompt of that shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from enum import Enum
from typing import Final

from appliance_builder.gotree import (
    Action,
    Body,
    Branch,
    Call,
    Chain,
    Command,
    Comment,
    Constant,
    Definition,
    Dot,
    Field,
    Function,
    Jump,
    Node,
    Operand,
    Paren,
    Pipe,
    Template,
    Text,
    Variable,
)
from appliance_builder.promptvalues import (
    UNKNOWN,
    Assumed,
    Data,
    Said,
    Turn,
    Turns,
    Unknown,
    Value,
    call,
    member,
    truth,
)

_MOST_WAYS: Final = 2000  # real templates stay below 50


class Think(Enum):
    """What the client said; Ollama before 0.12.4 also shows templates that it said nothing."""

    UNSET = "unset"
    TRUE = "true"
    FALSE = "false"


@dataclass(frozen=True, slots=True)
class Piece:
    text: str
    node: Text | Action


@dataclass(frozen=True, slots=True)
class Way:
    """One way through the template so far.

    `tail` is the literal text since the last unknown one, which `since` places; `answer` is the same right before an
    answer of the model in the history, and `said` the action that writes this answer. The rest is what it depends on.
    """

    tail: tuple[Piece, ...] = ()
    since: int = 0
    answer: tuple[Piece, ...] | None = None
    said: Action | None = None
    assumed: Assumed = frozenset()
    scope: tuple[tuple[str, Value], ...] = ()
    jump: str = ""

    @property
    def text(self) -> str:
        return text_of(self.tail)


def text_of(pieces: Iterable[Piece]) -> str:
    return "".join(piece.text for piece in pieces)


class TooManyWaysError(Exception):
    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


def ways(template: Template, turns: tuple[Turn, ...], think: Think) -> frozenset[Way]:
    """How a prompt for `turns` can end; what a way depended on is forgotten."""
    data = Data(
        (
            ("Messages", Turns(turns)),
            ("Prompt", ""),  # this and the next two are of requests without messages
            ("Response", ""),
            ("Suffix", ""),
            ("Think", think is Think.TRUE),
            ("IsThinkSet", think is not Think.UNSET),
        )
    )
    ends = _body(template.body, frozenset([Way(scope=(("$", data),))]), data)
    return frozenset(replace(way, scope=(), assumed=frozenset()) for way in ends)


def _body(body: Body, here: frozenset[Way], dot: Value) -> frozenset[Way]:
    for node in body.nodes:
        here = frozenset(after for way in here for after in ([way] if way.jump else _node(node, way, dot)))
        if len(here) > _MOST_WAYS:
            raise TooManyWaysError(node.start)
    return here


def _node(node: Node, way: Way, dot: Value) -> Iterable[Way]:
    match node:
        case Text():
            return [replace(way, tail=(*way.tail, Piece(node.text, node)))]
        case Action():
            return [_action(node, way, dot)]
        case Jump():
            return [replace(way, jump=node.word)]
        case Call():
            return [replace(way, tail=(), since=node.start)]
        case Comment() | Definition():
            return [way]
        case Branch():
            after = _range(node, way, dot) if node.word == "range" else _either(node, way, dot)
            return (replace(end, scope=end.scope[: len(way.scope)]) for end in after)


def _action(node: Action, way: Way, dot: Value) -> Way:
    value = _pipe(node.pipe, way, dot)
    if node.pipe.variables:
        return _with_variable(way, node.pipe, value)
    match value:
        case "":
            return way
        case Said(turn) if turn.role == "assistant" and way.answer is None:
            return replace(way, tail=(), since=node.start, answer=way.tail, said=node)
        case str():
            return replace(way, tail=(*way.tail, Piece(value, node)))
        case _:
            return replace(way, tail=(), since=node.start)


def _either(node: Branch, way: Way, dot: Value) -> Iterator[Way]:
    value = _pipe(node.pipe, way, dot)
    for chosen, yes in _choices(way, value):
        inner = _with_variable(chosen, node.pipe, value) if node.pipe.variables else chosen
        if yes:
            yield from _body(node.body, frozenset([inner]), value if node.word == "with" else dot)
        elif node.otherwise is not None:
            yield from _body(node.otherwise, frozenset([inner]), dot)
        else:
            yield inner


def _range(node: Branch, way: Way, dot: Value) -> Iterator[Way]:
    value = _pipe(node.pipe, way, dot)
    for chosen, yes in _choices(way, value):
        if yes:  # of what is not known, once stands for any number of times: only what comes last matters
            elements: list[tuple[Value, Value]] = [(UNKNOWN, UNKNOWN)]
            if isinstance(value, Turns):
                elements = list(enumerate(value.items))
            here = frozenset([chosen])
            for index, element in elements:
                here = frozenset(_turns(node, here, (index, element)))
            yield from (replace(after, jump="") for after in here)
        elif node.otherwise is not None:
            yield from _body(node.otherwise, frozenset([chosen]), dot)
        else:
            yield chosen


def _turns(node: Branch, here: frozenset[Way], at: tuple[Value, Value]) -> Iterator[Way]:
    names = node.pipe.variables
    values = at[2 - len(names) :]
    for way in here:
        if way.jump == "break":
            yield way
            continue
        inner = replace(way, scope=(*way.scope, *zip(names, values, strict=True)))
        for after in _body(node.body, frozenset([inner]), at[1]):
            jump = "" if after.jump == "continue" else after.jump
            yield replace(after, scope=after.scope[: len(way.scope)], jump=jump)


def _choices(way: Way, value: Value) -> Iterator[tuple[Way, bool]]:
    known = truth(value, way.assumed)
    if known is not None:
        yield way, known
        return
    for yes in (True, False):
        named = isinstance(value, Unknown) and value.name
        yield (replace(way, assumed=way.assumed | {(named, yes)}) if named else way), yes


def _with_variable(way: Way, pipe: Pipe, value: Value) -> Way:
    name = pipe.variables[-1]
    if not pipe.assigns:
        return replace(way, scope=(*way.scope, (name, value)))
    scope = list(way.scope)
    for at in range(len(scope) - 1, -1, -1):
        if scope[at][0] == name:
            scope[at] = (name, value)
            break
    return replace(way, scope=tuple(scope))


def _pipe(pipe: Pipe, way: Way, dot: Value) -> Value:
    return _command(pipe.commands[0], way, dot) if len(pipe.commands) == 1 else UNKNOWN


def _command(command: Command, way: Way, dot: Value) -> Value:
    first, *rest = command.arguments
    if isinstance(first, Function):
        return call(first.name, [_operand(operand, way, dot) for operand in rest], way.assumed)
    return UNKNOWN if rest else _operand(first, way, dot)


def _operand(operand: Operand, way: Way, dot: Value) -> Value:
    match operand:
        case Constant(value=value):
            return value
        case Dot():
            return dot
        case Field(path=path):
            return member(dot, path)
        case Variable(name=name, path=path):
            return member(next((value for known, value in reversed(way.scope) if known == name), UNKNOWN), path)
        case Paren(pipe=pipe) | Chain(base=Paren(pipe=pipe)):
            return member(_pipe(pipe, way, dot), operand.path if isinstance(operand, Chain) else ())
        case Chain() | Function():
            return UNKNOWN
