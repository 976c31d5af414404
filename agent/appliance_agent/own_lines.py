"""Which lines of a container's log are about our own requests. Pure."""

from __future__ import annotations

from typing import Final

from appliance_agent.access_log import MARK, Access, Event, Timing

_LATE_S: Final = 2.0


class OwnLines:
    """Access lines show our mark. Timings name nobody: each canary takes one off that is as short as its own."""

    def __init__(self) -> None:
        self._longest = 0  # tokens
        self._open = False
        self._until_s: float | None = None

    def began(self, tokens: int) -> None:
        self._longest, self._open, self._until_s = tokens + 1, True, None

    def ended(self, now_s: float) -> None:
        self._until_s = now_s + _LATE_S

    def is_ours(self, event: Event, now_s: float) -> bool:
        if isinstance(event, Access):
            return event.query == MARK
        if not isinstance(event, Timing) or not self._open or event.answer_tokens > self._longest:
            return False
        if self._until_s is not None and now_s > self._until_s:
            return False
        self._open = False
        return True
