"""TOML read strictly: types, ranges and unknown keys, every mistake of a file told at once with the path of its key. Pure.

Each method that reads a key notes what is wrong and answers with the default, so that a reader is a plain list of keys:

    table = Table.parse(text, where="builder.toml")
    connections = table.integer("connections", minimum=1, maximum=64, default=8)
    table.check(ConfigError, hint="correct the file")
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import TypeVar, cast, overload

from appliance_image.errors import ApplianceError

_T = TypeVar("_T")
_Raised = Callable[..., ApplianceError]


class Table:
    """One table of a file. It remembers which keys were asked for; `check` tells of all others."""

    def __init__(self, values: Mapping[str, object], *, where: str, path: str, problems: list[str]) -> None:
        self._values = values
        self._where = where
        self._path = path
        self._problems = problems
        self._known: dict[str, None] = {}
        self._inner: list[Table] = []

    @classmethod
    def parse(cls, text: str, *, where: str) -> Table:
        """A text that is no TOML is a table without keys and with one problem."""
        problems: list[str] = []
        values: dict[str, object] = {}
        try:
            values = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as error:
            problems.append(f"not TOML: {error}")
        return cls(values, where=where, path="", problems=problems)

    def check(self, error: _Raised, *, hint: str) -> None:
        """Raise what was found in this table and the ones inside, unknown keys included."""
        self._find_unknown()
        if not self._problems:
            return
        if len(self._problems) == 1:
            raise error(f"{self._where}: {self._problems[0]}", hint=hint)
        lines = "".join(f"\n  {problem}" for problem in self._problems)
        raise error(f"{self._where}: {len(self._problems)} mistakes{lines}", hint=hint)

    def problem(self, key: str, message: str) -> None:
        self._problems.append(f"{self.path(key)}: {message}")

    def path(self, key: str) -> str:
        """As TOML writes it, quoted where a bare key would not do."""
        bare = key and all(part.isascii() and (part.isalnum() or part in "-_") for part in key)
        return f"{self._path}{key if bare else _quoted(key)}"

    def keys(self) -> tuple[str, ...]:
        return tuple(self._values)

    def has(self, key: str) -> bool:
        self._known[key] = None
        return key in self._values

    @overload
    def text(self, key: str, *, default: None = None) -> str | None: ...
    @overload
    def text(self, key: str, *, default: str) -> str: ...
    def text(self, key: str, *, default: str | None = None) -> str | None:
        return default if (value := self._get(key)) is None else self._text(key, value) or default

    def texts(self, key: str) -> tuple[str, ...]:
        if (value := self._get(key)) is None:
            return ()
        entries: list[object] = cast("list[object]", value) if isinstance(value, list) else [value]
        texts = tuple(entry for entry in entries if isinstance(entry, str) and entry.strip())
        if entries is not value or len(texts) != len(entries):
            self.problem(key, "should be a list of texts, none of them empty")
            return ()
        return texts

    def words_or_numbers(self, key: str, *, default: tuple[str | int, ...]) -> tuple[str | int, ...]:
        """A list of texts and whole numbers, or one text alone."""
        value = self._get(key)
        if value is None:
            return default
        entries = cast("list[object]", value) if isinstance(value, list) else [value]
        kept = tuple(entry for entry in entries if isinstance(entry, str | int) and not isinstance(entry, bool))
        if not kept or len(kept) != len(entries) or any(entry == "" or entry in range(-99, 0) for entry in kept):
            self.problem(key, f"should be a text or a list of texts and whole numbers, not {_kind(self._get(key))}")
            return default
        return kept

    def boolean(self, key: str, *, default: bool) -> bool:
        if isinstance(value := self._get(key), bool):
            return value
        if value is not None:
            self.problem(key, f"should be true or false, not {_kind(value)}")
        return default

    @overload
    def integer(self, key: str, *, minimum: int, maximum: int, default: None = None) -> int | None: ...
    @overload
    def integer(self, key: str, *, minimum: int, maximum: int, default: int) -> int: ...
    def integer(self, key: str, *, minimum: int, maximum: int, default: int | None = None) -> int | None:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, int) or isinstance(value, bool):
            self.problem(key, f"should be a whole number, not {_kind(value)}")
        elif not minimum <= value <= maximum:
            self.problem(key, f"should be from {minimum} to {maximum}, not {value}")
        else:
            return value
        return default

    @overload
    def number(self, key: str, *, minimum: float, maximum: float, default: None = None) -> float | None: ...
    @overload
    def number(self, key: str, *, minimum: float, maximum: float, default: float) -> float: ...
    def number(self, key: str, *, minimum: float, maximum: float, default: float | None = None) -> float | None:
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
            self.problem(key, f"should be a number, not {_kind(value)}")
        elif not minimum <= value <= maximum:
            self.problem(key, f"should be from {minimum:g} to {maximum:g}, not {value:g}")
        else:
            return float(value)
        return default

    def choice(self, key: str, options: Sequence[str], *, default: str) -> str:
        text = self.text(key, default=default)
        if text in options:
            return text
        self.problem(key, f"should be {' or '.join(f'`{option}`' for option in options)}, not `{text}`")
        return default

    def value(self, key: str, parser: Callable[[str], _T]) -> _T | None:
        """A text that `parser` makes something of; its error becomes a problem of this key."""
        return None if (text := self.text(key)) is None else self._parsed(key, text, parser)

    def values(self, key: str, parser: Callable[[str], _T]) -> tuple[_T, ...]:
        parsed = (self._parsed(key, text, parser) for text in self.texts(key))
        return tuple(entry for entry in parsed if entry is not None)

    def table(self, key: str) -> Table:
        """Empty where the key is missing."""
        value = self._get(key)
        if value is not None and not isinstance(value, dict):
            self.problem(key, f"should be a table, not {_kind(value)}")
            value = None
        inner = Table(
            cast("dict[str, object]", value or {}),
            where=self._where,
            path=f"{self.path(key)}.",
            problems=self._problems,
        )
        self._inner.append(inner)
        return inner

    def tables(self) -> dict[str, Table]:
        """Every key a table, whatever it is called."""
        return {key: self.table(key) for key in self._values}

    def mapping(self, parser: Callable[[str], _T]) -> dict[str, _T]:
        """Every key a text, whatever it is called."""
        entries = {key: self.value(key, parser) for key in self._values}
        return {key: entry for key, entry in entries.items() if entry is not None}

    def _get(self, key: str) -> object:
        self._known[key] = None
        return self._values.get(key)

    def _text(self, key: str, value: object) -> str | None:
        if not isinstance(value, str):
            self.problem(key, f"should be a text, not {_kind(value)}")
        elif not value.strip():
            self.problem(key, "is empty")
        else:
            return value
        return None

    def _parsed(self, key: str, text: str, parser: Callable[[str], _T]) -> _T | None:
        try:
            return parser(text)
        except ApplianceError as error:
            self.problem(key, error.message)
            return None

    def _find_unknown(self) -> None:
        for key in self._values:
            if key not in self._known:
                self.problem(key, f"unknown key{did_you_mean(key, self._known)}")
        for inner in self._inner:
            inner._find_unknown()  # noqa: SLF001 - of the same class


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`, did you mean …?`, or nothing where no known word is near."""
    near = get_close_matches(word.lower(), list(known), n=1, cutoff=0.6)
    return f", did you mean `{near[0]}`?" if near else ""


def _quoted(key: str) -> str:
    escaped = "".join(char if char.isprintable() and char not in '"\\' else f"\\u{ord(char):04x}" for char in key[:80])
    return f'"{escaped}"'


def _kind(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case str():
            return f"the text {value[:40]!r}"
        case int() | float():
            return f"the number {value}"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return "a date or time"
