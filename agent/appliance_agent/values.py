"""Frozen values that change little."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar

Value = TypeVar("Value")


def updated(value: Value, **changes: Any) -> Value:
    """As `replace`, but the same object if it says all of that already: most looks and ticks change nothing, and that
    must be cheap."""
    if all(getattr(value, name) == new for name, new in changes.items()):
        return value
    return replace(value, **changes)  # type: ignore[type-var]
