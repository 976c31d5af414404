"""YAML as a tree of texts, tables and lists that know their lines: no types are guessed, no key may stand twice. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from yaml.nodes import Node


class YamlError(Exception):
    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.line = line


@dataclass(frozen=True, slots=True)
class Text:
    value: str  # "" for null
    line: int


@dataclass(frozen=True, slots=True)
class Items:
    count: int
    line: int


@dataclass(frozen=True, slots=True)
class Mapped:
    entries: tuple[tuple[str, Tree], ...]
    line: int


Tree: TypeAlias = Text | Items | Mapped


def parse(text: str) -> Tree:
    """Raises YamlError."""
    import yaml  # noqa: PLC0415 - only hosts with such a file pay for it

    try:
        node = yaml.compose(text, Loader=yaml.BaseLoader)
        return _tree(node, {}) if node else Text("", 1)
    except RecursionError as error:
        raise YamlError("it is nested too deeply") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        raise YamlError(error.problem or "unknown", mark.line + 1 if mark else None) from error
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError("it holds what no text holds") from error


def _tree(node: Node, known: dict[int, Tree]) -> Tree:
    """`known` by identity, so that aliases of aliases cost nothing."""
    import yaml  # noqa: PLC0415

    if id(node) in known:
        return known[id(node)]
    line = node.start_mark.line + 1
    tree: Tree
    if isinstance(node, yaml.MappingNode):
        entries: dict[str, Tree] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise YamlError("a key that is no text", line)
            name = str(key.value)
            if name in entries:
                raise YamlError(f"`{name[:40]}` stands there twice", key.start_mark.line + 1)
            entries[name] = _tree(value, known)
        tree = Mapped(tuple(entries.items()), line)
    elif isinstance(node, yaml.SequenceNode):
        tree = Items(len(node.value), line)
    else:
        plain = isinstance(node, yaml.ScalarNode) and not node.style
        tree = Text("" if plain and node.value in ("null", "~") else str(node.value), line)
    known[id(node)] = tree
    return tree
