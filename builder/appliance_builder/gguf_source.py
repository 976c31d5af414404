"""Model source `--from-gguf`: a local file becomes a model as `ollama create` would describe it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from appliance_builder.gguf import GgufHeader
from appliance_builder.model import MODEL, ModelError
from appliance_builder.ports import Content, Reporter
from appliance_builder.store import FileContent
from appliance_image.digest import Digest
from appliance_image.oci import DOCKER_MANIFEST, Descriptor, render_json

_CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"


class GgufFile:
    """One file, hashed once here because a model's manifest names its weights by digest."""

    def __init__(self, path: Path, header: GgufHeader, reporter: Reporter) -> None:
        self.label = str(path)
        content = _open(path)
        self._file = content
        self._weights = Descriptor(MODEL, _hash(content, reporter), content.size)
        self._config = render_json(_config(header))

    def manifest(self) -> bytes:
        config = Descriptor(_CONFIG_TYPE, Digest.of(self._config), len(self._config))
        return render_json(
            {"schemaVersion": 2, "mediaType": DOCKER_MANIFEST, "config": config.json, "layers": [self._weights.json]}
        )

    def small(self, descriptor: Descriptor) -> bytes:
        if descriptor.digest != Digest.of(self._config):
            raise ModelError(f"no blob {descriptor.digest} beside a GGUF file", hint="this is a bug, please report it")
        return self._config

    def content(self, descriptor: Descriptor) -> Content:
        del descriptor
        return self._file

    def head(self, descriptor: Descriptor) -> Iterable[bytes]:
        return self.content(descriptor).read()

    def settle(self, digest: Digest, *, good: bool) -> None:
        """The file is its owner's."""


def _open(path: Path) -> FileContent:
    try:
        return FileContent(path, path.stat().st_size)
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", hint="give the path of a GGUF file") from error


def _hash(content: FileContent, reporter: Reporter) -> Digest:
    sha256 = hashlib.sha256()
    with reporter.transfer(f"hash {content.path.name}", size=content.size) as transfer:
        for chunk in content.read():
            sha256.update(chunk)
            transfer.advance(len(chunk))
    return Digest(sha256.hexdigest())


def _config(header: GgufHeader) -> dict[str, object]:
    """As Ollama 0.32 writes it; the server needs the family, people the rest."""
    return {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": header.parameter_size,
        "file_type": header.file_type,
        "architecture": "amd64",
        "os": "linux",
    }
