"""Small models, bases and contents for unit tests: values in memory, with digests that are right unless a test damages them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping, Sequence

from appliance_builder.assemble import Base, Settings
from appliance_builder.model import LICENSE, MODEL, PARAMS, TEMPLATE, Model
from appliance_builder.ports import Content
from appliance_image import contract
from appliance_image.digest import Digest
from appliance_image.labels import THINK_KEPT, Labels
from appliance_image.oci import CONFIG, LAYER_GZIP, Descriptor, ImageConfig, Manifest, Platform
from appliance_image.reference import ModelName

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
WEIGHTS = (b"first weights " * 5000, b"second weights " * 3000)
CONFIG_BLOB = b'{"model_family":"qwen2","model_type":"32.8B","file_type":"Q4_K_M","context_length":131072}'
TEMPLATE_TEXT = b"{{ .Prompt }}"
LICENSE_TEXT = b"MIT License"
PARAMS_TEXT = b'{"stop":["<|end|>"]}\n'


class Bytes:
    """Content in memory; `delivered` counts what was read out of it."""

    def __init__(self, body: bytes, *, chunk: int = 4096) -> None:
        self.body, self.size, self.delivered = body, len(body), 0
        self._chunk = chunk

    def read(self, offset: int = 0) -> Iterator[bytes]:
        for start in range(offset, len(self.body), self._chunk):
            piece = self.body[start : start + self._chunk]
            self.delivered += len(piece)
            yield piece


def model(
    weights: Sequence[bytes] = WEIGHTS,
    *,
    template: bytes | None = TEMPLATE_TEXT,
    config: bytes = CONFIG_BLOB,
    name: str = "deepseek-r1:32b",
) -> Model:
    texts = {TEMPLATE: template, LICENSE: LICENSE_TEXT, PARAMS: PARAMS_TEXT}
    layers = [(MODEL, body) for body in weights] + [(kind, body) for kind, body in texts.items() if body is not None]
    node = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "config": _entry("application/vnd.docker.container.image.v1+json", config),
        "layers": [_entry(kind, body) for kind, body in layers],
    }
    small = {Digest.of(body): body for body in (config, *texts.values()) if body is not None}
    manifest = json.dumps(node, separators=(",", ":")).encode()
    return Model(ModelName.parse(name), f"{name}@{Digest.of(manifest)}", manifest, small)


def weights_contents(weights: Sequence[bytes] = WEIGHTS) -> dict[Digest, Bytes]:
    return {Digest.of(body): Bytes(body) for body in weights}


def base_layers(platform: Platform = AMD64, *, count: int = 2) -> list[bytes]:
    """The gzip layers of a base, as they lie in a registry."""
    return [gzip.compress(f"base layer {index} of {platform}".encode(), mtime=0) for index in range(count)]


def base(
    platform: Platform = AMD64,
    *,
    version: str = "0.32.15",
    config: Mapping[str, object] | None = None,
    history: Sequence[Mapping[str, object]] | None = None,
    diff_ids: int = 2,
) -> Base:
    bodies = base_layers(platform)
    layers = tuple(Descriptor(LAYER_GZIP, Digest.of(body), len(body)) for body in bodies)
    node = {
        "architecture": platform.architecture,
        "os": platform.os,
        "created": "2026-01-02T03:04:05Z",
        "config": {
            "Entrypoint": ["/bin/ollama"],
            "Cmd": ["serve"],
            "Env": ["PATH=/usr/bin", "OLLAMA_HOST=0.0.0.0:11434", "OLLAMA_KEEP_ALIVE=5m"],
            "Labels": {"org.opencontainers.image.version": "24.04", "maintainer": "somebody"},
            **(config or {}),
        },
        "rootfs": {
            "type": "layers",
            "diff_ids": [str(Digest.of(gzip.decompress(body))) for body in bodies[:diff_ids]],
        },
        "history": [
            {"created_by": "COPY one"},
            {"created_by": "ENV x", "empty_layer": True},
            {"created_by": "COPY two"},
        ]
        if history is None
        else list(history),
    }
    image_config = ImageConfig.parse(json.dumps(node).encode())
    body = image_config.render()
    manifest = Manifest(Descriptor(CONFIG, Digest.of(body), len(body)), layers)
    return Base(f"ollama/ollama:{version}@sha256:{'b' * 64}", manifest, image_config, version)


def base_contents(platform: Platform = AMD64) -> dict[Digest, Content]:
    return {Digest.of(body): Bytes(body) for body in base_layers(platform)}


def labels(made: Model, base_reference: str = "ollama/ollama:0.32.15") -> Labels:
    return Labels(
        layout=contract.LAYOUT,
        model=made.name.short,
        source=made.source,
        think=THINK_KEPT,
        weights_bytes=made.weights_bytes,
        parameters="32.8B",
        quantization="Q4_K_M",
        family="qwen2",
        context_length=8192,
        gpu_memory_bytes=None,
        base=base_reference,
        ollama_version="0.32.15",
        builder="0.1.0",
        environment=("OLLAMA_CONTEXT_LENGTH",),
    )


def settings(made: Model) -> Settings:
    return Settings({"OLLAMA_CONTEXT_LENGTH": "8192"}, labels(made).render(), {})


def _entry(media_type: str, body: bytes) -> dict[str, object]:
    return {"mediaType": media_type, "digest": str(Digest.of(body)), "size": len(body)}
