"""The tokens of a Go text/template, each with its place; joined they are the source again, byte for byte.

Only the default delimiters. What a trim marker eats is a token of its own, so that text tokens are what Go would emit.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from appliance_image.errors import ApplianceError

_SPACES: Final = " \t\r\n"
_ENDS_A_WORD: Final = frozenset(" \t\r\n.,|:()")
_KEYWORDS: Final = frozenset(
    ("block", "break", "continue", "define", "else", "end", "if", "nil", "range", "template", "with")
)

_LEFT = re.compile(r"\{\{(?:-[ \t\r\n])?")
_RIGHT = re.compile(r"[ \t\r\n]-\}\}|\}\}")
_COMMENT = re.compile(r"\{\{(?:-[ \t\r\n])?/(?>\*.*?\*/)(?:[ \t\r\n]-)?\}\}", re.DOTALL)
_BLANKS = re.compile(r"[ \t\r\n]*")
_STRING = re.compile(r'"(?:\\[^\n]|[^"\\\n])*"')
_CHARACTER = re.compile(r"'(?:\\[^\n]|[^'\\\n])*'")
_RAW = re.compile(r"`[^`]*`")
# As loose as Go's own scanner: `-` and `089` are numbers here, whether they have a value is asked later.
_NUMBER = re.compile(
    r"[+-]?(?:"
    r"0[xX][0-9a-fA-F_]*(?:\.[0-9a-fA-F_]*)?(?:[pP][+-]?[0-9_]*)?"
    r"|0[oO][0-7_]*(?:\.[0-7_]*)?"
    r"|0[bB][01_]*(?:\.[01_]*)?"
    r"|[0-9_]*(?:\.[0-9_]*)?(?:[eE][+-]?[0-9_]*)?"
    r")i?"
)


class Kind(Enum):
    TEXT = "text"
    TRIMMED = "blanks eaten by a trim marker"
    COMMENT = "comment"
    LEFT = "{{"
    RIGHT = "}}"
    SPACE = "space"
    ASSIGN = "="
    DECLARE = ":="
    PIPE = "|"
    OPEN = "("
    CLOSE = ")"
    STRING = "string"
    RAW = "raw string"
    CHARACTER = "character constant"
    NUMBER = "number"
    COMPLEX = "complex number"
    FIELD = "field"
    VARIABLE = "variable"
    DOT = "."
    WORD = "word"
    KEYWORD = "keyword"
    BOOL = "truth value"
    MARK = "mark"


_LITERALS: Final = {'"': (Kind.STRING, _STRING), "`": (Kind.RAW, _RAW), "'": (Kind.CHARACTER, _CHARACTER)}


@dataclass(frozen=True, slots=True)
class Token:
    kind: Kind
    start: int
    text: str

    @property
    def end(self) -> int:
        return self.start + len(self.text)


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where in a text, both from 1; columns count characters."""

    line: int
    column: int

    @classmethod
    def of(cls, source: str, offset: int) -> Place:
        return cls(source.count("\n", 0, offset) + 1, offset - source.rfind("\n", 0, offset))

    def __str__(self) -> str:
        return f"{self.line}:{self.column}"


class TemplateError(ApplianceError):
    """Not a Go template; `place` and `reason` are what the message is made of."""

    def __init__(self, source: str, offset: int, reason: str) -> None:
        self.place = Place.of(source, offset)
        self.reason = reason
        super().__init__(
            f"the template is not valid at {self.place}: {reason}",
            hint="look at it with `ollama show --template MODEL`; Ollama refuses such a template too",
        )


def tokens(source: str) -> tuple[Token, ...]:
    """All of `source`, also what Go drops: `"".join(token.text for token in tokens(source)) == source`."""
    return tuple(_Lexer(source).run())


def is_alphanumeric(character: str) -> bool:
    """Go's letters, decimal digits and `_`; `\\w` and `str.isalnum` let more pass."""
    return character == "_" or character.isalpha() or character.isdecimal()


class _Lexer:
    """A cursor over the source, alive only within `tokens`."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._depth = 0

    def run(self) -> Iterator[Token]:
        while self._at < len(self._source):
            if not self._source.startswith("{{", self._at):
                yield from self._text()
            elif comment := _COMMENT.match(self._source, self._at):
                yield self._take(Kind.COMMENT, comment.end())
                yield from self._blanks_after(comment[0].endswith("-}}"))
            else:
                yield from self._action()

    def _text(self) -> Iterator[Token]:
        found = self._source.find("{{", self._at)
        end = len(self._source) if found < 0 else found
        trims = found >= 0 and len(_LEFT.match(self._source, found)[0]) > 2  # type: ignore[index]  # `{{` is there
        kept = self._at + len(self._source[self._at : end].rstrip(_SPACES)) if trims else end
        if kept > self._at:
            yield self._take(Kind.TEXT, kept)
        if end > kept:
            yield self._take(Kind.TRIMMED, end)

    def _blanks_after(self, trims: bool) -> Iterator[Token]:
        end = self._match(_BLANKS)
        if trims and end > self._at:
            yield self._take(Kind.TRIMMED, end)

    def _action(self) -> Iterator[Token]:
        opened = self._at
        left = self._take(Kind.LEFT, self._match(_LEFT))
        if self._source.startswith("/*", self._at):
            raise self._error(opened, "a comment must end in `*/}}` or `*/ -}}`")
        yield left
        self._depth = 0
        while not (right := _RIGHT.match(self._source, self._at)):
            if self._at >= len(self._source):
                raise self._error(opened, "this `{{` is never closed")
            yield self._inside()
        if self._depth:
            raise self._error(opened, "a `(` is never closed")
        yield self._take(Kind.RIGHT, right.end())
        yield from self._blanks_after(len(right[0]) > 2)

    def _inside(self) -> Token:
        character = self._source[self._at]
        if character in _SPACES:
            return self._space()
        if character in _LITERALS:
            return self._literal(*_LITERALS[character])
        if character == "$":
            return self._variable()
        if character == ".":
            return self._field()
        if character in "+-0123456789":
            return self._number()
        return self._word() if is_alphanumeric(character) else self._sign(character)

    def _sign(self, character: str) -> Token:
        match character:
            case ":" if self._source.startswith(":=", self._at):
                return self._take(Kind.DECLARE, self._at + 2)
            case ":":
                raise self._error(self._at, "`:` must be followed by `=`")
            case "(" | ")":
                return self._parenthesis(character)
            case "=" | "|":
                return self._take(Kind(character), self._at + 1)
            case _ if character.isascii() and character.isprintable():
                return self._take(Kind.MARK, self._at + 1)
            case _:
                raise self._error(self._at, f"the character {character!r} has no meaning here")

    def _space(self) -> Token:
        end = self._match(_BLANKS)
        if end - self._at > 1 and self._source.startswith("-}}", end):
            end -= 1  # the last blank belongs to the trim marker
        return self._take(Kind.SPACE, end)

    def _parenthesis(self, character: str) -> Token:
        self._depth += 1 if character == "(" else -1
        if self._depth < 0:
            raise self._error(self._at, "a `)` without `(`")
        return self._take(Kind(character), self._at + 1)

    def _literal(self, kind: Kind, pattern: re.Pattern[str]) -> Token:
        if not (found := pattern.match(self._source, self._at)):
            raise self._error(self._at, f"the {kind.value} is never closed")
        return self._take(kind, found.end())

    def _variable(self) -> Token:
        if self._ends_a_word(self._at + 1):
            return self._take(Kind.VARIABLE, self._at + 1)
        return self._name(Kind.VARIABLE, self._at + 1)

    def _field(self) -> Token:
        follows = self._source[self._at + 1 : self._at + 2]
        if follows and follows in "0123456789":
            return self._number()
        if self._ends_a_word(self._at + 1):
            return self._take(Kind.DOT, self._at + 1)
        return self._name(Kind.FIELD, self._at + 1)

    def _word(self) -> Token:
        token = self._name(Kind.WORD, self._at)
        if token.text in _KEYWORDS:
            return Token(Kind.KEYWORD, token.start, token.text)
        return Token(Kind.BOOL, token.start, token.text) if token.text in {"true", "false"} else token

    def _name(self, kind: Kind, end: int) -> Token:
        while end < len(self._source) and is_alphanumeric(self._source[end]):
            end += 1
        if not self._ends_a_word(end):
            raise self._error(end, f"the character {self._source[end]!r} cannot be part of a name")
        return self._take(kind, end)

    def _number(self) -> Token:
        end = self._number_end(self._at)
        if self._source[end : end + 1] not in {"+", "-"}:
            return self._take(Kind.NUMBER, end)
        end = self._number_end(end)
        if self._source[end - 1] != "i":
            raise self._error(self._at, "not a number")
        return self._take(Kind.COMPLEX, end)

    def _number_end(self, start: int) -> int:
        found = _NUMBER.match(self._source, start)
        end = found.end() if found else start
        if end < len(self._source) and is_alphanumeric(self._source[end]):
            raise self._error(start, "not a number")
        return end

    def _ends_a_word(self, at: int) -> bool:
        return at >= len(self._source) or self._source[at] in _ENDS_A_WORD or self._source.startswith("}}", at)

    def _match(self, pattern: re.Pattern[str]) -> int:
        found = pattern.match(self._source, self._at)
        return found.end() if found else self._at

    def _take(self, kind: Kind, end: int) -> Token:
        token = Token(kind, self._at, self._source[self._at : end])
        self._at = end
        return token

    def _error(self, offset: int, reason: str) -> TemplateError:
        return TemplateError(self._source, offset, reason)
