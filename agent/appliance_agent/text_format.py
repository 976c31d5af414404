"""A sample in the text format of Prometheus, which is the same in OpenMetrics. Pure."""

from __future__ import annotations

Labels = tuple[str, ...]


def beginning(name: str, keys: tuple[str, ...], values: Labels) -> str:
    """Of a sample's line, up to its value."""
    if not keys:
        return name
    pairs = ",".join(f'{key}="{escaped(value)}"' for key, value in zip(keys, values, strict=True))
    return f"{name}{{{pairs}}}"


def escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def number(value: float) -> str:
    if value == 0:
        return "0"
    return "1" if value == 1 else repr(value)
