"""WWW-Authenticate read, and the scopes of a token: which rights in which repositories. Parsing only."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SCHEME = re.compile(r"(?:^|,)\s*(bearer|basic)(?=\s|,|$)", re.IGNORECASE)
_PARAMETER = re.compile(r'(\w+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


@dataclass(frozen=True, slots=True)
class Basic:
    pass


@dataclass(frozen=True, slots=True)
class Bearer:
    realm: str
    service: str
    scope: str


Challenge = Basic | Bearer


def parse_challenge(text: str) -> Challenge | None:
    """The best of what a registry offers; None if there is nothing that is known here."""
    pieces = _SCHEME.split(text)  # what stands before the first scheme, then each scheme and its parameters
    offers = {scheme.lower(): _parameters(rest) for scheme, rest in zip(pieces[1::2], pieces[2::2], strict=True)}
    if (bearer := offers.get("bearer")) and bearer.get("realm"):
        return Bearer(bearer["realm"], bearer.get("service", ""), bearer.get("scope", ""))
    return Basic() if "basic" in offers else None


def _parameters(text: str) -> dict[str, str]:
    return {
        match[1].lower(): re.sub(r"\\(.)", r"\1", match[2]) if match[2] is not None else match[3]
        for match in _PARAMETER.finditer(text)
    }


def merged_scopes(scopes: Iterable[str]) -> tuple[str, ...]:
    """One scope for each resource, with all actions that any of the given ones names, in a fixed order."""
    actions: dict[str, set[str]] = {}
    for scope in scopes:
        resource, _, words = scope.rpartition(":")
        actions.setdefault(resource, set()).update(words.split(","))
    return tuple(f"{resource}:{','.join(sorted(words))}" for resource, words in sorted(actions.items()))
