"""Deterministic layer tars: which blob goes into which layer, and the exact bytes around each blob. No I/O.

A layer is a list of parts: literal bytes (headers, padding, small files) and blobs whose bytes are to come.
Its size is known before a byte is read; its digest is earned by reading.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from appliance_image import contract
from appliance_image.digest import Digest

_BLOCK = 512
_END = b"\0" * (2 * _BLOCK)
_ROOT = contract.MODELS_DIRECTORY.lstrip("/")


@dataclass(frozen=True, slots=True)
class Blob:
    """A blob of a model: its bytes are to come, its digest is a promise to be checked."""

    digest: Digest
    size: int


Parts = tuple[bytes | Blob, ...]


@dataclass(frozen=True, slots=True)
class LayerPlan:
    """One layer: `parts` joined are its tar."""

    parts: Parts
    blobs: tuple[Blob, ...]

    @property
    def size(self) -> int:
        return sum(len(part) if isinstance(part, bytes) else part.size for part in self.parts)


def weights_layer(blobs: Sequence[Blob]) -> LayerPlan:
    return _layer({f"{_ROOT}/blobs/{blob.digest.file_name}": blob for blob in blobs}, blobs)


def model_layer(manifest_path: str, manifest: bytes, blobs: Iterable[bytes]) -> LayerPlan:
    """The small files: the model's manifest and its text blobs. `manifest_path` is below `manifests/`."""
    files: dict[str, bytes | Blob] = {f"{_ROOT}/manifests/{manifest_path}": manifest}
    for content in blobs:
        files[f"{_ROOT}/blobs/{Digest.of(content).file_name}"] = content
    return _layer(files, ())


def pack(blobs: Sequence[Blob]) -> tuple[tuple[Blob, ...], ...]:
    """Weights blobs, in manifest order, into layers: large ones alone, small ones together.

    Never more than `MODEL_LAYERS_MAX - 1` layers: both thresholds double until it fits, so the
    answer depends on nothing but the blobs.
    """
    unique = tuple(dict.fromkeys(blobs))
    own, packed = contract.OWN_LAYER_BYTES, contract.PACKED_LAYER_BYTES
    while True:
        groups = _group(unique, own, packed)
        if len(groups) < contract.MODEL_LAYERS_MAX:
            return groups
        own, packed = own * 2, packed * 2


def _group(blobs: Sequence[Blob], own: int, packed: int) -> tuple[tuple[Blob, ...], ...]:
    groups: list[list[Blob]] = []
    open_group: list[Blob] | None = None
    for blob in blobs:
        if blob.size >= own:
            groups.append([blob])
        elif open_group is not None and sum(b.size for b in open_group) + blob.size <= packed:
            open_group.append(blob)
        else:
            open_group = [blob]
            groups.append(open_group)
    return tuple(tuple(group) for group in groups)


def _layer(files: dict[str, bytes] | dict[str, Blob] | dict[str, bytes | Blob], blobs: Sequence[Blob]) -> LayerPlan:
    directories = {str(parent) for path in files for parent in PurePosixPath(path).parents} - {"."}
    parts: list[bytes | Blob] = []
    for path in sorted(directories | set(files)):
        if path in directories:
            parts.append(_header(path, None))
            continue
        content = files[path]
        size = len(content) if isinstance(content, bytes) else content.size
        parts += [_header(path, size), content, b"\0" * (-size % _BLOCK)]
    return LayerPlan(_joined([*parts, _END]), tuple(blobs))


def _header(path: str, size: int | None) -> bytes:
    entry = tarfile.TarInfo(path)
    entry.mtime = contract.MTIME
    if size is None:
        entry.type, entry.mode = tarfile.DIRTYPE, contract.DIRECTORY_MODE
    else:
        entry.size, entry.mode = size, contract.FILE_MODE
    return entry.tobuf(tarfile.PAX_FORMAT)


def _joined(parts: Iterable[bytes | Blob]) -> Parts:
    """Neighbouring literals made one, so that a reader sees few parts."""
    joined: list[bytes | Blob] = []
    for part in parts:
        if isinstance(part, bytes) and joined and isinstance(joined[-1], bytes):
            joined[-1] += part
        elif not isinstance(part, bytes) or part:
            joined.append(part)
    return tuple(joined)
