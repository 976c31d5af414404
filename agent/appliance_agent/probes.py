"""Metrics of the canaries: counted as they end, from any thread."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from appliance_agent import catalogue_slots as names
from appliance_agent.evidence import Canary, Outcome
from appliance_agent.slot_tallies import SlotTallies
from appliance_agent.tallies import Numbers, Spread, Tally

_FAILURES: Final = tuple(outcome.value for outcome in Outcome if outcome is not Outcome.OK)


class _Slot:
    def __init__(self, index: int) -> None:
        gpu = str(index)
        self.attempts = Numbers(names.PROBE_ATTEMPTS, gpu)
        self.failures = Numbers(names.PROBE_FAILURES, gpu)
        self.success = Numbers(names.PROBE_SUCCESS, gpu)
        self.last_success = Numbers(names.PROBE_LAST_SUCCESS, gpu)
        self.first_token = Spread(names.PROBE_FIRST_TOKEN, gpu)
        self.output_token = Spread(names.PROBE_OUTPUT_TOKEN, gpu)
        self.tokens = Numbers(names.PROBE_TOKENS, gpu)
        self.attempts.add(0)
        self.tokens.add(0)
        for reason in _FAILURES:
            self.failures.add(0, reason)

    @property
    def tallies(self) -> tuple[Tally, ...]:
        return (
            self.attempts, self.failures, self.success, self.last_success, self.first_token, self.output_token,
            self.tokens,
        )  # fmt: skip

    def count(self, canary: Canary, ended_wall_s: float) -> None:
        good = canary.outcome is Outcome.OK
        self.attempts.add(1)
        self.success.set(good)
        self.tokens.add(float(canary.tokens))
        if canary.first_token_s is not None:
            self.first_token.observe(canary.first_token_s)
        if not good:
            self.failures.add(1, canary.outcome.value)
            return
        self.last_success.set(round(ended_wall_s, 3))
        if canary.tokens_per_s:
            self.output_token.observe(1 / canary.tokens_per_s)


class Probes(SlotTallies[_Slot]):
    def __init__(self, wall_s: Callable[[], float] = time.time, mono_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__(_Slot)
        self._wall_s = wall_s
        self._mono_s = mono_s

    def canary(self, slot: int, canary: Canary) -> None:
        ended_wall_s = self._wall_s() - (self._mono_s() - canary.ended_s)
        self._count(slot, lambda counted: counted.count(canary, ended_wall_s))
