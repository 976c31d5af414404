"""A sample in the text format of Prometheus, which is the same in OpenMetrics. Pure."""

from __future__ import annotations

import math
from typing import Final

LABEL_MAX: Final = 512  # characters of a label's value

Labels = tuple[str, ...]


def beginning(name: str, keys: tuple[str, ...], values: Labels) -> str:
    """Of a sample's line, up to its value."""
    if not keys:
        return name
    pairs = ",".join(f'{key}="{escaped(value[:LABEL_MAX])}"' for key, value in zip(keys, values, strict=True))
    return f"{name}{{{pairs}}}"


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def number(value: float) -> str:
    if value == 0:
        return "0"
    if value == 1:
        return "1"
    if math.isfinite(value):
        return repr(value)
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
