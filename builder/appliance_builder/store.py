"""A model store on disk, as `ollama pull` leaves it. Read only: nothing in it is ever changed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from appliance_builder.model import ModelError
from appliance_builder.ports import CHUNK_BYTES, Content
from appliance_image.digest import Digest
from appliance_image.oci import Descriptor
from appliance_image.reference import ModelName, NameSyntaxError

SYSTEM_STORE = Path("/usr/share/ollama/.ollama/models")


class FileContent:
    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size

    def read(self, offset: int = 0) -> Iterator[bytes]:
        left = self.size - offset
        try:
            with self.path.open("rb", buffering=0) as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
                file.seek(offset)
                while chunk := file.read(CHUNK_BYTES):
                    left -= len(chunk)
                    yield chunk
        except OSError as error:
            raise _unreadable(self.path, error) from error
        if left:
            raise ModelError(f"{self.path} changed while it was read", hint="run the command again when it is at rest")


class Store:
    """One model of a store."""

    def __init__(self, directory: Path, model: ModelName) -> None:
        self.label = str(directory)
        self._directory = directory
        self._model = model

    def manifest(self) -> bytes:
        path = self._directory / "manifests" / self._model.path
        try:
            return path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise ModelError(
                f"model `{self._model}` is not in {self._directory}",
                hint=f"run `ollama pull {self._model}`, or leave `--from-store` out to download it; "
                f"there: {', '.join(models(self._directory)) or 'nothing'}",
            ) from None
        except OSError as error:
            raise _unreadable(path, error) from error

    def small(self, descriptor: Descriptor) -> bytes:
        body = b"".join(self.content(descriptor).read())
        if Digest.of(body) != descriptor.digest:
            raise ModelError(f"blob {descriptor.digest} in {self._directory} is damaged", hint=self._mend)
        return body

    def content(self, descriptor: Descriptor) -> Content:
        path = self._directory / "blobs" / descriptor.digest.file_name
        try:
            size = path.stat().st_size
            os.close(os.open(path, os.O_RDONLY))
        except FileNotFoundError:
            raise ModelError(
                f"model `{self._model}` is incomplete in {self._directory}: {path.name} missing", hint=self._mend
            ) from None
        except OSError as error:
            raise _unreadable(path, error) from error
        if size != descriptor.size:
            raise ModelError(f"{path} has {size} bytes, not {descriptor.size}", hint=self._mend)
        return FileContent(path, size)

    def head(self, descriptor: Descriptor) -> Iterable[bytes]:
        return self.content(descriptor).read()

    def settle(self, digest: Digest, *, good: bool) -> None:
        """The store is its owner's; a damaged blob stays for them to see."""

    @property
    def _mend(self) -> str:
        return f"mend it with `ollama pull {self._model}`"


def candidates(environ: Mapping[str, str], home: Path) -> list[Path]:
    """Where a store may be, most explicit first."""
    named = [Path(environ["OLLAMA_MODELS"])] if environ.get("OLLAMA_MODELS") else []
    return [*named, home / ".ollama/models", SYSTEM_STORE]


def find(model: ModelName, *, environ: Mapping[str, str], home: Path) -> Store:
    """The first store that holds the model."""
    tried = candidates(environ, home)
    for directory in tried:
        try:
            if (directory / "manifests" / model.path).is_file():
                return Store(directory, model)
        except PermissionError:
            continue
    raise ModelError(
        f"model `{model}` is in no store: looked in {', '.join(map(str, tried))}",
        hint=f"run `ollama pull {model}`, name the directory with `--from-store DIR`, or leave it out to download",
    )


def models(directory: Path) -> list[str]:
    """The names in a store, sorted. Files that are no manifests of models are passed over, as Ollama does."""
    names: list[str] = []
    for path in sorted((directory / "manifests").glob("*/*/*/*")):
        host, namespace, model, tag = path.relative_to(directory / "manifests").parts
        with suppress(NameSyntaxError):
            if path.is_file():
                names.append(ModelName.parse(f"{host}/{namespace}/{model}:{tag}").short)
    return names


def _unreadable(path: Path, error: OSError) -> ModelError:
    reason = (error.strerror or str(error)).lower()
    return ModelError(f"cannot read {path}: {reason}", hint=f"run as root or as the owner: `ls -l {path.parent}`")
