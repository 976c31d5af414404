"""Whole builds on disks that are full or read-only: the cache's, the output's, the engine's. A registry's is in test_faults_push."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from blobsources import StoreSource
from building import MIB, Site, failed, ok
from conftest import MakeEngine, MakeFront
from engines import KINDS, EngineKind
from faults import Stall
from ollamafront import OllamaFront
from tinyimages import small_disk
from trouble import LARGE, Ground, Place, Running, weights_path


@pytest.fixture
def front(ground: Ground, make_front: MakeFront) -> OllamaFront:
    return make_front(StoreSource(ground.store))


def resize(disk: Path, size: int) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@contextmanager
def fills_up(disk: Path, *, leaving: int) -> Iterator[None]:
    """The disk is that much larger than what is on it, and as before afterwards."""
    before = os.statvfs(disk)
    while True:  # the build may still be writing: a disk smaller than what is on it is refused
        now = os.statvfs(disk)
        with suppress(subprocess.CalledProcessError):
            resize(disk, (now.f_blocks - now.f_bfree) * now.f_frsize + leaving)
            break
    try:
        yield
    finally:
        resize(disk, before.f_blocks * before.f_frsize)


def test_too_small_a_disk_for_the_download_is_told_before_it_begins(place: Place, front: OllamaFront) -> None:
    with small_disk(place.site.directory / "cache", 30 * MIB) as cache:
        job = place.push_downloaded(front, LARGE)

        message, hint = job.fails()

        assert "not enough room" in message
        assert "--cache" in hint
        assert len(front.blob_requests(path=weights_path(place.ground, LARGE))) <= 1
        resize(cache, 100 * MIB)
        job.succeeds()


def test_a_disk_that_fills_up_in_the_middle_keeps_what_was_downloaded(place: Place, front: OllamaFront) -> None:
    with small_disk(place.site.directory / "cache", 80 * MIB) as cache:
        stall = Stall(5 * MIB)
        front.blob_proxy.add(stall, path=weights_path(place.ground, LARGE), nth=4)
        one = place.push_downloaded(front, LARGE)
        job = replace(one, words=(*one.words, "--connections", "1"))
        running = job.start()
        assert stall.reached.wait(30)

        with fills_up(cache, leaving=4 * MIB):
            stall.release()
            ran = running.wait()

        assert not job.sound(ran)
        message, hint = failed(ran)
        assert f"the disk of {cache / 'blobs'} is full" in message
        assert "what is downloaded stays" in hint
        front.blob_proxy.forget()
        job.succeeds()
        assert not [each for each in front.blob_requests() if each.headers.get("range", "").startswith("bytes=0-")]


@pytest.mark.parametrize("output", ["oci:{}/out/layout", "oci-archive:{}/out/image.tar"])
def test_too_small_a_disk_for_the_output_is_told_before_it_begins(place: Place, output: str) -> None:
    with small_disk(place.site.directory / "out", 30 * MIB) as disk:
        job = place.write(output.format(place.site.directory), "--from-store", str(place.ground.store), model=LARGE)

        message, hint = job.fails()

        assert "not enough disk" in message
        assert "make room" in hint
        resize(disk, 120 * MIB)
        job.succeeds()


@pytest.mark.parametrize("output", ["oci:{}/out/layout", "oci-archive:{}/out/image.tar"])
def test_an_output_that_fills_up_in_the_middle_leaves_no_image_and_no_rubbish(
    place: Place, front: OllamaFront, output: str
) -> None:
    with small_disk(place.site.directory / "out", 80 * MIB) as disk:
        stall = Stall(5 * MIB)
        front.blob_proxy.add(stall, path=weights_path(place.ground, LARGE), nth=4)
        one = place.write(output.format(place.site.directory), "--models-registry", front.url, model=LARGE)
        job = replace(one, words=(*one.words, "--connections", "1"))
        running = job.start()
        assert stall.reached.wait(30)

        with fills_up(disk, leaving=4 * MIB):
            stall.release()
            ran = running.wait()

        assert not job.sound(ran)
        assert "no space left" in failed(ran)[0]
        assert used_bytes(disk) < MIB
        job.succeeds()


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_whose_disk_fills_up_in_the_middle_has_no_image_and_takes_it_once_there_is_room(
    make_engine: MakeEngine, kind: EngineKind, ground: Ground, front: OllamaFront, tmp_path: Path
) -> None:
    engine = make_engine(kind, disk_bytes=320 * MIB)
    site = Site(tmp_path / "site", {"DOCKER_HOST": engine.docker_host})
    words = (*ground.words(LARGE), "--models-registry", front.url, "-t", "r1:large", "--load")
    stall = Stall(5 * MIB)
    front.blob_proxy.add(stall, path=weights_path(ground, LARGE), nth=4)
    running = Running(site, (*words, "--connections", "1"))
    assert stall.reached.wait(30)

    filler = engine.data_root / "filler"
    room = f"$(($(stat -f -c '%a * %S' {engine.data_root}) - {20 * MIB}))"
    fill = f"touch {filler}; until room={room}; [ $room -le 0 ] || fallocate --length $room {filler}; do :; done"
    subprocess.run(engine.command_inside(["sh", "-c", fill], network_only=False), check=True)
    stall.release()
    ran = running.wait()

    message, hint = failed(ran)
    assert "no space left on device" in message
    assert f"make room in {engine.data_root}" in hint
    assert engine.run_cli("image", "ls", "-aq").stdout == ""
    subprocess.run(engine.command_inside(["rm", str(filler)], network_only=False), check=True)
    again = ok(site.run(*words))
    assert engine.run_cli("image", "inspect", "r1:large", "--format={{.ID}}").stdout.strip() in again.out


@pytest.mark.parametrize("source", ["store", "front"])
@pytest.mark.parametrize("there", [True, False])
def test_a_cache_that_cannot_be_written_stops_downloads_and_nothing_else(
    nobodys_place: Place, front: OllamaFront, source: str, there: bool
) -> None:
    nobodys_place.site.directory.chmod(0o555)
    os.chown(nobodys_place.site.directory, 0, 0)
    if there:
        (nobodys_place.site.directory / "cache").mkdir()
    if source == "store":
        nobodys_place.push_stored().succeeds()
        return

    message, hint = nobodys_place.push_downloaded(front).fails()

    assert "cannot write to" in message
    assert "--cache DIR" in hint


@pytest.mark.parametrize("output", ["oci:{}/out/layout", "oci-archive:{}/out/image.tar"])
def test_an_output_that_cannot_be_written_is_told(nobodys_place: Place, output: str) -> None:
    directory = nobodys_place.site.directory
    (directory / "out").mkdir(mode=0o755)

    message, hint = nobodys_place.write(
        output.format(directory), "--from-store", str(nobodys_place.ground.store)
    ).fails()

    assert "permission denied" in message
    assert "permissions" in hint


def used_bytes(disk: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in disk.rglob("*") if path.is_file())
