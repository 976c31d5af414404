"""The builder's settings: files, then environment, then the command line's words, each over the one before.

The user's file is `$APPLIANCE_CONFIG`, else `$XDG_CONFIG_HOME/ollama-appliance/builder.toml`; the machine's is in /etc.
Reads those files and nothing else; `environ` is an argument.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Final, TypeVar
from urllib.parse import urlsplit

from appliance_builder import recipe_files
from appliance_builder.network import Network, parse_ca
from appliance_builder.request import Options
from appliance_image.errors import ApplianceError
from appliance_image.oci import Platform
from appliance_image.reference import DOCKER_HUB, OLLAMA_LIBRARY, ImageReference
from appliance_image.strict_toml import Table

ETC: Final = Path("/etc/ollama-appliance")
DIRECTORY: Final = "ollama-appliance"
FILE: Final = "builder.toml"
CONNECTIONS: Final = 8
CONNECTIONS_MAX: Final = 64
PATIENCE_MAX_S: Final = 86_400
_T = TypeVar("_T")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?|\[[0-9A-Fa-f:.]+\](?::[0-9]{1,5})?")


class ConfigError(ApplianceError):
    pass


@dataclass(frozen=True, slots=True)
class BuilderConfig:
    cache: Path
    base: ImageReference | None = None  # None: as the recipe says
    models_registry: str | None = None
    base_registry: str | None = None
    mirrors: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    insecure: frozenset[str] = frozenset()
    ca: Mapping[str, Path] = field(default_factory=dict[str, Path], hash=False)
    recipes: tuple[Path, ...] = ()  # directories, the first one that has a recipe wins
    platforms: tuple[Platform, ...] = ()  # empty: that of this machine
    connections: int = CONNECTIONS
    patience_s: int | None = None  # how long without progress before giving up; None: what suits each transfer


@dataclass(frozen=True, slots=True)
class _Words:
    """What one place says; None and empty: nothing."""

    cache: Path | None = None
    base: ImageReference | None = None
    models_registry: str | None = None
    base_registry: str | None = None
    mirrors: Mapping[str, str] = field(default_factory=dict[str, str])
    insecure: frozenset[str] = frozenset()
    ca: Mapping[str, Path] = field(default_factory=dict[str, Path])
    recipes: tuple[Path, ...] = ()
    platforms: tuple[Platform, ...] = ()
    connections: int | None = None
    patience_s: int | None = None

    def under(self, upper: _Words) -> _Words:
        """Tables and hosts are put together; anything else `upper` replaces. Recipes of both are searched."""
        return _Words(
            cache=upper.cache or self.cache,
            base=upper.base or self.base,
            models_registry=upper.models_registry or self.models_registry,
            base_registry=upper.base_registry or self.base_registry,
            mirrors={**self.mirrors, **upper.mirrors},
            insecure=self.insecure | upper.insecure,
            ca={**self.ca, **upper.ca},
            recipes=(*upper.recipes, *self.recipes),
            platforms=upper.platforms or self.platforms,
            connections=upper.connections or self.connections,
            patience_s=upper.patience_s or self.patience_s,
        )


def load(options: Options, environ: Mapping[str, str], *, etc: Path = ETC) -> BuilderConfig:
    user = _user_directory(environ, "XDG_CONFIG_HOME", ".config")
    layers = [
        _read(etc / FILE, environ),
        _user_file(user, environ),
        _from_environment(environ),
        _from_options(options),
    ]
    said = reduce(_Words.under, layers)
    cache = said.cache or _user_directory(environ, "XDG_CACHE_HOME", ".cache")
    if cache is None:
        raise ConfigError("no place to keep downloads: HOME is not set", hint="give one with `--cache DIR`")
    own = [user / "recipes"] if user else []
    return BuilderConfig(
        cache=cache,
        base=said.base,
        models_registry=said.models_registry,
        base_registry=said.base_registry,
        mirrors=said.mirrors,
        insecure=said.insecure,
        ca=said.ca,
        recipes=(*said.recipes, *own, etc / "recipes", recipe_files.shipped()),
        platforms=said.platforms,
        connections=said.connections or CONNECTIONS,
        patience_s=said.patience_s,
    )


def network(config: BuilderConfig) -> Network:
    registries = {OLLAMA_LIBRARY: config.models_registry, DOCKER_HUB: config.base_registry}
    named = {host: mirror for host, mirror in registries.items() if mirror}
    return Network(insecure=config.insecure, ca=config.ca, mirrors={**config.mirrors, **named})


def _parse(text: str, *, where: str, home: Path | None = None) -> _Words:
    table = Table.parse(text, where=where)

    def path(text: str) -> Path:
        found = home / text[2:] if home and text.startswith("~/") else Path(text)
        if not found.is_absolute():
            raise ConfigError(f"not an absolute path: {text!r}", hint="begin it with `/` or `~/`")
        return found

    words = _Words(
        cache=table.value("cache", path),
        base=table.value("base", ImageReference.parse),
        models_registry=table.value("models_registry", parse_mirror),
        base_registry=table.value("base_registry", parse_mirror),
        mirrors=_hosts(table.table("mirrors")).mapping(parse_mirror),
        insecure=frozenset(table.values("insecure", parse_host)),
        ca=_hosts(table.table("ca")).mapping(lambda text: _file(path(text))),
        recipes=tuple(filter(None, [table.value("recipes", lambda text: _directory(path(text)))])),
        platforms=table.values("platforms", Platform.parse),
        connections=table.integer("connections", minimum=1, maximum=CONNECTIONS_MAX),
        patience_s=table.integer("patience", minimum=1, maximum=PATIENCE_MAX_S),
    )
    table.check(ConfigError, hint="correct the file; the README lists every key")
    return words


def parse_host(text: str) -> str:
    if not _HOST.fullmatch(text):
        raise ConfigError(
            f"not a host: {text!r}", hint="a host is `registry.example.com` or `registry.example.com:5000`"
        )
    return text


def parse_mirror(text: str) -> str:
    """A host, or a URL with a path of its own."""
    hint = "a mirror is `https://mirror.example.com/path` or a host"
    if "://" not in text:
        return parse_host(text)
    try:
        parts = urlsplit(text)
        host = parts.netloc.rpartition("@")[2]
    except ValueError as error:
        raise ConfigError(f"not a URL: {text!r}", hint=hint) from error
    if "@" in parts.netloc:
        raise ConfigError(f"a mirror's URL with a password in it: {host}", hint=f"use `docker login {host}`")
    if parts.scheme not in ("http", "https") or not _HOST.fullmatch(host) or parts.query or parts.fragment:
        raise ConfigError(f"not a URL of a mirror: {text!r}", hint=hint)
    return text.rstrip("/")


def _user_directory(environ: Mapping[str, str], variable: str, below_home: str) -> Path | None:
    """The XDG specification says to ignore a relative path."""
    stated = Path(environ.get(variable, ""))
    if stated.is_absolute():
        return stated / DIRECTORY
    home = _home(environ)
    return home / below_home / DIRECTORY if home else None


def _home(environ: Mapping[str, str]) -> Path | None:
    home = Path(environ.get("HOME", ""))
    return home if home.is_absolute() else None


def _user_file(user: Path | None, environ: Mapping[str, str]) -> _Words:
    if named := environ.get("APPLIANCE_CONFIG"):
        if not Path(named).is_file():
            raise ConfigError(f"APPLIANCE_CONFIG names no file: {named}", hint="correct or unset the variable")
        return _read(Path(named), environ)
    return _read(user / FILE, environ) if user else _Words()


def _read(path: Path, environ: Mapping[str, str]) -> _Words:
    try:
        text = path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return _Words()
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint=f"try `ls -l {path}`") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no UTF-8 text: {error}", hint="save the file as UTF-8") from error
    return _parse(text, where=str(path), home=_home(environ))


def _from_environment(environ: Mapping[str, str]) -> _Words:
    def value(name: str, parser: Callable[[str], _T]) -> _T | None:
        text = environ.get(name, "").strip()
        try:
            return parser(text) if text else None
        except ApplianceError as error:
            raise ConfigError(f"{name}: {error.message}", hint=error.hint) from error

    return _Words(
        cache=value("APPLIANCE_CACHE", lambda text: Path(text).absolute()),
        base=value("APPLIANCE_BASE", ImageReference.parse),
        models_registry=value("APPLIANCE_MODELS_REGISTRY", parse_mirror),
        base_registry=value("APPLIANCE_BASE_REGISTRY", parse_mirror),
        insecure=value("APPLIANCE_INSECURE", lambda text: _insecure(text.split(","))) or frozenset(),
        patience_s=value("APPLIANCE_PATIENCE", _seconds),
    )


def _seconds(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= PATIENCE_MAX_S:
        raise ConfigError(f"not a number of seconds: {text!r}", hint=f"between 1 and {PATIENCE_MAX_S}")
    return int(text)


def _from_options(options: Options) -> _Words:
    return _Words(
        cache=options.cache.absolute() if options.cache else None,
        models_registry=parse_mirror(options.models_registry) if options.models_registry else None,
        base_registry=parse_mirror(options.base_registry) if options.base_registry else None,
        insecure=_insecure(options.insecure),
        ca=dict(parse_ca(text) for text in options.ca),
        connections=options.connections,
    )


def _insecure(hosts: Iterable[str]) -> frozenset[str]:
    return frozenset(parse_host(host.strip()) for host in hosts if host.strip())


def _hosts(table: Table) -> Table:
    for key in table.keys():  # noqa: SIM118 - a table is no mapping
        if not _HOST.fullmatch(key):
            table.problem(key, "not a host; one with a dot or a port stands in quotes")
    return table


def _file(path: Path) -> Path:
    if not path.is_file():
        raise ConfigError(f"no certificate file: {path}", hint="give the CA's certificate in PEM format")
    return path


def _directory(path: Path) -> Path:
    if not path.is_dir():
        raise ConfigError(f"no directory: {path}", hint="give the directory that holds recipes")
    return path
