"""Where the prompts of a template end and where they hold an answer, or the reason why that cannot be told.

The measure of a prompt's end is the template itself: it must end in what stands before an answer in the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final

from appliance_builder.gotemplate import fields, parse
from appliance_builder.gotokens import Place, TemplateError
from appliance_builder.gotree import Action, Branch, Template, Text, bodies
from appliance_builder.promptvalues import Turn
from appliance_builder.promptwalk import Think, TooManyWaysError, Way, text_of, ways
from appliance_builder.thinktags import Tags
from appliance_image.errors import ApplianceError

_USER, _ANSWER, _SYSTEM = Turn("user"), Turn("assistant"), Turn("system")
_CALL, _RESULT = Turn("assistant", calls_tools=True), Turn("tool")
_PLAIN: Final = ((_USER,), (_USER, _ANSWER, _USER), (_SYSTEM, _USER, _ANSWER, _USER))
_UNFINISHED: Final = ((_USER, _ANSWER), (_USER, _ANSWER, _USER, _ANSWER))
_TOOLS: Final = ((_USER, _CALL, _RESULT), (_USER, _ANSWER, _USER, _CALL, _RESULT))

Prompts = Mapping[Think, tuple[Way, ...]]
Spots = dict[Text | Action, frozenset[Think]]


class ThinkError(ApplianceError):
    """`place` is None when the template is not the reason."""

    def __init__(self, reason: str, *, place: Place | None = None, hint: str = "build it with `--no-think`") -> None:
        self.reason = reason
        self.place = place
        where = f" (template, {place})" if place else ""
        super().__init__(f"the model cannot be made to think: {reason}{where}", hint=hint)


class Ending(Enum):
    OPEN = "the opening tag"
    CLOSED = "the closing tag"
    BARE = "neither"

    @classmethod
    def of(cls, text: str, tags: Tags) -> Ending:
        text = text.rstrip()
        if text.endswith(tags.opening):
            return cls.OPEN
        return cls.CLOSED if text.endswith(tags.closing) else cls.BARE


@dataclass(frozen=True, slots=True)
class Chats:
    """How the prompts end: `plain` after a user, `unfinished` after an answer that is to be gone on with.

    `tools` is after a tool's result, and empty if the template knows of none.
    """

    tree: Template
    plain: Prompts
    unfinished: Prompts
    tools: Prompts

    @property
    def answers(self) -> tuple[Way, ...]:
        """Ways that hold an answer, for what stands before it."""
        return tuple(way for think in Think for way in self.plain[think] if way.answer is not None)

    def endings(self, think: Think, tags: Tags) -> frozenset[Ending]:
        return frozenset(Ending.of(way.text, tags) for way in self.plain[think])

    def refusal(self, reason: str, offset: int) -> ThinkError:
        return ThinkError(reason, place=Place.of(self.tree.source, offset))


def read(template: str) -> Chats:
    try:
        tree = parse(template)
    except TemplateError as error:
        raise ThinkError(error.reason, place=error.place, hint=error.hint) from error
    named = fields(tree)
    if "Messages" not in named:
        place = Place.of(template, max(template.find(".Prompt"), 0))
        raise ThinkError(
            "its template knows no roles, only a prompt, and Ollama looks for thinking in `range .Messages`",
            place=place,
        )
    for node in (node for body, _ in bodies(tree.body) for node in body.nodes):
        if isinstance(node, Text) and "<|channel|>" in node.text:
            place = Place.of(template, node.start + node.text.index("<|channel|>"))
            raise ThinkError("it thinks in a channel of its own, not between tags", place=place)
    tools = _follow(tree, _TOOLS) if "ToolCalls" in named else dict.fromkeys(Think, tuple[Way]())
    return Chats(tree, _follow(tree, _PLAIN), _follow(tree, _UNFINISHED), tools)


def _follow(tree: Template, chats: Iterable[tuple[Turn, ...]]) -> Prompts:
    chats = tuple(chats)
    try:
        return {
            # Sorted, for the order of a set changes from run to run and a refusal must not.
            think: tuple(
                sorted(
                    {way for chat in chats for way in ways(tree, chat, think)}, key=lambda way: (way.text, way.since)
                )
            )
            for think in Think
        }
    except TooManyWaysError as error:
        place = Place.of(tree.source, error.offset)
        raise ThinkError("there are too many ways through its template", place=place) from error


def said(chats: Chats) -> Action:
    """The one action that writes an answer of the history."""
    found = sorted({way.said for way in chats.answers if way.said}, key=lambda action: action.start)
    if not found:
        raise chats.refusal("its template writes no answers of the history", chats.tree.source.find(".Messages"))
    if len(found) > 1:
        where = Place.of(chats.tree.source, found[1].start)
        raise chats.refusal(f"its template writes answers of the history here and at {where}", found[0].start)
    return found[0]


def spots(chats: Chats, prompts: Prompts, tags: Tags) -> Spots:
    """The node behind which a prompt ends without a tag, and for which words of the client."""
    found: dict[Text | Action, set[Think]] = {}
    for think, way in ((word, way) for word in Think for way in prompts[word]):
        if not way.text.strip():
            raise chats.refusal("its prompt ends in a value, not in text", way.since)
        if Ending.of(way.text, tags) is Ending.BARE:
            found.setdefault(way.tail[-1].node, set()).add(think)
            _must_stand_before_an_answer(chats, way, tags)
    if len(found) > 1:
        first, second, *_ = sorted(found, key=lambda node: node.start)
        where = Place.of(chats.tree.source, second.start)
        raise chats.refusal(f"its prompt can end here and at {where}", first.start)
    for node, asked in found.items():
        if any(_goes_on(way, node, tags) for think in asked for way in prompts[think]):
            raise chats.refusal("only sometimes a tag of thinking follows here, nobody knows when", node.start)
        unfinished = [way for think in asked for way in chats.unfinished[think] if _passes(way, node)]
        if not all(_stands_before_an_answer(chats, way.text, tags) for way in unfinished):
            raise chats.refusal("its prompt ends here also after an answer that is not finished", node.start)
    return {node: frozenset(asked) for node, asked in found.items()}


def _must_stand_before_an_answer(chats: Chats, way: Way, tags: Tags) -> None:
    offset = way.tail[-1].node.start
    if not chats.answers:
        raise chats.refusal("its template writes no answers of the history", offset)
    if not _stands_before_an_answer(chats, way.text, tags):
        raise chats.refusal("its prompt does not end in what stands before an answer in the history", offset)


def _goes_on(way: Way, node: Text | Action, tags: Tags) -> bool:
    return Ending.of(way.text, tags) is not Ending.BARE and _passes(way, node)


def _passes(way: Way, node: Text | Action) -> bool:
    return any(piece.node == node for piece in way.tail)


def _stands_before_an_answer(chats: Chats, text: str, tags: Tags) -> bool:
    """One ends in the other: an unknown text within the longer one may have cut off the shorter one."""
    end = text.strip()
    for way in chats.answers:
        before = _without_tags(text_of(way.answer or ()), tags)
        if before and (end.endswith(before) or before.endswith(end)):
            return True
    return False


def _without_tags(text: str, tags: Tags) -> str:
    text = text.strip().removesuffix(tags.closing).rstrip()
    return text.removesuffix(tags.opening).rstrip()


def surplus(chats: Chats, tags: Tags) -> int:
    """How many blanks at the very end of the template go into the prompt and are not in the history either."""
    nodes = chats.tree.body.nodes
    if not nodes or not isinstance(last := nodes[-1], Text):
        return 0
    blanks = len(last.text) - len(last.text.rstrip())
    if blanks == len(last.text) and len(nodes) > 1 and isinstance(nodes[-2], Branch):
        return blanks
    kept = [
        _blanks_kept(chats, way, blanks, tags)
        for think in Think
        for way in chats.plain[think]
        if way.tail and way.tail[-1].node == last
    ]
    return blanks - max(kept) if kept else 0


def _blanks_kept(chats: Chats, way: Way, blanks: int, tags: Tags) -> int:
    if Ending.of(way.text, tags) is not Ending.BARE:
        return 0 if blanks == len(way.tail[-1].text) else blanks
    here = _trailing_blanks(way.text)
    wanted = [_trailing_blanks(text_of(other.answer or ())) for other in chats.answers]
    extra = [len(here) - len(there) for there in wanted if here.startswith(there)]
    return blanks - min(blanks, *extra) if extra else blanks


def _trailing_blanks(text: str) -> str:
    return text[len(text.rstrip()) :]
