"""Looks into an Ollama store of the host as the container's user would see it. Reads names, modes and one manifest."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Final

from appliance_agent.check_facts import StoreState
from appliance_image.errors import ApplianceError
from appliance_image.reference import ModelName

_MODELS_MAX: Final = 500
_SUDO = "permission denied; `sudo ollama-agent check` can look"


def store_state(store: Path, model: str, user: str) -> StoreState:
    try:
        return _look(store, model, user)
    except FileNotFoundError:
        return StoreState("there is no such directory")
    except PermissionError:
        return StoreState(_SUDO)
    except OSError as error:
        return StoreState(error.strerror or str(error))


def _look(store: Path, model: str, user: str) -> StoreState:
    state = store.stat()
    if not stat.S_ISDIR(state.st_mode):
        return StoreState("it is no directory")
    models = tuple(islice(_models(store), _MODELS_MAX))
    manifest = _manifest(store, model)
    owner = f"{state.st_uid}:{state.st_gid}"
    if manifest is None:
        return StoreState(models=models, owner=owner)
    try:
        files = [manifest, *_blobs(store, manifest)]
    except (ValueError, KeyError, TypeError, AttributeError):
        return StoreState(f"the manifest of `{model}` is damaged")
    there = [file for file in files if file.exists()]
    unreadable = next(_unreadable(store, there, user), "")
    missing = len(files) - len(there)
    return StoreState(unreadable=unreadable, manifest=True, missing_blobs=missing, models=models, owner=owner)


def _models(store: Path) -> Iterator[str]:
    for file in sorted((store / "manifests").glob("*/*/*/*")):
        host, namespace, model, tag = file.parts[-4:]
        try:
            yield ModelName(host, namespace, model, tag).short
        except ApplianceError:
            continue


def _manifest(store: Path, model: str) -> Path | None:
    """Ollama matches names whatever their case."""
    try:
        wanted = ModelName.parse(model).path
    except ApplianceError:
        return None
    exact = store / "manifests" / wanted
    if exact.is_file():
        return exact
    pattern = (store / "manifests").glob("*/*/*/*")
    return next((file for file in pattern if "/".join(file.parts[-4:]).lower() == wanted.lower()), None)


def _blobs(store: Path, manifest: Path) -> list[Path]:
    value: Mapping[str, Any] = json.loads(manifest.read_bytes())
    digests = [str(layer["digest"]) for layer in value["layers"]]
    if config := value.get("config", {}).get("digest", ""):
        digests.append(str(config))
    return [store / "blobs" / digest.replace(":", "-") for digest in digests]


def _unreadable(store: Path, files: list[Path], user: str) -> Iterator[str]:
    identity = _identity(user)
    if identity is None:
        return
    directories = {parent for file in files for parent in file.parents if parent == store or store in parent.parents}
    for directory in sorted(directories):
        if not _may(directory, identity, stat.S_IROTH | stat.S_IXOTH):
            yield str(directory)
    inside = store.resolve()
    for file in files:
        if inside not in file.resolve().parents:
            yield f"{file}, which is a link out of the store"
        if not _may(file, identity, stat.S_IROTH):
            yield str(file)


def _identity(user: str) -> tuple[int, int] | None:
    """None for a name, which the image's own list of users decides on."""
    uid, _, gid = user.partition(":")
    return (int(uid), int(gid or 0)) if uid.isdecimal() and (gid or "0").isdecimal() else None


def _may(path: Path, identity: tuple[int, int], bits: int) -> bool:
    uid, gid = identity
    state = path.stat()
    if uid == 0:
        return True
    if uid == state.st_uid:
        return state.st_mode & (bits << 6) == bits << 6
    if gid == state.st_gid:
        return state.st_mode & (bits << 3) == bits << 3
    return state.st_mode & bits == bits
