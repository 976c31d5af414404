"""How far a pull is, from the engine's JSON lines. Pure: lines in, bytes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

_LOADING: Final = "Downloading"
_LOADED: Final = frozenset({"Download complete", "Verifying Checksum", "Extracting", "Pull complete"})


@dataclass(frozen=True, slots=True)
class PullProgress:
    """Bytes of the layers that were heard of; those that are there already count nothing."""

    layers: Mapping[str, tuple[int, int]] = field(default_factory=dict[str, tuple[int, int]])  # done, total
    error: str = ""

    @property
    def done_bytes(self) -> int:
        return sum(done for done, _ in self.layers.values())

    @property
    def total_bytes(self) -> int:
        return sum(total for _, total in self.layers.values())

    def after(self, line: Mapping[str, object]) -> PullProgress:
        if "errorDetail" in line or "error" in line:
            return replace(self, error=_error(line))
        layer, status = str(line.get("id", "")), line.get("status")
        if status == _LOADING and (sizes := _sizes(line)):
            return replace(self, layers={**self.layers, layer: sizes})
        if status in _LOADED and layer in self.layers:
            total = self.layers[layer][1]
            return replace(self, layers={**self.layers, layer: (total, total)})
        return self


def _sizes(line: Mapping[str, object]) -> tuple[int, int] | None:
    detail = line.get("progressDetail")
    if not isinstance(detail, dict):
        return None
    numbers = cast("Mapping[str, Any]", detail)
    done, total = int(numbers.get("current") or 0), int(numbers.get("total") or 0)
    return (done, max(done, total))


def _error(line: Mapping[str, object]) -> str:
    detail = line.get("errorDetail")
    said = cast("Mapping[str, object]", detail).get("message") if isinstance(detail, dict) else None
    return str(said or line.get("error") or "no reason given")
