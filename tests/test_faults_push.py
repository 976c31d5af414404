"""Whole builds into a registry that fails: what passes is waited for, what lasts is told, no name points at half an image."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest
from building import MIB
from conftest import MakeRegistry
from faults import Answer, Corrupt, Cut, DropResponse, Fault, Headers, Slow, Stall, session_lost
from registries import Options, Registry
from trouble import HTML, LARGE, OTHER, PAGE, Place, log_in

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
    "503": Answer(503),
    "429": LATER,
    "no answer, though it was done": DropResponse(),
    "a reset, though it was done": DropResponse(how="rst"),
    "500, though it was done": Answer(500, carry_out=True),
}


def refusal(status: int, code: str) -> Answer:
    body = json.dumps({"errors": [{"code": code, "message": "no"}]}).encode()
    return Answer(status, body, {"Content-Type": "application/json"})


# As long as it is asked; what the sentence says of it.
LASTING: dict[str, tuple[str, Fault, str]] = {
    "a page in place of the old image": ("looking for the old image", Answer(200, PAGE, HTML), ""),
    "500 for the old image": ("looking for the old image", Answer(500), "500"),
    "500 for a layer": ("looking for a layer", Answer(500), "500"),
    "401 for an upload": ("opening an upload", refusal(401, "UNAUTHORIZED"), "401 UNAUTHORIZED"),
    "403 for an upload": ("opening an upload", refusal(403, "DENIED"), "403 DENIED"),
    "404 for an upload": ("opening an upload", refusal(404, "NAME_UNKNOWN"), "404 NAME_UNKNOWN"),
    "405 for an upload": ("opening an upload", refusal(405, "UNSUPPORTED"), "405 UNSUPPORTED"),
    "429 for an hour": ("opening an upload", MUCH_LATER, "429"),
    "a page in place of an upload": ("opening an upload", Answer(200, PAGE, HTML), "web page"),
    "202 without a place": ("opening an upload", Headers({"Location": None}), "without saying where"),
    "500 for bytes": ("sending", Answer(500), "500"),
    "403 for bytes": ("sending", refusal(403, "DENIED"), "403 DENIED"),
    "413 for bytes": ("sending", Answer(413, PAGE, HTML), "413"),
    "a page in place of thanks for bytes": ("sending", Answer(200, PAGE, HTML), ""),
    "sessions that are lost each time": ("sending", session_lost(), "404"),
    "connections that break in the middle": ("sending", Cut(1000, of="request"), ""),
    "bytes that change": ("sending", Corrupt(1000, of="request"), "DIGEST_INVALID"),
    "500 for the commit": ("committing", Answer(500), "500"),
    "403 for the commit": ("committing", refusal(403, "DENIED"), "403 DENIED"),
    "a page in place of the commit": ("committing", Answer(200, PAGE, HTML), ""),
    "500 for the name": ("naming", Answer(500), "500"),
    "403 for the name": ("naming", refusal(403, "DENIED"), "403 DENIED"),
    "400 for the name": ("naming", refusal(400, "MANIFEST_INVALID"), "400 MANIFEST_INVALID"),
    "a layer that was lost": ("naming", refusal(404, "MANIFEST_BLOB_UNKNOWN"), "MANIFEST_BLOB_UNKNOWN"),
    "a page in place of the name": ("naming", Answer(200, PAGE, HTML), ""),
    "429 for the name for an hour": ("naming", MUCH_LATER, "429"),
}


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_at_every_step_ends_in_the_right_image(place: Place, case: str) -> None:
    assert place.registry
    rules = [
        place.registry.proxy.add(PASSING[case], method=method, path=path, nth=2 if step in SENDING[:-1] else 1)
        for step, (method, path) in STEPS.items()
    ]

    place.push_stored().succeeds()

    assert [rule.hits for rule in rules] == [1] * len(STEPS)


@pytest.mark.parametrize("case", LASTING)
def test_what_lasts_is_told_and_the_next_run_succeeds(place: Place, case: str) -> None:
    assert place.registry
    step, fault, said = LASTING[case]
    method, path = STEPS[step]
    place.registry.proxy.add(fault, method=method, path=path)
    job = place.push_stored().impatient()

    message, _ = job.fails()

    assert said in message
    place.registry.proxy.clear()
    job.succeeds()


def sent_bytes(registry: Registry) -> int:
    return sum(entry.request_bytes for entry in registry.requests())


def test_what_was_sent_is_not_sent_again(place: Place, registry: Registry) -> None:
    registry.proxy.add(refusal(403, "DENIED"), method="PUT", path=MANIFEST)
    job = place.push_stored(LARGE)
    job.fails()
    registry.proxy.clear()
    registry.forget()

    job.succeeds()

    assert not registry.requests("PATCH")
    assert sent_bytes(registry) < 10_000


@pytest.mark.parametrize("step", ["sending", "committing", "naming"])
def test_a_failure_leaves_the_old_image_under_the_name(place: Place, registry: Registry, step: str) -> None:
    before = place.push_stored(OTHER)
    before.succeeds()
    method, path = STEPS[step]
    registry.proxy.add(refusal(403, "DENIED"), method=method, path=path)
    job = place.push_stored()

    job.fails(before=before.digest)

    assert job.named() == before.digest
    registry.proxy.clear()
    job.succeeds()


@pytest.mark.parametrize("seed", range(3))
def test_what_is_sent_may_be_cut_at_any_byte(place: Place, registry: Registry, seed: int) -> None:
    size = place.ground.weights_bytes(LARGE)
    chance = random.Random(seed)
    rules = [
        registry.proxy.add(
            Cut(chance.choice([0, 1, chance.randrange(size // 4)]), of="request", how=chance.choice(["rst", "fin"])),
            method="PATCH",
            nth=nth,
        )
        for nth in range(1, 5)
    ]

    place.push_stored(LARGE).succeeds()

    assert all(rule.hits for rule in rules)
    assert sent_bytes(registry) < size * 1.3


def test_an_answer_may_be_cut_at_any_byte(place: Place, registry: Registry) -> None:
    before = place.push_stored(OTHER)
    before.succeeds()
    for nth, after in enumerate([0, 1, 200], start=1):
        registry.proxy.add(Cut(after), method="GET", path=MANIFEST, nth=nth)

    place.push_stored().succeeds()


@pytest.mark.parametrize("says", [None, 300])
def test_a_token_may_end_in_the_middle_of_an_upload(
    make_registry: MakeRegistry, place: Place, says: int | None
) -> None:
    """And its server may tell the truth about that, or not."""
    registry = make_registry(Options(auth="token", token_lifetime_s=3))
    assert registry.tokens
    registry.tokens.reported_s = says
    log_in(place.site, registry.host)
    registry.proxy.add(Slow(10_000_000, of="request"), method="PATCH", nth=1)
    registry.proxy.add(Cut(40_000_000, of="request"), method="PATCH", nth=1)
    job = replace(place, registry=registry).push_stored(LARGE)

    assert job.run().status == 0

    assert job.named() == job.digest
    assert len({entry.headers["authorization"] for entry in registry.requests("PATCH")}) > 1


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_wrong_password_is_told_with_the_command_that_helps(
    make_registry: MakeRegistry, place: Place, auth: str
) -> None:
    registry = make_registry(Options(auth=auth))
    job = replace(place, registry=registry).push_stored()
    log_in(place.site, registry.host, password="guessed")

    _, hint = job.fails()

    assert f"docker login {registry.host}" in hint
    log_in(place.site, registry.host)
    assert job.run().status == 0


def test_a_read_only_registry_is_told(make_registry: MakeRegistry, place: Place) -> None:
    registry = make_registry(Options(read_only=True))

    _, hint = replace(place, registry=registry).push_stored().fails()

    assert "read-only" in hint


def test_a_full_disk_of_the_registry_is_told_and_a_larger_one_takes_all(
    make_registry: MakeRegistry, place: Place
) -> None:
    registry = make_registry(Options(storage_bytes=30 * MIB))
    job = replace(place, registry=registry).push_stored(LARGE).impatient()

    _, hint = job.fails()

    assert "space" in hint
    registry.resize(200 * MIB)
    job.succeeds()


def test_a_registry_that_restarts_in_the_middle_gets_the_right_image(place: Place, registry: Registry) -> None:
    stall = Stall(20 * MIB, of="request")
    registry.proxy.add(stall, method="PATCH", nth=1)
    job = place.push_stored(LARGE)
    running = job.start()
    assert stall.reached.wait(30)

    registry.stop()
    registry.start()
    stall.release()

    assert job.sound(running.wait())


def test_a_registry_that_does_not_come_back_is_told(place: Place, registry: Registry) -> None:
    stall = Stall(20 * MIB, of="request")
    registry.proxy.add(stall, method="PATCH", nth=1)
    job = place.push_stored(LARGE).impatient()
    running = job.start()
    assert stall.reached.wait(30)

    registry.stop()
    stall.release()

    assert not job.sound(running.wait())
    registry.start()
    job.succeeds()
