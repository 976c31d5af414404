"""What is in a slot's memory, as metrics: bounded in its labels, and absent where nothing is known."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import snapshots
import soundhost
from scraped import Scraped

from appliance_agent.evidence import Running

MIB = 1024**2
OWN = {"loaded": True, "model_bytes": 20 * MIB, "vram_bytes": 10 * MIB, "context_tokens": 4096}


def shown(**known: Any) -> dict[str, float]:
    """By metric and model."""
    base = snapshots.good_night(1)
    plain = {"model_bytes": 0, "vram_bytes": 0, "context_tokens": 0}
    scraped = Scraped(replace(base, evidence={0: replace(soundhost.evidence(0), **{**plain, **known})}))
    rows = ((name, dict(labels), value) for (name, labels), value in scraped.series().items())
    start = "appliance_model_"
    return {
        f"{name.removeprefix(start)} {of['model']}": value
        for name, of, value in rows
        if "model" in of and name.startswith(start)
    }


@pytest.mark.parametrize(
    ("known", "rows"),
    [
        ({"loaded": None}, {}),
        ({"loaded": False, "model_bytes": 5}, {}),
        ({"loaded": True}, {}),  # an answer came, and /api/ps was not asked since
        (OWN, {"size_bytes own": 20 * MIB, "vram_bytes own": 10 * MIB, "context_tokens own": 4096}),
        ({**OWN, "context_tokens": 0}, {"size_bytes own": 20 * MIB, "vram_bytes own": 10 * MIB}),
        (
            {**OWN, "context_tokens": 0, "expires_wall_s": 1795867200.5},
            {"size_bytes own": 20 * MIB, "vram_bytes own": 10 * MIB, "expiry_timestamp_seconds own": 1795867200.5},
        ),
        (
            {"loaded": False, "others_bytes": 7, "others_vram_bytes": 3},
            {"size_bytes other": 7, "vram_bytes other": 3},
        ),
    ],
)
def test_a_model_has_the_series_that_are_known(known: dict[str, Any], rows: dict[str, float]) -> None:
    assert shown(**known) == {key.replace("own", soundhost.MODEL): value for key, value in rows.items()}


@pytest.mark.parametrize(
    ("running", "canary", "shown_running"),
    [
        (None, None, None),
        (0, None, 0),
        (3, None, 3),
        (3, Running(1.0), 3),  # it may wait for its turn
        (3, Running(1.0, 1.1, 1.2, 2), 2),
        (0, Running(1.0, 1.1, 1.2, 2), 0),
    ],
)
def test_our_own_request_is_not_among_those_that_are_computed(
    running: int | None, canary: Running | None, shown_running: int | None
) -> None:
    base = snapshots.good_night(1)
    evidence = replace(soundhost.evidence(0), running=running, canary=canary)

    assert Scraped(replace(base, evidence={0: evidence})).value("requests_running", gpu="0") == shown_running


def test_a_slot_without_a_container_has_no_model() -> None:
    base = snapshots.good_night(1)
    gone = replace(base, engine=replace(base.engine, containers=()))

    assert not any(name.startswith("appliance_model_size") for name, _ in Scraped(gone).series())
