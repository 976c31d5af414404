"""Reads the configuration from disk; what it may say is `config`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from appliance_agent.config import Config, ConfigError, parse

_MAX_BYTES: Final = 1024 * 1024


def load(path: Path) -> Config:
    """Raises ConfigError."""
    return parse(_text(path), where=str(path))


def _text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except FileNotFoundError as error:
        hint = f"start from the sample: `install -m 644 systemd/agent.toml {path}`, and set `image` in it"
        raise ConfigError(f"no configuration: {path}", hint=hint) from error
    except PermissionError as error:
        hint = f"`chmod 644 {path}`, and 755 for its directory: it holds no secrets, and user ollama-agent reads it"
        raise ConfigError(f"configuration cannot be read: {path}: permission denied", hint=hint) from error
    except IsADirectoryError as error:
        raise ConfigError(f"a directory, not a file: {path}", hint=f"name the file: `{path / 'agent.toml'}`") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(f"configuration cannot be read: {path}: {reason}", hint=f"look at `ls -l {path}`") from error
    if len(content) > _MAX_BYTES:
        raise ConfigError(f"larger than 1 MiB: {path}", hint="name the configuration, which is a TOML file")
    return _decoded(content, path)


def _decoded(content: bytes, path: Path) -> str:
    try:
        return content.decode("utf-8-sig")  # some editors begin a file with a mark
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        hint = f"save it as UTF-8, for example with `iconv -f GB18030 -t UTF-8 {path}`"
        raise ConfigError(f"not UTF-8: {path}, line {line}", hint=hint) from error
