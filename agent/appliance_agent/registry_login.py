"""The login for a registry, from Docker's config.json and its credential helpers, as the engine wants it in a header."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from appliance_image.errors import ApplianceError
from appliance_image.reference import DOCKER_HUB

_HELPER_S: Final = 30.0
_HUB_KEY: Final = "https://index.docker.io/v1/"
_TOKEN_USER: Final = "<token>"  # noqa: S105 - the name that marks an identity token
_HINT: Final = "`docker login` as the agent's user writes it anew"

Login = Mapping[str, str]


class LoginError(ApplianceError):
    pass


def registry_header(host: str, directory: str, *, environ: Mapping[str, str] = os.environ) -> str:
    """The value of X-Registry-Auth; "" where there is no login, which is no error before the registry says so."""
    login = _login(host, _config(_place(directory, environ)), environ)
    if not login:
        return ""
    return base64.urlsafe_b64encode(json.dumps(login).encode()).decode()


def _place(directory: str, environ: Mapping[str, str]) -> Path:
    if directory:
        return Path(directory) / "config.json"
    if own := environ.get("DOCKER_CONFIG"):
        return Path(own) / "config.json"
    return Path(environ.get("HOME") or "/root") / ".docker" / "config.json"


def _config(path: Path) -> Mapping[str, Any]:
    try:
        node = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LoginError(f"cannot read the logins in {path}: {error.strerror}", hint=_HINT) from error
    except ValueError:  # its text may be a secret
        raise LoginError(f"cannot read the logins in {path}: not JSON", hint=_HINT) from None
    if not isinstance(node, dict):
        raise LoginError(f"cannot read the logins in {path}: no JSON object", hint=_HINT)
    return cast("Mapping[str, Any]", node)


def _login(host: str, config: Mapping[str, Any], environ: Mapping[str, str]) -> Login | None:
    key = _HUB_KEY if host == DOCKER_HUB else host
    helpers: Mapping[str, Any] = config.get("credHelpers") or {}
    entries: Mapping[str, Any] = config.get("auths") or {}
    helper: object = helpers.get(key) or helpers.get(host) or config.get("credsStore")
    if helper and (found := _from_helper(str(helper), key, environ)):
        return found
    for name, entry in entries.items():
        if _host_of(name) == host and (found := _from_entry(entry or {}, host)):
            return found
    return None


def _host_of(key: str) -> str:
    host = key.removeprefix("https://").removeprefix("http://").partition("/")[0]
    return DOCKER_HUB if host in ("index.docker.io", "registry-1.docker.io") else host


def _from_entry(entry: Mapping[str, Any], host: str) -> Login | None:
    if token := entry.get("identitytoken"):
        return {"identitytoken": str(token), "serveraddress": host}
    try:
        text = base64.b64decode(str(entry.get("auth") or ""), validate=True).decode()
    except ValueError:  # not base64, or not UTF-8
        raise LoginError(f"the login for {host} in Docker's config.json is broken", hint=_HINT) from None
    username, colon, password = text.partition(":")
    return {"username": username, "password": password, "serveraddress": host} if colon else None


def _from_helper(name: str, key: str, environ: Mapping[str, str]) -> Login | None:
    program = f"docker-credential-{name}"
    found = shutil.which(program, path=environ.get("PATH"))
    if found is None:
        raise LoginError(f"credential helper `{program}` is not installed", hint=f"install it, or {_HINT}")
    try:
        answer = subprocess.run(
            [found, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_S, env=dict(environ), check=False
        )
    except subprocess.TimeoutExpired:
        raise _failed(program, key, f"no answer in {_HELPER_S:.0f} s") from None
    except OSError as error:
        raise _failed(program, key, error.strerror or "cannot be run") from error
    if answer.returncode != 0:
        words = answer.stdout.decode(errors="replace").strip()  # where helpers write their errors
        if "not found" in words.lower() or "no credentials" in words.lower():
            return None
        raise _failed(program, key, words.splitlines()[0][:200] if words else f"exit status {answer.returncode}")
    return _from_helper_answer(program, key, answer.stdout)


def _from_helper_answer(program: str, key: str, answer: bytes) -> Login | None:
    try:
        node = json.loads(answer)
        username, secret = str(node["Username"]), str(node["Secret"])
    except (ValueError, KeyError, TypeError):
        raise _failed(program, key, "its answer is no login") from None
    if not secret:
        return None
    if username == _TOKEN_USER:
        return {"identitytoken": secret, "serveraddress": key}
    return {"username": username, "password": secret, "serveraddress": key}


def _failed(program: str, key: str, why: str) -> LoginError:
    hint = f"`echo {key} | {program} get` shows what is wrong"
    return LoginError(f"credential helper `{program}` failed for {key}: {why}", hint=hint)
