"""When a download waits, for how long, and when it gives up. Decides only; clock and chance are arguments.

What counts is time without a new byte of the whole blob, never the number of tries: a slow line may break a thousand
times. Time that a server asked for is granted on top. Answers that cannot be right get less time than silence.
"""

from __future__ import annotations

from dataclasses import dataclass

from appliance_builder.network_errors import NetworkError
from appliance_builder.ranges import DoubtfulError
from appliance_builder.registry_errors import RegistryError


@dataclass(frozen=True, slots=True)
class Pace:
    patience_s: float = 300.0
    doubt_s: float = 30.0  # for answers that cannot be right, and for a host that was never reached
    grant_s: float = 300.0  # what servers may ask for in all before another byte comes
    first_s: float = 0.5
    longest_s: float = 20.0


class Budget:
    """Of one download, shared by its connections."""

    def __init__(self, pace: Pace, *, now_s: float) -> None:
        self.not_before_s = now_s  # no request before this: a server said so
        self._pace = pace
        self._since_s = now_s
        self._granted_s = 0.0
        self._doubt_since_s: float | None = None
        self._reached = False

    def progressed(self, now_s: float) -> None:
        self._since_s = now_s
        self._granted_s = 0.0
        self._doubt_since_s = None
        self._reached = True

    def pause_s(self, error: NetworkError | RegistryError, tries: int, *, now_s: float, random: float) -> float | None:
        """How long one connection waits after its `tries` tries without a byte; None: the download gives up."""
        left_s = self._since_s + self._pace.patience_s + self._granted_s - now_s
        if not error.transient or left_s <= 0:
            return None
        if self._is_doubtful(error):
            if self._doubt_since_s is None:
                self._doubt_since_s = now_s
            if now_s - self._doubt_since_s >= self._pace.doubt_s:
                return None
        told_s = error.retry_after_s
        if told_s is not None and not self._grant(now_s, told_s):
            return None
        if isinstance(error, DoubtfulError) and error.at_once and tries == 0:
            return 0.0
        back_off_s = min(left_s, random * min(self._pace.longest_s, self._pace.first_s * 2.0 ** min(tries, 16)))
        return (told_s or 0.0) + back_off_s

    def _is_doubtful(self, error: NetworkError | RegistryError) -> bool:
        return isinstance(error, DoubtfulError) or (
            isinstance(error, NetworkError) and error.unreached and not self._reached
        )

    def _grant(self, now_s: float, told_s: float) -> bool:
        """Connections that are told the same wait at the same time: it is granted once."""
        more_s = max(0.0, now_s + told_s - max(self.not_before_s, now_s))
        if self._granted_s + more_s > self._pace.grant_s:
            return False
        self._granted_s += more_s
        self.not_before_s = max(self.not_before_s, now_s + told_s)
        return True
