"""Whole builds from a registry of models that fails: what passes is waited for, what lasts is told, nothing wrong is kept."""

from __future__ import annotations

import os
import random
import shutil

import pytest
from blobsources import StoreSource
from conftest import MakeFront
from faultproxy import FaultProxy
from faults import Answer, Corrupt, Cut, DropResponse, Fault, Headers, IgnoreRange, Shorten, Stall
from ollamafront import Manners, OllamaFront
from ollamastore import blob_path
from trouble import HTML, LARGE, OTHER, PAGE, SEGMENT_BYTES, SMALL, Ground, Place, log_in, weights_path

BLOB, MANIFEST, DATA = r"/blobs/", r"/manifests/", r"/data/"
LATER = Answer(429, headers={"Retry-After": "1"})
MUCH_LATER = Answer(429, headers={"Retry-After": "3600"})
EXPIRED = Answer(403, b"<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>")

# Once; a build outlives them.
PASSING: dict[str, tuple[str, Fault]] = {
    "500 for the manifest": (MANIFEST, Answer(500)),
    "502 with a page for the manifest": (MANIFEST, Answer(502, PAGE, HTML)),
    "429 for the manifest": (MANIFEST, LATER),
    "no answer for the manifest": (MANIFEST, DropResponse()),
    "a reset for the manifest": (MANIFEST, DropResponse(how="rst")),
    "a cut manifest": (MANIFEST, Cut(100)),
    "503 for a link": (BLOB, Answer(503, headers={"Retry-After": "1"})),
    "429 for a link": (BLOB, LATER),
    "no answer for a link": (BLOB, DropResponse()),
    "500 from the storage": (DATA, Answer(500)),
    "429 from the storage": (DATA, LATER),
    "a cut from the storage": (DATA, Cut(1000)),
    "a reset from the storage": (DATA, Cut(1000, how="rst")),
    "a link that ran out": (DATA, EXPIRED),
    "a page from the storage": (DATA, Answer(200, PAGE, HTML)),
    "a part cut short": (DATA, Shorten(500)),
}

# As long as it is asked; what the sentence says of it.
LASTING: dict[str, tuple[str, Fault, str]] = {
    "401 for the manifest": (MANIFEST, Answer(401), "401"),
    "403 for the manifest": (MANIFEST, Answer(403), "403"),
    "404 for the manifest": (MANIFEST, Answer(404), "not found"),
    "a page in place of the manifest": (MANIFEST, Answer(200, PAGE, HTML), "web page"),
    "a page with 404": (MANIFEST, Answer(404, PAGE, HTML), "not found"),
    "500 for the manifest": (MANIFEST, Answer(500), "500"),
    "503 for the manifest": (MANIFEST, Answer(503), "503"),
    "429 for an hour": (MANIFEST, MUCH_LATER, "429"),
    "a manifest cut each time": (MANIFEST, Cut(100), "broke"),
    "401 for a link": (BLOB, Answer(401), "401"),
    "403 for a link": (BLOB, Answer(403), "403"),
    "404 for a link": (BLOB, Answer(404), "404"),
    "500 for a link": (BLOB, Answer(500), "500"),
    "429 for a link for an hour": (BLOB, MUCH_LATER, "429"),
    "a page in place of a link": (BLOB, Answer(200, PAGE, HTML), ""),
    "a link that never works": (DATA, EXPIRED, "403"),
    "404 from the storage": (DATA, Answer(404), "404"),
    "500 from the storage": (DATA, Answer(500), "500"),
    "a page from the storage": (DATA, Answer(200, PAGE, HTML), "web page"),
    "a cut before each first byte": (DATA, Cut(0), ""),
    "parts cut short": (DATA, Shorten(0), ""),
    "bytes that changed": (DATA, Corrupt(50), ""),
    "another size": (DATA, Headers({"Content-Range": "bytes 0-99/100"}), ""),
}


@pytest.fixture
def front(ground: Ground, make_front: MakeFront) -> OllamaFront:
    return make_front(StoreSource(ground.store))


def proxy_of(front: OllamaFront, path: str) -> FaultProxy:
    return front.blob_proxy if path == DATA else front.proxy


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_ends_in_the_right_image(place: Place, front: OllamaFront, case: str) -> None:
    path, fault = PASSING[case]
    proxy_of(front, path).add(fault, path=path, times=1)

    place.push_downloaded(front).succeeds()


@pytest.mark.parametrize("case", [case for case, (path, _) in PASSING.items() if path != MANIFEST])
def test_what_passes_in_the_weights_ends_in_the_right_image(place: Place, front: OllamaFront, case: str) -> None:
    path, fault = PASSING[case]
    digest = place.ground.weights().removeprefix("sha256:")
    rule = proxy_of(front, path).add(fault, path=digest, nth=2)  # the first is for the header of the file

    place.push_downloaded(front).succeeds()

    assert rule.hits == 1


@pytest.mark.parametrize("case", LASTING)
def test_what_lasts_is_told_and_the_next_run_succeeds(place: Place, front: OllamaFront, case: str) -> None:
    path, fault, said = LASTING[case]
    proxy_of(front, path).add(fault, path=path)
    job = place.push_downloaded(front).impatient()

    message, _ = job.fails()

    assert said in message
    front.proxy.clear()
    front.blob_proxy.clear()
    job.succeeds()


@pytest.mark.parametrize("seed", range(4))
def test_the_weights_may_be_cut_at_any_byte(place: Place, front: OllamaFront, seed: int) -> None:
    size = place.ground.weights_bytes()
    chance = random.Random(seed)
    edges = [1, 2, size - 1, size]
    for nth in range(1, 8):
        after = chance.choice([chance.randrange(size), *edges])
        front.blob_proxy.add(Cut(after, how=chance.choice(["rst", "fin"])), path=weights_path(place.ground), nth=nth)

    place.push_downloaded(front).succeeds()


@pytest.mark.parametrize("after", [0, 1, 100, 400])
def test_the_manifest_and_the_small_blobs_may_be_cut_at_any_byte(place: Place, front: OllamaFront, after: int) -> None:
    front.proxy.add(Cut(after), path=MANIFEST, times=1)
    front.proxy.add(Cut(after), path=BLOB, times=1)
    front.blob_proxy.add(Cut(after), path=DATA, nth=1)
    front.blob_proxy.add(Cut(after // 2), path=DATA, nth=4)

    place.push_downloaded(front).succeeds()


def test_a_server_that_ignores_ranges_gives_the_right_image(place: Place, front: OllamaFront) -> None:
    front.blob_proxy.add(IgnoreRange(), path=DATA)

    place.push_downloaded(front, LARGE).succeeds()


def test_a_server_that_ignores_ranges_and_breaks_gives_the_right_image(place: Place, front: OllamaFront) -> None:
    front.blob_proxy.add(IgnoreRange(), path=weights_path(place.ground, LARGE))
    for nth, after in enumerate((3_000_000, SEGMENT_BYTES + 1), start=4):
        front.blob_proxy.add(Cut(after), path=weights_path(place.ground, LARGE), nth=nth)

    place.push_downloaded(front, LARGE).succeeds()


def test_links_that_run_out_in_the_middle_are_asked_for_anew(
    ground: Ground, place: Place, make_front: MakeFront
) -> None:
    front = make_front(StoreSource(ground.store), Manners(link_uses=1))
    front.blob_proxy.add(Cut(1_000_000), path=weights_path(place.ground, LARGE), nth=2)

    place.push_downloaded(front, LARGE).succeeds()


def test_tokens_that_are_revoked_in_the_middle_are_asked_for_anew(
    ground: Ground, place: Place, make_front: MakeFront
) -> None:
    front = make_front(StoreSource(ground.store), Manners(auth="bearer", redirect=False))
    stall = Stall(1_000_000)
    front.proxy.add(stall, path=ground.weights(LARGE), nth=2)
    front.proxy.add(Cut(2_000_000), path=ground.weights(LARGE), nth=2)  # so that it has to ask once more
    job = place.push_downloaded(front, LARGE)

    running = job.start()
    assert stall.reached.wait(30)
    front.revoke_tokens()
    stall.release()

    assert job.sound(running.wait())
    assert 401 in {entry.status for entry in front.requests(path=ground.weights(LARGE))}


@pytest.mark.parametrize("model", [SMALL, LARGE])
def test_weights_that_changed_on_the_way_are_never_stored_and_fetched_again(
    place: Place, front: OllamaFront, model: str
) -> None:
    rule = front.blob_proxy.add(Corrupt(123_456), path=weights_path(place.ground, model), nth=2)
    job = place.push_downloaded(front, model)

    message, _ = job.fails()

    assert "damaged" in message
    assert rule.hits == 1
    job.succeeds()


def test_weights_that_are_shorter_than_promised_are_never_stored(
    ground: Ground, place: Place, make_front: MakeFront
) -> None:
    store = place.site.directory / "store"
    shutil.copytree(ground.store, store)
    blob = blob_path(store, ground.weights())
    os.truncate(blob, ground.weights_bytes() - 1)
    job = place.push_downloaded(make_front(StoreSource(store))).impatient()

    job.fails()

    shutil.copyfile(blob_path(ground.store, ground.weights()), blob)
    job.succeeds()


def test_a_failure_leaves_the_old_image_under_the_name(place: Place, front: OllamaFront) -> None:
    before = place.push_stored(OTHER)
    before.succeeds()
    front.blob_proxy.add(Corrupt(1000), path=weights_path(place.ground), nth=2)
    job = place.push_downloaded(front)

    job.fails(before=before.digest)

    job.succeeds()


def test_a_registry_that_is_not_there_is_told_within_seconds(place: Place, front: OllamaFront) -> None:
    front.close()

    message, hint = place.push_downloaded(front).impatient().fails()

    assert "refuses connections" in message
    assert "check the port" in hint


def test_a_name_that_nobody_knows_is_told_within_seconds(place: Place) -> None:
    message, _ = place.push("--models-registry", "https://models.invalid").impatient().fails()

    assert "no address is known for models.invalid" in message


def test_the_login_of_a_mirror_is_its_own(ground: Ground, place: Place, make_front: MakeFront) -> None:
    front = make_front(StoreSource(ground.store), Manners(auth="basic"))
    job = place.push_downloaded(front)

    log_in(place.site, "registry.ollama.ai")
    message, hint = job.fails()

    assert "401" in message
    assert f"docker login {front.host}" in hint
    assert not [entry for entry in front.requests() if "authorization" in entry.headers]
    log_in(place.site, front.host)
    job.succeeds()
