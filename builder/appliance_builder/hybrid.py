"""The one tar that every engine loads: an OCI layout and a `docker save` archive at once, sharing their blobs. Pure.

Blobs come first and the tables of contents last, `manifest.json` at the very end, so that the tar can be written while
its layers are still being read, and a tar that breaks off names no image. Headers are the same on every machine.
"""

from __future__ import annotations

import tarfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from appliance_builder.built import Built
from appliance_image import contract
from appliance_image.digest import Digest
from appliance_image.oci import Descriptor, Index, render_json
from appliance_image.reference import ImageReference

LAYOUT_FILE: Final = "oci-layout"
INDEX_FILE: Final = "index.json"
DOCKER_FILE: Final = "manifest.json"
LAYOUT_BODY: Final = b'{"imageLayoutVersion":"1.0.0"}'

REF_NAME: Final = "org.opencontainers.image.ref.name"
IMAGE_NAME: Final = "io.containerd.image.name"

_BLOCK: Final = 512
_END: Final = b"\0" * (2 * _BLOCK)


def blob_name(digest: Digest) -> str:
    return f"blobs/sha256/{digest.hex}"


def entry_header(name: str, size: int) -> bytes:
    """Its length depends on `size` alone for names as long as a blob's, so a name can be put in afterwards."""
    header = tarfile.TarInfo(name)
    header.size, header.mode, header.mtime = size, contract.FILE_MODE, contract.MTIME
    return header.tobuf(tarfile.PAX_FORMAT)


def entry_padding(size: int) -> bytes:
    return b"\0" * (-size % _BLOCK)


def opening() -> bytes:
    """Before the first blob."""
    return b"".join(_directory(name) for name in ("blobs", "blobs/sha256"))


def closing(built: Built, name: ImageReference | None, *, entries: Mapping[Digest, str] | None = None) -> bytes:
    """After the last layer. `entries` names layers that do not lie under their digest.

    Without a name the image is loaded but nothing is called after it. Only an OCI layout can hold several platforms:
    in the `docker save` table stands the first.
    """
    blobs = {image.manifest.config.digest: image.config for image in built.images}
    blobs |= {image.descriptor.digest: image.body for image in built.images}
    if built.index is not None:
        blobs[built.digest] = built.index
    files = {blob_name(digest): body for digest, body in blobs.items()}
    files[LAYOUT_FILE] = LAYOUT_BODY
    files[INDEX_FILE] = Index((named(built.descriptor, name) if name else built.descriptor,)).render()
    files[DOCKER_FILE] = _docker_table(built, name, entries or {})
    return b"".join(_entry(path, body) for path, body in files.items()) + _END


@dataclass(frozen=True, slots=True)
class Frame:
    """Everything of a tar but its layers: bytes and where they stand."""

    size: int
    parts: tuple[tuple[int, bytes], ...] = field(repr=False)


def frame(built: Built, name: ImageReference) -> Frame:
    """Of the tar with every layer under its digest, in the order of the images' manifests."""
    parts = [(0, opening())]
    position = len(opening())
    layers = {layer.digest: layer for image in built.images for layer in image.manifest.layers}
    for layer in layers.values():
        header = entry_header(blob_name(layer.digest), layer.size)
        parts.append((position, header))
        position += len(header) + layer.size + len(entry_padding(layer.size))
    parts.append((position, closing(built, name)))
    return Frame(position + len(parts[-1][1]), tuple(parts))


def named(descriptor: Descriptor, name: ImageReference, *, ref_name: str | None = None) -> Descriptor:
    """As an entry of `index.json`: podman and skopeo read one annotation, containerd the other."""
    annotations = {REF_NAME: ref_name or name.canonical, IMAGE_NAME: name.canonical}
    return replace(descriptor, annotations={**descriptor.annotations, **annotations})


def _docker_table(built: Built, name: ImageReference | None, entries: Mapping[Digest, str]) -> bytes:
    image = built.images[0]
    table: dict[str, Any] = {
        "Config": blob_name(image.manifest.config.digest),
        "RepoTags": [f"{name.name}:{name.tag or 'latest'}"] if name else None,
        "Layers": [entries.get(layer.digest, blob_name(layer.digest)) for layer in image.manifest.layers],
    }
    return render_json([table])


def _directory(name: str) -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.mode, header.mtime = tarfile.DIRTYPE, contract.DIRECTORY_MODE, contract.MTIME
    return header.tobuf(tarfile.PAX_FORMAT)


def _entry(name: str, content: bytes) -> bytes:
    return entry_header(name, len(content)) + content + entry_padding(len(content))
