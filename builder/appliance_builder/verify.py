"""Is an image what the contract promises? Reads every byte of the appliance's own layers and says what is wrong."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Mapping
from functools import partial

from appliance_builder.finished import FinishedImage, blobs_of
from appliance_builder.images import ImageSource
from appliance_builder.layer_bytes import CorruptBlobError
from appliance_builder.layer_reader import ChunkFile, Entry
from appliance_builder.ports import CHUNK_BYTES, Payload, Reporter, Transfer
from appliance_builder.stream import run_pass
from appliance_image import contract
from appliance_image.digest import Digest
from appliance_image.oci import Descriptor, Manifest, OciError

_ROOT = contract.MODELS_DIRECTORY.lstrip("/")
_BLOB = re.compile(re.escape(_ROOT) + r"/blobs/(sha256-[0-9a-f]{64})")
_MANIFEST = re.compile(re.escape(_ROOT) + r"/manifests/[^/]+/[^/]+/[^/]+/[^/]+")


def verify(image: FinishedImage, source: ImageSource, *, reporter: Reporter) -> list[str]:
    """What is wrong, in sentences; empty when all is well."""
    problems = configuration_problems(image)
    files: dict[str, Entry] = {}
    manifests: dict[str, bytes] = {}
    for layer in (*image.weights, image.model):
        found: list[Entry] = []
        title = f"verify {'model' if layer == image.model else 'weights'} {layer.digest.short}"
        with reporter.transfer(title, size=layer.size) as transfer:
            scan = partial(_scan, found, manifests, transfer)
            try:
                run_pass(source.blob(layer), consumers=[scan], known=layer.digest)
            except CorruptBlobError as error:
                problems.append(error.message)
            except tarfile.TarError as error:
                problems.append(f"layer {layer.digest.short} is no tar: {error}")
        problems += layer_problems(layer, found)
        files |= {entry.path: entry for entry in found}
    for layer in image.base:
        if source.blob(layer).size != layer.size:
            problems.append(f"base layer {layer.digest.short} has not the size that the manifest says")
    return problems + store_problems(image, files, manifests)


def configuration_problems(image: FinishedImage) -> list[str]:
    environment = image.config.environment
    expected = dict(contract.ENVIRONMENT)
    if image.labels.think == "patched":
        expected |= contract.ENVIRONMENT_PATCHED
    problems = [
        f"environment: {name} is {environment.get(name)!r}, not {value!r}"
        for name, value in expected.items()
        if environment.get(name) != value
    ]
    for layer, diff_id in zip(image.weights, image.config.diff_ids, strict=False):
        if layer.digest != diff_id:
            problems.append(f"weights layer {layer.digest.short} is not the one in the configuration")
    return problems


def layer_problems(layer: Descriptor, entries: list[Entry]) -> list[str]:
    problems = [
        f"{entry.path}: owner or mode differ from the contract"
        for entry in entries
        if entry.owner != (0, 0) or entry.mode != _mode(entry.path)
    ]
    blobs = [(match[1], entry) for entry in entries if (match := _BLOB.fullmatch(entry.path))]
    problems += [
        f"{entry.path}: its content is {entry.digest}" for name, entry in blobs if Digest.parse(name) != entry.digest
    ]
    problems += [
        f"{entry.path}: does not belong into a model store"
        for entry in entries
        if not (entry.path.endswith("/") or _BLOB.fullmatch(entry.path) or _MANIFEST.fullmatch(entry.path))
    ]
    annotated = set(blobs_of(layer))
    if annotated and annotated != {entry.digest for _, entry in blobs}:
        problems.append(f"layer {layer.digest.short} holds other blobs than its annotation says")
    return problems


def store_problems(image: FinishedImage, files: Mapping[str, Entry], manifests: Mapping[str, bytes]) -> list[str]:
    if len(manifests) != 1:
        return [f"the image holds {len(manifests)} models, not one"]
    path, body = next(iter(manifests.items()))
    try:
        manifest = Manifest.parse(body)
    except OciError as error:
        return [f"{path}: {error.message}"]
    problems: list[str] = []
    wanted = {f"{_ROOT}/blobs/{d.digest.file_name}": d.size for d in (manifest.config, *manifest.layers)}
    for blob, size in wanted.items():
        if blob not in files:
            problems.append(f"{blob} is missing")
        elif files[blob].size != size:
            problems.append(f"{blob} has {files[blob].size} bytes, the model's manifest says {size}")
    problems += [
        f"{path}: an empty directory, which stops a server whose store is read-only"
        for path in files
        if path.endswith("/") and not any(file != path and file.startswith(path) for file in files)
    ]
    problems += [f"{blob}: no part of the model" for blob in files if _BLOB.fullmatch(blob) and blob not in wanted]
    name = path.removeprefix(f"{_ROOT}/manifests/")
    if not name.endswith(image.labels.model.replace(":", "/").rpartition("/")[2]):
        problems.append(f"the model is stored as {name}, the label says {image.labels.model}")
    return problems


def _mode(path: str) -> int:
    return contract.DIRECTORY_MODE if path.endswith("/") else contract.FILE_MODE


def _scan(found: list[Entry], manifests: dict[str, bytes], transfer: Transfer, payload: Payload) -> None:
    with tarfile.open(fileobj=ChunkFile(payload.read()), mode="r|", bufsize=CHUNK_BYTES) as tar:
        for member in tar:
            owner = (member.uid, member.gid)
            file = tar.extractfile(member) if member.isreg() else None
            if file is None:  # a directory, or what has no place here: a link, a device
                name = f"{member.name}/" if member.isdir() else member.name
                found.append(Entry(name, 0, member.mode if member.isdir() else -1, owner, Digest.of(b"")))
                continue
            sha256 = hashlib.sha256()
            kept = b""
            while chunk := file.read(CHUNK_BYTES):
                sha256.update(chunk)
                transfer.advance(len(chunk))
                if _MANIFEST.fullmatch(member.name) and len(kept) < contract.MEBIBYTE:
                    kept += chunk
            if _MANIFEST.fullmatch(member.name):
                manifests[member.name] = kept
            found.append(Entry(member.name, member.size, member.mode, owner, Digest(sha256.hexdigest())))
