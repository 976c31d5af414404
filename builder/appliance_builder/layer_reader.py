"""Reading layer tars: the small model layer whole, a weights layer entry by entry while it streams. Trusts nothing."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass

from appliance_builder.model import SMALL_BLOB_BYTES, Model, is_text
from appliance_image import contract
from appliance_image.contract import ContractError
from appliance_image.digest import Digest
from appliance_image.oci import Manifest
from appliance_image.reference import ModelName

_ROOT = contract.MODELS_DIRECTORY.lstrip("/")
MODEL_LAYER_BYTES = 4 * SMALL_BLOB_BYTES


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of a streamed layer, its bytes hashed and gone."""

    path: str
    size: int
    mode: int
    owner: tuple[int, int]
    digest: Digest


class ChunkFile(io.RawIOBase):
    """An iterator of chunks as a file that can only be read forward."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        super().__init__()
        self._chunks = chunks
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed wants a wider buffer type
        while not self._rest:
            chunk = next(self._chunks, None)
            if chunk is None:
                return 0
            self._rest = memoryview(chunk)
        size = min(len(buffer), len(self._rest))
        buffer[:size] = self._rest[:size]
        self._rest = self._rest[size:]
        return size


def read_model_layer(body: bytes, *, source: str) -> Model:
    """The model of an appliance image out of its top layer, its manifest byte for byte."""
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(body), mode="r:") as tar:
            for entry in tar:
                if entry.isfile() and (file := tar.extractfile(entry)):
                    files[entry.name] = file.read()
    except tarfile.TarError as error:
        raise ContractError(f"the model layer is damaged: {error}", hint="verify the image's registry") from error
    prefix = f"{_ROOT}/manifests/"
    manifests = [path for path in files if path.startswith(prefix)]
    if len(manifests) != 1:
        raise ContractError(f"the image holds {len(manifests)} models, not one", hint="build it again")
    parts = manifests[0].removeprefix(prefix).split("/")
    if len(parts) != 4:
        raise ContractError(f"not a model's path: {manifests[0]}", hint="build the image again")
    manifest = files.pop(manifests[0])
    contents = {Digest.of(content): content for content in files.values()}
    parsed = Manifest.parse(manifest)
    named = {parsed.config.digest, *(layer.digest for layer in parsed.layers)}
    missing = [layer for layer in (parsed.config, *parsed.layers) if is_text(layer) and layer.digest not in contents]
    if missing or parsed.config.digest not in contents:
        raise ContractError("the model layer lacks files that its manifest names", hint="build the image again")
    name = ModelName.parse(f"{'/'.join(parts[:3])}:{parts[3]}")
    return Model(name, source, manifest, {d: content for d, content in contents.items() if d in named})
