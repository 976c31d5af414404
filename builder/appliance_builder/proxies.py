"""Which HTTP proxy a URL is reached through, from the environment, by the rules that curl, Go and Docker share. Decides only."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from urllib.parse import urlsplit

from appliance_builder.network import is_loopback

_DEFAULT_PORTS = {"http": 80, "https": 443}


def proxy_for(url: str, environ: Mapping[str, str]) -> str | None:
    """The proxy's URL; None for loopback and for hosts that NO_PROXY names by name, suffix, address or network."""
    parts = urlsplit(url)
    host, scheme = parts.hostname or "", parts.scheme
    if is_loopback(parts.netloc.rpartition("@")[2]):
        return None
    proxy = _either(environ, f"{scheme}_proxy") or _either(environ, "all_proxy")
    if not proxy or _excluded(host, parts.port or _DEFAULT_PORTS.get(scheme, 0), _either(environ, "no_proxy")):
        return None
    return proxy if "://" in proxy else f"http://{proxy}"


def _either(environ: Mapping[str, str], name: str) -> str:
    return (environ.get(name) or environ.get(name.upper()) or "").strip()


def _excluded(host: str, port: int, no_proxy: str) -> bool:
    return any(_matches(host, port, entry.strip().lower()) for entry in no_proxy.split(",") if entry.strip())


def _matches(host: str, port: int, entry: str) -> bool:
    if entry == "*":
        return True
    if (network := _network(entry)) is not None:
        address = _address(host)
        return address is not None and address in network
    name, colon, port_text = entry.rpartition(":")
    if colon and port_text.isdigit() and (":" not in name or name.startswith("[")):
        if int(port_text) != port:
            return False
        entry = name
    entry = entry.strip("[]").removeprefix("*")
    return host.endswith(entry) if entry.startswith(".") else host == entry or host.endswith(f".{entry}")


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
