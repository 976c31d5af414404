"""What an XID asks for and what it means: NVIDIA's catalogue as data, in `xids.toml` beside this file."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from appliance_agent.states import Reaction


@dataclass(frozen=True, slots=True)
class Entry:
    reaction: Reaction
    means: str


def reaction(code: int, overrides: Mapping[int, Reaction]) -> Reaction:
    """`overrides` are the operator's; an XID that nobody knows is observed."""
    if code in overrides:
        return overrides[code]
    entry = catalogue().get(code)
    return entry.reaction if entry else Reaction.OBSERVE


def describe(code: int) -> str:
    entry = catalogue().get(code)
    return f"XID {code}: {entry.means}" if entry else f"XID {code}: see NVIDIA's catalogue of XIDs"


@cache
def catalogue() -> Mapping[int, Entry]:
    table = tomllib.loads(Path(__file__).with_name("xids.toml").read_text(encoding="utf-8"))
    return {int(code): Entry(Reaction(entry["reaction"]), str(entry["means"])) for code, entry in table.items()}
