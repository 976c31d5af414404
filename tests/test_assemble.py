"""The image put together: weights below, base in the middle, model on top, and a configuration that an engine accepts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from samples import AMD64, ARM64, WEIGHTS, base, labels, model, settings

from appliance_builder.assemble import (
    Base,
    BaseError,
    Settings,
    built,
    check_base,
    image,
    small_layer,
    weights_descriptor,
)
from appliance_builder.built import BuiltImage
from appliance_image import contract
from appliance_image.digest import Digest
from appliance_image.layer import Blob
from appliance_image.oci import INDEX, LAYER_GZIP, LAYER_TAR, Descriptor, ImageConfig, Index, Platform

MODEL_LAYER = Descriptor(LAYER_TAR, Digest.of(b"model layer"), 2048)
BLOBS = tuple(Blob(Digest.of(body), len(body)) for body in WEIGHTS)
WEIGHTS_LAYERS = tuple(weights_descriptor(Digest.of(b"layer" + body), len(body) + 4096, [blob])
                       for body, blob in zip(WEIGHTS, BLOBS, strict=True))  # fmt: skip


def put_together(on: Base | None = None, with_settings: Settings | None = None) -> BuiltImage:
    return image(on or base(), with_settings or settings(model()), weights=WEIGHTS_LAYERS, model=MODEL_LAYER)


def config_of(made: BuiltImage) -> ImageConfig:
    return ImageConfig.parse(made.config)


def execution_of(made: BuiltImage) -> dict[str, Any]:
    return config_of(made).execution


def test_weights_lie_below_the_base_and_the_model_above_it() -> None:
    on = base()
    made = put_together(on)

    assert made.manifest.layers == (*WEIGHTS_LAYERS, *on.manifest.layers, MODEL_LAYER)
    assert made.diff_ids == (*(layer.digest for layer in WEIGHTS_LAYERS), *on.config.diff_ids, MODEL_LAYER.digest)
    assert config_of(made).diff_ids == made.diff_ids


def test_docker_layers_of_a_base_are_listed_under_their_oci_names() -> None:
    on = base()
    docker = replace(on.manifest.layers[0], media_type="application/vnd.docker.image.rootfs.diff.tar.gzip")
    on = replace(on, manifest=replace(on.manifest, layers=(docker, on.manifest.layers[1])))

    assert {layer.media_type for layer in put_together(on).manifest.layers} == {LAYER_TAR, LAYER_GZIP}


def test_a_weights_layer_says_which_blobs_it_holds_under_which_layout() -> None:
    annotated = weights_descriptor(Digest.of(b""), 1, BLOBS).annotations

    assert annotated == {
        "io.github.ollama-appliance.blobs": f"{BLOBS[0].digest} {BLOBS[1].digest}",
        "io.github.ollama-appliance.layout": "1",
    }


@pytest.mark.parametrize(
    "history",
    [
        None,
        [],
        [{"created_by": "one layer too few"}],
        [{"created_by": str(index)} for index in range(3)],
        [{"created_by": "all empty", "empty_layer": True}] * 2,
        [{"created_by": "FROM"}, {"empty_layer": False, "created_by": "COPY"}],
    ],
)
def test_the_history_has_one_entry_for_each_layer_whatever_the_base_says(
    history: Sequence[Mapping[str, object]] | None,
) -> None:
    made = put_together(base(history=history))
    written = [entry for entry in config_of(made).history if not entry.get("empty_layer")]

    assert len(written) == len(made.manifest.layers)
    assert [entry["created_by"] for entry in written[:2]] == ["appliance: weights"] * 2
    assert written[-1]["created_by"] == "appliance: model"


def test_a_history_that_fits_is_kept_as_it_is() -> None:
    on = base()

    assert config_of(put_together(on)).history[2:-1] == on.config.history


def test_what_was_asked_for_wins_over_the_contract_and_the_contract_over_the_base() -> None:
    asked = Settings({"OLLAMA_MAX_LOADED_MODELS": "2", "OLLAMA_CONTEXT_LENGTH": "8192"}, {}, {})
    environment = config_of(put_together(with_settings=asked)).environment

    assert environment == {
        "PATH": "/usr/bin",
        "OLLAMA_HOST": "0.0.0.0:11434",
        **contract.ENVIRONMENT,
        "OLLAMA_MAX_LOADED_MODELS": "2",
        "OLLAMA_CONTEXT_LENGTH": "8192",
    }
    assert environment["OLLAMA_KEEP_ALIVE"] == "-1"
    assert environment["OLLAMA_MODELS"] == "/models"


def test_every_variable_is_listed_once() -> None:
    entries = execution_of(put_together())["Env"]

    assert len(entries) == len({entry.partition("=")[0] for entry in entries})


def test_labels_of_the_base_are_kept_except_those_that_describe_the_base() -> None:
    found = config_of(put_together()).labels

    assert found == {"maintainer": "somebody", **labels(model()).render()}
    assert not any(name.startswith("org.opencontainers.image.base.") for name in found)


def test_the_health_check_asks_the_ollama_that_runs() -> None:
    on = base(config={"Entrypoint": ["/usr/local/bin/ollama"]})

    assert execution_of(put_together(on))["Healthcheck"] == {
        "Test": ["CMD", "/usr/local/bin/ollama", "list"],
        "Interval": 30_000_000_000,
        "Timeout": 10_000_000_000,
        "StartPeriod": 15_000_000_000,
        "Retries": 3,
    }


def test_what_runs_and_as_whom_is_the_bases_affair() -> None:
    on = base(config={"User": "1000:1000", "WorkingDir": "/srv", "StopSignal": "SIGINT"})
    execution = execution_of(put_together(on))

    assert config_of(put_together(on)).command == ("/bin/ollama", "serve")
    assert (execution["User"], execution["WorkingDir"], execution["StopSignal"]) == ("1000:1000", "/srv", "SIGINT")
    assert execution["ExposedPorts"] == {"11434/tcp": {}}


def test_ports_that_the_base_names_are_kept() -> None:
    on = base(config={"ExposedPorts": {"8080/tcp": {}}})

    assert execution_of(put_together(on))["ExposedPorts"] == {"8080/tcp": {}}


def test_the_same_base_and_model_give_the_same_bytes() -> None:
    first, second = put_together(base()), put_together(base())

    assert (first.config, first.body) == (second.config, second.body)
    assert config_of(first).created == "2026-01-02T03:04:05Z"
    assert first.descriptor.digest == Digest.of(first.body)
    assert first.manifest.config.digest == Digest.of(first.config)


def test_putting_an_image_together_changes_nothing_of_the_base() -> None:
    on = base()
    before = on.config.render()
    put_together(on)

    assert on.config.render() == before


def test_a_base_without_a_date_gives_an_image_without_one() -> None:
    on = base()
    node = {key: value for key, value in on.config.node.items() if key != "created"}
    made = put_together(replace(on, config=ImageConfig(node)))

    assert config_of(made).created is None
    assert all("created" not in entry for entry in config_of(made).history)


@pytest.mark.parametrize(
    "command",
    [
        {"Entrypoint": None, "Cmd": None},
        {"Entrypoint": [], "Cmd": ["/bin/bash"]},
        {"Entrypoint": ["/bin/sh", "-c"], "Cmd": ["ollama serve"]},
        {"Entrypoint": ["nvidia-smi"]},
        {"Entrypoint": ["/bin/notollama"]},
    ],
)
def test_a_base_that_does_not_start_ollama_is_refused(command: Mapping[str, object]) -> None:
    with pytest.raises(BaseError, match="does not start Ollama") as caught:
        check_base(base(config=command))

    assert "--base ollama/ollama:" in caught.value.hint


@pytest.mark.parametrize("command", [["ollama"], ["/bin/ollama"], ["/usr/local/bin/ollama", "serve"]])
def test_a_base_that_starts_ollama_will_do(command: list[str]) -> None:
    check_base(base(config={"Entrypoint": command, "Cmd": None}))


def test_a_base_whose_layers_and_diff_ids_differ_in_number_is_refused() -> None:
    with pytest.raises(BaseError, match="lists 2 layers and 1 diff_ids"):
        check_base(base(diff_ids=1))


def test_the_model_layer_holds_the_manifest_and_the_small_blobs_but_no_weights() -> None:
    made = model()
    tar = b"".join(part for part in small_layer(made).parts if isinstance(part, bytes))

    assert small_layer(made).blobs == ()
    assert made.manifest in tar
    assert all(body in tar for body in made.small.values())
    assert b"models/manifests/registry.ollama.ai/library/deepseek-r1/32b" in tar
    assert BLOBS[0].digest.file_name.encode() not in tar


def test_one_platform_is_a_manifest_and_several_are_an_index_in_their_order() -> None:
    def on(platform: Platform) -> BuiltImage:
        return put_together(base(platform))

    single = built([on(AMD64)], as_index=False)
    several = built([on(AMD64), on(ARM64)], as_index=True)

    assert single.digest == on(AMD64).descriptor.digest
    assert several.descriptor.media_type == INDEX
    assert several.index is not None
    assert Index.parse(several.index).manifests == (on(AMD64).descriptor, on(ARM64).descriptor)
    assert [entry.platform for entry in Index.parse(several.index).manifests] == [AMD64, ARM64]


def test_the_configuration_is_json_without_a_clock() -> None:
    node = json.loads(put_together().config)

    assert node["architecture"] == "amd64"
    assert node["rootfs"]["type"] == "layers"
    assert {entry.get("created") for entry in node["history"]} <= {"2026-01-02T03:04:05Z", None}


def test_an_appliance_image_is_no_base() -> None:
    with pytest.raises(BaseError, match="is an appliance image itself"):
        check_base(base(config={"Labels": labels(model()).render()}))
