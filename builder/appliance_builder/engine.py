"""What the user's Docker Engine is and holds, and the few things asked of it: load, tag, remove, export."""

from __future__ import annotations

import json
import os
import socket
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, cast
from urllib.parse import quote

from appliance_builder.engine_client import EngineClient, EngineError
from appliance_builder.engine_disk import Disk, ImageRoots, containerd_roots, fullest_disk, read_configuration
from appliance_builder.layout import ImageStore, open_archive_file
from appliance_builder.outfile import check_space, disk_errors
from appliance_builder.ports import CHUNK_BYTES
from appliance_image.digest import Digest
from appliance_image.oci import Platform, texts
from appliance_image.reference import ImageReference

__all__ = ["Engine", "EngineError", "EngineFacts", "EngineImage", "Said", "Store", "Unpacking", "layer_chain"]

_CONTAINERD: Final = "io.containerd.snapshotter.v1"
_UNPACK_S: Final = 3600  # an engine that did not unpack an image before does it for the first container


class Store(Enum):
    CLASSIC = "classic"  # a graph driver: images are known by their configuration, layers by the chain below them
    CONTAINERD = "containerd"  # images are known by their manifest, and every blob is kept beside what is unpacked
    OTHER = "other"  # another program that speaks the Engine's protocol, such as podman


@dataclass(frozen=True, slots=True)
class EngineFacts:
    version: str
    api: str
    store: Store
    platform: Platform
    data_root: Path
    image_roots: ImageRoots
    is_local: bool  # whether `data_root` is a directory of this machine


@dataclass(frozen=True, slots=True)
class EngineImage:
    """`id` is the digest of the manifest in a containerd store and of the configuration in a classic one."""

    id: Digest
    diff_ids: tuple[Digest, ...]
    labels: Mapping[str, str] = field(hash=False)
    tags: tuple[str, ...]
    size: int


@dataclass(frozen=True, slots=True)
class Unpacking:
    """Where the engine stands with one layer; containerd's store does not tell."""

    layer: str
    done: int


@dataclass(frozen=True, slots=True)
class Said:
    text: str


class Engine:
    def __init__(self, client: EngineClient, facts: EngineFacts) -> None:
        self.facts = facts
        self._client = client

    @classmethod
    def connect(cls, environment: Mapping[str, str] = os.environ) -> Engine:
        client = EngineClient.connect(environment)
        try:
            return cls(client, _facts(client))
        except BaseException:
            client.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._client.close()

    @property
    def client(self) -> EngineClient:
        return self._client

    def disk(self) -> Disk | None:
        """The one that images go to, where it can be known from here."""
        return fullest_disk(self.facts.image_roots) if self.facts.is_local else None

    def answers(self, *, timeout_s: float) -> bool:
        return self._client.answers(timeout_s=timeout_s)

    def image(self, reference: str) -> EngineImage | None:
        """By name, tag or id."""
        try:
            node = self._client.json(f"images/{quote(reference)}/json", doing=f"looking for image `{reference}`")
        except EngineError as error:
            if error.status == 404:
                return None
            raise
        return _image(node)

    def chains(self) -> frozenset[Digest]:
        """Of every layer of every image, the digest of the chain of layers up to it; not of images that it cannot tell of.

        Quick in a classic engine alone: others read each image's files for it.
        """
        found: set[Digest] = set()
        for entry in cast("list[dict[str, Any]]", self._client.json("images/json", doing="listing images", all="1")):
            try:
                image = self.image(str(entry["Id"]))
            except EngineError as error:
                if error.status is None:  # it will be no quicker with the others
                    break
                continue
            if image:
                found.update(layer_chain(image.diff_ids[:count]) for count in range(1, len(image.diff_ids) + 1))
        return frozenset(found)

    def tag(self, image: Digest, name: ImageReference) -> None:
        tag = name.tag or "latest"
        doing = f"tagging {name.name}:{tag}"
        self._client.call("POST", f"images/{image}/tag", doing=doing, repo=name.name, tag=tag)

    def remove(self, image: Digest) -> None:
        self._client.call("DELETE", f"images/{image}", doing=f"removing image {image.short}")

    def check_startable(self, image: Digest) -> None:
        """Make a container of an image, and throw it away: the one proof that a containerd store gives by its status.

        It lists an image that it could not unpack like any other. A graphdriver unpacks before it lists anything.
        """
        if self.facts.store is Store.CLASSIC:
            return
        nothing = {"NetworkMode": "none"}
        request = {"Image": str(image), "Entrypoint": ["true"], "NetworkDisabled": True, "HostConfig": nothing}
        made = self._client.post("containers/create", request, doing="trying the image", within_s=_UNPACK_S)
        container = str(cast("dict[str, Any]", made)["Id"])
        self._client.call("DELETE", f"containers/{container}", doing="removing the trial container", v="1", force="1")

    def load(self, tar: Iterable[bytes]) -> Iterator[Unpacking | Said]:
        """`tar` is read as the engine takes it; raises what `tar` raises, and what the engine says is wrong."""
        doing = "loading the image"
        for line in self._client.upload("images/load", tar, doing=doing, quiet="0"):
            if event := _event(line, doing):
                yield event

    def export(self, reference: str, *, spool: Path) -> ImageStore:
        """A copy of an image, in a file of `spool` without a name, gone when the store is closed."""
        image = self.image(reference)
        if image is None:
            raise EngineError(
                f"no image `{reference}` in the Docker Engine",
                hint=f"`docker pull {reference}`, or check `docker images`",
            )
        with disk_errors(spool):
            spool.mkdir(parents=True, exist_ok=True)
        check_space(spool, image.size)
        with disk_errors(spool):
            file = tempfile.TemporaryFile(dir=spool)  # noqa: SIM115 - the store closes it
        label = f"docker-daemon:{reference}"
        try:
            for chunk in self._client.download(f"images/{quote(reference)}/get", doing=label, chunk_bytes=CHUNK_BYTES):
                with disk_errors(spool, written=file.tell()):
                    file.write(chunk)
            file.seek(0)
        except BaseException:
            file.close()
            raise
        return open_archive_file(file, label)


def layer_chain(diff_ids: Sequence[Digest]) -> Digest:
    """What a classic engine keys a layer by: its content and everything below it."""
    chain = diff_ids[0]
    for diff_id in diff_ids[1:]:
        chain = Digest.of(f"{chain} {diff_id}".encode())
    return chain


def _facts(client: EngineClient) -> EngineFacts:
    version = cast("dict[str, Any]", client.json("version", doing="asking the engine's version"))
    status = cast("dict[str, Any]", client.json("info", doing="asking what the engine is"))
    data_root = Path(str(status.get("DockerRootDir") or "/var/lib/docker"))
    store = _store(version, status)
    # Desktop programs put the engine into a machine of its own behind a socket of ours.
    same_machine = client.endpoint.socket_path is not None and status.get("Name") == socket.gethostname()
    return EngineFacts(
        version=str(version.get("Version")),
        api=str(version.get("ApiVersion")),
        store=store,
        platform=Platform(str(version.get("Os")), str(version.get("Arch"))),
        data_root=data_root,
        image_roots=_image_roots(store, data_root, status),
        is_local=same_machine and os.path.isdir(data_root),  # noqa: PTH112 - False where it is not for this user to see
    )


def _image_roots(store: Store, data_root: Path, status: Mapping[str, Any]) -> ImageRoots:
    if store is not Store.CONTAINERD:
        return ImageRoots((data_root,), sure=True)
    containerd = cast("dict[str, object]", status.get("Containerd") or {})
    address = containerd.get("Address")
    return containerd_roots(data_root, str(address) if address else None, read_configuration())


def _store(version: Mapping[str, Any], status: Mapping[str, Any]) -> Store:
    drivers = cast("list[list[str]]", status.get("DriverStatus") or [])
    if ["driver-type", _CONTAINERD] in drivers:
        return Store.CONTAINERD
    components = cast("list[dict[str, object]]", version.get("Components") or [])
    return Store.CLASSIC if "Engine" in [part.get("Name") for part in components] else Store.OTHER


def _image(node: Mapping[str, Any]) -> EngineImage:
    configuration = cast("dict[str, Any]", node.get("Config") or {})
    root = cast("dict[str, Any]", node.get("RootFS") or {})
    layers = cast("list[str]", root.get("Layers") or [])
    return EngineImage(
        id=Digest.parse(str(node["Id"])),
        diff_ids=tuple(Digest.parse(layer) for layer in layers),
        labels=texts(configuration.get("Labels"), "Labels"),
        tags=tuple(cast("list[str]", node.get("RepoTags") or [])),
        size=int(node.get("Size") or 0),
    )


def _event(line: bytes, doing: str) -> Unpacking | Said | None:
    """One line of the stream; an answer of 200 may still carry an error."""
    try:
        node = cast("dict[str, Any]", json.loads(line))
    except ValueError:
        return Said(line.decode(errors="replace"))
    detail = cast("dict[str, object]", node.get("errorDetail") or {})
    if text := detail.get("message") or node.get("error"):
        raise EngineError(f"{doing}: the Docker Engine refused it: {text}")
    progress = cast("dict[str, Any]", node.get("progressDetail") or {})
    if isinstance(done := progress.get("current"), int):
        return Unpacking(str(node.get("id", "")), done)
    said = str(node.get("stream") or "").strip()
    return Said(said) if said else None
