"""The image put together from what is known: layers in, configuration and manifest out. Pure; holds the order of layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from appliance_builder.built import Built, BuiltImage
from appliance_builder.finished import MODEL_HISTORY, WEIGHTS_HISTORY
from appliance_builder.model import Model
from appliance_image import contract
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.layer import Blob, LayerPlan, model_layer
from appliance_image.oci import CONFIG, LAYER_TAR, Descriptor, ImageConfig, Index, Manifest, Platform

_STANDARD_LABELS: Final = "org.opencontainers.image."
_SECOND_NS: Final = 1_000_000_000


class BaseError(ApplianceError):
    pass


@dataclass(frozen=True, slots=True)
class Base:
    """The Ollama image for one platform, and how it was named."""

    reference: str  # name and digest, for the label
    manifest: Manifest
    config: ImageConfig
    ollama_version: str  # empty when nothing told it

    @property
    def platform(self) -> Platform:
        return self.config.platform


@dataclass(frozen=True, slots=True)
class Settings:
    """What goes into the image's configuration beside the contract."""

    environment: Mapping[str, str]
    labels: Mapping[str, str]
    model_annotations: Mapping[str, str]


def check_base(base: Base) -> None:
    command = base.config.command
    if contract.LABEL_LAYOUT in base.config.labels:
        raise BaseError(
            f"base `{base.reference}` is an appliance image itself, with a model in it",
            hint="give a plain Ollama image, for example `--base ollama/ollama:0.32.15`",
        )
    if not command or PurePosixPath(command[0]).name != "ollama":
        raise BaseError(
            f"base `{base.reference}` does not start Ollama: {' '.join(command) or 'no command'}",
            hint="give an Ollama image, for example `--base ollama/ollama:0.32.15`",
        )
    if len(base.manifest.layers) != len(base.config.diff_ids):
        raise BaseError(
            f"base `{base.reference}` lists {len(base.manifest.layers)} layers and {len(base.config.diff_ids)} diff_ids",
            hint="the image is damaged, or is no container image; try another `--base`",
        )


def weights_descriptor(layer: Digest, size: int, blobs: Sequence[Blob]) -> Descriptor:
    annotations = {
        contract.ANNOTATION_BLOBS: " ".join(str(blob.digest) for blob in blobs),
        contract.ANNOTATION_LAYOUT: str(contract.LAYOUT),
    }
    return Descriptor(LAYER_TAR, layer, size, annotations)


def small_layer(model: Model) -> LayerPlan:
    manifest = model.parsed
    named = dict.fromkeys([manifest.config.digest, *(layer.digest for layer in manifest.layers)])
    return model_layer(model.name.path, model.manifest, [model.small[d] for d in named if d in model.small])


def image(base: Base, settings: Settings, *, weights: Sequence[Descriptor], model: Descriptor) -> BuiltImage:
    """Weights below the base, the model's small files above it. All layer digests are known by now."""
    diff_ids = (*(layer.digest for layer in weights), *base.config.diff_ids, model.digest)
    config = _config(base, settings, weights_count=len(weights), diff_ids=diff_ids)
    layers = (*weights, *(layer.as_oci_layer() for layer in base.manifest.layers), model)
    descriptor = Descriptor(CONFIG, Digest.of(config), len(config))
    return BuiltImage(base.platform, config, Manifest(descriptor, layers), diff_ids)


def built(images: Sequence[BuiltImage], *, as_index: bool) -> Built:
    if not as_index:
        return Built(tuple(images))
    return Built(tuple(images), Index(tuple(image.descriptor for image in images)).render())


def _config(base: Base, settings: Settings, *, weights_count: int, diff_ids: Sequence[Digest]) -> bytes:
    created = base.config.created  # no clock: the same base and model give the same image
    stamp = {"created": created} if created else {}
    history: list[dict[str, Any]] = [
        *({**stamp, "created_by": WEIGHTS_HISTORY} for _ in range(weights_count)),
        *_base_history(base),
        {**stamp, "created_by": MODEL_HISTORY},
    ]
    node = dict(base.config.node)
    node["config"] = _execution(base, settings)
    node["rootfs"] = {"type": "layers", "diff_ids": [str(diff_id) for diff_id in diff_ids]}
    node["history"] = history
    return ImageConfig(node).render()


def _base_history(base: Base) -> list[dict[str, Any]]:
    """Of the base, made to fit its layers: engines refuse a history with another number of layers."""
    history = base.config.history
    layers = sum(1 for entry in history if not entry.get("empty_layer"))
    if layers == len(base.manifest.layers):
        return history
    return [{"created_by": "base image"} for _ in base.manifest.layers]


def _execution(base: Base, settings: Settings) -> dict[str, Any]:
    execution = base.config.execution
    environment = {**base.config.environment, **contract.ENVIRONMENT, **dict(sorted(settings.environment.items()))}
    execution["Env"] = [f"{name}={value}" for name, value in environment.items()]
    # The base's own title, version and name (Ubuntu's, in Ollama's image) do not describe what is made here.
    inherited = {name: text for name, text in base.config.labels.items() if not name.startswith(_STANDARD_LABELS)}
    execution["Labels"] = dict(sorted({**inherited, **settings.labels}.items()))
    execution["ExposedPorts"] = execution.get("ExposedPorts") or {"11434/tcp": {}}
    execution["Healthcheck"] = {
        "Test": ["CMD", base.config.command[0], "list"],
        "Interval": 30 * _SECOND_NS,
        "Timeout": 10 * _SECOND_NS,
        "StartPeriod": 15 * _SECOND_NS,
        "Retries": 3,
    }
    return execution
