"""What is known of the engine, for everybody to read without waiting: the newest EngineSeen, and who waits for news."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from appliance_agent.containers import NO_ENGINE, EngineSeen
from appliance_agent.ports import Wake


class EngineBoard:
    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._news = threading.Condition()
        self._seen = NO_ENGINE

    @property
    def seen(self) -> EngineSeen:
        return self._seen

    def publish(self, **changes: Any) -> None:
        """Wakes the loop unless only the time of the look is new."""
        with self._news:
            before, self._seen = self._seen, replace(self._seen, **changes)
            same = replace(self._seen, at_s=before.at_s) == before
            self._news.notify_all()
        if not same:
            self._wake()

    def wait_for(self, true: Callable[[EngineSeen], bool], *, timeout_s: float) -> bool:
        with self._news:
            return self._news.wait_for(lambda: true(self._seen), timeout_s)
