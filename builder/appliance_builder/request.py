"""What a user asked for, parsed: frozen words of the command line, before any default or configuration."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from appliance_image.oci import Platform
from appliance_image.reference import ImageReference


@dataclass(frozen=True, slots=True)
class Options:
    """How to reach things. None and empty: the environment or the configuration file decides."""

    insecure: tuple[str, ...] = ()
    ca: tuple[str, ...] = ()
    models_registry: str | None = None
    base_registry: str | None = None
    cache: Path | None = None
    connections: int | None = None
    chunk_size: int | None = None  # MiB, of uploads
    as_json: bool = False


@dataclass(frozen=True, slots=True)
class Targets:
    name: ImageReference | None
    push: bool = False
    load: bool = False
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BuildRequest:
    model: str
    base: str | None = None
    ollama_version: str | None = None
    from_store: str | None = None  # a directory, or `auto`
    from_image: str | None = None
    from_gguf: Path | None = None
    recipe: Path | None = None
    think: bool | None = None
    pinned: bool = True
    platforms: tuple[Platform, ...] = ()
