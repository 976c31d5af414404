"""Whole builds from a registry of models that fails: what passes is waited for, what lasts is told, nothing wrong is kept."""

from __future__ import annotations

import random

import pytest
from blobsources import StoreSource
from conftest import MakeFront
from faultproxy import FaultProxy
from faults import Answer, Corrupt, Cut, DropResponse, Fault, Headers, IgnoreRange, Shorten
from ollamafront import Manners, OllamaFront
from trouble import HTML, LARGE, PAGE, SEGMENT_BYTES, SMALL, Ground, Place

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


@pytest.mark.parametrize("case", PASSING)
def test_what_passes_in_the_weights_ends_in_the_right_image(place: Place, front: OllamaFront, case: str) -> None:
    path, fault = PASSING[case]
    if path == MANIFEST:
        pytest.skip("seen above")
    proxy_of(front, path).add(fault, path=place.ground.weights().replace(":", ".*"), nth=2)

    place.push_downloaded(front).succeeds()


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
