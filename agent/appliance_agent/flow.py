"""How many bytes of tokens leave a container for its users: all that is sent, less what is known to be something else."""

from __future__ import annotations

from collections import deque
from typing import Final

from appliance_agent.access_log import Access

WINDOW_S: Final = 3.0
_ANSWER_BYTES: Final = {
    "/": 190, "/api/version": 200, "/api/ps": 600, "/api/tags": 800, "/api/show": 8000, "/v1/models": 400,
}  # fmt: skip
_OTHER_BYTES: Final = 300  # an error, an empty answer


class Flow:
    def __init__(self) -> None:
        self._points: deque[tuple[float, int]] = deque()
        self._discount = 0

    def leave_out(self, line: Access) -> None:
        """An answer to somebody else than us that holds no tokens."""
        if not (line.is_inference and line.ok):
            known = _ANSWER_BYTES.get(line.path, _OTHER_BYTES) if line.ok and line.method != "HEAD" else _OTHER_BYTES
            self._discount += known

    def sample(self, now_s: float, *, sent_bytes: int, own_bytes: int) -> None:
        self._points.append((now_s, sent_bytes - own_bytes - self._discount))
        while len(self._points) > 2 and self._points[1][0] <= now_s - WINDOW_S:
            self._points.popleft()

    def bytes_lately(self) -> int | None:
        """Of the window that ends with the newest sample; None before there are two."""
        return max(0, self._points[-1][1] - self._points[0][1]) if len(self._points) > 1 else None

    def rate(self) -> float | None:
        """Bytes per second."""
        lately = self.bytes_lately()
        if lately is None:
            return None
        span_s = self._points[-1][0] - self._points[0][0]
        return lately / max(span_s, 1.0)
