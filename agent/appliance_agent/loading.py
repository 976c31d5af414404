"""When the log says that a model is being loaded, for whomever. Pure."""

from __future__ import annotations

from dataclasses import replace

from appliance_agent.access_log import Event, LoadBegan, LoadFailed, ModelLoad, Timing
from appliance_agent.evidence import Canary, Evidence, Outcome


def after_line(before: Evidence, event: Event, now_s: float) -> Evidence:
    if isinstance(event, LoadBegan):
        return replace(before, loading_since_s=now_s)
    return _ended(before, now_s) if isinstance(event, ModelLoad | LoadFailed | Timing) else before


def after_canary(before: Evidence, ended: Canary) -> Evidence:
    """A load whose end was not logged is over when a canary that came to it is answered."""
    if ended.outcome is not Outcome.OK or ended.first_token_s is None or before.loading_since_s is None:
        return before
    token_s = ended.started_s + ended.first_token_s
    return _ended(before, token_s) if token_s > before.loading_since_s else before


def _ended(before: Evidence, at_s: float) -> Evidence:
    return before if before.loading_since_s is None else replace(before, loading_since_s=None, loading_ended_s=at_s)
