"""Images on disk: OCI layout directories, the same in a tar, and archives of `docker save`. Reads only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from appliance_builder.docker_archive import docker_images
from appliance_builder.hybrid import DOCKER_FILE, IMAGE_NAME, INDEX_FILE, LAYOUT_FILE, REF_NAME, blob_name
from appliance_builder.layout_files import Archive, Directory, Files, LayoutError, open_file, read_file
from appliance_builder.ports import Content
from appliance_image.digest import Digest
from appliance_image.oci import INDEX, INDEX_TYPES, MANIFEST, MANIFEST_TYPES, Descriptor, Index, parse_object
from appliance_image.reference import ImageReference, NameSyntaxError

__all__ = ["ImageStore", "LayoutError", "Location", "open_archive", "open_archive_file", "open_layout"]

_DOCUMENT_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Location:
    """`DIR[:TAG]` or `FILE[:TAG]`, as skopeo writes it."""

    path: Path
    name: str | None = None

    @classmethod
    def parse(cls, text: str) -> Location:
        if Path(text).exists() or ":" not in text:
            return cls(Path(text))
        parts = text.split(":")
        for count in range(len(parts) - 1, 0, -1):  # a path may hold a colon as well
            path = Path(":".join(parts[:count]))
            if path.exists():
                return cls(path, ":".join(parts[count:]))
        return cls(Path(parts[0]), ":".join(parts[1:]))


@dataclass(frozen=True, slots=True)
class _Contents:
    """What a place says it holds, and what does not lie under its digest there."""

    entries: tuple[Descriptor, ...]
    documents: Mapping[Digest, bytes] = field(default_factory=dict[Digest, bytes], repr=False)
    places: Mapping[Digest, str] = field(default_factory=dict[Digest, str])


class ImageStore:
    """Answers the questions that a registry's repository answers. `chosen` is the image meant when none is named."""

    def __init__(self, files: Files, contents: _Contents, chosen: str | None) -> None:
        self.label = files.label
        self._files = files
        self._contents = contents
        self._chosen = chosen
        self._platforms: bytes | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._files.close()

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name for entry in self._contents.entries for name in _names(entry)))

    def manifest(self, reference: str | None = None) -> tuple[Descriptor, bytes]:
        """By name, tag or digest; an index where there is one, as a registry would give it."""
        wanted = reference or self._chosen
        if wanted and wanted.startswith("sha256:"):
            return self._document(Digest.parse(wanted), None)
        found = [entry for entry in self._contents.entries if not wanted or _answers(entry, wanted)]
        if not found:
            raise self._unclear(f"no image `{wanted}` in {self.label}" if wanted else f"no image in {self.label}")
        if len({entry.digest for entry in found}) == 1:
            return self._document(found[0].digest, found[0].media_type)
        if _one_image(found):
            body = Index(tuple(replace(entry, annotations={}) for entry in found)).render()
            return Descriptor(INDEX, Digest.of(body), len(body)), body
        which = f"`{wanted}` names" if wanted else "there are"
        raise self._unclear(f"{which} {len(found)} images in {self.label}")

    def small_blob(self, descriptor: Descriptor) -> bytes:
        body = b"".join(self.blob(descriptor).read())
        if Digest.of(body) != descriptor.digest:
            raise LayoutError(f"blob {descriptor.digest} in {self.label} is damaged")
        return body

    def blob(self, descriptor: Descriptor) -> Content:
        """There and of the right size; its digest is for whoever reads all of it."""
        content = self._find(descriptor.digest)
        if content is None:
            raise LayoutError(f"blob {descriptor.digest} missing in {self.label}")
        if content.size != descriptor.size:
            raise LayoutError(
                f"blob {descriptor.digest} in {self.label} has {content.size} bytes, not {descriptor.size}"
            )
        return content

    def _find(self, digest: Digest) -> Content | None:
        return self._files.find(self._contents.places.get(digest, blob_name(digest)))

    def _document(self, digest: Digest, media_type: str | None) -> tuple[Descriptor, bytes]:
        body = self._contents.documents.get(digest)
        if body is None:
            body = read_file(
                self._files, self._contents.places.get(digest, blob_name(digest)), limit_bytes=_DOCUMENT_BYTES
            )
        if body is None:
            raise LayoutError(f"manifest {digest} missing in {self.label}")
        if Digest.of(body) != digest:
            raise LayoutError(f"manifest {digest} in {self.label} is damaged")
        return Descriptor(media_type or _media_type(body, self.label), digest, len(body)), body

    def _unclear(self, message: str) -> LayoutError:
        if not self.names:
            return LayoutError(message)
        return LayoutError(message, hint=f"name one after a colon: {', '.join(self.names)}")


def open_layout(location: Location) -> ImageStore:
    if location.path.is_file():
        raise LayoutError(f"{location.path} is a file", hint=f"try `oci-archive:{location.path}`")
    files = Directory(location.path)
    contents = _layout(files)
    if contents is None:
        raise LayoutError(
            f"{location.path} is not an OCI image layout", hint=f"it needs `{LAYOUT_FILE}` and `{INDEX_FILE}` in it"
        )
    return ImageStore(files, contents, location.name)


def open_archive(location: Location) -> ImageStore:
    if location.path.is_dir():
        raise LayoutError(f"{location.path} is a directory", hint=f"try `oci:{location.path}`")
    return open_archive_file(open_file(location.path), str(location.path), location.name)


def open_archive_file(file: BinaryIO, label: str, name: str | None = None) -> ImageStore:
    """Closes `file` in the end, and at once if it is no archive of images."""
    files = Archive(file, label)
    try:
        contents = _layout(files) or _docker_archive(files)
    except BaseException:
        files.close()
        raise
    return ImageStore(files, contents, name)


def _layout(files: Files) -> _Contents | None:
    version = read_file(files, LAYOUT_FILE, limit_bytes=_DOCUMENT_BYTES)
    index = read_file(files, INDEX_FILE, limit_bytes=_DOCUMENT_BYTES)
    if version is None or index is None:
        return None
    return _Contents(Index.parse(index).manifests)


def _docker_archive(files: Files) -> _Contents:
    images = docker_images(files)
    if images is None:
        raise LayoutError(
            f"{files.label} is no archive of images: neither `{INDEX_FILE}` nor `{DOCKER_FILE}` in it",
        )
    return _Contents(images.entries, images.manifests, images.places)


def _names(entry: Descriptor) -> list[str]:
    names = [entry.annotations.get(key) for key in (REF_NAME, IMAGE_NAME)]
    return [name for name in dict.fromkeys(names) if name]


def _answers(entry: Descriptor, wanted: str) -> bool:
    """A whole name or only its tag: tools write either into the one annotation."""
    names = _names(entry)
    if wanted in names or any(name.rpartition(":")[2] == wanted for name in names):
        return True
    with suppress(NameSyntaxError):
        return ImageReference.parse(wanted).canonical in names
    return False


def _one_image(entries: Sequence[Descriptor]) -> bool:
    """Whether these are one image's platforms, listed without an index of their own."""
    platforms = {entry.platform for entry in entries}
    names = {tuple(_names(entry)) for entry in entries}
    return None not in platforms and len(platforms) == len(entries) and len(names) == 1


def _media_type(body: bytes, label: str) -> str:
    node = parse_object(body, "image manifest")
    stated = node.get("mediaType")
    if stated in (*MANIFEST_TYPES, *INDEX_TYPES):
        return str(stated)
    if "layers" in node:
        return MANIFEST
    if "manifests" in node:
        return INDEX
    raise LayoutError(f"neither a manifest nor an index in {label}: {Digest.of(body)}")
