"""What a build makes: image manifests that have earned their digests, and the layers they are made of. Values only."""

from __future__ import annotations

from dataclasses import dataclass

from appliance_image.digest import Digest
from appliance_image.oci import INDEX, Descriptor, Manifest, Platform, parse_object


@dataclass(frozen=True, slots=True)
class LayerOutline:
    """A layer whose digest is known, offered to a sink before any of its bytes move."""

    descriptor: Descriptor
    diff_ids: tuple[Digest, ...]  # from the bottom layer up to and including this one; empty while one is unknown
    platforms: frozenset[Platform]


@dataclass(frozen=True, slots=True)
class BuiltImage:
    platform: Platform
    config: bytes
    manifest: Manifest
    diff_ids: tuple[Digest, ...]  # uncompressed digests, one for each of manifest.layers
    as_served: bytes | None = None  # the manifest's own bytes, when the image was made elsewhere and is only moved

    @property
    def body(self) -> bytes:
        return self.as_served or self.manifest.render()

    @property
    def descriptor(self) -> Descriptor:
        body = self.body
        return Descriptor(self.manifest.media_type, Digest.of(body), len(body), platform=self.platform)


@dataclass(frozen=True, slots=True)
class Built:
    """One image, or one for each platform below an index."""

    images: tuple[BuiltImage, ...]
    index: bytes | None = None

    @property
    def digest(self) -> Digest:
        return self.descriptor.digest

    @property
    def descriptor(self) -> Descriptor:
        if self.index is None:
            return self.images[0].descriptor
        media_type = parse_object(self.index, "image index").get(
            "mediaType", INDEX
        )  # one that is only moved may be Docker's
        return Descriptor(str(media_type), Digest.of(self.index), len(self.index))
