"""An image that was made here is read back; one that other tools rebuilt is refused before anything is built on it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import WEIGHTS, base, labels, model, settings

from appliance_builder.assemble import image, small_layer, weights_descriptor
from appliance_builder.finished import FinishedImage, blobs_of
from appliance_builder.layer_bytes import LayerContent
from appliance_builder.layer_reader import read_model_layer
from appliance_image import contract
from appliance_image.contract import ContractError
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.layer import Blob
from appliance_image.oci import LAYER_GZIP, LAYER_TAR, Descriptor, ImageConfig, Manifest

ONE, TWO = (Blob(Digest.of(body), len(body)) for body in WEIGHTS)
BOTH = weights_descriptor(Digest.of(b"both"), 9999, [ONE, TWO])
MODEL_LAYER = Descriptor(LAYER_TAR, Digest.of(b"model layer"), 2048)


def made(*weights: Descriptor) -> tuple[Manifest, ImageConfig]:
    whole = image(base(), settings(model()), weights=weights, model=MODEL_LAYER)
    return Manifest.parse(whole.body), ImageConfig.parse(whole.config)


def test_what_was_assembled_is_read_back() -> None:
    alone = weights_descriptor(Digest.of(b"alone"), 5000, [ONE])
    other = weights_descriptor(Digest.of(b"other"), 6000, [TWO])
    finished = FinishedImage.parse(*made(alone, other))

    assert finished.weights == (alone, other)
    assert finished.base == base().manifest.layers
    assert finished.model == MODEL_LAYER
    assert finished.labels == labels(model())


def test_a_weights_layer_is_found_by_exactly_its_blobs_in_their_order() -> None:
    finished = FinishedImage.parse(*made(BOTH))

    assert finished.holds([ONE, TWO]) == BOTH
    assert finished.holds([TWO, ONE]) is None
    assert finished.holds([ONE]) is None
    assert finished.holds([]) is None


def test_the_base_and_the_model_layer_are_never_taken_for_weights() -> None:
    manifest, config = made(BOTH)
    lying = replace(manifest.layers[-1], annotations=weights_descriptor(ONE.digest, 1, [ONE]).annotations)
    finished = FinishedImage.parse(replace(manifest, layers=(*manifest.layers[:-1], lying)), config)

    assert finished.holds([ONE]) is None


@pytest.mark.parametrize(
    "annotations",
    [
        {},
        {contract.ANNOTATION_BLOBS: str(ONE.digest)},
        {contract.ANNOTATION_BLOBS: str(ONE.digest), contract.ANNOTATION_LAYOUT: "2"},
        {contract.ANNOTATION_LAYOUT: "1"},
    ],
)
def test_a_layer_that_does_not_say_so_under_this_layout_holds_nothing(annotations: dict[str, str]) -> None:
    assert blobs_of(replace(BOTH, annotations=annotations)) == ()


def _squashed(node: dict[str, Any]) -> None:
    node["history"] = [{"created_by": "squashed"}]
    node["rootfs"]["diff_ids"] = node["rootfs"]["diff_ids"][:1]


def _built_upon(node: dict[str, Any]) -> None:
    node["history"].append({"created_by": "RUN apt-get install"})
    node["rootfs"]["diff_ids"].append(str(Digest.of(b"more")))


def _other_way_round(node: dict[str, Any]) -> None:
    node["history"].reverse()


def _without_history(node: dict[str, Any]) -> None:
    del node["history"]


def _without_weights(node: dict[str, Any]) -> None:
    node["history"][0]["created_by"] = "COPY weights"


@pytest.mark.parametrize("change", [_squashed, _built_upon, _other_way_round, _without_history, _without_weights])
def test_an_image_that_another_tool_rebuilt_is_refused(change: Callable[[dict[str, Any]], None]) -> None:
    manifest, config = made(BOTH)
    node = json.loads(config.render())
    change(node)

    with pytest.raises(ContractError, match="its layers are in another order") as caught:
        FinishedImage.parse(manifest, ImageConfig.parse(json.dumps(node).encode()))

    assert "squashed or rebuilt" in caught.value.hint


def test_an_image_with_fewer_layers_than_its_configuration_says_is_refused() -> None:
    manifest, config = made(BOTH)

    with pytest.raises(ContractError, match="its layers are in another order"):
        FinishedImage.parse(replace(manifest, layers=manifest.layers[1:]), config)


def test_a_base_is_no_appliance_image() -> None:
    with pytest.raises(ContractError, match="not an appliance image: its labels are missing"):
        FinishedImage.parse(base().manifest, base().config)


def model_layer() -> bytes:
    return b"".join(LayerContent(small_layer(model()), {}).read())


def test_the_model_layer_gives_the_model_back() -> None:
    assert read_model_layer(model_layer(), source=model().source) == model()


@given(st.integers(0, len(model_layer()) - 1), st.integers(1, 255))
def test_a_model_layer_with_one_wrong_byte_is_read_or_refused_in_words(place: int, change: int) -> None:
    damaged = bytearray(model_layer())
    damaged[place] ^= change
    try:
        found = read_model_layer(bytes(damaged), source="")
    except ApplianceError:
        return

    assert all(Digest.of(body) == digest for digest, body in found.small.items())


@pytest.mark.parametrize("size", [0, 1, 512, 700, 1536, 2000])
def test_a_model_layer_that_was_cut_off_is_refused_in_words(size: int) -> None:
    with pytest.raises(ApplianceError):
        read_model_layer(model_layer()[:size], source="")


def test_weights_that_another_tool_compressed_are_refused_because_their_diff_ids_differ() -> None:
    manifest, config = made(BOTH)
    pushed = replace(manifest.layers[0], media_type=LAYER_GZIP, digest=Digest.of(b"gzip"), annotations={})

    with pytest.raises(ContractError, match="its weights were compressed"):
        FinishedImage.parse(replace(manifest, layers=(pushed, *manifest.layers[1:])), config)


def test_an_annotation_that_names_no_digests_holds_nothing() -> None:
    garbage = {contract.ANNOTATION_BLOBS: "sha512:abc", contract.ANNOTATION_LAYOUT: "1"}

    assert blobs_of(replace(BOTH, annotations=garbage)) == ()


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, body in files.items():
            entry = tarfile.TarInfo(path)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
    return out.getvalue()


@pytest.mark.parametrize("path", ["../library/r1/7b", "h/library/../7b", "h/n/m/.hidden", "h/n/深/7b"])
def test_a_model_layer_whose_path_is_no_model_name_is_refused(path: str) -> None:
    whole = model()
    files = {f"models/blobs/{digest.file_name}": body for digest, body in whole.small.items()}

    with pytest.raises(ApplianceError):
        read_model_layer(_tar({f"models/manifests/{path}": whole.manifest, **files}), source="")


def test_a_model_layer_that_lacks_a_file_is_refused() -> None:
    whole = model()
    path = f"models/manifests/{whole.name.path}"
    for left_out in whole.small:
        kept = {f"models/blobs/{digest.file_name}": body for digest, body in whole.small.items() if digest != left_out}

        with pytest.raises(ContractError, match="lacks files"):
            read_model_layer(_tar({path: whole.manifest, **kept}), source="")
