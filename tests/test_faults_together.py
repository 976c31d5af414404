"""Two whole builds at the same time: of one model, with one cache, into one name. One downloads, both are right."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path

import pytest
from blobsources import StoreSource
from building import MIB, Site
from conftest import MakeFront
from faults import Stall
from ollamafront import OllamaFront
from registries import Registry
from trouble import LARGE, SMALL, Ground, Job, Place, Running, weights_path


@pytest.fixture
def front(ground: Ground, make_front: MakeFront) -> OllamaFront:
    return make_front(StoreSource(ground.store))


@pytest.fixture
def place(ground: Ground, registry: Registry, tmp_path: Path) -> Place:
    """Patient: the first is held until the second has come as far, however busy the machine is."""
    return Place(ground, Site(tmp_path / "site", {"APPLIANCE_PATIENCE": "60"}), registry)


def two(first: Job, second: Job, stall: Stall, registry: Registry) -> tuple[Running, Running]:
    """The second begins while the first is held in the middle of the download, and comes to where it needs it, too."""
    one = first.start()
    assert stall.reached.wait(30)
    other = second.start()
    # Having asked for the right to push, a build has nothing left to do but to read the weights.
    registry.proxy.wait_for(lambda log: sum(each.method == "DELETE" and each.finished for each in log) >= 2)
    registry.proxy.wait_for(lambda log: sum("/uploads/" in each.path and each.method == "POST" for each in log) >= 4)
    return one, other


def held(front: OllamaFront, ground: Ground) -> Stall:
    stall = Stall(10 * MIB)
    front.blob_proxy.add(stall, path=weights_path(ground, LARGE), nth=3)
    return stall


def fetched(front: OllamaFront, ground: Ground) -> int:
    return sum(entry.response_bytes for entry in front.blob_requests(path=weights_path(ground, LARGE)))


@pytest.mark.parametrize("name", ["ai/r1:tiny", "ai/another:tiny"])
def test_two_builds_share_the_download(place: Place, front: OllamaFront, registry: Registry, name: str) -> None:
    stall = held(front, place.ground)
    first, second = (place.push_downloaded(front, LARGE, name=name) for name in ("ai/r1:tiny", name))
    one, other = two(first, second, stall, registry)

    stall.release()

    ran, other_ran = one.wait(), other.wait()  # a tag is empty for an instant while it is written anew
    assert first.sound(ran)
    assert second.sound(other_ran)
    headers = 2 * 8 * MIB
    assert fetched(front, place.ground) <= place.ground.weights_bytes(LARGE) + headers


def test_the_second_goes_on_where_the_first_was_killed(place: Place, front: OllamaFront, registry: Registry) -> None:
    stall = held(front, place.ground)
    job = place.push_downloaded(front, LARGE)
    one, other = two(job, job, stall, registry)

    one.kill(signal.SIGKILL)

    assert job.sound(other.wait())


def test_two_machines_may_push_the_same_image_at_once(place: Place, front: OllamaFront, registry: Registry) -> None:
    stall = Stall(20 * MIB, of="request")
    registry.proxy.add(stall, method="PATCH", nth=1)
    first = place.push_stored(LARGE)
    elsewhere = Site(place.site.directory / "elsewhere", place.site.environment)
    second = replace(first, site=elsewhere)
    one = first.start()
    assert stall.reached.wait(30)

    second.succeeds()
    stall.release()

    assert first.sound(one.wait())


@pytest.mark.parametrize("output", ["oci:{}/layout", "oci-archive:{}/image.tar"])
def test_two_builds_may_write_to_the_same_place_at_once(place: Place, front: OllamaFront, output: str) -> None:
    stall = held(front, place.ground)
    job = place.write(output.format(place.site.directory), "--models-registry", front.url, model=LARGE)
    one = job.start()
    assert stall.reached.wait(30)
    other = job.start()
    front.proxy.wait_for(lambda log: sum("/manifests/" in each.path for each in log) == 2)

    stall.release()

    assert job.sound(one.wait())
    assert job.sound(other.wait())
    assert not list(place.site.directory.rglob("*unfinished*"))


def test_many_small_builds_at_once_all_succeed(place: Place, front: OllamaFront) -> None:
    job = place.push_downloaded(front, SMALL)

    running = [job.start() for _ in range(4)]

    ran = [one.wait() for one in running]  # a tag is empty for an instant while it is written anew
    for one in ran:
        assert job.sound(one)
