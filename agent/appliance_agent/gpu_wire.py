"""The lines that the NVML process writes and the agent reads: JSON text in, values of `gpus` out, and back. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from appliance_agent.gpus import Gpu, GpuProcess, GpuReading, GpuSnapshot, RecoveryAction, Xid


class WireError(Exception):
    """A line that this version does not write."""


@dataclass(frozen=True, slots=True)
class Starting:
    """NVML is about to be initialised, which may take half a minute without persistence mode."""

    at_s: float  # CLOCK_MONOTONIC


Line = GpuSnapshot | Xid | Starting

_GPU: Final = frozenset(field.name for field in fields(Gpu))
_READING: Final = frozenset(field.name for field in fields(GpuReading))


def render(line: Line) -> bytes:
    """One line with its line feed. What has its default is left out: most readings have holes."""
    return json.dumps(_value(line), separators=(",", ":")).encode() + b"\n"


def parse(line: bytes) -> Line:
    """Raises WireError."""
    try:
        value = json.loads(line)
        if "starting" in value:
            return Starting(at_s=float(value["starting"]))
        if "xid" in value:
            uuid, code, at_s = value["xid"]
            return Xid(uuid=str(uuid), code=int(code), at_s=float(at_s))
        return _snapshot(value)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise WireError(f"not a line of the NVML process: {line[:80]!r}") from error


def _value(line: Line) -> Mapping[str, Any]:
    if isinstance(line, Starting):
        return {"starting": line.at_s}
    if isinstance(line, Xid):
        return {"xid": [line.uuid, line.code, line.at_s]}
    return {
        "at_s": line.at_s,
        "up": line.up,
        "because": line.because,
        "driver": line.driver_version,
        "cuda": line.cuda_version,
        "gpus": [_filled(gpu) for gpu in line.gpus],
        "readings": {uuid: _reading(reading) for uuid, reading in line.readings.items()},
    }


def _snapshot(value: Mapping[str, Any]) -> GpuSnapshot:
    return GpuSnapshot(
        at_s=float(value["at_s"]),
        up=bool(value["up"]),
        because=str(value["because"]),
        driver_version=str(value["driver"]),
        cuda_version=str(value["cuda"]),
        gpus=tuple(Gpu(**_known(gpu, _GPU)) for gpu in value["gpus"]),
        readings={str(uuid): _parsed_reading(reading) for uuid, reading in value["readings"].items()},
    )


def _filled(value: Gpu | GpuReading) -> dict[str, Any]:
    pairs = ((field, getattr(value, field.name)) for field in fields(value))
    return {field.name: content for field, content in pairs if content != field.default}


def _reading(reading: GpuReading) -> dict[str, Any]:
    value = _filled(reading)
    if reading.recovery_action is not None:
        value["recovery_action"] = reading.recovery_action.value
    if reading.processes is not None:
        value["processes"] = [[process.pid, process.memory_bytes] for process in reading.processes]
    return value


def _parsed_reading(value: Mapping[str, Any]) -> GpuReading:
    known = _known(value, _READING)
    if "recovery_action" in known:
        known["recovery_action"] = RecoveryAction(known["recovery_action"])
    if "processes" in known:
        known["processes"] = tuple(GpuProcess(pid, memory_bytes) for pid, memory_bytes in known["processes"])
    return GpuReading(**known)


def _known(value: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    if not names.issuperset(value):
        raise WireError(f"unknown words of the NVML process: {sorted(set(value) - names)}")
    return dict(value)
