"""The JSON of `/status` and of `ollama-agent status --json`: written from a snapshot, read back into a `Status`. Pure."""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any, TypeVar, cast, get_args, get_origin, get_type_hints

from appliance_agent.generated import Generated
from appliance_agent.snapshot import Snapshot
from appliance_agent.status import Status
from appliance_agent.status_view import status_of
from appliance_image.errors import ApplianceError

_T = TypeVar("_T")
_HINT = "the agent that answers may be of another version: `ollama-agent status --json` shows what it says"


class StatusError(ApplianceError):
    pass


def render(snapshot: Snapshot, generated: Mapping[int, Generated] = types.MappingProxyType({})) -> str:
    return render_status(status_of(snapshot, generated))


def render_status(status: Status) -> str:
    """One value a line: for people with `less` and for `jq` alike."""
    return json.dumps(_plain(status), ensure_ascii=False, indent=2, allow_nan=False) + "\n"


def parse(text: str) -> Status:
    """Unknown keys are a newer agent's and are ignored; what may be null may be absent. Raises StatusError."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StatusError(f"the answer is not JSON: {error}", hint=_HINT) from error
    return _read(Status, values, "status")


def _plain(value: object) -> object:
    match value:
        case None | str() | int():
            pass
        case datetime():
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case float():
            return round(value, 6) if abs(value) < float("inf") else None
        case tuple():
            return [_plain(each) for each in cast(tuple[object, ...], value)]
        case Mapping():
            return dict(cast(Mapping[str, object], value))
        case _ if is_dataclass(value):
            return {name: _plain(getattr(value, name)) for name in _names(cast(Any, type(value)))}
        case _:
            pass
    return value


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@cache
def _hints(kind: Any) -> Mapping[str, Any]:
    return get_type_hints(kind)


def _read(kind: type[_T], value: object, path: str) -> _T:
    """A value of a dataclass from what JSON gave."""
    if not isinstance(value, dict):
        raise StatusError(f"{path}: should be an object", hint=_HINT)
    given = cast(dict[str, object], value)
    return kind(
        **{name: _field(hint, given.get(name), f"{path}.{name}") for name, hint in _hints(cast(Any, kind)).items()}
    )


def _field(hint: Any, value: object, path: str) -> object:
    origin = get_origin(hint)
    if origin is types.UnionType:
        return None if value is None else _field(get_args(hint)[0], value, path)
    if origin is tuple:
        inner = get_args(hint)[0]
        return tuple(_field(inner, each, f"{path}[{number}]") for number, each in enumerate(_list(value, path)))
    if origin is Mapping:
        return _counts(value, path)
    if hint is datetime:
        return _datetime(value, path)
    if is_dataclass(hint):
        return _read(cast(type[object], hint), value, path)
    return _scalar(hint, value, path)


def _list(value: object, path: str) -> list[object]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise StatusError(f"{path}: should be a list", hint=_HINT)
    return cast(list[object], value)


def _counts(value: object, path: str) -> dict[str, int]:
    if not isinstance(value, dict):
        raise StatusError(f"{path}: should be an object", hint=_HINT)
    given = cast(dict[str, object], value)
    return {name: cast(int, _scalar(int, count, f"{path}.{name}")) for name, count in given.items()}


def _datetime(value: object, path: str) -> datetime:
    try:
        read = datetime.fromisoformat(cast(str, _scalar(str, value, path)))
    except ValueError as error:
        raise StatusError(f"{path}: not a time: {value}", hint=_HINT) from error
    return read if read.tzinfo else read.replace(tzinfo=UTC)


def _scalar(kind: type, value: object, path: str) -> object:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise StatusError(f"{path}: should be {kind.__name__}, not {json.dumps(value)[:40]}", hint=_HINT)
    return value
