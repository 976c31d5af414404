"""Small questions to a model server, and the preload: a request that waits until the model is in memory."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, cast

from appliance_agent.access_log import MARK
from appliance_agent.canary import failure, outcome_of
from appliance_agent.evidence import Load, Outcome
from appliance_agent.http import ExchangeError, Link


@dataclass(frozen=True, slots=True)
class Loaded:
    """What `/api/ps` says of the server's model, and of all others together."""

    loaded: bool = False
    model_bytes: int = 0
    vram_bytes: int = 0
    context_tokens: int = 0
    expires_wall_s: float | None = None  # None: it stays
    others_bytes: int | None = None  # None: there are none
    others_vram_bytes: int = 0


class NoAnswerError(Exception):
    """The server answers otherwise than Ollama does."""


_LIBRARY: Final = "registry.ollama.ai/"
_NEVER_S: Final = 10 * 365 * 86400.0


def version(link: Link, *, silence_s: float) -> str:
    """Raises ExchangeError and NoAnswerError."""
    return str(_document(link, "/api/version", silence_s).get("version") or "")


def loaded(link: Link, *, silence_s: float) -> Loaded:
    """A runner that died while it was idle is still listed. Raises ExchangeError and NoAnswerError."""
    models = _document(link, "/api/ps", silence_s).get("models")
    if not isinstance(models, list):
        raise NoAnswerError("`/api/ps` lists no models")
    found = Loaded()
    for model in cast("list[object]", models):
        row = cast("dict[str, object]", model) if isinstance(model, dict) else {}
        if _full(link.server.model) in {_full(str(row.get("name"))), _full(str(row.get("model")))}:
            found = _with_own(found, row)
        else:
            found = _with_other(found, row)
    return found


def _with_own(found: Loaded, row: Mapping[str, object]) -> Loaded:
    return replace(
        found,
        loaded=True,
        model_bytes=_count(row.get("size")),
        vram_bytes=_count(row.get("size_vram")),
        context_tokens=_count(row.get("context_length")),
        expires_wall_s=_expiry(row.get("expires_at"), time.time()),
    )


def _with_other(found: Loaded, row: Mapping[str, object]) -> Loaded:
    return replace(
        found,
        others_bytes=(found.others_bytes or 0) + _count(row.get("size")),
        others_vram_bytes=found.others_vram_bytes + _count(row.get("size_vram")),
    )


def _expiry(value: object, now_s: float) -> float | None:
    """Since the epoch. With `keep_alive: -1` it is some 290 years from now, which is to say never."""
    try:
        at_s = datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
    return at_s if 0 < at_s < now_s + _NEVER_S else None


def preload(link: Link, *, started_s: float) -> Load:
    """Without a deadline: a client that leaves during a load aborts it."""
    try:
        body = {"model": link.server.model}
        with link.exchange(f"/api/generate?{MARK}", body, silence_s=None) as answer:
            if answer.status != 200:
                outcome, detail = failure(answer)
            else:
                outcome, detail = _verdict(answer.body())
    except ExchangeError as error:
        outcome, detail = outcome_of(error), str(error)
    return Load(started_s, time.monotonic(), outcome, detail)


def _verdict(body: bytes) -> tuple[Outcome, str]:
    try:
        node = _object(body)
    except NoAnswerError as error:
        return Outcome.STREAM_ERROR, str(error)
    if "error" in node:
        return Outcome.STREAM_ERROR, f"the server failed: {node['error']}"
    return (Outcome.OK, "") if node.get("done") is True else (Outcome.STREAM_ERROR, "the load broke off")


def _document(link: Link, path: str, silence_s: float) -> dict[str, Any]:
    with link.exchange(f"{path}?{MARK}", silence_s=silence_s) as answer:
        body = answer.body()
        if answer.status != 200:
            raise NoAnswerError(f"`{path}` gives status {answer.status}")
    return _object(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        node = json.loads(body)
    except (ValueError, RecursionError):
        node = None
    if not isinstance(node, dict):
        raise NoAnswerError(f"not an answer of Ollama: {body[:80]!r}")
    return cast("dict[str, Any]", node)


def _full(name: str) -> str:
    short = name.lower().removeprefix(_LIBRARY).removeprefix("library/")
    return short if ":" in short.rpartition("/")[2] else f"{short}:latest"


def _count(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0
