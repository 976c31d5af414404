"""The text that makes a template think, and the offsets where it goes; trim markers around it keep their reach."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from appliance_builder.gotemplate import variables
from appliance_builder.gotree import Action, Branch, Template, Text, Variable, bodies, operands
from appliance_builder.promptwalk import Think
from appliance_builder.thinktags import Tags, ranges_over_messages

_WHEN: Final = {
    frozenset({Think.UNSET, Think.TRUE}): "not (and $.IsThinkSet (not $.Think))",
    frozenset({Think.UNSET}): "not $.IsThinkSet",
    frozenset({Think.TRUE}): "and $.IsThinkSet $.Think",
    frozenset({Think.FALSE}): "and $.IsThinkSet (not $.Think)",
}


class EditError(Exception):
    def __init__(self, reason: str, offset: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.offset = offset


@dataclass(frozen=True, slots=True, order=True)
class Edit:
    """Put in at `offset`; nothing is ever taken out."""

    offset: int
    text: str


def apply(source: str, edits: Iterable[Edit]) -> str:
    """The same edit twice counts once."""
    for edit in sorted(set(edits), reverse=True):
        source = source[: edit.offset] + edit.text + source[edit.offset :]
    return source


def generation_edits(
    tree: Template, node: Text | Action, asked: frozenset[Think], *, tags: Tags, guarded: bool
) -> list[Edit]:
    """Behind `node`: the opening tag, an empty block for an explicit false; `guarded` for a node that every turn emits.

    Written as actions, for the trim marker of a neighbour would eat a newline that is text.
    """
    opened = f'{{{{ "{_quoted(tags.opening + tags.newline)}" }}}}'
    blank = tags.newline * 2
    empty = f'{{{{ "{_quoted(tags.opening + blank + tags.closing + blank)}" }}}}'
    opens = asked - {Think.FALSE}
    if Think.FALSE in asked and len(opens) == 2:
        text = f"{{{{ if {_WHEN[frozenset({Think.FALSE})]} }}}}{empty}{{{{ else }}}}{opened}{{{{ end }}}}"
    else:
        text = f"{{{{ if {_WHEN[opens]} }}}}{opened}{{{{ end }}}}" if opens else ""
        if Think.FALSE in asked:
            text += f"{{{{ if {_WHEN[frozenset({Think.FALSE})]} }}}}{empty}{{{{ end }}}}"
    edits: list[Edit] = []
    if guarded:
        last, edits = _is_last(tree, node)
        text = f"{{{{ if {last} }}}}{text}{{{{ end }}}}"
    return [*edits, Edit(_behind(tree.source, node), text)]


def answer_edits(tree: Template, said: Action, tags: Tags) -> list[Edit]:
    """Before the content of an answer: its thinking, between tags that are text, where Ollama looks for them.

    Only for a last message, as the library's templates do it: models are trained on histories without thinking.
    `$.IsThinkSet` comes first because the messages of 0.5.11 have no `.Thinking` and `and` stops at the first untrue.
    """
    around = next(a for a in reversed(_around(tree, said)) if a.word != "if")
    if not ranges_over_messages(around):
        raise EditError("an answer of the history is not written directly in `range .Messages`", said.start)
    last, edits = _is_last(tree, said)
    left = "{{-" if said.trims[0] else "{{"
    block = (
        f"{left} if and $.IsThinkSet (and ({last}) .Thinking) -}}}}\n"
        f"{tags.opening}{tags.newline}{{{{ .Thinking }}}}{tags.newline}{tags.closing}\n"
        "{{- end }}"
    )
    return [*edits, Edit(said.start, block)]


def _is_last(tree: Template, node: Text | Action) -> tuple[str, list[Edit]]:
    """A condition that the message is the last one, and what it needs: an index in the `range`."""
    ranges = [branch for branch in _around(tree, node) if branch.word == "range" and _over_messages(branch)]
    if not ranges:
        raise EditError("this is not within `range .Messages`", node.start)
    pipe = ranges[-1].pipe
    declared = pipe.variables
    index = declared[0] if len(declared) == 2 else _fresh(tree, "$i")
    if _sets(ranges[-1], index):
        raise EditError(f"the index `{index}` is set again within its `range`", ranges[-1].start)
    edits: list[Edit] = []
    if len(declared) == 1:
        edits = [Edit(pipe.start, f"{index}, ")]
    elif not declared:
        edits = [Edit(pipe.start, f"{index}, {_fresh(tree, '$_')} := ")]
    return f"eq (len (slice $.Messages {index})) 1", edits


def _around(tree: Template, node: Text | Action) -> tuple[Branch, ...]:
    return next(around for body, around in bodies(tree.body) if node in body.nodes)


def _over_messages(branch: Branch) -> bool:
    return ranges_over_messages(branch) or any(
        isinstance(operand, Variable) and operand.path == ("Messages",) for operand in operands(branch.pipe)
    )


def _sets(branch: Branch, name: str) -> bool:
    nodes = [node for body, _ in bodies(branch.body) for node in body.nodes]
    return any(isinstance(node, (Action, Branch)) and name in node.pipe.variables for node in nodes)


def _fresh(tree: Template, name: str) -> str:
    taken = variables(tree)
    return next(free for free in (name, *(f"{name}{number}" for number in range(len(taken) + 1))) if free not in taken)


def _behind(source: str, node: Text | Action) -> int:
    """Behind the blanks that the node itself eats, but before those that its neighbour eats."""
    if isinstance(node, Text) or not node.trims[1]:
        return node.end
    return len(source) - len(source[node.end :].lstrip(" \t\r\n"))


def _quoted(text: str) -> str:
    return text.replace("\n", "\\n")
