"""Ollama's NDJSON chat stream, sans I/O: bytes in, events out, chunk boundaries irrelevant."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

from appliance_image.errors import ApplianceError

_LINE_BYTES_MAX = 8 * 1024 * 1024


class ChatError(ApplianceError):
    """The stream is not one of Ollama's, or the server said that it failed."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of the answer. One piece is not one token: servers hold back parts of a character."""

    thinking: str
    content: str


@dataclass(frozen=True, slots=True)
class Done:
    reason: str
    prompt_tokens: int
    answer_tokens: int  # the end token counts, too
    load_s: float
    prompt_s: float
    answer_s: float

    @property
    def tokens_per_s(self) -> float | None:
        """None where the server left out a duration of zero."""
        return self.answer_tokens / self.answer_s if self.answer_s else None


Event = Piece | Done


class Decoder:
    """Feed it what the socket gives; `close` says whether the stream ended as it should."""

    def __init__(self) -> None:
        self._rest = b""
        self._done = False

    def feed(self, chunk: bytes) -> Iterator[Event]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if len(self._rest) > _LINE_BYTES_MAX:
            raise ChatError("a line of the chat stream has no end", hint="is this address an Ollama server?")
        for line in lines:
            if line.strip():
                yield from self._events(line)

    def close(self) -> None:
        if not self._done:
            raise ChatError(
                "the answer broke off before it was finished", hint="look for a crash: `docker logs CONTAINER`"
            )

    def _events(self, line: bytes) -> Iterator[Event]:
        node = _object(line)
        if "error" in node:
            raise ChatError(f"the server failed: {node['error']}", hint="see `docker logs CONTAINER`")
        piece = _piece(node, line)
        if piece.thinking or piece.content:
            yield piece
        if node.get("done") is True:
            self._done = True
            yield Done(
                reason=str(node.get("done_reason", "")),
                prompt_tokens=_count(node, "prompt_eval_count"),
                answer_tokens=_count(node, "eval_count"),
                load_s=_count(node, "load_duration") / 1e9,
                prompt_s=_count(node, "prompt_eval_duration") / 1e9,
                answer_s=_count(node, "eval_duration") / 1e9,
            )


def _piece(node: dict[str, Any], line: bytes) -> Piece:
    message = node.get("message")
    if not isinstance(message, dict):
        raise ChatError(f"not a chat answer: {line[:80]!r}", hint="is this address an Ollama server?")
    fields = cast("dict[str, Any]", message)
    return Piece(str(fields.get("thinking") or ""), str(fields.get("content") or ""))


def _object(line: bytes) -> dict[str, Any]:
    try:
        node = json.loads(line)
    except ValueError:
        node = None
    if not isinstance(node, dict):
        raise ChatError(f"not a line of a chat stream: {line[:80]!r}", hint="is this address an Ollama server?")
    return cast("dict[str, Any]", node)


def _count(node: dict[str, Any], key: str) -> int:
    value = node.get(key, 0)
    return value if isinstance(value, int) else 0
