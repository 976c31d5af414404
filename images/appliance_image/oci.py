"""OCI image spec 1.1 documents as frozen values: descriptor, manifest, index, image configuration. JSON in, JSON out."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, cast

from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
CONFIG: Final = "application/vnd.oci.image.config.v1+json"
LAYER_TAR: Final = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP: Final = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX: Final = "application/vnd.docker.distribution.manifest.list.v2+json"

MANIFEST_TYPES: Final = (MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES: Final = (INDEX, DOCKER_INDEX)
# The same bytes under the OCI name, so that one manifest never mixes two families.
_AS_OCI: Final = {
    "application/vnd.docker.image.rootfs.diff.tar": LAYER_TAR,
    "application/vnd.docker.image.rootfs.diff.tar.gzip": LAYER_GZIP,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": LAYER_ZSTD,
}


class OciError(ApplianceError):
    """A document that does not follow the image specification."""

    def __init__(self, message: str, *, hint: str = "the registry or file may be damaged; try another source") -> None:
        super().__init__(message, hint=hint)


@dataclass(frozen=True, slots=True)
class Platform:
    os: str
    architecture: str

    @classmethod
    def parse(cls, text: str) -> Platform:
        os, slash, architecture = text.partition("/")
        if not (slash and os and architecture) or "/" in architecture:
            raise OciError(f"not a platform: {text!r}", hint="use `linux/amd64`, `linux/arm64` or both with a comma")
        return cls(os, architecture)

    def __str__(self) -> str:
        return f"{self.os}/{self.architecture}"


@dataclass(frozen=True, slots=True)
class Descriptor:
    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    platform: Platform | None = None

    @classmethod
    def parse(cls, value: object) -> Descriptor:
        node = _object(value, "descriptor")
        size = node.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or size < 0:
            raise OciError(f"descriptor without a size: {str(node)[:200]}")
        platform = node.get("platform")
        return cls(
            _text(node, "mediaType"),
            Digest.parse(_text(node, "digest")),
            size,
            texts(node.get("annotations"), "annotations"),
            _platform(_object(platform, "platform")) if platform else None,
        )

    @property
    def json(self) -> dict[str, Any]:
        node: dict[str, Any] = {"mediaType": self.media_type, "digest": str(self.digest), "size": self.size}
        if self.platform:
            node["platform"] = {"architecture": self.platform.architecture, "os": self.platform.os}
        if self.annotations:
            node["annotations"] = dict(sorted(self.annotations.items()))
        return node

    def as_oci_layer(self) -> Descriptor:
        media_type = _AS_OCI.get(self.media_type, self.media_type)
        return Descriptor(media_type, self.digest, self.size, self.annotations)


@dataclass(frozen=True, slots=True)
class Manifest:
    """An image manifest (OCI or Docker schema 2), also the shape of an Ollama model manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    media_type: str = MANIFEST

    @classmethod
    def parse(cls, body: bytes) -> Manifest:
        node = parse_object(body, "image manifest")
        layers = node.get("layers")
        if not isinstance(layers, list) or "config" not in node:
            raise OciError("not an image manifest: config or layers missing")
        return cls(
            Descriptor.parse(node["config"]),
            tuple(Descriptor.parse(layer) for layer in cast("list[object]", layers)),
            texts(node.get("annotations"), "annotations"),
            str(node.get("mediaType", MANIFEST)),
        )

    def render(self) -> bytes:
        node: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": self.media_type,
            "config": self.config.json,
            "layers": [layer.json for layer in self.layers],
        }
        if self.annotations:
            node["annotations"] = dict(sorted(self.annotations.items()))
        return render_json(node)


@dataclass(frozen=True, slots=True)
class Index:
    manifests: tuple[Descriptor, ...]

    @classmethod
    def parse(cls, body: bytes) -> Index:
        node = parse_object(body, "image index")
        manifests = node.get("manifests")
        if not isinstance(manifests, list):
            raise OciError("not an image index: no manifests")
        return cls(tuple(Descriptor.parse(entry) for entry in cast("list[object]", manifests)))

    def render(self) -> bytes:
        manifests = [entry.json for entry in self.manifests]
        return render_json({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests})


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """The parts of an image configuration that are read or changed here; `node` keeps everything else as it was."""

    node: Mapping[str, Any] = field(hash=False)

    @classmethod
    def parse(cls, body: bytes) -> ImageConfig:
        node = parse_object(body, "image configuration")
        if not isinstance(node.get("rootfs"), dict):
            raise OciError("not an image configuration: no rootfs")
        execution = _object(node.get("config") or {}, "image configuration")
        lists = (node.get("history"), execution.get("Entrypoint"), execution.get("Cmd"), execution.get("Env"))
        if not all(entry is None or isinstance(entry, list) for entry in lists):
            raise OciError("not an image configuration: history, Entrypoint, Cmd or Env is no list")
        for entry in node.get("history") or ():
            _object(entry, "entry of the history")
        return cls(node)

    @property
    def platform(self) -> Platform:
        return _platform(self.node)

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        entries = cast("dict[str, object]", self.node["rootfs"]).get("diff_ids", [])
        if not isinstance(entries, list):
            raise OciError("not an image configuration: diff_ids is no list")
        return tuple(Digest.parse(str(entry)) for entry in cast("list[object]", entries))

    @property
    def created(self) -> str | None:
        created = self.node.get("created")
        return created if isinstance(created, str) else None

    @property
    def history(self) -> list[dict[str, Any]]:
        return list(cast("list[dict[str, Any]]", self.node.get("history") or []))

    @property
    def execution(self) -> dict[str, Any]:
        """The `config` object: what a container of this image starts with."""
        return dict(cast("dict[str, Any]", self.node.get("config") or {}))

    @property
    def command(self) -> tuple[str, ...]:
        """Entrypoint and Cmd joined: what runs."""
        execution = self.execution
        parts = [
            *cast("list[object]", execution.get("Entrypoint") or []),
            *cast("list[object]", execution.get("Cmd") or []),
        ]
        return tuple(str(part) for part in parts)

    @property
    def labels(self) -> dict[str, str]:
        return texts(self.execution.get("Labels"), "Labels")

    @property
    def environment(self) -> dict[str, str]:
        entries = cast("list[object]", self.execution.get("Env") or [])
        return {name: value for name, _, value in (str(entry).partition("=") for entry in entries)}

    def render(self) -> bytes:
        return render_json(self.node)


def parse_object(body: bytes, what: str) -> dict[str, Any]:
    try:
        return _object(json.loads(body, parse_constant=_refuse), what)
    except (ValueError, RecursionError) as error:
        raise OciError(f"no valid {what}: {error}") from error


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")


def render_json(node: object) -> bytes:
    """Compact and in a fixed order, so that equal documents have equal digests."""
    text = json.dumps(node, ensure_ascii=False, separators=(",", ":"))
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise OciError(f"half a character in {text[max(0, error.start - 40) : error.start]!r}…") from error


def texts(value: object, what: str) -> dict[str, str]:
    if value is None:
        return {}
    return {key: str(entry) for key, entry in _object(value, what).items()}


def _object(value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise OciError(f"no valid {what}: {str(value)[:80]!r}")
    return cast("dict[str, Any]", value)


def _text(node: Mapping[str, Any], key: str) -> str:
    value = node.get(key)
    if not isinstance(value, str):
        raise OciError(f"`{key}` missing in {str(node)[:200]}")
    return value


def _platform(node: Mapping[str, Any]) -> Platform:
    return Platform(_text(node, "os"), _text(node, "architecture"))
