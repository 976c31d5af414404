"""Weights layers that exist already: learnt by earlier builds here, or told by the annotations of images in a registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance_builder.finished import FinishedImage
from appliance_builder.images import ImageSource, PlatformImage
from appliance_builder.layer_cache import LayerCache
from appliance_builder.plan import KnownLayer
from appliance_image.errors import ApplianceError
from appliance_image.layer import Blob, weights_layer


@dataclass(frozen=True, slots=True)
class KnownImage:
    image: FinishedImage
    source: ImageSource | None  # None: its layers are only known, not to be read from there


@dataclass(frozen=True, slots=True)
class KnownLayers:
    images: Sequence[KnownImage]
    cache: LayerCache

    def __call__(self, blobs: Sequence[Blob]) -> KnownLayer | None:
        size = weights_layer(blobs).size
        for known in self.images:
            layer = known.image.holds(blobs)
            if layer and layer.size == size:  # an annotation is somebody's word; the size at least must agree
                return KnownLayer(layer.digest, known.source.blob(layer) if known.source else None)
        digest = self.cache.layer(blobs)
        return KnownLayer(digest) if digest else None


def known_image(image: PlatformImage, source: ImageSource | None) -> KnownImage | None:
    """None for an image that is no appliance."""
    try:
        return KnownImage(FinishedImage.parse(image.manifest, image.config), source)
    except ApplianceError:
        return None
