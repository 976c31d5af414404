"""What lies in an Ollama model store, and what a server does to it when it starts. Knows no HTTP."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from standin_gguf import Gguf, GgufError, read_gguf

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_HOST = "registry.ollama.ai"
DEFAULT_NAMESPACE = "library"
DEFAULT_TAG = "latest"
PRUNE_GRACE_S = 3600  # from 0.21 on a blob younger than this survives

_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_BLOB = re.compile(r"sha256-[0-9a-fA-F]{64}")


class StoreError(Exception):
    """The start of the server fails with this text."""


class ManifestError(Exception):
    """A manifest that is not what it should be; the text is the one Go gives."""


def go_error(what: str, error: OSError) -> str:
    """An OSError in Go's words: `remove /models/manifests/x: permission denied`."""
    return f"{what} {error.filename}: {os.strerror(error.errno or errno.EIO).lower()}"


def go_json_error(text: str, error: json.JSONDecodeError) -> str:
    rest = text[error.pos :].strip()
    return f"invalid character {rest[0]!r} looking for beginning of value" if rest else "unexpected EOF"


@dataclass(frozen=True)
class Name:
    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> Name | None:
        head, _, last = text.rpartition("/")
        model, _, tag = last.partition(":")
        host, _, namespace = head.rpartition("/")
        name = cls(host or DEFAULT_HOST, namespace or DEFAULT_NAMESPACE, model, tag or DEFAULT_TAG)
        parts = (name.host, name.namespace, name.model, name.tag)
        return name if all(_PART.fullmatch(part) for part in parts) else None

    @property
    def short(self) -> str:
        """The name as lists show it: defaults left out, except the tag."""
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"
        prefix = "" if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/"
        return f"{prefix}{self.model}:{self.tag}"

    @property
    def full(self) -> str:
        return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"


@dataclass(frozen=True)
class Layer:
    kind: str  # "model", "template", "params", …
    digest: str
    size: int
    origin: str  # the `from` of the manifest
    path: Path


@dataclass(frozen=True)
class Model:
    name: Name
    digest: str
    modified_ns: int
    config: dict[str, object]
    config_bytes: int
    layers: tuple[Layer, ...]
    _gguf: list[Gguf] = field(default_factory=list, repr=False, compare=False)

    @property
    def size(self) -> int:
        return self.config_bytes + sum(layer.size for layer in self.layers)

    @property
    def weights(self) -> Layer | None:
        return next((layer for layer in self.layers if layer.kind == "model"), None)

    def texts(self, kind: str) -> list[str]:
        return [layer.path.read_text("utf-8") for layer in self.layers if layer.kind == kind]

    def text(self, *kinds: str) -> str:
        return "".join(text for kind in kinds for text in self.texts(kind)[:1])

    @property
    def parameters(self) -> dict[str, object]:
        text = self.text("params")
        return as_object(json.loads(text)) if text else {}

    def gguf(self) -> Gguf:
        """Raises GgufError or OSError. Read once: blobs do not change under their name."""
        if not self._gguf:
            if self.weights is None:
                raise GgufError("no model layer")
            self._gguf.append(read_gguf(self.weights.path))
        return self._gguf[0]


def as_object(value: object) -> dict[str, object]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else []


class Store:
    def __init__(self, root: Path, log: Callable[..., None]) -> None:
        self.root = root
        self._log = log
        self._cache: dict[tuple[Path, int], Model] = {}

    @property
    def _manifests(self) -> Path:
        return self.root / "manifests"

    @property
    def _blobs(self) -> Path:
        return self.root / "blobs"

    def models(self) -> list[Model]:
        """All models, youngest first; bad manifests are logged and left out."""
        found: list[Model] = []
        for name, path in self._names():
            try:
                found.append(self._read(name, path))
            except ManifestError as error:
                self._log("WARN", "manifest.go:169", "bad manifest", name=name.full, error=str(error))
        return sorted(found, key=lambda model: -(model.modified_ns // 1_000_000_000))

    def find(self, text: str) -> Model | None:
        """Names match without regard to case. Raises ManifestError."""
        wanted = Name.parse(text)
        if wanted is None:
            return None
        matches = (pair for pair in self._names() if pair[0].full.lower() == wanted.full.lower())
        pair = next(matches, None)
        return self._read(*pair) if pair else None

    def prepare(self, *, prune: bool, grace: bool) -> None:
        """What `serve` does before it listens. Raises StoreError where the real server exits."""
        try:
            for directory in (self._blobs, self._manifests):
                directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(go_error("mkdir", error)) from error
        for path in self._blobs.glob("sha256:*"):
            path.rename(path.with_name(path.name.replace(":", "-", 1)))
        if not prune:
            return
        try:
            used = {f"sha256-{part}" for name, path in self._names() for part in self._digests(name, path)}
        except ManifestError as error:
            text = "corrupt manifests detected, skipping prune operation.  Re-pull or delete to clear"
            self._log("WARN", "routes.go:1566", text, error=str(error))
            return
        self._prune_blobs(used, grace=grace)
        try:
            _remove_empty_directories(self._manifests)
        except OSError as error:
            raise StoreError(go_error("remove", error)) from error

    def _prune_blobs(self, used: set[str], *, grace: bool) -> None:
        blobs = sorted(self._blobs.iterdir())
        valid = [path for path in blobs if _BLOB.fullmatch(path.name)]
        self._log("INFO", "images.go:493", f"total blobs: {len(valid)}")
        for path in blobs:
            too_young = grace and time.time() - path.stat().st_mtime < PRUNE_GRACE_S
            if path.name in used or too_young:
                continue
            try:
                path.unlink()
            except OSError as error:
                text = go_error("remove", error)
                self._log("ERROR", "images.go:483", "couldn't remove blob", blob=path.name, error=text)
        unused = sum(path.name not in used for path in valid)
        self._log("INFO", "images.go:500", f"total unused blobs removed: {unused}")

    def _names(self) -> Iterator[tuple[Name, Path]]:
        for path in sorted(self._manifests.glob("*/*/*/*")):
            if path.is_file():
                yield Name(*path.relative_to(self._manifests).parts), path

    def _digests(self, name: Name, path: Path) -> list[str]:
        document = as_object(_parse_manifest(path.read_text("utf-8", "replace")))
        parts = [document.get("config"), *as_list(document.get("layers"))]
        return [str(as_object(part).get("digest", "")).partition(":")[2] for part in parts]

    def _read(self, name: Name, path: Path) -> Model:
        stat = path.stat()
        key = (path, stat.st_mtime_ns)
        if key not in self._cache:
            self._cache[key] = self._parse(name, path.read_bytes(), stat.st_mtime_ns)
        return self._cache[key]

    def _parse(self, name: Name, data: bytes, modified_ns: int) -> Model:
        document = _parse_manifest(data.decode("utf-8", "replace"))
        config_entry = as_object(document.get("config"))
        layers = tuple(self._layer(as_object(entry)) for entry in as_list(document.get("layers")))
        config = self._layer(config_entry)
        try:
            content = as_object(json.loads(config.path.read_text("utf-8"))) if config.digest else {}
        except FileNotFoundError as error:
            raise ManifestError(go_error("open", error)) from error
        return Model(name, hashlib.sha256(data).hexdigest(), modified_ns, content, config.size, layers)

    def _layer(self, entry: dict[str, object]) -> Layer:
        digest, size = str(entry.get("digest", "")), entry.get("size", 0)
        kind = str(entry.get("mediaType", "")).rpartition(".")[2]
        path = self._blobs / digest.replace(":", "-", 1)
        return Layer(kind, digest, size if isinstance(size, int) else 0, str(entry.get("from", "")), path)


def _parse_manifest(text: str) -> dict[str, object]:
    try:
        return as_object(json.loads(text))
    except json.JSONDecodeError as error:
        raise ManifestError(go_json_error(text, error)) from error


def _remove_empty_directories(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        return
    for entry in sorted(path.iterdir()):
        _remove_empty_directories(entry)
    if not any(path.iterdir()):
        path.rmdir()
