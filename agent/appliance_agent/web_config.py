"""Prometheus' web-config file (exporter-toolkit) as frozen values: TLS, headers and users of an HTTP server. Pure.

What it cannot do, it refuses: a file that asks for more than is kept would be a promise that is broken.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Final, TypeVar

from appliance_agent import yaml_tree
from appliance_agent.yaml_tree import Mapped, Text, Tree, YamlError
from appliance_image.errors import ApplianceError

_T = TypeVar("_T")

COST_MAX: Final = 16  # of bcrypt: 5 s a check, and each step doubles that
_HASH = re.compile(r"\$2[aby]\$(\d\d)\$[./A-Za-z0-9]{53}")
_VERSIONS = ("TLS12", "TLS13")
_LIMITS = (("min_version", "TLS12"), ("max_version", "TLS13"))  # and what exporter-toolkit takes when they are not said
_HEADERS: Mapping[str, tuple[str, ...]] = {
    "Strict-Transport-Security": (),
    "X-Content-Type-Options": ("nosniff",),
    "X-Frame-Options": ("deny", "sameorigin"),
    "X-XSS-Protection": (),
    "Content-Security-Policy": (),
}
_HEADER_VALUE = re.compile(r"[\x20-\x7e]*")
_NOT_DONE = "is not supported by ollama-agent"
_HINT = "correct the file; `promtool check web-config FILE` knows the format, systemd/README.md has an example"


class WebConfigError(ApplianceError):
    pass


class ClientAuth(Enum):
    NONE = "NoClientCert"
    IF_GIVEN = "VerifyClientCertIfGiven"
    REQUIRED = "RequireAndVerifyClientCert"


@dataclass(frozen=True, slots=True)
class Tls:
    certificate: Path
    key: Path
    client_authority: Path | None = None
    client_auth: ClientAuth = ClientAuth.NONE
    min_version: str = "TLS12"
    max_version: str = "TLS13"

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.certificate, self.key, *filter(None, (self.client_authority,)))


@dataclass(frozen=True, slots=True)
class WebConfig:
    tls: Tls | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    users: Mapping[str, str] = field(default_factory=dict[str, str])  # hashes of bcrypt by name


def parse(text: str, *, path: Path) -> WebConfig:
    """Raises WebConfigError."""
    try:
        tree = yaml_tree.parse(text)
    except YamlError as error:
        line = f", line {error.line}" if error.line else ""
        raise WebConfigError(f"not YAML: {path}{line}: {error.reason}", hint=_HINT) from error
    root = _Section(tree, path, "")
    config = WebConfig(
        tls=root.section("tls_server_config", _tls),
        headers=root.section("http_server_config", _headers) or {},
        users=root.section("basic_auth_users", _users) or {},
    )
    root.end()
    return config


def _tls(table: _Section) -> Tls | None:
    if not table.keys:
        return None
    for name in ("cert", "key", "client_ca"):
        if table.text(name):
            raise table.mistake(name, f"{_NOT_DONE}: name a file with `{name}_file`")
    for name in ("client_allowed_sans", "cipher_suites", "curve_preferences"):
        if table.take(name) is not None:
            raise table.mistake(name, f"{_NOT_DONE}: take it away, OpenSSL's defaults are safe ones")
    table.text("prefer_server_cipher_suites")  # without effect in exporter-toolkit as well
    certificate, key, authority = (table.text(name) for name in ("cert_file", "key_file", "client_ca_file"))
    for name, given in (("cert_file", certificate), ("key_file", key)):
        if not given:
            raise table.mistake(name, "is missing")
    auth = table.choice("client_auth_type", tuple(each.value for each in ClientAuth), default=ClientAuth.NONE.value)
    if (auth != ClientAuth.NONE.value) != bool(authority):
        raise table.mistake("client_auth_type", "and `client_ca_file` are of use only together")
    oldest, newest = (table.choice(name, _VERSIONS, default=default) for name, default in _LIMITS)
    if oldest > newest:
        raise table.mistake("max_version", "is older than `min_version`")
    beside = table.path.parent
    return Tls(
        certificate=beside / certificate,
        key=beside / key,
        client_authority=beside / authority if authority else None,
        client_auth=ClientAuth(auth),
        min_version=oldest,
        max_version=newest,
    )


def _headers(table: _Section) -> dict[str, str]:
    table.text("http2")  # HTTP/1.1 is always understood
    return table.section("headers", _header_values) or {}


def _header_values(table: _Section) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in table.keys:
        if name not in _HEADERS:
            raise table.mistake(name, f"cannot be set, only {', '.join(_HEADERS)} can")
        value = table.choice(name, _HEADERS[name]) if _HEADERS[name] else table.text(name)
        if not _HEADER_VALUE.fullmatch(value):
            raise table.mistake(name, "should be one line of ASCII")
        if value:
            found[name] = value
    return found


def _users(table: _Section) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in table.keys:
        match = _HASH.fullmatch(table.text(name))
        if not match:
            raise table.mistake(name, 'is no bcrypt hash, which `htpasswd -nBC 10 ""` makes')
        if not 4 <= int(match[1]) <= COST_MAX:
            raise table.mistake(name, f"has a cost of {match[1]}: from 4 to {COST_MAX} can be checked, 10 is common")
        found[name] = match[0]
    return found


class _Section:
    """A mapping of the file; whoever has taken all that it knows calls `end`."""

    def __init__(self, tree: Tree, path: Path, place: str) -> None:
        self.path = path
        self._place = place
        self._line = tree.line
        self._entries: dict[str, Tree] = {}
        self._taken: set[str] = set()
        if isinstance(tree, Mapped):
            self._entries = dict(tree.entries)
        elif tree != Text("", tree.line):
            where = place.rstrip(".") or "the file"
            raise WebConfigError(f"{path}, line {tree.line}: {where} should have keys", hint=_HINT)

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(self._entries)

    def mistake(self, name: str, what: str) -> WebConfigError:
        tree = self._entries.get(name)
        line = tree.line if tree else self._line
        return WebConfigError(f"{self.path}, line {line}: {self._place}{name}: {what}", hint=_HINT)

    def take(self, name: str) -> Tree | None:
        self._taken.add(name)
        return self._entries.get(name)

    def text(self, name: str) -> str:
        tree = self.take(name)
        if tree is None:
            return ""
        if not isinstance(tree, Text):
            raise self.mistake(name, "should be a text")
        return tree.value

    def choice(self, name: str, words: tuple[str, ...], *, default: str = "") -> str:
        word = self.text(name) or default
        if word and word not in words:
            raise self.mistake(name, f"should be {' or '.join(words)}, not `{word[:40]}`")
        return word

    def section(self, name: str, read: Callable[[_Section], _T]) -> _T | None:
        tree = self.take(name)
        if tree is None:
            return None
        inner = _Section(tree, self.path, f"{self._place}{name}.")
        value = read(inner)
        inner.end()
        return value

    def end(self) -> None:
        for name in self._entries:
            if name not in self._taken:
                raise self.mistake(name, "is no key of this place")
