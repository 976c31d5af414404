"""The parameters of a model that Ollama knows (api/types.go, Options), their types and the range in which they make sense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from appliance_image.strict_toml import Table

_ANY_INT: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Whole:
    minimum: int
    maximum: int = _ANY_INT

    def read(self, table: Table, key: str) -> object:
        return table.integer(key, minimum=self.minimum, maximum=self.maximum)


@dataclass(frozen=True, slots=True)
class _Number:
    minimum: float
    maximum: float

    def read(self, table: Table, key: str) -> object:
        return table.number(key, minimum=self.minimum, maximum=self.maximum)


def _switch(table: Table, key: str) -> object:
    return table.boolean(key, default=False)


def _texts(table: Table, key: str) -> object:
    return list(table.texts(key))


PARAMETERS: Final[dict[str, Callable[[Table, str], object]]] = {
    "num_ctx": _Whole(64, 1 << 24).read,
    "num_batch": _Whole(1, 1 << 16).read,
    "num_gpu": _Whole(-1, 1 << 16).read,
    "main_gpu": _Whole(0, 64).read,
    "num_thread": _Whole(0, 4096).read,
    "use_mmap": _switch,
    "draft_num_predict": _Whole(0, 1 << 16).read,
    "num_keep": _Whole(-1).read,
    "num_predict": _Whole(-2).read,  # -1: without end, -2: until the context is full
    "seed": _Whole(-_ANY_INT).read,
    "top_k": _Whole(0).read,
    "top_p": _Number(0, 1).read,
    "min_p": _Number(0, 1).read,
    "typical_p": _Number(0, 1).read,
    "repeat_last_n": _Whole(-1).read,
    "temperature": _Number(0, 100).read,
    "repeat_penalty": _Number(0, 100).read,
    "presence_penalty": _Number(-2, 2).read,
    "frequency_penalty": _Number(-2, 2).read,
    "stop": _texts,
}


def read_parameters(table: Table) -> dict[str, object]:
    return {key: read(table, key) for key, read in PARAMETERS.items() if table.has(key)}
