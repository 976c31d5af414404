"""Whole builds into a registry that fails: what passes is waited for, what lasts is told, no name points at half an image."""

from __future__ import annotations

import json
import random

import pytest
from conftest import MakeRegistry
from faults import Answer, Corrupt, Cut, DropResponse, Fault, Headers, Slow, Stall, session_lost
from registries import Options
from trouble import HTML, LARGE, OTHER, PAGE, SMALL, Place, log_in

UPLOADS, BLOB, MANIFEST = r"/blobs/uploads/", r"/blobs/sha256:", r"/manifests/"
LATER = Answer(429, headers={"Retry-After": "1"})
MUCH_LATER = Answer(429, headers={"Retry-After": "3600"})
STEPS = {
    "looking for the old image": ("GET", MANIFEST),
    "asking for the right to push": ("DELETE", UPLOADS),
    "looking for a layer": ("HEAD", BLOB),
    "opening an upload": ("POST", UPLOADS),
    "sending": ("PATCH", UPLOADS),
    "committing": ("PUT", UPLOADS),
    "naming": ("PUT", MANIFEST),
}
SENDING = [step for step, (method, _) in STEPS.items() if method in ("POST", "PATCH", "PUT")]
PASSING: dict[str, Fault] = {
    "500": Answer(500),
    "502 with a page": Answer(502, PAGE, HTML),
    "503": Answer(503, headers={"Retry-After": "1"}),
    "429": LATER,
    "no answer, though it was done": DropResponse(),
    "a reset, though it was done": DropResponse(how="rst"),
    "500, though it was done": Answer(500, carry_out=True),
}


def refusal(status: int, code: str) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": "no"}]}).encode()
    return Answer(status, body, {"Content-Type": "application/json"})


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("case", PASSING)
def test_what_passes_at_any_step_ends_in_the_right_image(place: Place, case: str, step: str) -> None:
    assert place.registry
    method, path = STEPS[step]
    nth = 2 if step in SENDING else 1  # of layers: not the first one
    rule = place.registry.proxy.add(PASSING[case], method=method, path=path, nth=1 if step == "naming" else nth)

    place.push_stored().succeeds()

    assert rule.hits == 1
