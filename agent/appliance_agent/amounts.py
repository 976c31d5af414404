"""Ages and amounts in few characters. Pure."""

from __future__ import annotations

_KILO = 1000
_ROUND = 10  # from here on a fraction says nothing


def age(seconds: float) -> str:
    whole = max(int(seconds), 0)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if whole < 60:
        return f"{whole}s"
    if hours < 1:
        return f"{minutes}m {whole % 60:02}s" if minutes < 10 else f"{minutes}m"
    if days < 1:
        return f"{hours}h {minutes % 60:02}m" if hours < 10 else f"{hours}h"
    return f"{days}d {hours % 24}h" if days < 10 else f"{days}d"


def amount(value: float, *, whole: bool = False) -> str:
    """With the prefix of a unit that follows: `0 `, `870 `, `1.2 k`, `12 k`, `3.4 M`."""
    for prefix in ("", "k", "M"):
        if round(value) < _KILO:
            digits = 1 if prefix and value < _ROUND - 0.05 and not whole else 0
            return f"{value:.{digits}f} {prefix}"
        value /= _KILO
    return f"{value:.0f} G"
