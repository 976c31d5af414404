"""Model sources: what each one has to offer, and reading a whole model out of any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from appliance_builder.model import SMALL_BLOB_BYTES, Model, ModelError, is_text
from appliance_builder.ports import Content
from appliance_image.digest import Digest
from appliance_image.oci import Descriptor, Manifest
from appliance_image.reference import ModelName


class ModelSource(Protocol):
    @property
    def label(self) -> str:
        """Where from, for people: a registry's name, a directory, an image."""
        ...

    def manifest(self) -> bytes:
        """The model's manifest, the very bytes."""
        ...

    def small(self, descriptor: Descriptor) -> bytes:
        """A whole small blob, checked against its digest."""
        ...

    def content(self, descriptor: Descriptor) -> Content:
        """A large blob; its bytes are checked by whoever reads them to the end."""
        ...

    def head(self, descriptor: Descriptor) -> Iterable[bytes]:
        """The beginning of a large blob, enough for the header of a GGUF file; starts no download of the rest."""
        ...

    def settle(self, digest: Digest, *, good: bool) -> None:
        """Told once a blob's bytes were compared with its digest: keep what was downloaded, or throw it away."""
        ...


@dataclass(frozen=True, slots=True)
class Reading:
    """A model and where its weights are read from."""

    model: Model
    weights: Mapping[Digest, Content]
    source: ModelSource | None  # None: the weights are layers of an image that is there already


def read_model(source: ModelSource, *, name: ModelName, known_as: str) -> Reading:
    """Fetch the manifest and the small blobs; the weights stay where they are until they are read.

    `known_as` is the model's name at the source, kept in the image's label beside the manifest digest.
    """
    body = source.manifest()
    manifest = Manifest.parse(body)
    weights = [layer for layer in manifest.layers if not is_text(layer)]
    if not weights:
        raise ModelError(
            f"model `{known_as}` has no weights", hint="it may be a cloud model, which cannot be put into an image"
        )
    if manifest.config.size > SMALL_BLOB_BYTES:
        raise ModelError(f"the configuration of `{known_as}` is too large", hint="the manifest may be damaged")
    texts = [layer for layer in manifest.layers if is_text(layer)]
    small = {descriptor.digest: source.small(descriptor) for descriptor in (manifest.config, *texts)}
    model = Model(name, f"{known_as}@{Digest.of(body)}", body, small)
    return Reading(model, {layer.digest: source.content(layer) for layer in weights}, source)
