"""Sink `--push`: layers as they come, then configuration and manifests, the tag last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path

from appliance_builder.built import Built, LayerOutline
from appliance_builder.ports import Payload, Transfer
from appliance_builder.quirks import Quirks
from appliance_builder.registry import Repository
from appliance_builder.sessions import UploadState
from appliance_builder.upload import upload
from appliance_image.digest import Digest
from appliance_image.reference import ImageReference

_MOUNT_TRIES = 3  # repositories asked for a layer before it is sent


class RegistrySink:
    digests_first = False

    def __init__(
        self,
        repository: Repository,
        reference: ImageReference,
        *,
        quirks: Quirks,
        mount_from: Callable[[Digest], Sequence[str]],
        sessions: Path,
    ) -> None:
        self.label = f"push {reference}"
        self.host = repository.host
        self.repository_name = repository.name
        self._repository = repository
        self._reference = reference
        self._quirks = quirks
        self._mount_from = mount_from
        self._sessions = sessions
        self._there: set[Digest] = set()

    def preflight(self, total_bytes: int) -> None:
        """Registries tell nothing about their disk; that the credentials may push is what can be known."""
        del total_bytes
        self._repository.ping()

    def finished(self, built: Built) -> str | None:
        present = self._repository.head_manifest(self._reference.manifest)
        return self._line(built) if present and present.digest == built.digest else None

    def has(self, layer: LayerOutline) -> bool:
        digest = layer.descriptor.digest
        if digest not in self._there and self._repository.blob_size(digest) != layer.descriptor.size:
            return False
        self._there.add(digest)
        return True

    def adopt(self, layer: LayerOutline) -> bool:
        digest = layer.descriptor.digest
        places = [place for place in self._mount_from(digest) if place != self._repository.name]
        if self._quirks.mount and any(self._repository.mount(digest, place) for place in places[:_MOUNT_TRIES]):
            self._there.add(digest)
            return True
        return False

    def write(self, payload: Payload, media_type: str, transfer: Transfer) -> None:
        del media_type
        with ExitStack() as stack:
            state = stack.enter_context(closing(self._state(payload.identity))) if payload.identity else None
            self._there.add(upload(self._repository, payload, transfer, quirks=self._quirks, state=state))

    def commit(self, built: Built) -> str:
        for image in built.images:
            self._repository.put_small_blob(image.config)
        if built.index is not None:
            for image in built.images:
                self._repository.put_manifest(str(image.descriptor.digest), image.body, image.descriptor.media_type)
        body = built.index if built.index is not None else built.images[0].body
        self._repository.put_manifest(self._reference.manifest, body, built.descriptor.media_type)
        return self._line(built)

    def abort(self) -> None:
        """Layers without a manifest have no name; they stay for the next run."""

    def _state(self, identity: str) -> UploadState:
        place = f"{self._repository.host}-{self._repository.name}".replace("/", "_").replace(":", "_")
        path = self._sessions / f"{place}-{Digest.of(identity.encode()).hex}.json"
        return UploadState(path, repository=self._repository, layer=identity)

    def _line(self, built: Built) -> str:
        return f"{self._reference.name}@{built.digest}"
