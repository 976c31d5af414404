"""Container images wherever they are: a registry, a layout, an archive, an engine. Opens them all to the same three questions."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from appliance_builder.ports import Content
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.oci import INDEX_TYPES, Descriptor, ImageConfig, Index, Manifest, Platform
from appliance_image.reference import ImageReference

SCHEMES = ("oci:", "oci-archive:", "docker-daemon:")


class ImageError(ApplianceError):
    pass


class ImageSource(Protocol):
    def manifest(self, reference: str) -> tuple[Descriptor, bytes]: ...

    def small_blob(self, descriptor: Descriptor) -> bytes: ...

    def blob(self, descriptor: Descriptor) -> Content: ...


@dataclass(frozen=True, slots=True)
class PlatformImage:
    """An image for one platform, its manifest byte for byte."""

    descriptor: Descriptor
    body: bytes
    manifest: Manifest
    config: ImageConfig
    config_body: bytes


@dataclass(frozen=True, slots=True)
class OpenImage:
    """`name` as the user wrote it; `reference` only for a registry's image."""

    name: str
    source: ImageSource
    descriptor: Descriptor
    body: bytes
    reference: ImageReference | None = None

    @property
    def is_index(self) -> bool:
        return self.descriptor.media_type in INDEX_TYPES

    @property
    def label(self) -> str:
        """The name and digest for an image's label: the same on every machine, so never a path."""
        name = str(self.reference) if self.reference else split_scheme(self.name)[0].rstrip(":")
        return name if "@" in name else f"{name}@{self.descriptor.digest}"

    def platform_images(self, wanted: Sequence[Platform] | None) -> list[PlatformImage]:
        """The images for these platforms in this order; all there are for None. Attestations are no images."""
        if not self.is_index:
            image = self._read(self.descriptor, self.body)
            if wanted and list(wanted) != [image.config.platform]:
                raise self._no_platform(wanted, [image.config.platform])
            return [image]
        entries = {
            entry.platform: entry
            for entry in Index.parse(self.body).manifests
            if entry.platform and entry.platform.os != "unknown"
        }
        missing = [platform for platform in wanted or () if platform not in entries]
        if missing or not entries:
            raise self._no_platform(missing, list(entries))
        chosen = [entries[platform] for platform in wanted or list(entries)]
        return [self._read(*self.source.manifest(str(entry.digest))) for entry in chosen]

    def contents(self, manifest: Manifest) -> Mapping[Digest, Content]:
        return {layer.digest: self.source.blob(layer) for layer in manifest.layers}

    def _read(self, descriptor: Descriptor, body: bytes) -> PlatformImage:
        manifest = Manifest.parse(body)
        config = self.source.small_blob(manifest.config)
        return PlatformImage(descriptor, body, manifest, ImageConfig.parse(config), config)

    def _no_platform(self, wanted: Sequence[Platform], there: Sequence[Platform]) -> ImageError:
        names = ", ".join(map(str, wanted)) or "any platform"
        there_names = ",".join(map(str, there))
        return ImageError(f"`{self.name}` has no image for {names}", hint=f"it has: `--platform {there_names}`")


def open_source(text: str, source: ImageSource, reference: ImageReference | None = None) -> OpenImage:
    descriptor, body = source.manifest(reference.manifest if reference else "")
    return OpenImage(text, source, descriptor, body, reference)


def split_scheme(text: str) -> tuple[str, str]:
    """`oci:DIR` -> (`oci:`, `DIR`); a registry's reference has no scheme."""
    for scheme in SCHEMES:
        if text.startswith(scheme):
            return scheme, text.removeprefix(scheme)
    return "", text


def existing_directory(path: Path) -> Path:
    """The nearest directory above `path` that exists: where its disk space is counted."""
    return next(parent for parent in (path, *path.parents) if os.path.isdir(parent))  # noqa: PTH112 - no error where nothing may be looked at
