"""The nodes of a Go text/template, frozen; `start` and `end` are offsets into the source, in characters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Text:
    """What is emitted as it stands: the blanks that trim markers eat are outside."""

    start: int
    end: int
    text: str


@dataclass(frozen=True, slots=True)
class Comment:
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Field:
    start: int
    end: int
    path: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    start: int
    end: int
    name: str
    path: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Dot:
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Constant:
    """A literal; None is `nil`, and numbers that are no plain integers are floats."""

    start: int
    end: int
    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Function:
    start: int
    end: int
    name: str


@dataclass(frozen=True, slots=True)
class Paren:
    start: int
    end: int
    pipe: Pipe


@dataclass(frozen=True, slots=True)
class Chain:
    start: int
    end: int
    base: Function | Paren
    path: tuple[str, ...]


Operand = Field | Variable | Dot | Constant | Function | Paren | Chain


@dataclass(frozen=True, slots=True)
class Command:
    start: int
    end: int
    arguments: tuple[Operand, ...]


@dataclass(frozen=True, slots=True)
class Pipe:
    """`$a, $b := command | command`; `assigns` is `=` in place of `:=`."""

    start: int
    end: int
    variables: tuple[str, ...]
    assigns: bool
    commands: tuple[Command, ...]


@dataclass(frozen=True, slots=True)
class Action:
    """`{{ pipe }}`; `end` is behind the braces, `trims` tells which sides eat blanks."""

    start: int
    end: int
    pipe: Pipe
    trims: tuple[bool, bool]


@dataclass(frozen=True, slots=True)
class Body:
    start: int
    end: int
    nodes: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Branch:
    """`else if` is a body with one branch in it, as in Go."""

    start: int
    end: int
    word: Literal["if", "range", "with"]
    pipe: Pipe
    body: Body
    otherwise: Body | None


@dataclass(frozen=True, slots=True)
class Jump:
    start: int
    end: int
    word: Literal["break", "continue"]


@dataclass(frozen=True, slots=True)
class Call:
    """`{{ template "name" pipe }}`, and what a `block` leaves at its place."""

    start: int
    end: int
    name: str
    pipe: Pipe | None


@dataclass(frozen=True, slots=True)
class Definition:
    start: int
    end: int
    name: str
    body: Body


Node = Text | Comment | Action | Branch | Jump | Call | Definition


@dataclass(frozen=True, slots=True)
class Template:
    source: str
    body: Body
    definitions: tuple[Definition, ...]


def operands(pipe: Pipe) -> Iterator[Operand]:
    """All of a pipeline's operands, those in parentheses too."""
    for command in pipe.commands:
        for argument in command.arguments:
            yield argument
            if isinstance(argument, Paren):
                yield from operands(argument.pipe)


def bodies(body: Body) -> Iterator[tuple[Body, tuple[Branch, ...]]]:
    """`body` and all within it, outermost first, each with the branches around it; definitions are no part of it."""
    yield from _bodies(body, ())


def _bodies(body: Body, around: tuple[Branch, ...]) -> Iterator[tuple[Body, tuple[Branch, ...]]]:
    yield body, around
    for node in body.nodes:
        if isinstance(node, Branch):
            yield from _bodies(node.body, (*around, node))
            if node.otherwise is not None:
                yield from _bodies(node.otherwise, (*around, node))
