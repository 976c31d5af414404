"""An Ollama model as a value: its manifest as served, its small blobs, its weights to come. Pure changes make new models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from appliance_image import contract
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.layer import Blob
from appliance_image.oci import Descriptor, Manifest, parse_object, render_json
from appliance_image.reference import ModelName

TEMPLATE: Final = contract.MODEL_MEDIA_PREFIX + "template"
PARAMS: Final = contract.MODEL_MEDIA_PREFIX + "params"
SYSTEM: Final = contract.MODEL_MEDIA_PREFIX + "system"
LICENSE: Final = contract.MODEL_MEDIA_PREFIX + "license"
MODEL: Final = contract.MODEL_MEDIA_PREFIX + "model"
_LEGACY_TEMPLATE: Final = contract.MODEL_MEDIA_PREFIX + "prompt"
_DAMAGED: Final = "the model may be damaged at its source; try another one"
SMALL_BLOB_BYTES: Final = 8 * contract.MEBIBYTE


class ModelError(ApplianceError):
    pass


def kind(descriptor: Descriptor) -> str:
    return descriptor.media_type.removeprefix(contract.MODEL_MEDIA_PREFIX)


def is_text(descriptor: Descriptor) -> bool:
    """Whether a layer of a model is one of the small files that lie beside its manifest in the image."""
    return kind(descriptor) in contract.TEXT_KINDS and descriptor.size <= SMALL_BLOB_BYTES


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The facts of an Ollama config blob that are read here; every version may add keys."""

    family: str
    parameters: str
    quantization: str
    renderer: str
    parser: str
    context_length: int | None

    @classmethod
    def parse(cls, body: bytes) -> ModelConfig:
        node = parse_object(body, "model configuration")
        context_length = node.get("context_length")
        return cls(
            family=_text(node, "model_family"),
            parameters=_text(node, "model_type"),
            quantization=_text(node, "file_type"),
            renderer=_text(node, "renderer"),
            parser=_text(node, "parser"),
            context_length=context_length if isinstance(context_length, int) else None,
        )


@dataclass(frozen=True, slots=True)
class Model:
    name: ModelName  # the one it has in the image
    source: str  # where it came from and the digest of the manifest served there
    manifest: bytes
    small: Mapping[Digest, bytes]  # config and text blobs

    @property
    def parsed(self) -> Manifest:
        return Manifest.parse(self.manifest)

    @property
    def config(self) -> ModelConfig:
        return ModelConfig.parse(self.small[self.parsed.config.digest])

    @property
    def template(self) -> str | None:
        text = self._text(TEMPLATE)
        return self._text(_LEGACY_TEMPLATE) if text is None else text

    @property
    def weights(self) -> tuple[Blob, ...]:
        return tuple(Blob(layer.digest, layer.size) for layer in self.parsed.layers if not is_text(layer))

    @property
    def weights_bytes(self) -> int:
        return sum(blob.size for blob in dict.fromkeys(self.weights))

    def with_template(self, text: str) -> Model:
        """One layer digest changed, all else as served: what Ollama's own library does when a template changes."""
        without_legacy = self._without(_LEGACY_TEMPLATE)
        return without_legacy.with_layer(TEMPLATE, text.encode())

    def with_parameters(self, parameters: Mapping[str, object]) -> Model:
        if not parameters:
            return self
        present = parse_object((self._text(PARAMS) or "{}").encode(), "parameters of the model")
        merged = dict(sorted({**present, **parameters}.items()))
        return self.with_layer(PARAMS, render_json(merged))

    def with_layer(self, media_type: str, content: bytes) -> Model:
        """The layer of this type replaced in its place, or added at the end."""
        node = self._node()
        digest = Digest.of(content)
        entry = {"mediaType": media_type, "digest": str(digest), "size": len(content)}
        layers = cast("list[dict[str, Any]]", node["layers"])
        places = [index for index, layer in enumerate(layers) if layer.get("mediaType") == media_type]
        if places:
            layers[places[0]] = entry
            node["layers"] = [layer for index, layer in enumerate(layers) if index not in places[1:]]
        else:
            layers.append(entry)
        return self._with_manifest(render_json(node), {**self.small, digest: content})

    def _without(self, media_type: str) -> Model:
        node = self._node()
        layers = cast("list[dict[str, Any]]", node["layers"])
        kept = [layer for layer in layers if layer.get("mediaType") != media_type]
        return (
            self if len(kept) == len(layers) else self._with_manifest(render_json({**node, "layers": kept}), self.small)
        )

    def _with_manifest(self, manifest: bytes, small: Mapping[Digest, bytes]) -> Model:
        parsed = Manifest.parse(manifest)
        named = {parsed.config.digest, *(layer.digest for layer in parsed.layers)}
        return replace(self, manifest=manifest, small={d: content for d, content in small.items() if d in named})

    def _node(self) -> dict[str, Any]:
        return parse_object(self.manifest, "model manifest")

    def _text(self, media_type: str) -> str | None:
        for layer in self.parsed.layers:
            if layer.media_type == media_type:
                try:
                    return self.small[layer.digest].decode()
                except UnicodeDecodeError as error:
                    raise ModelError(
                        f"the {kind(layer)} of `{self.name}` is no text: {error}", hint=_DAMAGED
                    ) from error
        return None


def _text(node: Mapping[str, Any], key: str) -> str:
    value = node.get(key)
    return value if isinstance(value, str) else ""
