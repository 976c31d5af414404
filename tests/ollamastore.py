"""Lays models into a store directory the way Ollama leaves them there, byte for byte."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

CHUNK_BYTES = 1 << 20
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
LAYER_PREFIX = "application/vnd.ollama.image."


@dataclass(frozen=True, slots=True)
class Absent:
    """A layer that the manifest names and the store does not hold."""

    digest: str
    size: int


Parameters = dict[str, object]
Source = Path | str | bytes | Parameters | Absent  # a file to copy, a text, or the values of `params`


@dataclass(frozen=True, slots=True)
class StoredLayer:
    kind: str  # "model", "template" …, or "config"
    digest: str  # sha256:…
    size: int


@dataclass(frozen=True, slots=True)
class StoredModel:
    name: str
    manifest_path: Path
    manifest: bytes
    config: StoredLayer
    layers: tuple[StoredLayer, ...]

    @property
    def digest(self) -> str:
        """What `ollama list` begins with and /api/tags calls digest: no prefix, the hash of the manifest file."""
        return hashlib.sha256(self.manifest).hexdigest()

    @property
    def size(self) -> int:
        return self.config.size + sum(layer.size for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Config:
    family: str = "qwen2"
    model_type: str = "161K"
    file_type: str = "F16"
    more: Mapping[str, object] = field(default_factory=dict)  # `renderer`, `parser` …
    diff_ids: Sequence[str] | None = None  # the layers as they are, if None; the library's own are stale
    has_rootfs: bool = True  # newest servers leave it out

    def render(self, layers: Sequence[StoredLayer]) -> bytes:
        ids = [layer.digest for layer in layers] if self.diff_ids is None else list(self.diff_ids)
        document = {
            "model_format": "gguf",
            "model_family": self.family,
            "model_families": [self.family],
            "model_type": self.model_type,
            "file_type": self.file_type,
            **self.more,
            "architecture": "amd64",
            "os": "linux",
            **({"rootfs": {"type": "layers", "diff_ids": ids}} if self.has_rootfs else {}),
        }
        return go_json(document) + b"\n"


def lay_model(
    store: Path,
    name: str,
    layers: Mapping[str, Source | Sequence[Source]],
    *,
    config: Config | None = None,
    origins: Mapping[str, str] | None = None,
    created: bool = False,
    modified_s: float | None = None,
) -> StoredModel:
    """A pulled model has its layers in the order model, template, license, params. What `ollama create` makes has
    them in the order model, license, template, params, `origins` for those it took over, and a newline at the end of
    the manifest (`created`). A license may come several times: then the value is a list."""
    blobs = store / "blobs"
    _make_directory(blobs)
    stored = tuple(_lay(blobs, kind, source) for kind, sources in layers.items() for source in _several(sources))
    document = (config or Config()).render(stored)
    config_layer = _lay(blobs, "config", document)
    entries = [_entry(LAYER_PREFIX + layer.kind, layer, (origins or {}).get(layer.kind, "")) for layer in stored]
    manifest = go_json(
        {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": _entry(CONFIG_TYPE, config_layer, ""),
            "layers": entries,
        }
    )
    manifest += b"\n" if created else b""
    path = manifest_path(store, name)
    _make_directory(path.parent)
    _write(path, manifest)
    if modified_s is not None:
        os.utime(path, (modified_s, modified_s))
    return StoredModel(name, path, manifest, config_layer, stored)


def manifest_path(store: Path, name: str) -> Path:
    """The file for `[host/][namespace/]model[:tag]`."""
    head, _, last = name.rpartition("/")
    model, _, tag = last.partition(":")
    host, _, namespace = head.rpartition("/")
    parts = (host or "registry.ollama.ai", namespace or "library", model, tag or "latest")
    return store.joinpath("manifests", *parts)


def blob_path(store: Path, digest: str) -> Path:
    return store / "blobs" / digest.replace(":", "-")


def go_json(document: object) -> bytes:
    """Compact, and `<`, `>` and `&` escaped."""
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode()


def _several(sources: Source | Sequence[Source]) -> Sequence[Source]:
    return sources if isinstance(sources, list | tuple) else [sources]  # type: ignore[list-item]  # str is a sequence


def _entry(media_type: str, layer: StoredLayer, origin: str) -> dict[str, object]:
    entry: dict[str, object] = {"mediaType": media_type, "digest": layer.digest, "size": layer.size}
    return {**entry, "from": origin} if origin else entry


def _lay(blobs: Path, kind: str, source: Source) -> StoredLayer:
    if isinstance(source, Absent):
        return StoredLayer(kind, source.digest, source.size)
    if isinstance(source, Path):
        return _copy(blobs, kind, source)
    data = source if isinstance(source, bytes) else _text(source).encode()
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    _write(blobs / digest.replace(":", "-"), data)
    return StoredLayer(kind, digest, len(data))


def _text(source: str | Parameters) -> str:
    return source if isinstance(source, str) else go_json(source).decode() + "\n"


def _copy(blobs: Path, kind: str, source: Path) -> StoredLayer:
    with source.open("rb") as file:
        digest = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
    target = blobs / digest.replace(":", "-")
    if not target.exists():
        with source.open("rb") as file, target.open("wb") as copy:
            while data := file.read(CHUNK_BYTES):
                copy.write(data)
        target.chmod(0o644)
    return StoredLayer(kind, digest, target.stat().st_size)


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    path.chmod(0o644)


def _make_directory(path: Path) -> None:
    path.mkdir(parents=True, exist_ok=True)
