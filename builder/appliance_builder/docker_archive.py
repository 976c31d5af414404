"""What `docker save` of a classic engine writes, read as if it were an OCI layout: manifests are made up from it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, cast

from appliance_builder.hybrid import DOCKER_FILE, REF_NAME
from appliance_builder.layout_files import Files, LayoutError, read_file
from appliance_builder.ports import Content
from appliance_image.digest import Digest
from appliance_image.oci import (
    CONFIG,
    LAYER_GZIP,
    LAYER_TAR,
    LAYER_ZSTD,
    MANIFEST,
    Descriptor,
    ImageConfig,
    Manifest,
)

_DOCUMENT_BYTES: Final = 8 * 1024 * 1024
_COMPRESSED: Final = {b"\x1f\x8b": LAYER_GZIP, b"\x28\xb5\x2f\xfd": LAYER_ZSTD}


@dataclass(frozen=True, slots=True)
class DockerImages:
    """`manifests` are no files of the archive; `places` names the files that do not lie under their digest."""

    entries: tuple[Descriptor, ...]
    manifests: Mapping[Digest, bytes] = field(repr=False)
    places: Mapping[Digest, str]


def docker_images(files: Files) -> DockerImages | None:
    """None where there is no table of images."""
    body = read_file(files, DOCKER_FILE, limit_bytes=_DOCUMENT_BYTES)
    if body is None:
        return None
    entries: list[Descriptor] = []
    manifests: dict[Digest, bytes] = {}
    places: dict[Digest, str] = {}
    for config_name, tags, layer_names in _table(body, files.label):
        manifest = _manifest(files, config_name, layer_names, places)
        rendered = manifest.render()
        digest = Digest.of(rendered)
        manifests[digest] = rendered
        for tag in tags or ("",):
            annotations = {REF_NAME: tag} if tag else {}
            entries.append(Descriptor(MANIFEST, digest, len(rendered), annotations))
    return DockerImages(tuple(entries), manifests, places)


def _manifest(files: Files, config_name: str, layer_names: list[str], places: dict[Digest, str]) -> Manifest:
    body = read_file(files, config_name, limit_bytes=_DOCUMENT_BYTES)
    if body is None:
        raise LayoutError(f"`{config_name}` missing in {files.label}")
    config = Descriptor(CONFIG, Digest.of(body), len(body))
    places[config.digest] = config_name
    diff_ids = ImageConfig.parse(body).diff_ids
    if len(diff_ids) != len(layer_names):
        raise LayoutError(f"{len(layer_names)} layers in {files.label} for an image of {len(diff_ids)}")
    layers: list[Descriptor] = []
    for name, diff_id in zip(layer_names, diff_ids, strict=True):
        content = files.find(name)
        if content is None:
            raise LayoutError(f"layer `{name}` missing in {files.label}")
        layers.append(_layer(content, diff_id))
        places[layers[-1].digest] = name
    return Manifest(config, tuple(layers))


def _layer(content: Content, diff_id: Digest) -> Descriptor:
    """Engines write layers unpacked, and then the digest is in the configuration; other tools may compress them."""
    head = next(iter(content.read()), b"")
    for magic, media_type in _COMPRESSED.items():
        if head.startswith(magic):
            sha256 = hashlib.sha256()
            for chunk in content.read():
                sha256.update(chunk)
            return Descriptor(media_type, Digest(sha256.hexdigest()), content.size)
    return Descriptor(LAYER_TAR, diff_id, content.size)


def _table(body: bytes, label: str) -> list[tuple[str, tuple[str, ...], list[str]]]:
    try:
        rows = [
            (str(row["Config"]), tuple(row.get("RepoTags") or ()), [str(name) for name in row["Layers"]])
            for row in cast("list[dict[str, list[str]]]", json.loads(body))
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise LayoutError(f"`{DOCKER_FILE}` in {label} is not what `docker save` writes") from error
    if not rows:
        raise LayoutError(f"{label} holds no image")
    return rows
