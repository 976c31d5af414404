"""Makes a model think in every answer: decides where its template takes which text, or why it cannot.

The prompt then ends in the opening tag unless the client says `think: false`, and Ollama still finds the tags it needs
to split thinking from content. Works on the parsed template; what is not understood is refused, with its place.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from enum import Enum
from typing import Final

from appliance_builder.gotemplate import fields, parse
from appliance_builder.gotokens import Place
from appliance_builder.promptwalk import Think
from appliance_builder.thinkchats import Chats, Ending, Spots, ThinkError, read, said, spots, surplus
from appliance_builder.thinkedit import Edit, EditError, answer_edits, apply, generation_edits
from appliance_builder.thinktags import KNOWN_TAGS, Tags, answers_false, infer_tags

__all__ = [
    "ThinkError",
    "ThinkPatch",
    "Thinking",
    "check_config",
    "classify",
    "has_roles",
    "needs_go_template",
    "patch",
    "render_diff",
]

_SPLITTING_PARSERS: Final = frozenset(("deepseek3", "nemotron-3-nano", "qwen3-thinking", "qwen3.5"))


@dataclass(frozen=True, slots=True)
class ThinkPatch:
    template: str
    changed: bool
    opening: str
    closing: str
    because: str


class Thinking(Enum):
    FORCED = "thinks in every answer"
    ABLE = "thinks when it likes"
    UNKNOWN = "shows no thinking"


def patch(template: str, *, opening_tag: str = "", closing_tag: str = "") -> ThinkPatch:
    """The tags are those a recipe knows of a model whose template does not show them."""
    chats = read(template)
    tags = _tags(chats, Tags(opening_tag, closing_tag))
    blanks = surplus(chats, tags)
    chats = read(template[: len(template) - blanks])
    ends, notes = _ends(chats, tags)
    edits: list[Edit] = []
    try:
        if infer_tags(chats.tree) != tags:
            edits += answer_edits(chats.tree, said(chats), tags)
            notes.append("a `.Thinking` block stands before the answers of the history, for Ollama to find the tags")
        mid_chat = {piece.node for way in chats.answers for piece in way.answer or ()}
        for node, asked in ends.items():
            edits += generation_edits(chats.tree, node, asked, tags=tags, guarded=node in mid_chat)
    except EditError as error:
        raise chats.refusal(error.reason, error.offset) from error
    if blanks:
        notes.append("the blanks behind the last action are gone, for they would go into the prompt")
    patched = apply(chats.tree.source, edits)
    _check(patched, tags)
    return ThinkPatch(patched, patched != template, tags.opening, tags.closing, "; ".join(notes))


def classify(template: str) -> Thinking:
    """What the template does today; nothing is known of one without roles, or that cannot be followed."""
    try:
        chats = read(template)
        tags = _tags(chats, Tags("", ""))
    except ThinkError:
        return Thinking.UNKNOWN
    asked = chats.endings(Think.UNSET, tags) | chats.endings(Think.TRUE, tags)
    return Thinking.FORCED if asked == frozenset({Ending.OPEN}) else Thinking.ABLE


def has_roles(template: str) -> bool:
    """Whether it is made of `.Messages`; the others know a `.Prompt` and a `.Response` only."""
    return "Messages" in fields(parse(template))


def check_config(*, renderer: str, parser: str) -> str:
    """What the two names in a model's configuration mean for the patch: a sentence, or the reason to refuse."""
    if renderer:
        raise ThinkError(
            f"its configuration names the renderer `{renderer}`, which writes the prompt in place of the template"
        )
    if not parser:
        return "the template writes the prompt, and its tags split the answer"
    if parser not in _SPLITTING_PARSERS:
        raise ThinkError(
            f"its configuration names the parser `{parser}`, which reads the answer in place of the template's tags "
            "and is not known to take a prompt that ends within thinking"
        )
    return f"the template writes the prompt, and the parser `{parser}` splits the answer in place of its tags"


def needs_go_template(*, think: bool, parser: str) -> bool:
    """Whether the image must set OLLAMA_GO_TEMPLATE=1.

    From Ollama 0.30 on a template inside the GGUF file that shows more capabilities wins over the model's own, so one
    that is relied upon must be asked for; with a parser named in the configuration it always holds.
    """
    return think and not parser


def render_diff(old: str, new: str) -> str:
    lines = difflib.unified_diff(
        old.splitlines(keepends=True), new.splitlines(keepends=True), "template", "template that thinks", n=2
    )
    return "".join(line if line.endswith("\n") else f"{line}\n\\ no newline at the end\n" for line in lines)


def _tags(chats: Chats, given: Tags) -> Tags:
    inferred = infer_tags(chats.tree)
    shown = inferred if inferred.look_like_tags else _tags_at_the_end(chats)
    if given == Tags("", ""):
        if shown is None:
            raise ThinkError(
                "nothing in its template shows that it can: there is no `.Thinking` between two tags",
                hint="if it does think, name its tags in a recipe; else build it with `--no-think`",
            )
        return shown
    if not given.look_like_tags:
        raise ThinkError(
            f"`{given.opening}` and `{given.closing}` are not a pair of tags",
            hint="write them in the recipe as the model does, as in `<think>` and `</think>`",
        )
    if shown not in {None, given}:
        raise ThinkError(f"its template has other tags than `{given.opening}`", hint="take the tags out of the recipe")
    return given


def _tags_at_the_end(chats: Chats) -> Tags | None:
    return next(
        (tags for tags in KNOWN_TAGS if any(chats.endings(think, tags) != frozenset({Ending.BARE}) for think in Think)),
        None,
    )


def _ends(chats: Chats, tags: Tags) -> tuple[Spots, list[str]]:
    """Where the prompts end bare, and what that means to a person."""
    if chats.endings(Think.TRUE, tags) == frozenset({Ending.CLOSED}):
        raise ThinkError("its template closes the thinking even for a client that asks for it")
    ends = spots(chats, chats.plain, tags)
    after = ""
    try:
        tools = spots(chats, chats.tools, tags)
    except ThinkError:
        tools = {}
        after = "after a tool's result the prompt ends otherwise and is left as it is"
    ends |= {node: asked | ends.get(node, frozenset()) for node, asked in tools.items()}
    if answers_false(chats.tree, tags):
        ends = {node: asked - {Think.FALSE} for node, asked in ends.items() if asked != frozenset({Think.FALSE})}
    told = _told(chats, ends, tags) if ends else _as_it_is(chats, tags)
    return ends, [told, after] if after else [told]


def _check(patched: str, tags: Tags) -> None:
    """The proof of the patch: read as any other template, it does what was promised."""
    chats = read(patched)
    asked = [Think.UNSET, Think.TRUE] if answers_false(chats.tree, tags) else list(Think)
    bare = [think.value for think in asked if Ending.BARE in chats.endings(think, tags)]
    if infer_tags(chats.tree) != tags or bare or Ending.OPEN not in chats.endings(Think.TRUE, tags):
        raise ThinkError(
            f"the patched template would not do what it should ({', '.join(bare) or 'its tags are not found'})"
        )


def _told(chats: Chats, ends: Spots, tags: Tags) -> str:
    nodes = sorted(ends, key=lambda node: node.start)
    where = " and ".join(str(Place.of(chats.tree.source, node.end)) for node in nodes)
    asked = frozenset[Think]().union(*ends.values())
    if asked == frozenset({Think.FALSE}):
        return f"an explicit `think: false` gets an empty `{tags.opening}{tags.closing}` at {where}"
    tail = ", who gets an empty block" if Think.FALSE in asked else ""
    return f"the prompt ends in `{tags.opening}` at {where} except for a client that says `think: false`{tail}"


def _as_it_is(chats: Chats, tags: Tags) -> str:
    if chats.endings(Think.FALSE, tags) == frozenset({Ending.OPEN}):
        return f"its template ends every prompt in `{tags.opening}` already, also after `think: false`"
    if Ending.CLOSED in chats.endings(Think.UNSET, tags):
        return (
            f"its template opens `{tags.opening}` itself when asked to, "
            "and Ollama from 0.12.4 on asks when the client says nothing"
        )
    return f"its template ends the prompt in `{tags.opening}` already except for a client that says `think: false`"
