"""The tags around a model's thinking, found in its template the way Ollama's server finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from appliance_builder.gotree import (
    Action,
    Body,
    Branch,
    Call,
    Command,
    Comment,
    Constant,
    Definition,
    Field,
    Pipe,
    Template,
    Text,
    Variable,
    bodies,
    operands,
)

_TAG: Final = re.compile(r"<[^\s<>\[\]{}\"\\`]+>|\[[^\s<>\[\]{}\"\\`]+\]")


@dataclass(frozen=True, slots=True)
class Tags:
    opening: str
    closing: str

    @property
    def look_like_tags(self) -> bool:
        return all(_TAG.fullmatch(tag) for tag in (self.opening, self.closing)) and self.opening != self.closing

    @property
    def newline(self) -> str:
        """What the models that use them write behind the opening tag."""
        return "\n" if self.opening.startswith("<") else ""


KNOWN_TAGS: Final = (Tags("<think>", "</think>"), Tags("[THINK]", "[/THINK]"))


def infer_tags(template: Template) -> Tags:
    """What Ollama (0.9 and newer) takes for the tags; it knows the capability by neither being empty.

    Of each list that says `.Thinking` within `range .Messages` it takes the first and the last text; the last such list
    wins, each side for itself. An action in place of the text leaves its side as it was.
    """
    opening = closing = ""
    for body in _lists_with_thinking(template.body, over_messages=False):
        nodes = [node for node in body.nodes if not isinstance(node, Comment)]
        if isinstance(nodes[0], Text):
            opening = nodes[0].text.strip()
        if isinstance(nodes[-1], Text):
            closing = nodes[-1].text.strip()
    return Tags(opening, closing)


def answers_false(template: Template, tags: Tags) -> bool:
    """Whether it has words of its own for a client that wants no thinking (`/no_think`, another system message).

    Such a template is left to it. A branch on `.Think` that only writes tags is none: that is how a prompt is opened.
    """
    for body, _ in bodies(template.body):
        for node in body.nodes:
            if isinstance(node, Action) and _asks_for_think(node.pipe):
                return True
            if isinstance(node, Branch) and _asks_for_think(node.pipe):
                said = "".join(_words(node.body)) + "".join(_words(node.otherwise) if node.otherwise else ())
                if said.replace(tags.opening, "").replace(tags.closing, "").strip():
                    return True
    return False


def _words(body: Body) -> Iterator[str]:
    for node in body.nodes:
        match node:
            case Text():
                yield node.text
            case Action(pipe=Pipe(commands=(Command(arguments=(Constant(value=value),)),))):
                yield str(value)
            case Branch():
                yield from _words(node.body)
                yield from _words(node.otherwise) if node.otherwise else ()
            case Comment() | Definition():
                pass
            case _:
                yield "something"


def _asks_for_think(pipe: Pipe) -> bool:
    return any(isinstance(operand, Field | Variable) and operand.path == ("Think",) for operand in operands(pipe))


def ranges_over_messages(branch: Branch) -> bool:
    """As Ollama sees it, to which `$.Messages` is a variable and none of its business."""
    return branch.word == "range" and _names(branch.pipe, "Messages")


def _lists_with_thinking(body: Body, *, over_messages: bool) -> Iterator[Body]:
    for node in body.nodes:
        match node:
            case Action(pipe=Pipe() as pipe) | Call(pipe=Pipe() as pipe):
                if over_messages and _names(pipe, "Thinking"):
                    yield body
            case Branch():
                within = ranges_over_messages(node) if node.word == "range" else over_messages
                if within and _names(node.pipe, "Thinking"):
                    yield body
                yield from _lists_with_thinking(node.body, over_messages=within)
                if node.otherwise is not None:
                    yield from _lists_with_thinking(node.otherwise, over_messages=within)
            case _:
                pass


def _names(pipe: Pipe, field: str) -> bool:
    return any(isinstance(operand, Field) and operand.path[0] == field for operand in operands(pipe))
