"""Asks a registry for an image that is not here yet: is it there, may we have it, how large is it. Raises nothing."""

from __future__ import annotations

import base64
import json
import re
import ssl
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from appliance_image.reference import DOCKER_HUB, ImageReference

_HUB: Final = "registry-1.docker.io"
_ACCEPT: Final = (
    "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, "
    "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
)
_MAX_BYTES: Final = 8 * 1024 * 1024
_PAIR = re.compile(r'(\w+)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class Login:
    username: str
    password: str


@dataclass(frozen=True, slots=True)
class Asking:
    reference: ImageReference
    login: Login | None
    architecture: str  # as images name it
    insecure: bool  # the engine takes plain HTTP and any certificate from this registry
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Said:
    status: int | None  # of HTTP; None: no registry was reached
    download_bytes: int | None = None


def ask(asking: Asking) -> Said:
    said = Said(None)
    for scheme in ("https", "http") if asking.insecure else ("https",):
        try:
            return Said(200, _size(asking, scheme))
        except urllib.error.HTTPError as error:
            error.close()
            said = Said(error.code)
        except OSError:
            continue
        except (ValueError, LookupError, TypeError, AttributeError):
            said = Said(200)  # it has it, in words that we do not know
    return said


def _size(asking: Asking, scheme: str) -> int | None:
    value = _manifest(asking, scheme, asking.reference.manifest)
    if "manifests" in value:
        fitting = [
            str(each["digest"])
            for each in value["manifests"]
            if each.get("platform", {}).get("architecture") == asking.architecture
        ]
        if not fitting:
            return None
        value = _manifest(asking, scheme, fitting[0])
    return sum(int(layer["size"]) for layer in value["layers"]) + int(value["config"]["size"])


def _manifest(asking: Asking, scheme: str, what: str) -> Mapping[str, Any]:
    reference = asking.reference
    host = _HUB if reference.host == DOCKER_HUB else reference.host
    url = f"{scheme}://{host}/v2/{reference.repository}/manifests/{what}"
    try:
        return _get(asking, url, {"Accept": _ACCEPT})
    except urllib.error.HTTPError as error:
        challenge = error.headers.get("WWW-Authenticate", "")
        error.close()
        if error.code != 401:
            raise
    return _get(asking, url, {"Accept": _ACCEPT, "Authorization": _authorization(asking, challenge)})


def _authorization(asking: Asking, challenge: str) -> str:
    login = asking.login
    basic = base64.b64encode(f"{login.username}:{login.password}".encode()).decode() if login else ""
    kind, _, rest = challenge.partition(" ")
    if kind.lower() == "basic":
        return f"Basic {basic}"
    words = dict(_PAIR.findall(rest))
    query = urllib.parse.urlencode(
        {"service": words.get("service", ""), "scope": f"repository:{asking.reference.repository}:pull"}
    )
    given = _get(asking, f"{words['realm']}?{query}", {"Authorization": f"Basic {basic}"} if basic else {})
    return f"Bearer {given.get('token') or given['access_token']}"


def _get(asking: Asking, url: str, headers: dict[str, str]) -> Mapping[str, Any]:
    if not url.startswith(("https://", "http://")):
        raise ValueError(url)
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_trust(asking)))
    with opener.open(urllib.request.Request(url, headers=headers), timeout=asking.timeout_s) as answer:  # noqa: S310
        value: Mapping[str, Any] = json.loads(answer.read(_MAX_BYTES))
        return value


def _trust(asking: Asking) -> ssl.SSLContext:
    """Whom the engine trusts: the system's authorities, those of its folder for the registry, or anybody."""
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT  # of Python 3.13; the engine is content with less
    if asking.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    for authority in Path("/etc/docker/certs.d", asking.reference.host).glob("*.crt"):
        with suppress(OSError, ssl.SSLError):
            context.load_verify_locations(authority)
    return context
