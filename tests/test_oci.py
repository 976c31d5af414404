"""OCI documents: what is written is read back, what was served keeps its meaning, and no garbage gets further than the door."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.oci import (
    CONFIG,
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    MANIFEST,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    OciError,
    Platform,
    parse_object,
    render_json,
)

_TEXT = st.text(st.characters(exclude_categories=["Cs"]))
_DIGESTS = st.binary(max_size=8).map(Digest.of)
_DESCRIPTORS = st.builds(
    Descriptor,
    st.sampled_from([LAYER_TAR, LAYER_GZIP, CONFIG, "application/x"]),
    _DIGESTS,
    st.integers(0, 2**63),
    st.dictionaries(_TEXT, _TEXT, max_size=3),
    st.none() | st.builds(Platform, st.sampled_from(["linux"]), st.sampled_from(["amd64", "arm64"])),
)
_JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=12,
)
_KEYS = ("config", "layers", "manifests", "mediaType", "digest", "size", "annotations", "platform", "rootfs", "os")


@given(_DESCRIPTORS, st.lists(_DESCRIPTORS, max_size=4), st.dictionaries(_TEXT, _TEXT, max_size=3))
def test_a_manifest_that_was_written_is_read_back_the_same(
    config: Descriptor, layers: list[Descriptor], annotations: dict[str, str]
) -> None:
    manifest = Manifest(config, tuple(layers), annotations)

    assert Manifest.parse(manifest.render()) == manifest
    assert Manifest.parse(manifest.render()).render() == manifest.render()


@given(st.lists(_DESCRIPTORS, max_size=4))
def test_an_index_that_was_written_is_read_back_the_same(entries: list[Descriptor]) -> None:
    index = Index(tuple(entries))

    assert Index.parse(index.render()) == index


@given(st.dictionaries(_TEXT, _JSON, max_size=5))
def test_a_configuration_keeps_all_that_is_not_understood(more: dict[str, Any]) -> None:
    node = {**more, "rootfs": {"type": "layers", "diff_ids": []}}

    assert json.loads(ImageConfig.parse(json.dumps(node).encode()).render()) == node


_PARSERS: list[Callable[[bytes], object]] = [Manifest.parse, Index.parse, ImageConfig.parse]


@given(st.sampled_from(_PARSERS), st.binary(max_size=40))
def test_bytes_that_are_no_document_are_refused_in_words(parse: Callable[[bytes], object], body: bytes) -> None:
    with pytest.raises(OciError) as caught:
        parse(body)

    assert caught.value.hint


@given(st.sampled_from(_PARSERS), _JSON | st.dictionaries(st.sampled_from(_KEYS), _JSON))
def test_json_of_any_shape_is_a_document_or_an_error_for_people(
    parse: Callable[[bytes], object], value: object
) -> None:
    try:
        found = parse(json.dumps(value).encode())
    except ApplianceError as error:
        found = error.message and error.hint

    assert found


@pytest.mark.parametrize(
    "body", [b"[" * 100_000, b'{"a":' * 100_000, b'{"layers":' + b"1" * 5000 + b"}"], ids=["lists", "objects", "digits"]
)
def test_json_made_to_hurt_a_parser_is_refused(body: bytes) -> None:
    with pytest.raises(OciError, match="image manifest"):
        Manifest.parse(body)


@pytest.mark.parametrize("size", [None, -1, "1", 1.0, True, [], {}])
def test_a_descriptor_has_a_size(size: object) -> None:
    node = {"mediaType": LAYER_TAR, "digest": str(Digest.of(b"")), "size": size}

    with pytest.raises(OciError, match="descriptor without a size"):
        Descriptor.parse(node)


@pytest.mark.parametrize("missing", ["mediaType", "digest"])
def test_a_descriptor_has_a_type_and_a_digest(missing: str) -> None:
    node: dict[str, object] = {"mediaType": LAYER_TAR, "digest": str(Digest.of(b"")), "size": 1}
    del node[missing]

    with pytest.raises(OciError, match=f"`{missing}` missing"):
        Descriptor.parse(node)


def test_an_index_is_no_manifest_and_a_manifest_no_index() -> None:
    config = Descriptor(CONFIG, Digest.of(b"{}"), 2)

    with pytest.raises(OciError, match="not an image manifest"):
        Manifest.parse(Index(()).render())
    with pytest.raises(OciError, match="not an image index"):
        Index.parse(Manifest(config, ()).render())


def test_a_manifest_without_a_media_type_is_an_oci_manifest() -> None:
    body = json.dumps({"schemaVersion": 2, "config": Descriptor(CONFIG, Digest.of(b"{}"), 2).json, "layers": []})

    assert Manifest.parse(body.encode()).media_type == MANIFEST


@pytest.mark.parametrize(
    ("docker", "oci"),
    [
        ("application/vnd.docker.image.rootfs.diff.tar", LAYER_TAR),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", LAYER_GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", LAYER_ZSTD),
        (LAYER_GZIP, LAYER_GZIP),
        ("application/x", "application/x"),
    ],
)
def test_a_layer_of_docker_gets_the_name_that_oci_has_for_it(docker: str, oci: str) -> None:
    layer = Descriptor(docker, Digest.of(b"x"), 1, {"a": "b"})

    assert layer.as_oci_layer() == Descriptor(oci, Digest.of(b"x"), 1, {"a": "b"})


def test_what_runs_is_entrypoint_and_command_joined() -> None:
    def command(execution: object) -> tuple[str, ...]:
        return ImageConfig({"rootfs": {}, "config": execution}).command

    assert command({"Entrypoint": ["/bin/ollama"], "Cmd": ["serve"]}) == ("/bin/ollama", "serve")
    assert command({"Entrypoint": None, "Cmd": ["ollama"]}) == ("ollama",)
    assert command({}) == command(None) == ()


def test_the_environment_is_read_by_name_and_the_last_value_wins() -> None:
    config = ImageConfig({"rootfs": {}, "config": {"Env": ["A=1", "B=x=y", "A=2", "C"]}})

    assert config.environment == {"A": "2", "B": "x=y", "C": ""}


@pytest.mark.parametrize("text", ["linux/amd64", "linux/arm64", "windows/amd64"])
def test_a_platform_is_written_as_it_is_read(text: str) -> None:
    assert str(Platform.parse(text)) == text


@pytest.mark.parametrize("text", ["", "linux", "linux/", "/amd64", "linux/arm/v7"])
def test_what_is_no_platform_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(OciError, match="not a platform") as caught:
        Platform.parse(text)

    assert "linux/amd64" in caught.value.hint


def test_json_is_compact_in_the_order_given_and_not_escaped() -> None:
    assert render_json({"b": 1, "a": "<｜深｜>"}) == '{"b":1,"a":"<｜深｜>"}'.encode()


@pytest.mark.parametrize("what", ["image manifest", "model configuration"])
def test_an_error_names_what_was_expected(what: str) -> None:
    with pytest.raises(OciError, match=what):
        parse_object(b"[]", what)


@pytest.mark.parametrize(
    "node",
    [
        {"config": "text"},
        {"config": [1]},
        {"history": {"created_by": "x"}},
        {"history": ["text"]},
        {"config": {"Env": "PATH=/bin"}},
        {"config": {"Entrypoint": "/bin/ollama"}},
        {"config": {"Cmd": 7}},
        {"config": {"Cmd": {"a": 1}}},
    ],
)
def test_a_configuration_of_the_wrong_shape_is_refused_at_the_door(node: dict[str, object]) -> None:
    with pytest.raises(OciError):
        ImageConfig.parse(json.dumps({"rootfs": {}, **node}).encode())


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
def test_what_python_takes_for_json_and_nobody_else_does_is_refused(constant: str) -> None:
    with pytest.raises(OciError, match=f"{constant} is no JSON"):
        parse_object(f'{{"a": {constant}}}'.encode(), "image configuration")


def test_half_a_character_is_refused_before_it_is_written() -> None:
    node = parse_object(b'{"a": "\\ud800"}', "image configuration")

    with pytest.raises(OciError, match="half a character"):
        render_json(node)
