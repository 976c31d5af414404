"""What the model says: where its script begins after a prompt, and how the server splits thinking from content.

The template is not run as Go would run it. One walk over it, with the last turn as the only message and simple
conditions worked out, tells how the prompt ends; that decides where the script begins and whether it is split.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from standin_answers import Profile

OPEN, CLOSE = "<think>", "</think>"
SCRIPT = "<think>\nOkay, the user wants a short answer.</think>\n\nHello from tiny model!"

_ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
_WORD = re.compile(r'"(?:\\.|[^"\\])*"|`[^`]*`|[()]|[^\s()]+')
_PIECE = re.compile(r"</?think>|\n\n|\n|\s?(?:(?!</?think>)\S)+|\s")
_ONE_TOKEN = re.compile(r"<｜[^｜]*｜>|</?think>|\n\n")
_THINKING_FIELD = re.compile(r"<think>.*?\{\{-?\s*[$.\w]*\.Thinking\s*-?\}\}.*?</think>", re.DOTALL)


# --- the template ----------------------------------------------------------------------------------------------------


class _Function(str):
    """A name at the place of a value: `eq`, `not` …"""

    __slots__ = ()


def _nodes(template: str) -> Iterable[tuple[bool, str]]:
    """Text and actions in order, blanks trimmed as `{{-` and `-}}` say."""
    at, trim = 0, False
    for match in _ACTION.finditer(template):
        text = template[at : match.start()]
        text = text.lstrip() if trim else text
        yield False, text.rstrip() if match[1] else text
        yield True, match[2]
        at, trim = match.end(), bool(match[3])
    yield False, template[at:].lstrip() if trim else template[at:]


def _call(name: str, values: list[object]) -> object:
    first, second = [*values, 0, 0][:2]
    result: object = True  # so for a function this walk does not know
    if name == "and":
        result = next((value for value in values if not value), values[-1] if values else True)
    elif name == "or":
        result = next((value for value in values if value), False)
    elif name == "not":
        result = not first
    elif name in {"eq", "ne"}:
        result = (first in values[1:]) == (name == "eq")
    elif name == "len" and isinstance(first, (list, str)):
        result = len(first)
    elif name == "slice" and isinstance(first, list) and isinstance(second, int):
        result = first[second:]
    return result


def _evaluate(words: list[str], facts: dict[str, object]) -> object:
    values: list[object] = []
    while words and words[0] != ")":
        word = words.pop(0)
        if word == "(":
            values.append(_evaluate(words, facts))
            del words[:1]
        elif word[0] in '"`':
            values.append(json.loads(word) if word[0] == '"' else word[1:-1])
        elif word.isdigit():
            values.append(int(word))
        elif word[0] in ".$":
            values.append(facts.get(word.rpartition(".")[2] if "." in word else word, ""))
        else:
            values.append(_Function(word))
    head = values[0] if values else ""
    return _call(head, values[1:]) if isinstance(head, _Function) else head


def _assign(text: str, facts: dict[str, object]) -> object:
    """The value of `$x := expression` or of a plain expression; the variable is kept in the facts."""
    names, sign, expression = text.rpartition(":=")
    value = _evaluate(_WORD.findall(expression), facts)
    first = names.split(",")[0].strip()
    if sign:
        facts[first] = 0 if "," in names else value
    return value


def last_turn(template: str, facts: dict[str, object]) -> str:
    """What the template makes of the last message, up to the end of the prompt."""
    out: list[str] = []
    frames: list[tuple[bool, bool]] = []  # (this branch is taken, one was taken already)
    for is_action, text in _nodes(template):
        word, _, rest = text.partition(" ")
        active = all(taken for taken, _ in frames)
        if not is_action:
            out.append(text if active else "")
        elif word in {"if", "with", "range"}:
            taken = active and bool(_assign(rest, facts))
            frames.append((taken, taken))
        elif word == "else" and frames:
            _, before = frames.pop()
            condition = bool(_assign(rest[3:], facts)) if rest.startswith("if ") else True
            taken = all(taken for taken, _ in frames) and not before and condition
            frames.append((taken, before or taken))
        elif word == "end" and frames:
            frames.pop()
        elif active and word[:2] != "/*":
            value = _assign(text, facts)
            out.append("" if ":=" in text else str(value))
    return "".join(out)


def can_think(template: str) -> bool:
    """Whether a server finds `.Thinking` between literal tags, which is what makes a model able to think."""
    return bool(_THINKING_FIELD.search(template))


def go_capabilities(template: str) -> list[str]:
    found = {"tools": ".Tools" in template, "insert": ".Suffix" in template, "thinking": can_think(template)}
    return ["completion", *(name for name, there in found.items() if there)]


def jinja_capabilities(jinja: str) -> list[str]:
    """What servers from 0.30 on read off a template, by looking for words in it."""
    split = "content.split('</think>')" in jinja or 'content.split("</think>")' in jinja
    thinks = (OPEN in jinja and CLOSE in jinja) or (split and "reasoning_content" not in jinja)
    found = {"tools": "tool_call" in jinja or "tools" in jinja, "thinking": thinks}
    return [*(name for name, there in found.items() if there), "completion"]


def _has_tool_round_trip(template: str) -> bool:
    return ".Tools" in template and ".ToolCalls" in template and 'eq .Role "tool"' in template


@dataclass(frozen=True)
class Voice:
    """A model as it can speak: its name, its templates and its script."""

    name: str
    template: str
    jinja: str
    script: str
    endless: bool
    system: str = ""

    def selected(self, profile: Profile) -> str:
        """What the newer servers log as `template selection`; the older ones know the Go template only."""
        wins = len(jinja_capabilities(self.jinja)) > len(go_capabilities(self.template))
        wins = wins and not _has_tool_round_trip(self.template)
        if profile.new and self.jinja and not profile.go_template and wins:
            return "gguf_chat_template"
        return "go_template" if self.template or not profile.new else "none"

    def capabilities(self, profile: Profile) -> list[str]:
        native = self.selected(profile) == "gguf_chat_template"
        return jinja_capabilities(self.jinja) if native else go_capabilities(self.template)


# --- what is said ----------------------------------------------------------------------------------------------------


def pieces_of(script: str) -> list[str]:
    """The script cut into the pieces that come as one token: tags, newlines, words with the blank before them."""
    return _PIECE.findall(script)


def count_tokens(prompt: str) -> int:
    """As the scripted model counts: the begin token, special tokens, empty lines, and each other byte."""
    return 1 + len(_ONE_TOKEN.findall(prompt)) + len(_ONE_TOKEN.sub("", prompt).encode())


class Splitter:
    """Pieces in, (thinking, content) out, as the parser of the server does it."""

    def __init__(self, state: str, *, trims: bool = True) -> None:
        self._state = state  # "start", "opened", "inside", "closed", "content"
        self._trims = trims  # the parser of llama-server keeps the newlines around the tags
        self._held = ""

    def feed(self, piece: str) -> tuple[str, str]:
        blank = not piece.strip()
        if self._state in {"start", "opened"} and blank:
            self._held += piece
            return "", ""
        if self._state == "start" and piece == OPEN:
            self._state, self._held = "opened", ""
            return "", ""
        if self._state in {"opened", "inside"} and piece == CLOSE:
            self._state = "closed"
            return "", ""
        if self._state == "closed" and blank and self._trims:
            return "", ""
        held = "" if self._state == "opened" and self._trims else self._held
        self._held = ""
        self._state = "inside" if self._state in {"opened", "inside"} else "content"
        return (held + piece, "") if self._state == "inside" else ("", held + piece)


@dataclass(frozen=True)
class Turn:
    role: str
    content: str


@dataclass(frozen=True)
class Plan:
    prompt: str
    prompt_tokens: int
    pieces: tuple[str, ...]
    splits: str  # the state a Splitter starts in
    trims: bool


def _earlier(turns: list[Turn], template: str) -> str:
    if "<｜User｜>" not in template:
        return "".join(turn.content for turn in turns)
    ends = {"assistant": ("<｜Assistant｜>", "<｜end▁of▁sentence｜>"), "user": ("<｜User｜>", "")}
    marked = ((ends.get(turn.role, ("", "")), turn.content) for turn in turns)
    return "".join(before + content + after for (before, after), content in marked)


def _prompt(voice: Voice, profile: Profile, turns: list[Turn], think: bool | str | None) -> str:
    selected, last = voice.selected(profile), turns[-1]
    if selected == "none":
        chat = "".join(f"<|im_start|>{turn.role}\n{turn.content}<|im_end|>\n" for turn in turns)
        return chat + "<|im_start|>assistant\n"
    if selected == "gguf_chat_template":
        return _earlier(turns, voice.jinja) + ("<｜Assistant｜>" if "<｜User｜>" in voice.jinja else "")
    template = voice.template or "{{ .Prompt }}"
    facts: dict[str, object] = {"Messages": [last], "Role": last.role, "System": voice.system}
    facts |= {"Content": last.content, "Prompt": last.content}
    if not profile.old and think is not None:
        facts |= {"Think": bool(think), "IsThinkSet": True}
    return _earlier(turns[:-1], template) + last_turn(template, facts)


def plan(voice: Voice, profile: Profile, turns: list[Turn], think: bool | str | None) -> Plan:
    system = "\n\n".join(turn.content for turn in turns if turn.role == "system")
    turns = [turn for turn in turns if turn.role != "system"] or [Turn("user", "")]
    voice = replace(voice, system=system or voice.system)
    able = "thinking" in voice.capabilities(profile)
    native = voice.selected(profile) == "gguf_chat_template"
    if think is None and able and not profile.old:
        think = True
    if not profile.old and re.split(r"[/:]", voice.name.rpartition("/")[2])[0] == "deepseek-r1":
        turns = [replace(turn, content=turn.content.rpartition(CLOSE)[2].lstrip()) for turn in turns]
    prompt = _prompt(voice, profile, turns, think)
    pieces = pieces_of(voice.script)
    if native and able:
        return Plan(prompt, count_tokens(prompt), tuple(pieces), "start", trims=False)
    inside = prompt.rstrip().endswith(OPEN)
    splits = ("opened" if inside else "start") if able and think and not profile.old else "content"
    return Plan(prompt, count_tokens(prompt), tuple(pieces[_start(pieces, prompt) :]), splits, trims=True)


def _start(pieces: list[str], prompt: str) -> int:
    """Where the model goes on: behind what the prompt ends with, if that is in its script."""
    tail = prompt.rstrip()
    for tag in (OPEN, CLOSE):
        if tail.endswith(tag) and tag in pieces:
            after = pieces.index(tag) + 1
            newline = prompt != tail and after < len(pieces) and not pieces[after].strip()
            return after + newline
    return 0
