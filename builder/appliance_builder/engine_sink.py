"""Sink `--load`: the image for the engine's own platform, as one tar, into the user's Docker Engine.

It is loaded without a name, looked at, and only then tagged: whatever goes wrong before, the old image keeps the name.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from typing import Final

from appliance_builder import hybrid
from appliance_builder.built import Built, BuiltImage, LayerOutline
from appliance_builder.engine import Engine, EngineError, EngineImage, Store, Unpacking, layer_chain
from appliance_builder.engine_load import EngineLoad, Silence
from appliance_builder.ports import Payload, Reporter, Transfer
from appliance_builder.progress import render_size
from appliance_image.digest import Digest
from appliance_image.oci import ImageConfig
from appliance_image.reference import ImageReference

_COPIES: Final = 2  # a classic engine unpacks a copy of the tar, a containerd store keeps blobs beside what it unpacks
_LEAVE_S: Final = 2.0  # a frozen engine is left to itself when the user interrupts
_DISK_FULL: Final = os.strerror(errno.ENOSPC).lower()


class EngineSink:
    label = "load"
    digests_first = False

    def __init__(
        self, engine: Engine, name: ImageReference, reporter: Reporter, *, silence: Silence | None = None
    ) -> None:
        self.platform = engine.facts.platform
        self._engine = engine
        self._name = name
        self._reporter = reporter
        self._silence = silence or Silence()
        self._chains: frozenset[Digest] | None = None
        self._entries: dict[Digest, str] = {}
        self._not_asked_for: dict[Digest, LayerOutline] = {}  # outside a classic engine
        self._sent_bytes = 0
        self._load: EngineLoad | None = None

    def preflight(self, total_bytes: int) -> None:
        disk = self._engine.disk()
        if disk is None or disk.free_bytes >= total_bytes * _COPIES:
            return
        again = self._sent_again()
        needed = (total_bytes - sum(again)) * _COPIES + max(again, default=0)
        if disk.free_bytes >= needed:
            return
        sizes = f"{render_size(needed)} needed, {render_size(disk.free_bytes)} free"
        hint = (
            "an engine needs the size of an image twice while it loads it: make room (`docker system df`), "
            "or do without it: `--push`, or `--output oci-archive:FILE`"
        )
        if self._engine.facts.store is Store.OTHER:
            hint += "; Podman writes the whole tar to its TMPDIR, else /var/tmp, before that"
        if disk.sure:
            raise EngineError(f"not enough disk for the Docker Engine in {disk.place}: {sizes}", hint=hint)
        self._reporter.warning(
            f"not enough disk in {disk.place}, if the Docker Engine's images go there: {sizes}", hint=hint
        )

    def finished(self, built: Built) -> str | None:
        image = self._mine(built)
        present = self._engine.image(str(self._name))
        if present is None or present.id not in _ids(image) or present.diff_ids != image.diff_ids:
            return None
        try:
            self._engine.check_startable(present.id)
        except EngineError:  # loaded by somebody who did not look: it is loaded again
            return None
        return self._line(present, image)

    def has(self, layer: LayerOutline) -> bool:
        """A containerd store may have unpacked a layer and not have its blob, and does not tell: there, all is sent.

        So nobody asks it what it has, which may take minutes, unless its disk looks too small.
        """
        blob = layer.descriptor
        if self.platform not in layer.platforms or blob.digest in self._entries:
            return True
        if self._engine.facts.store is not Store.CLASSIC:
            self._not_asked_for[blob.digest] = layer
            return False
        if self._chains is None:
            self._chains = self._engine.chains()
        return bool(layer.diff_ids) and layer_chain(layer.diff_ids) in self._chains

    def adopt(self, layer: LayerOutline) -> bool:
        return self.has(layer)

    def write(self, payload: Payload, media_type: str, transfer: Transfer) -> None:
        del media_type
        name = _entry_name(payload.known_digest)
        self._sent_bytes += payload.size
        with self._explained():
            load = self._opened(transfer.note)
            load.put(hybrid.entry_header(name, payload.size), note=transfer.note)
            for chunk in payload.read():
                load.put(chunk, note=transfer.note)
                transfer.advance(len(chunk))
            load.put(hybrid.entry_padding(payload.size), note=transfer.note)
        self._entries[payload.earned_digest()] = name

    def commit(self, built: Built) -> str:
        image = self._mine(built)
        before = self._present(image)
        try:
            loaded = self._loaded(image)
            self._engine.tag(loaded.id, self._name)
        except BaseException as error:
            if before is None:
                is_interrupted = not isinstance(error, Exception)
                self._forget(image, within_s=_LEAVE_S if is_interrupted else self._silence.answer_within_s)
            raise
        return self._line(loaded, image)

    def abort(self) -> None:
        """The stream breaks off; an engine that has all of it already may keep an image without a name."""
        if self._load:
            self._load.abort()

    def _sent_again(self) -> list[int]:
        """Sizes of layers that are most likely there, so that they take no room in the end."""
        layers = [layer for layer in self._not_asked_for.values() if layer.diff_ids]
        try:
            there = self._engine.chains() if layers else frozenset[Digest]()
        except EngineError:
            return []
        return [layer.descriptor.size for layer in layers if layer_chain(layer.diff_ids) in there]

    def _opened(self, note: Callable[[str], None]) -> EngineLoad:
        if self._load is None:
            self._load = EngineLoad(self._engine, silence=self._silence)
            self._load.put(hybrid.opening(), note=note)
        return self._load

    def _loaded(self, image: BuiltImage) -> EngineImage:
        alone = Built((image,))
        size = self._sent_bytes
        with self._explained(whole=image), self._reporter.transfer(f"{self.label}: unpacking", size=size) as transfer:
            load = self._opened(transfer.note)
            load.put(hybrid.closing(alone, None, entries=self._entries), note=transfer.note)
            if self._engine.facts.store is Store.CONTAINERD:
                transfer.note("the engine unpacks, and does not tell how far it is")
            said = load.finish(note=transfer.note, unpacking=_Advance(transfer))
            loaded = self._present(image)
            if loaded is None:
                raise EngineError(f"the Docker Engine did not load the image; it said: {' '.join(said) or 'nothing'}")
            if loaded.diff_ids != image.diff_ids or loaded.labels != ImageConfig.parse(image.config).labels:
                raise EngineError(f"the Docker Engine made another image of it: {loaded.id}")
            self._engine.check_startable(loaded.id)
        return loaded

    def _mine(self, built: Built) -> BuiltImage:
        for image in built.images:
            if image.platform == self.platform:
                return image
        raise EngineError(
            f"the Docker Engine runs {self.platform}, and there is no image for that",
            hint=f"add `--platform {self.platform}`",
        )

    def _present(self, image: BuiltImage) -> EngineImage | None:
        found = (self._engine.image(str(identity)) for identity in _ids(image))
        return next((one for one in found if one), None)

    def _forget(self, image: BuiltImage, *, within_s: float) -> None:
        """A containerd store keeps the record of an image that it could not unpack."""
        if not self._engine.answers(timeout_s=within_s):
            return
        with suppress(EngineError):  # what is told is why the load failed
            left = self._present(image)
            if left and not left.tags:
                self._engine.remove(left.id)

    @contextmanager
    def _explained(self, *, whole: BuiltImage | None = None) -> Generator[None]:
        """The engine's words stay; where they are the kernel's for a full disk, the hint says which and how much."""
        try:
            yield
        except EngineError as error:
            if _DISK_FULL in error.message.lower():
                hint = (
                    f"make room in {self._engine.facts.image_roots} (`docker system df`): an engine needs the "
                    f"{render_size(self._sent_bytes)} of this image twice while it loads it"
                )
            elif whole and len(self._entries) < len({layer.digest for layer in whole.manifest.layers}):
                hint = "run the command again: an image that shared layers with it may have gone meanwhile"
            else:
                hint = error.hint
            raise EngineError(error.message, hint=hint) from error

    def _line(self, loaded: EngineImage, image: BuiltImage) -> str:
        """What `docker run` takes: a classic engine knows an image it did not pull by its id alone."""
        self._reporter.step(f"{self.label}: {self._name} is {loaded.id}")
        return f"{self._name.name}@{loaded.id}" if loaded.id == image.descriptor.digest else str(loaded.id)


class _Advance:
    """Turns where the engine stands with each layer into steps of one bar."""

    def __init__(self, transfer: Transfer) -> None:
        self._transfer = transfer
        self._done: dict[str, int] = {}

    def __call__(self, event: Unpacking) -> None:
        step = event.done - self._done.get(event.layer, 0)
        if step > 0:
            self._done[event.layer] = event.done
            self._transfer.advance(step)


def _ids(image: BuiltImage) -> tuple[Digest, Digest]:
    return image.descriptor.digest, image.manifest.config.digest


def _entry_name(digest: Digest | None) -> str:
    """Unknown ones get a name that nothing else ever had: containerd goes on with an unfinished blob of the same name."""
    return hybrid.blob_name(digest) if digest else f"layers/{secrets.token_hex(16)}"
