"""Sink `oci:DIR`: an OCI image layout, which may hold other images already. Blobs first, `index.json` last and at once."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, cast

from appliance_builder import hybrid
from appliance_builder.built import Built, LayerOutline
from appliance_builder.outfile import OutputError, UnfinishedFile, check_space, disk_errors, sweep, write_whole
from appliance_builder.ports import Payload, Transfer
from appliance_image.digest import Digest
from appliance_image.oci import Descriptor, Index, OciError, parse_object, render_json, texts
from appliance_image.reference import ImageReference

_UNFINISHED: Final = ".appliance-unfinished-"
_EMPTY_INDEX: Final = Index(()).render()


class LayoutSink:
    """`ref_name` is what `oci:DIR:TAG` calls the image; else it is the whole name, which no other image has."""

    digests_first = False

    def __init__(self, directory: Path, name: ImageReference, *, ref_name: str | None = None) -> None:
        self.label = f"oci:{directory}"
        self._directory = directory
        self._name = name
        self._ref_name = ref_name

    def preflight(self, total_bytes: int) -> None:
        with disk_errors(self._directory):
            occupied = self._directory.exists() and any(self._directory.iterdir())
            if occupied and not (self._directory / hybrid.LAYOUT_FILE).exists():
                raise OutputError(
                    f"{self._directory} is not empty, and no OCI image layout", hint="give a new directory"
                )
        check_space(self._directory, total_bytes)

    def finished(self, built: Built) -> str | None:
        entries = self._index().get("manifests", [])
        wanted = hybrid.named(built.descriptor, self._name, ref_name=self._ref_name).json
        if wanted not in entries:
            return None
        blobs = [built.descriptor, *(image.descriptor for image in built.images)]
        for image in built.images:
            blobs += [image.manifest.config, *image.manifest.layers]
        return str(self._directory) if all(self._holds(blob) for blob in blobs) else None

    def has(self, layer: LayerOutline) -> bool:
        return self._holds(layer.descriptor)

    def adopt(self, layer: LayerOutline) -> bool:
        return self.has(layer)

    def write(self, payload: Payload, media_type: str, transfer: Transfer) -> None:
        del media_type
        self._prepare()
        file = UnfinishedFile(self._directory, _UNFINISHED)
        try:
            for chunk in payload.read():
                file.write(chunk)
                transfer.advance(len(chunk))
            digest = payload.earned_digest()
            transfer.note("flushing to disk")
            file.finish(self._blob(digest))
        except BaseException:
            file.discard()
            raise
        transfer.note("")

    def commit(self, built: Built) -> str:
        self._prepare()
        documents = [image.config for image in built.images] + [image.body for image in built.images]
        if built.index is not None:
            documents.append(built.index)
        for body in documents:
            self._write_whole(self._blob(Digest.of(body)), body)
        entry = hybrid.named(built.descriptor, self._name, ref_name=self._ref_name)
        with self._alone():
            self._write_whole(self._directory / hybrid.INDEX_FILE, render_json(with_entry(self._index(), entry)))
        return str(self._directory)

    def abort(self) -> None:
        """Whole blobs stay for the next run; what was not whole `write` has thrown away."""

    def _prepare(self) -> None:
        blobs = self._blob(Digest.of(b"")).parent
        with disk_errors(self._directory):
            blobs.mkdir(parents=True, exist_ok=True)
        # Written first, so that a run that was cut short leaves a layout, if an empty one, that the next may go on with.
        with self._alone():
            if not (self._directory / hybrid.LAYOUT_FILE).exists():
                self._write_whole(self._directory / hybrid.INDEX_FILE, render_json(self._index()))
                self._write_whole(self._directory / hybrid.LAYOUT_FILE, hybrid.LAYOUT_BODY)
        sweep(self._directory, _UNFINISHED)

    def _holds(self, blob: Descriptor) -> bool:
        """A blob that has its name has earned its digest; the size tells a disk that lost the end of it."""
        path = self._blob(blob.digest)
        return path.is_file() and path.stat().st_size == blob.size

    def _blob(self, digest: Digest) -> Path:
        return self._directory / hybrid.blob_name(digest)

    def _write_whole(self, path: Path, body: bytes) -> None:
        write_whole(path, body, directory=self._directory, prefix=_UNFINISHED)

    def _index(self) -> dict[str, Any]:
        path = self._directory / hybrid.INDEX_FILE
        with disk_errors(self._directory):
            body = path.read_bytes() if path.exists() else _EMPTY_INDEX
        try:
            return parse_object(body, "image index")
        except OciError as error:
            raise OutputError(f"{path} is damaged: {error}", hint="give a new directory") from error

    @contextmanager
    def _alone(self) -> Generator[None]:
        """One writer of `index.json` at a time, among processes."""
        with disk_errors(self._directory):
            directory = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with disk_errors(self._directory):
                fcntl.flock(directory, fcntl.LOCK_EX)
            yield
        finally:
            os.close(directory)


def with_entry(index: dict[str, Any], entry: Descriptor) -> dict[str, Any]:
    """`entry` in the place of the one of the same name; everything else as it was, also what is not understood here."""
    name = entry.annotations[hybrid.REF_NAME]
    others = [
        other
        for other in cast("list[dict[str, Any]]", index.get("manifests") or [])
        if texts(other.get("annotations"), "annotations").get(hybrid.REF_NAME) != name
    ]
    return {**index, "manifests": [*others, entry.json]}
