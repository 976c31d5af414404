"""Whole builds of what is not there, not right, or not what it says: words, names, stores."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from blobsources import StoreSource
from building import Site, failed
from conftest import MakeFront
from ollamastore import blob_path, manifest_path
from trouble import SMALL, Ground, Place

NAMES = ["", ":", "r1:", ":tiny", "r1:tiny:x", "a b", "r1@x", "../r1", "h//r1", "/r1", "r" * 300, "r1:ti\ny", "模型"]
IMAGES = [
    "reg.lan/x:bad tag",
    "reg.lan:port/x",
    "reg.lan:99999/x",
    "x@sha256:12",
    "http://reg.lan/x:1",
    "x:" + "t" * 200,
]
WORDS = [
    *(("--tag", image) for image in IMAGES if "99999" not in image),
    *(("--base", image) for image in IMAGES),
    *(("--from-image", image) for image in IMAGES),
    *(("--base", place) for place in ("oci:/nowhere", "oci:/etc", "oci-archive:/nowhere", "oci-archive:/etc/passwd")),
    *(("--output", place) for place in ("", "oci:", "oci-archive:", "x", "docker-archive:x", "oci-archive:/nowhere/x")),
    *(("--output", place) for place in ("oci:/etc", "oci-archive:/etc", "oci:/proc/x", "oci-archive:/proc/x")),
    *(("--from-store", place) for place in ("/nowhere", "/etc/passwd", "/etc")),
    *(("--from-gguf", place) for place in ("/nowhere", "/etc/passwd", "/etc")),
    *(("--recipe", place) for place in ("/nowhere", "/etc/passwd", "/etc")),
    *(("--models-registry", url) for url in ("ftp://x", "http://", "http://u:p@h/", "http://h:99999", "http://[::1")),
    *(("--platform", text) for text in ("linux", "windows/amd64", "linux/s390x", ",", "linux/amd64,linux/arm64")),
]


def refused(ground: Ground, site: Site, model: str, *words: str) -> tuple[str, str]:
    """A build in which everything else is right."""
    given = {word for word in words if word.startswith("--")}
    rest = {
        "--base": f"oci:{ground.base}",
        "--ollama-version": "0.32.15",
        "--from-store": str(ground.store),
        "--tag": "x:1",
        "--output": "oci:out",
    }
    if given & {"--from-image", "--from-gguf", "--models-registry"}:
        del rest["--from-store"]
    more = [word for pair in rest.items() if pair[0] not in given for word in pair]
    message, hint = failed(site.run("build", model, *words, *more))
    assert not (site.directory / "out").exists()
    return message, hint


@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_is_none_is_refused_with_an_example(ground: Ground, tmp_path: Path, name: str) -> None:
    message, hint = refused(ground, Site(tmp_path), name)

    assert "not a model name" in message
    assert "deepseek-r1:32b" in hint


@pytest.mark.parametrize(("option", "value"), WORDS)
def test_a_word_that_makes_no_sense_is_refused(ground: Ground, tmp_path: Path, option: str, value: str) -> None:
    message, hint = refused(ground, Site(tmp_path), SMALL, option, value)

    assert message
    assert hint


@pytest.mark.parametrize("name", ["r1:none", "none:tiny"])
def test_what_a_registry_or_a_store_does_not_have_is_named(place: Place, make_front: MakeFront, name: str) -> None:
    front = make_front(StoreSource(place.ground.store))
    job = place.push_downloaded(front)
    downloaded = replace(job, words=("build", name, *job.words[2:]))
    job = place.push_stored()
    stored = replace(job, words=("build", name, *job.words[2:]))

    assert f"`{name}` not found" in downloaded.fails()[0]
    assert f"`{name}` is not in" in stored.fails()[0]


def removed(path: Path) -> None:
    path.unlink()


def shortened(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def lengthened(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def changed(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def garbage(path: Path) -> None:
    path.write_bytes(b'{"layers": 1}')


DAMAGES: list[Callable[[Path], None]] = [removed, shortened, lengthened, changed, emptied, a_directory]


@pytest.mark.parametrize("kind", ["model", "template"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_blob_in_a_store_gets_no_name(place: Place, damage: Callable[[Path], None], kind: str) -> None:
    store = place.site.directory / "store"
    shutil.copytree(place.ground.store, store)
    digest = next(layer.digest for layer in place.ground.models[SMALL].layers if layer.kind == kind)
    blob = blob_path(store, digest)
    damage(blob)
    job = place.push("--from-store", str(store))

    job.fails()

    shutil.rmtree(store)
    shutil.copytree(place.ground.store, store)
    job.succeeds()


@pytest.mark.parametrize("damage", [removed, shortened, emptied, a_directory, garbage])
def test_a_damaged_manifest_in_a_store_is_told(place: Place, damage: Callable[[Path], None]) -> None:
    store = place.site.directory / "store"
    shutil.copytree(place.ground.store, store)
    damage(manifest_path(store, SMALL))

    place.push("--from-store", str(store)).fails()


def test_a_blob_that_changed_after_its_layer_was_learnt_is_found_out(place: Place) -> None:
    store = place.site.directory / "store"
    shutil.copytree(place.ground.store, store)
    place.push("--from-store", str(store), name="ai/first:1").succeeds()
    changed(blob_path(store, place.ground.weights()))
    # Another registry's manners: what is there is not taken over, so every byte is read again.
    job = place.write(f"oci:{place.site.directory}/layout", "--from-store", str(store))

    message, _ = job.fails()

    assert "damaged" in message
    shutil.copyfile(blob_path(place.ground.store, place.ground.weights()), blob_path(store, place.ground.weights()))
    job.succeeds()


@pytest.mark.parametrize("what", ["manifests", "blobs"])
def test_a_store_of_somebody_else_is_told(nobodys_place: Place, what: str) -> None:
    store = nobodys_place.ground.store
    (store / what).chmod(0o700)
    job = nobodys_place.push_stored()

    message, hint = job.fails()

    assert "permission denied" in message
    assert str(store) in message
    assert "as the owner" in hint
    (store / what).chmod(0o755)
    job.succeeds()


def test_a_path_that_is_not_for_this_user_to_see_is_told_and_not_traced(nobodys_place: Place) -> None:
    hidden = nobodys_place.site.directory / "hidden"
    hidden.mkdir(mode=0o700)

    message, hint = failed(nobodys_place.site.run("push", "x.example.com/a:1", "--from", f"oci:{hidden}/layout"))

    assert message == f"{hidden}/layout: permission denied"
    assert "permissions" in hint
