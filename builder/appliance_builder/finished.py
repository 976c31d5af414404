"""A finished appliance image read back: which layers are weights, which are the base's, which is the model's. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance_image import contract
from appliance_image.contract import ContractError
from appliance_image.digest import Digest, DigestError
from appliance_image.labels import Labels
from appliance_image.layer import Blob
from appliance_image.oci import Descriptor, ImageConfig, Manifest

WEIGHTS_HISTORY = "appliance: weights"
MODEL_HISTORY = "appliance: model"


@dataclass(frozen=True, slots=True)
class FinishedImage:
    manifest: Manifest
    config: ImageConfig
    labels: Labels
    weights_count: int

    @classmethod
    def parse(cls, manifest: Manifest, config: ImageConfig) -> FinishedImage:
        labels = Labels.parse(config.labels)
        written = [str(entry.get("created_by", "")) for entry in config.history if not entry.get("empty_layer")]
        count = sum(1 for text in written if text == WEIGHTS_HISTORY)
        in_order = written[:count] == [WEIGHTS_HISTORY] * count and written[-1:] == [MODEL_HISTORY]
        if not (count and in_order and len(written) == len(manifest.layers) == len(config.diff_ids)):
            raise ContractError(
                "not an appliance image as `appliance build` leaves it: its layers are in another order",
                hint="it was squashed or rebuilt by another tool; build it again",
            )
        made_here = {*range(count), len(written) - 1}  # uncompressed: a layer and its diff_id are the same
        if any(manifest.layers[index].digest != config.diff_ids[index] for index in made_here):
            raise ContractError(
                "not an appliance image as `appliance build` leaves it: its weights were compressed",
                hint="`docker push` does that; push with `appliance build --push` or `appliance push`",
            )
        return cls(manifest, config, labels, count)

    @property
    def weights(self) -> tuple[Descriptor, ...]:
        return self.manifest.layers[: self.weights_count]

    @property
    def base(self) -> tuple[Descriptor, ...]:
        return self.manifest.layers[self.weights_count : -1]

    @property
    def model(self) -> Descriptor:
        return self.manifest.layers[-1]

    def holds(self, blobs: Sequence[Blob]) -> Descriptor | None:
        """The weights layer with exactly these blobs in this order, made under this layout version."""
        wanted = tuple(blob.digest for blob in blobs)
        return next((layer for layer in self.weights if blobs_of(layer) == wanted), None)


def blobs_of(layer: Descriptor) -> tuple[Digest, ...]:
    """What the annotation of a weights layer says; empty when an engine dropped the annotations."""
    if layer.annotations.get(contract.ANNOTATION_LAYOUT) != str(contract.LAYOUT):
        return ()
    try:
        return tuple(Digest.parse(text) for text in layer.annotations.get(contract.ANNOTATION_BLOBS, "").split())
    except DigestError:  # somebody else's word; as good as none
        return ()
