"""How hosts are reached: which speak plain HTTP, which have their own CA, which are replaced by a mirror. Decides only."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from appliance_image.errors import ApplianceError
from appliance_image.reference import DOCKER_HUB

_DOCKER_HUB_API = "https://registry-1.docker.io"


@dataclass(frozen=True, slots=True)
class Network:
    insecure: frozenset[str] = frozenset()
    ca: Mapping[str, Path] = field(default_factory=dict[str, Path])
    mirrors: Mapping[str, str] = field(default_factory=dict[str, str])  # registry host -> host or URL to ask instead

    def endpoint(self, host: str) -> str:
        """The URL, without a path at its end unless a mirror has one, that serves `/v2/` for a registry host."""
        if mirror := self.mirrors.get(host):
            return _checked(mirror.rstrip("/") if "://" in mirror else self._with_scheme(mirror))
        return _DOCKER_HUB_API if host == DOCKER_HUB else _checked(self._with_scheme(host))

    def _with_scheme(self, host: str) -> str:
        plain = host in self.insecure or is_loopback(host)
        return f"{'http' if plain and host not in self.ca else 'https'}://{host}"


def _checked(url: str) -> str:
    try:
        port = urlsplit(url).port
    except ValueError:
        port = 0
    if port == 0:
        raise ApplianceError(f"not a host: {urlsplit(url).netloc!r}", hint="a port is a number from 1 to 65535")
    return url


def is_loopback(host: str) -> bool:
    """As for Docker: registries on loopback speak plain HTTP without being asked. `host` may carry a port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def parse_ca(text: str) -> tuple[str, Path]:
    host, equals, path = text.partition("=")
    if not (equals and host and path):
        raise ApplianceError(f"not HOST=FILE: {text!r}", hint="for example `--ca registry.example.com=/etc/ssl/ca.pem`")
    if not Path(path).is_file():
        raise ApplianceError(f"no certificate file: {path}", hint="give the CA's certificate in PEM format")
    return host, Path(path)
