"""The user's registry logins, from where `docker login` and `podman login` left them. Secrets stay out of every text."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Final, Protocol, cast

from appliance_image.errors import ApplianceError
from appliance_image.reference import DOCKER_HUB

_HELPER_S: Final = 30.0
_TOKEN_USER: Final = "<token>"  # noqa: S105  # the name that marks an identity token, not a secret
_HUB_KEY: Final = "https://index.docker.io/v1/"
_NOTHING_STORED: Final = ("credentials not found", "no credentials", "not found in native keychain")


class CredentialError(ApplianceError):
    pass


@dataclass(frozen=True, slots=True)
class Credentials:
    username: str
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)


class _Logins(Protocol):
    """What is used of the library's AuthConfig, whose own types are partial."""

    @property
    def auths(self) -> dict[str, object]: ...

    def get_credential_store(self, registry: str | None) -> str | None: ...

    def resolve_authconfig(self, registry: str | None) -> Mapping[str, str] | None: ...


class _Library(Protocol):
    @property
    def AuthConfig(self) -> Callable[[dict[str, object]], _Logins]: ...  # noqa: N802  # the library's name

    def load_config(self, *, config_dict: dict[str, object]) -> _Logins: ...


CredentialLookup = Callable[[str], Credentials | None]


def stored_credentials(
    host: str, *, environ: Mapping[str, str] = os.environ, helper_s: float = _HELPER_S
) -> Credentials | None:
    """The login for a registry host; None where the user has none, which is no error before the registry says so."""
    for path in _files(environ):
        # Not of Path: another user's directory, left in a variable by `su`, is none of ours, and no error.
        if os.path.isfile(path) and (found := _from_file(path, host, environ, helper_s)):  # noqa: PTH113
            return found
    return None


def _files(environ: Mapping[str, str]) -> Iterator[Path]:
    home = Path(environ["HOME"]) if environ.get("HOME") else Path.home()
    if explicit := environ.get("REGISTRY_AUTH_FILE"):
        yield Path(explicit)
    yield Path(environ.get("DOCKER_CONFIG") or home / ".docker") / "config.json"
    if runtime := environ.get("XDG_RUNTIME_DIR"):
        yield Path(runtime) / "containers" / "auth.json"
    yield Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers" / "auth.json"


def _from_file(path: Path, host: str, environ: Mapping[str, str], helper_s: float) -> Credentials | None:
    node = _read_object(path)
    if not node:
        return None
    library = cast("_Library", import_module("docker.auth"))  # a fifth of a second that public images need not wait
    try:
        config = library.load_config(config_dict=node)
    except Exception as error:  # noqa: BLE001  # the library's own kinds vary, and their text may quote the file with its secrets
        raise _unreadable(path, type(error).__name__) from None
    key = _HUB_KEY if host == DOCKER_HUB else host
    if (helper := config.get_credential_store(key)) and (found := _from_helper(helper, key, environ, helper_s)):
        return found
    entry = library.AuthConfig({"auths": config.auths}).resolve_authconfig(host)
    return _credentials(entry) if entry else None


def _read_object(path: Path) -> dict[str, object]:
    try:
        node = cast("object", json.loads(path.read_bytes()))
    except OSError as error:
        raise _unreadable(path, error.strerror or "") from error
    except ValueError:
        raise _unreadable(path, "not JSON") from None
    if not isinstance(node, dict):
        raise _unreadable(path, "no JSON object")
    return cast("dict[str, object]", node)


def _credentials(entry: Mapping[str, str]) -> Credentials | None:
    if token := entry.get("IdentityToken"):
        return Credentials(_TOKEN_USER, identity_token=token)
    if username := entry.get("username"):
        return Credentials(username, entry.get("password", ""))
    return None


def _from_helper(name: str, key: str, environ: Mapping[str, str], helper_s: float) -> Credentials | None:
    """Asks the helper itself, not through the library, which would wait for ever for one that hangs."""
    program = f"docker-credential-{name}"
    found = shutil.which(program, path=environ.get("PATH"))
    if found is None:
        raise CredentialError(
            f"credential helper `{program}` is not installed",
            hint=f"install it, or take `{name}` out of Docker's config.json and log in again",
        )
    try:
        answer = subprocess.run(
            [found, "get"], input=key.encode(), capture_output=True, timeout=helper_s, env=dict(environ), check=False
        )
    except subprocess.TimeoutExpired:
        raise _failed(program, key, f"no answer in {helper_s:.0f} s") from None
    except OSError as error:
        raise _failed(program, key, error.strerror or "cannot be run") from error
    if answer.returncode != 0:
        words = answer.stdout.decode(errors="replace").strip()  # where helpers write their errors
        if any(phrase in words.lower() for phrase in _NOTHING_STORED):
            return None
        raise _failed(program, key, words.splitlines()[0][:200] if words else f"exit {answer.returncode}")
    return _parse_helper(program, key, answer.stdout)


def _parse_helper(program: str, key: str, answer: bytes) -> Credentials | None:
    try:
        node = cast("object", json.loads(answer))
    except ValueError:
        raise _failed(program, key, "its answer is not JSON") from None
    fields = cast("dict[str, object]", node) if isinstance(node, dict) else {}
    username, secret = str(fields.get("Username") or ""), str(fields.get("Secret") or "")
    if not secret:
        return None
    return Credentials(username, identity_token=secret) if username == _TOKEN_USER else Credentials(username, secret)


def _unreadable(path: Path, why: str) -> CredentialError:
    return CredentialError(f"cannot read the logins in {path}: {why}", hint="`docker login` writes the file anew")


def _failed(program: str, key: str, why: str) -> CredentialError:
    return CredentialError(
        f"credential helper `{program}` failed for {key}: {why}",
        hint=f"`echo {key} | {program} get` shows what is wrong; `docker login` stores the login again",
    )
