"""The lines that the NVML process writes and the agent reads: values of `gpus` to JSON text, and back. No I/O.

A line a second must cost little: values stand in the order of a reading's fields, a group of them is sent when it
differs from what was sent last, and who the GPUs are when that changes. The first line says which order it is.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import asdict, astuple, dataclass, fields
from itertools import pairwise
from typing import Any, Final, cast

from appliance_agent.gpus import Gpu, GpuProcess, GpuReading, GpuSnapshot, RecoveryAction, Xid


class WireError(Exception):
    """A line that this version does not write."""


@dataclass(frozen=True, slots=True)
class Starting:
    """NVML is about to be initialised, which may take half a minute without persistence mode."""

    at_s: float  # CLOCK_MONOTONIC


Line = GpuSnapshot | Xid | Starting

_NAMES: Final = GpuReading._fields
_STATE: Final = 1  # the group with what JSON has no value for
_BEGINNINGS: Final = (0, *map(_NAMES.index, ("lost", "tens_at_s", "thirties_at_s", "sm_clock_max_hz")), len(_NAMES))
_GROUPS: Final = tuple(slice(*ends) for ends in pairwise(_BEGINNINGS))
_ACTION: Final = _NAMES.index("recovery_action")
_PROCESSES: Final = _NAMES.index("processes")
_ACTIONS: Final[dict[int | None, RecoveryAction | None]] = {
    None: None,
    **{action.value: action for action in RecoveryAction},
}
_LAYOUT: Final = zlib.crc32(repr((_NAMES, [field.name for kind in (Gpu, Xid) for field in fields(kind)])).encode())
_SAME: Final = 0  # in the place of a group: as it was

Group = tuple[object, ...]  # of a reading, or all of it


def _plain(value: object) -> object:
    return value.value if isinstance(value, RecoveryAction) else astuple(value)  # type: ignore[call-overload]


_decode: Final = json.JSONDecoder().raw_decode
_JSON: Final = json.JSONEncoder(separators=(",", ":"), default=_plain)


def for_people(snapshot: GpuSnapshot) -> str:
    """One line of JSON with every name, and without what is not known."""
    return _JSON.encode(_known(asdict(snapshot)))


def _known(value: object) -> object:
    if isinstance(value, GpuReading | GpuProcess):
        value = value._asdict()
    if isinstance(value, dict):
        pairs = cast("dict[str, object]", value).items()
        return {name: _known(content) for name, content in pairs if content is not None}
    if isinstance(value, list | tuple):
        return [_known(content) for content in cast("tuple[object, ...]", value)]
    return value


class Writer:
    """Of one process; used by one thread for snapshots, and by any for the rest."""

    def __init__(self) -> None:
        self._sent: Mapping[str, GpuReading] = {}
        self._host: tuple[Any, ...] = ()

    def render(self, line: Line) -> bytes:
        """One line with its line feed."""
        return _JSON.encode(self._value(line)).encode() + b"\n"

    def _value(self, line: Line) -> dict[str, Any]:
        match line:
            case Starting():
                return {"starting": line.at_s, "layout": _LAYOUT}
            case Xid():
                return {"xid": [line.uuid, line.code, line.at_s, line.instance]}
            case GpuSnapshot():
                return self._snapshot(line)

    def _snapshot(self, snapshot: GpuSnapshot) -> dict[str, Any]:
        host = (snapshot.driver_version, snapshot.cuda_version, snapshot.gpus)
        sent, self._sent = self._sent, snapshot.readings
        value: dict[str, Any] = {
            "at": snapshot.at_s,
            "up": snapshot.up,
            "because": snapshot.because,
            "process": (snapshot.process_cpu_s, snapshot.process_memory_bytes),
            "readings": {uuid: _groups(reading, sent.get(uuid)) for uuid, reading in snapshot.readings.items()},
        }
        if host != self._host:
            self._host = host
            value["host"] = host
        return value


def _groups(reading: Group, sent: Group | None) -> list[Group | int]:
    if sent is None:
        return [reading[group] for group in _GROUPS]
    return [_SAME if (new := reading[group]) == sent[group] else new for group in _GROUPS]


class Reader:
    """Of one process, from its first line on."""

    def __init__(self) -> None:
        self._readings: Mapping[str, GpuReading] = {}
        self._host: tuple[str, str, tuple[Gpu, ...]] = ("", "", ())

    def parse(self, line: bytes) -> Line:
        """Raises WireError."""
        try:
            value, end = _decode(text := line.decode().rstrip())
            if end < len(text):
                raise WireError("more than one line")
            if "starting" in value:
                if value["layout"] != _LAYOUT:
                    raise WireError("the NVML process is of another version than the agent")
                return Starting(at_s=float(value["starting"]))
            if "xid" in value:
                uuid, code, at_s, instance = value["xid"]
                return Xid(str(uuid), int(code), float(at_s), None if instance is None else int(instance))
            return self._snapshot(value)
        except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
            raise WireError(f"not a line of the NVML process: {line[:80]!r}") from error

    def _snapshot(self, value: Any) -> GpuSnapshot:
        if "host" in value:
            driver, cuda, gpus = value["host"]
            self._host = (str(driver), str(cuda), tuple(Gpu(*gpu) for gpu in gpus))
        known = self._readings
        self._readings = {uuid: _reading(groups, known.get(uuid, ())) for uuid, groups in value["readings"].items()}
        cpu_s, memory_bytes = value["process"]
        return GpuSnapshot(
            at_s=float(value["at"]),
            up=bool(value["up"]),
            because=str(value["because"]),
            driver_version=self._host[0],
            cuda_version=self._host[1],
            gpus=self._host[2],
            readings=self._readings,
            process_cpu_s=cpu_s,
            process_memory_bytes=memory_bytes,
        )


def _reading(groups: list[Any], known: Group) -> GpuReading:
    values: list[Any] = []
    for place, group in zip(_GROUPS, groups, strict=True):
        values += known[place] if group == _SAME else group
    if groups[_STATE] != _SAME:
        values[_ACTION] = _ACTIONS[values[_ACTION]]
        if values[_PROCESSES] is not None:
            values[_PROCESSES] = tuple(GpuProcess(*process) for process in values[_PROCESSES])
    return GpuReading._make(values)
