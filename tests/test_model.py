"""A model as a value, held against the library's own bytes: changing one layer gives exactly what the library serves."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from samples import CONFIG_BLOB, LICENSE_TEXT, PARAMS_TEXT, model

from appliance_builder.model import LICENSE, PARAMS, SYSTEM, TEMPLATE, Model, ModelConfig, is_text, kind
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.oci import Descriptor
from appliance_image.reference import ModelName

LIBRARY = Path(__file__).parent / "recordings" / "library"
CURRENT = "sha256:edba8017331d15236e57480eb45406c0d721db77a4cdcf234df500fc2ad3960c"


def recorded(name: str) -> bytes:
    return (LIBRARY / name).read_bytes()


def served(manifest: str, template: str) -> Model:
    blobs = [recorded(name) for name in ("config.json", "license.txt", "params.json", template)]
    small = {Digest.of(blob): blob for blob in blobs}
    return Model(ModelName.parse("deepseek-r1:32b"), "library", recorded(manifest), small)


def january() -> Model:
    return served("manifest-january-2025.json", "template-january-2025.gotmpl")


def test_the_january_model_with_the_current_template_is_the_current_model_byte_for_byte() -> None:
    changed = january().with_template(recorded("template-current.gotmpl").decode())

    assert str(Digest.of(changed.manifest)) == CURRENT
    assert changed.manifest == recorded("manifest-current.json")


def test_changing_a_template_and_back_gives_the_same_model() -> None:
    once = january().with_template("{{ .Prompt }}")

    assert once != january()
    assert once.with_template(recorded("template-january-2025.gotmpl").decode()) == january()


def test_the_blob_of_a_replaced_template_is_dropped_and_all_others_are_kept() -> None:
    changed = january().with_template("{{ .Prompt }}")

    assert set(changed.small) == {layer.digest for layer in changed.parsed.layers[1:]} | {changed.parsed.config.digest}
    assert recorded("template-january-2025.gotmpl") not in changed.small.values()


def test_the_facts_of_the_library_model_are_read() -> None:
    found = january()

    assert found.config == ModelConfig("qwen2", "32.8B", "Q4_K_M", renderer="", parser="", context_length=None)
    assert found.template == recorded("template-january-2025.gotmpl").decode()
    assert found.weights_bytes == 19_851_335_552
    assert [blob.digest.short for blob in found.weights] == ["6150cb382311"]


def test_a_new_kind_of_layer_comes_last_and_a_known_one_keeps_its_place() -> None:
    changed = january().with_layer(SYSTEM, b"Be brief.").with_layer(LICENSE, b"Another licence")

    assert [kind(layer) for layer in changed.parsed.layers] == ["model", "template", "license", "params", "system"]
    assert changed.small[changed.parsed.layers[2].digest] == b"Another licence"


def test_several_layers_of_one_kind_become_the_one_that_replaces_them() -> None:
    node = json.loads(january().manifest)
    node["layers"] += [node["layers"][2]] * 2
    thrice = Model(january().name, "", json.dumps(node).encode(), january().small)

    changed = thrice.with_layer(LICENSE, b"One licence")

    assert [kind(layer) for layer in changed.parsed.layers] == ["model", "template", "license", "params"]


def test_a_template_under_its_old_name_is_read_and_replaced_by_one_under_the_new_name() -> None:
    before = model(template=None).with_layer("application/vnd.ollama.image.prompt", b"old {{ .Prompt }}")

    assert before.template == "old {{ .Prompt }}"
    assert before.with_template("new").template == "new"
    assert "prompt" not in [kind(layer) for layer in before.with_template("new").parsed.layers]


def test_parameters_are_merged_into_those_that_are_there() -> None:
    changed = january().with_parameters({"temperature": 0.6, "num_ctx": 8192})
    layer = next(layer for layer in changed.parsed.layers if layer.media_type == PARAMS)
    parameters = json.loads(changed.small[layer.digest])

    assert parameters == {**json.loads(recorded("params.json")), "temperature": 0.6, "num_ctx": 8192}
    assert list(parameters) == sorted(parameters)


def test_no_parameters_change_nothing() -> None:
    assert january().with_parameters({}).manifest == january().manifest


@pytest.mark.parametrize("body", [b"not json", b"[1]", b"\xff"])
def test_parameters_that_are_no_object_are_an_error_for_people(body: bytes) -> None:
    with pytest.raises(ApplianceError):
        january().with_layer(PARAMS, body).with_parameters({"temperature": 0.6})


def test_a_template_that_is_no_text_is_an_error_for_people() -> None:
    broken = january().with_layer(TEMPLATE, b"\xff\xfe")

    with pytest.raises(ApplianceError, match="template"):
        _ = broken.template


@pytest.mark.parametrize(
    ("media_type", "size", "text"),
    [
        ("application/vnd.ollama.image.template", 556, True),
        ("application/vnd.ollama.image.license", 8 * 1024 * 1024, True),
        ("application/vnd.ollama.image.license", 8 * 1024 * 1024 + 1, False),
        ("application/vnd.ollama.image.model", 5, False),
        ("application/vnd.ollama.image.projector", 5, False),
        ("application/vnd.ollama.image.tensor", 5, False),
        ("application/x", 5, False),
    ],
)
def test_small_files_lie_in_the_model_layer_and_all_else_is_weights(media_type: str, size: int, text: bool) -> None:
    assert is_text(Descriptor(media_type, Digest.of(b""), size)) == text


def test_weights_that_are_named_twice_are_counted_once() -> None:
    assert model([b"same", b"same"]).weights_bytes == len(b"same")


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'"x"'])
def test_a_configuration_that_is_no_object_is_an_error_for_people(body: bytes) -> None:
    with pytest.raises(ApplianceError, match="model configuration"):
        ModelConfig.parse(body)


def test_a_configuration_may_lack_everything_and_hold_what_is_not_known() -> None:
    empty = ModelConfig.parse(b'{"model_family":7,"context_length":"many","more":{}}')

    assert empty == ModelConfig("", "", "", renderer="", parser="", context_length=None)
    assert ModelConfig.parse(CONFIG_BLOB).context_length == 131_072


def test_the_sample_of_these_tests_is_laid_out_as_the_library_does() -> None:
    kinds = [kind(layer) for layer in model([b"weights"]).parsed.layers]

    assert kinds == [kind(layer) for layer in january().parsed.layers]
    assert {LICENSE_TEXT, PARAMS_TEXT} < set(model().small.values())
