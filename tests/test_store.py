"""A store on disk as `ollama pull` leaves it: read as it is, and each kind of damage told with the way out."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ollamastore import Absent, StoredModel, blob_path, lay_model

from appliance_builder.model import MODEL, ModelError
from appliance_builder.sources import read_model
from appliance_builder.store import SYSTEM_STORE, FileContent, Store, candidates, find, models
from appliance_image.digest import Digest
from appliance_image.oci import Descriptor, Manifest
from appliance_image.reference import ModelName

WEIGHTS = b"GGUF" + bytes(range(256)) * 9000
NAME = ModelName.parse("deepseek-r1:32b")
NOBODY = 65534


@pytest.fixture
def directory() -> Iterator[Path]:
    """Not below pytest's own directory, into which nobody else can look."""
    made = Path(tempfile.mkdtemp(prefix="store-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


def lay(directory: Path, name: str = "deepseek-r1:32b") -> StoredModel:
    return lay_model(
        directory, name, {"model": WEIGHTS, "template": "{{ .Prompt }}", "license": "MIT", "params": {"stop": ["x"]}}
    )


def weights_of(store: Store) -> Descriptor:
    return next(layer for layer in Manifest.parse(store.manifest()).layers if layer.media_type == MODEL)


@contextmanager
def unprivileged() -> Generator[None]:
    """What root may read proves nothing."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def test_a_model_is_read_whole_and_its_manifest_byte_for_byte(directory: Path) -> None:
    laid = lay(directory)
    reading = read_model(Store(directory, NAME), name=NAME, known_as="deepseek-r1:32b")

    assert reading.model.manifest == laid.manifest
    assert reading.model.source == f"deepseek-r1:32b@sha256:{laid.digest}"
    assert reading.model.template == "{{ .Prompt }}"
    assert {digest: b"".join(content.read()) for digest, content in reading.weights.items()} == {
        Digest.of(WEIGHTS): WEIGHTS
    }


@pytest.mark.parametrize("offset", [0, 1, 1024 * 1024, len(WEIGHTS) - 1, len(WEIGHTS)])
def test_a_blob_can_be_read_from_any_place(directory: Path, offset: int) -> None:
    lay(directory)
    store = Store(directory, NAME)
    content = store.content(weights_of(store))

    assert content.size == len(WEIGHTS)
    assert b"".join(content.read(offset)) == WEIGHTS[offset:]


def test_a_model_that_is_not_there_is_told_with_those_that_are(directory: Path) -> None:
    lay(directory, "qwen3:8b")
    lay(directory, "hf.co/user/Repo:Q4_K_M")

    with pytest.raises(ModelError, match=r"model `deepseek-r1:32b` is not in") as caught:
        Store(directory, NAME).manifest()

    assert "ollama pull deepseek-r1:32b" in caught.value.hint
    assert caught.value.hint.endswith("there: hf.co/user/Repo:Q4_K_M, qwen3:8b")


@pytest.mark.parametrize("kind", ["empty directory", "no directory", "a file"])
def test_a_directory_that_is_no_store_holds_nothing(directory: Path, kind: str) -> None:
    place = directory / "store"
    if kind == "empty directory":
        place.mkdir()
    if kind == "a file":
        place.write_bytes(b"")

    with pytest.raises(ModelError, match="is not in") as caught:
        Store(place, NAME).manifest()

    assert caught.value.hint.endswith("there: nothing")


def test_a_missing_blob_is_told_with_the_way_to_mend_it(directory: Path) -> None:
    lay_model(directory, "deepseek-r1:32b", {"model": Absent(str(Digest.of(WEIGHTS)), len(WEIGHTS)), "template": "x"})
    store = Store(directory, NAME)

    with pytest.raises(ModelError, match=r"is incomplete in .*: sha256-[0-9a-f]{64} missing") as caught:
        store.content(weights_of(store))

    assert caught.value.hint == "mend it with `ollama pull deepseek-r1:32b`"


@pytest.mark.parametrize("change", [-1, 1])
def test_a_blob_of_another_size_is_refused_before_it_is_read(directory: Path, change: int) -> None:
    lay(directory)
    store = Store(directory, NAME)
    weights = weights_of(store)
    os.truncate(blob_path(directory, str(weights.digest)), len(WEIGHTS) + change)

    with pytest.raises(ModelError, match=f"has {len(WEIGHTS) + change} bytes, not {len(WEIGHTS)}"):
        store.content(weights)


def test_a_damaged_small_blob_is_refused(directory: Path) -> None:
    laid = lay(directory)
    template = laid.layers[1]
    blob_path(directory, template.digest).write_bytes(b"{{ .Prompt ]]")

    with pytest.raises(ModelError, match=rf"blob {template.digest} in .* is damaged"):
        read_model(Store(directory, NAME), name=NAME, known_as="x")


@pytest.mark.parametrize("change", [-1, 1])
def test_a_blob_that_changes_its_size_while_it_is_read_never_passes_for_whole(directory: Path, change: int) -> None:
    lay(directory)
    store = Store(directory, NAME)
    weights = weights_of(store)
    content = store.content(weights)
    os.truncate(blob_path(directory, str(weights.digest)), len(WEIGHTS) + change)

    with pytest.raises(ModelError, match="changed while it was read"):
        b"".join(content.read())


def test_nothing_in_the_store_is_touched(directory: Path) -> None:
    lay(directory)
    before = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in directory.rglob("*")}
    store = Store(directory, NAME)
    reading = read_model(store, name=NAME, known_as="x")
    for digest, content in reading.weights.items():
        b"".join(content.read())
        store.settle(digest, good=False)

    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in directory.rglob("*")} == before


@pytest.mark.parametrize("place", ["manifest", "blob", "blobs"])
def test_what_may_not_be_read_is_told_with_whom_to_ask(directory: Path, place: str) -> None:
    laid = lay(directory)
    store = Store(directory, NAME)
    blob = blob_path(directory, str(weights_of(store).digest))
    {"manifest": laid.manifest_path, "blob": blob, "blobs": blob.parent}[place].chmod(0)

    with unprivileged(), pytest.raises(ModelError, match=r"cannot read .*: permission denied") as caught:
        read_model(store, name=NAME, known_as="x")

    assert "run as root or as the owner: `ls -l " in caught.value.hint


def test_a_store_that_may_not_be_looked_into_does_not_hide_the_next_one(directory: Path) -> None:
    closed, home = directory / "closed", directory / "home"
    lay(closed)
    lay(home / ".ollama/models")
    closed.chmod(0)

    with unprivileged():
        found = find(NAME, environ={"OLLAMA_MODELS": str(closed)}, home=home)

    assert found.label == str(home / ".ollama/models")


def test_stores_are_looked_for_most_explicit_first(tmp_path: Path) -> None:
    assert candidates({"OLLAMA_MODELS": "/data"}, tmp_path) == [
        Path("/data"),
        tmp_path / ".ollama/models",
        SYSTEM_STORE,
    ]
    assert candidates({"OLLAMA_MODELS": ""}, tmp_path) == [tmp_path / ".ollama/models", SYSTEM_STORE]


def test_a_model_in_no_store_is_told_with_where_it_was_looked_for(tmp_path: Path) -> None:
    missing = ModelName.parse("nobody-has-this:1b")

    with pytest.raises(ModelError, match="model `nobody-has-this:1b` is in no store") as caught:
        find(missing, environ={"OLLAMA_MODELS": str(tmp_path / "named")}, home=tmp_path)

    assert f"{tmp_path}/named, {tmp_path}/.ollama/models, {SYSTEM_STORE}" in caught.value.message


def test_the_names_in_a_store_are_sorted_and_what_is_no_model_is_passed_over(directory: Path) -> None:
    lay(directory, "qwen3:8b")
    laid = lay(directory, "deepseek-r1:32b")
    lay(directory, "someone/r1:7b")
    (laid.manifest_path.parent / ".DS_Store").write_bytes(b"")
    (laid.manifest_path.parent / "a directory").mkdir()
    (directory / "manifests" / "README").write_bytes(b"")

    assert models(directory) == ["deepseek-r1:32b", "qwen3:8b", "someone/r1:7b"]


def test_a_model_without_weights_is_refused(directory: Path) -> None:
    lay_model(directory, "deepseek-r1:32b", {"template": "x"})

    with pytest.raises(ModelError, match="has no weights") as caught:
        read_model(Store(directory, NAME), name=NAME, known_as="deepseek-v3:cloud")

    assert "cloud" in caught.value.hint


def test_an_empty_file_is_read_as_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")

    assert list(FileContent(tmp_path / "empty", 0).read()) == []
