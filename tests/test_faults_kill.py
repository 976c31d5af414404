"""Whole builds that are killed or interrupted at a known point, and what the second run still has to do."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from blobsources import StoreSource
from building import MIB, Site, failed
from conftest import MakeFront
from engines import wait_until
from faultproxy import FaultProxy
from faults import DropResponse, Stall
from ollamafront import OllamaFront
from registries import Registry
from trouble import LARGE, SEGMENT_BYTES, Ground, Job, Place, weights_path

from appliance_builder.blobcache import BlobCache
from appliance_image.digest import Digest

HEADER_BYTES = 8 * MIB  # a build looks at the beginning of the weights first; what the kernels hold counts as read


@dataclass(frozen=True)
class Point:
    """Where a build is held: at which request, of which proxy, after how many bytes of which body."""

    at: str  # "front", "storage" or "registry"
    method: str
    path: str
    stall: Callable[[], Stall]
    nth: int = 1


def asked() -> Stall:
    return Stall(0, of="request")


def answered() -> Stall:
    return Stall(0)


def sent() -> Stall:
    return Stall(100_000, of="request")


def received() -> Stall:
    return Stall(100_000)


POINTS = {
    "asking for the model": Point("front", "GET", "/manifests/", asked),
    "reading its manifest": Point("front", "GET", "/manifests/", lambda: Stall(100)),
    "asking for a link": Point("front", "GET", "/blobs/", asked),
    "reading a small blob": Point("storage", "GET", "", lambda: Stall(10)),
    "looking at the header": Point("storage", "GET", "WEIGHTS", received),
    "beginning the download": Point("storage", "GET", "WEIGHTS", answered, 2),
    "downloading": Point("storage", "GET", "WEIGHTS", received, 2),
    "looking for the old image": Point("registry", "GET", "/manifests/", asked),
    "asking for the right to push": Point("registry", "POST", "/uploads/", asked),
    "taking that back": Point("registry", "DELETE", "/uploads/", asked),
    "opening the upload": Point("registry", "POST", "/uploads/", asked, 2),
    "sending": Point("registry", "PATCH", "/uploads/", sent),
    "committing": Point("registry", "PUT", "/uploads/", asked),
    "looking for the next layer": Point("registry", "HEAD", "/blobs/", asked, 4),
    "committing the last layer": Point("registry", "PUT", "/uploads/", asked, 4),
    "committing the configuration": Point("registry", "PUT", "/uploads/", asked, 5),
    "naming": Point("registry", "PUT", "/manifests/", asked),
}


@pytest.fixture
def front(ground: Ground, make_front: MakeFront) -> OllamaFront:
    return make_front(StoreSource(ground.store))


def hold(place: Place, front: OllamaFront, point: Point) -> Stall:
    assert place.registry
    proxies: dict[str, FaultProxy] = {
        "front": front.proxy,
        "storage": front.blob_proxy,
        "registry": place.registry.proxy,
    }
    stall = point.stall()
    path = weights_path(place.ground) if point.path == "WEIGHTS" else point.path
    proxies[point.at].add(stall, method=point.method, path=path, nth=point.nth)
    return stall


def killed_at(job: Job, stall: Stall, how: signal.Signals = signal.SIGKILL) -> None:
    """And has no name yet: released, the registry does what it was asked for, and nobody need be there to hear of it."""
    running = job.start()
    assert stall.reached.wait(30)
    running.kill(how)
    assert job.named() is None
    stall.release()


@pytest.mark.parametrize("name", POINTS)
def test_a_build_that_was_killed_succeeds_the_second_time(place: Place, front: OllamaFront, name: str) -> None:
    job = place.push_downloaded(front)
    stall = hold(place, front, POINTS[name])

    killed_at(job, stall)

    job.succeeds()


def test_a_build_killed_before_it_heard_of_its_success_finds_it(place: Place, registry: Registry) -> None:
    job = place.push_stored()
    registry.proxy.add(DropResponse(), method="PUT", path="/manifests/")
    running = job.start()
    registry.proxy.wait_for(
        lambda log: any(
            each.finished and each.path.endswith("/manifests/tiny") and each.method == "PUT" for each in log
        )
    )

    running.kill()
    registry.proxy.wait_for(lambda log: all(each.finished for each in log))  # a second try rewrites the tag

    assert job.named() == job.digest
    registry.proxy.clear()
    registry.forget()
    job.succeeds()
    assert not registry.requests("PATCH")


def test_segments_that_were_there_are_not_downloaded_again(place: Place, front: OllamaFront) -> None:
    stall = Stall(5 * MIB)
    front.blob_proxy.add(stall, path=weights_path(place.ground, LARGE), nth=4)  # header, two segments, the third
    one = place.push_downloaded(front, LARGE)
    job = replace(one, words=(*one.words, "--connections", "1"))
    killed_at(job, stall)
    front.blob_proxy.forget()

    job.succeeds()

    missing = place.ground.weights_bytes(LARGE) - 2 * SEGMENT_BYTES
    assert fetched(front, place) <= missing + HEADER_BYTES


def test_each_connection_fetches_at_most_one_segment_again(place: Place, front: OllamaFront) -> None:
    """Two connections; one has given two segments while the other is held."""
    stall = Stall(15 * MIB)
    front.blob_proxy.add(stall, path=weights_path(place.ground, LARGE), nth=2)
    other = Stall(MIB)
    front.blob_proxy.add(other, path=weights_path(place.ground, LARGE), nth=5)
    one = place.push_downloaded(front, LARGE)
    job = replace(one, words=(*one.words, "--connections", "2"))
    running = job.start()
    assert stall.reached.wait(30)
    assert other.reached.wait(30)
    running.kill()
    front.blob_proxy.clear()
    front.blob_proxy.forget()

    job.succeeds()

    missing = place.ground.weights_bytes(LARGE) - 2 * SEGMENT_BYTES
    assert fetched(front, place) <= missing + HEADER_BYTES


def test_what_was_downloaded_is_not_fetched_again_for_the_push(
    place: Place, front: OllamaFront, registry: Registry
) -> None:
    stall = Stall(0, of="request")
    registry.proxy.add(stall, method="POST", path="/uploads/", nth=2)
    job = place.push_downloaded(front, LARGE)
    running = job.start()
    assert stall.reached.wait(30)
    cache = BlobCache(place.site.directory / "cache/blobs")
    weights = Digest.parse(place.ground.weights(LARGE)), place.ground.weights_bytes(LARGE)
    wait_until(lambda: not cache.missing_bytes(*weights), timeout_s=30, what="the whole download")
    running.kill()
    front.blob_proxy.forget()
    registry.proxy.clear()

    job.succeeds()

    assert fetched(front, place) <= HEADER_BYTES


@pytest.mark.parametrize("name", ["asking for the model", "downloading", "opening the upload", "sending", "naming"])
def test_ctrl_c_ends_a_build_at_once_and_says_how_to_go_on(place: Place, front: OllamaFront, name: str) -> None:
    job = place.push_downloaded(front)
    stall = hold(place, front, POINTS[name])
    running = job.start()
    assert stall.reached.wait(30)

    began = time.monotonic()
    ran = running.kill(signal.SIGINT)

    took_s = time.monotonic() - began
    message, hint = failed(ran, status=130)
    assert message == "interrupted"
    assert "same command again" in hint
    assert took_s < 10  # who waits for an answer, or for bytes, waits 30 s and more
    assert job.named() is None
    stall.release()
    job.succeeds()


@pytest.mark.registry3
def test_a_killed_push_into_a_distribution_3_sends_only_the_rest(
    ground: Ground, registry3: Registry, tmp_path: Path
) -> None:
    job = Place(ground, Site(tmp_path / "site"), registry3).push_stored(LARGE)
    stall = Stall(20 * MIB, of="request")
    rule = registry3.proxy.add(stall, method="PATCH", nth=1)
    running = job.start()
    assert stall.reached.wait(60)
    running.kill()
    registry3.proxy.remove(rule)
    registry3.proxy.wait_for(lambda log: log[-1].finished)
    registry3.forget()

    job.succeeds()

    assert sum(entry.request_bytes for entry in registry3.requests("PATCH")) < ground.weights_bytes(LARGE) - 19 * MIB


@pytest.mark.parametrize("output", ["oci:{}/layout", "oci-archive:{}/image.tar"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_leaves_no_image_in_a_file(
    place: Place, front: OllamaFront, output: str, how: signal.Signals
) -> None:
    stall = Stall(10 * MIB)
    front.blob_proxy.add(stall, path=weights_path(place.ground, LARGE), nth=3)
    job = place.write(output.format(place.site.directory), "--models-registry", front.url, model=LARGE)

    killed_at(job, stall, how)

    job.succeeds()
    left = [path.name for path in place.site.directory.rglob("*unfinished*")]
    assert left == []


def fetched(front: OllamaFront, place: Place) -> int:
    path = weights_path(place.ground, LARGE)
    return sum(entry.response_bytes for entry in front.blob_requests(path=path))
