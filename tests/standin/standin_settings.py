"""What the stand-in was told: the environment as the real server reads it, and the faults it shall show."""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from standin_answers import Profile
from standin_store import as_object

if TYPE_CHECKING:
    from collections.abc import Mapping

FOREVER_NS = (1 << 63) - 1  # Go's longest duration: expires_at in the year 2319
_UNITS_NS = {"h": 3600e9, "m": 60e9, "s": 1e9, "ms": 1e6, "us": 1e3, "µs": 1e3, "ns": 1.0}
_FALSE = {"", "0", "f", "false"}


def parse_duration(value: object) -> int:
    """Nanoseconds; a bare number is seconds, a negative value is for ever. Raises ValueError."""
    text = str(value).strip()
    if re.fullmatch(r"-?\d+(\.\d+)?", text):
        ns = float(text) * 1e9
    elif re.fullmatch(r"-?(\d+(\.\d+)?(h|ms|us|µs|ns|m|s))+", text):
        parts = re.findall(r"(\d+(?:\.\d+)?)(h|ms|us|µs|ns|m|s)", text)
        ns = sum(float(number) * _UNITS_NS[unit] for number, unit in parts) * (-1 if text[0] == "-" else 1)
    else:
        raise ValueError(f'time: invalid duration "{text}"')
    return FOREVER_NS if ns < 0 else int(ns)


def split_host(text: str) -> tuple[str, int]:
    """OLLAMA_HOST as the real one reads it."""
    _, _, rest = text.strip().rpartition("://")
    address = rest.partition("/")[0]
    host, sign, port = address.rpartition(":")
    if not sign or not port.isdigit():
        host, port = address, "11434"
    return host.strip("[]") or ("0.0.0.0" if address.startswith(":") else "127.0.0.1"), int(port)


@dataclass(frozen=True)
class Settings:
    host: str
    port: int
    models: Path
    home: str
    profile: Profile
    keep_alive_ns: int
    parallel: int
    max_queue: int
    max_loaded: int
    context_length: int
    prune: bool
    load_s: float
    token_s: float
    ping_s: float  # how long the server waits for a sign of life from a frozen runner
    gpu: str  # name of a make-believe GPU; none by default, as in the recordings
    control: bool
    fault: str
    fault_file: str

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Settings:
        """Raises ValueError."""

        def number(name: str, default: int) -> int:
            return int(environ.get(name, "") or default) or default

        def flag(name: str) -> bool:
            return environ.get(name, "").lower() not in _FALSE

        host, port = split_host(environ.get("OLLAMA_HOST", ""))
        home = environ.get("HOME", "")
        profile = Profile(environ.get("STANDIN_VERSION", "") or "0.13.5", flag("OLLAMA_GO_TEMPLATE"))
        return cls(
            host=host,
            port=port,
            models=Path(environ.get("OLLAMA_MODELS") or Path(home, ".ollama", "models")),
            home=home,
            profile=profile,
            keep_alive_ns=parse_duration(environ.get("OLLAMA_KEEP_ALIVE") or "5m"),
            parallel=number("OLLAMA_NUM_PARALLEL", 1),
            max_queue=number("OLLAMA_MAX_QUEUE", 512),
            max_loaded=number("OLLAMA_MAX_LOADED_MODELS", 3),
            context_length=2048 if profile.old else number("OLLAMA_CONTEXT_LENGTH", 4096),
            prune=not flag("OLLAMA_NOPRUNE"),
            load_s=float(environ.get("STANDIN_LOAD_S") or 0.25),
            token_s=float(environ.get("STANDIN_TOKEN_S") or 0.02),
            ping_s=float(environ.get("STANDIN_PING_S") or 10),
            gpu=environ.get("STANDIN_GPU", ""),
            control=flag("STANDIN_CONTROL"),
            fault=environ.get("STANDIN_FAULT", ""),
            fault_file=environ.get("STANDIN_FAULT_FILE", ""),
        )


# --- faults ----------------------------------------------------------------------------------------------------------

FAULTS = frozenset(
    {
        "never_load", "out_of_memory", "hang_before_first_token", "stall_mid_stream", "slow", "garbage", "error_500",
        "error_mid_stream", "eof_without_done", "die", "cpu_fallback", "frozen", "spin",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Fault:
    name: str = ""
    after: int | None = None  # tokens of a stream that still come; `spin` has none by default
    factor: float = 10.0
    code: int = 1
    message: str = ""

    @property
    def tokens(self) -> int:
        return 3 if self.after is None else self.after

    def hits(self, name: str, index: int) -> bool:
        """Whether the token of this index is the one at which the stream goes wrong, or one behind it."""
        return self.name == name and index >= self.tokens


def parse_fault(text: str) -> Fault:
    """`slow`, `stall_mid_stream,after=2` or `{"fault": "die", "code": 3}`; empty or `none` clears. Raises ValueError."""
    text = text.strip()
    if text.startswith("{"):
        fields = as_object(json.loads(text))
    else:
        name, *pairs = text.split(",")
        fields = {"fault": name, **dict(pair.strip().partition("=")[::2] for pair in pairs)}
    name = str(fields.get("fault", "")).strip()
    if name in {"", "none"}:
        return Fault()
    if name not in FAULTS:
        raise ValueError(f"unknown fault: {name}")
    after = fields.get("after")
    return Fault(
        name,
        None if after is None else int(str(after)),
        float(str(fields.get("factor", 10))),
        int(str(fields.get("code", 1))),
        str(fields.get("message", "")),
    )


class Faults:
    """The fault of the moment: from the environment, then from whoever spoke last, the file or the control API."""

    def __init__(self, text: str, file: str) -> None:
        self._fault = parse_fault(text)
        self._file = Path(file) if file else None
        self._seen = (0, 0)

    def set(self, text: str) -> None:
        self._fault = parse_fault(text)
        self._die_at_once()

    def current(self) -> Fault:
        if self._file:
            self._read(self._file)
        self._die_at_once()
        return self._fault

    def _read(self, file: Path) -> None:
        try:
            stat = file.stat()
            seen = (stat.st_mtime_ns, stat.st_size)
            if seen != self._seen:
                self._seen, self._fault = seen, parse_fault(file.read_text("utf-8"))
        except FileNotFoundError:
            if self._seen != (0, 0):
                self._seen, self._fault = (0, 0), Fault()
        except ValueError as error:
            sys.stderr.write(f"stand-in: {file}: {error}\n")

    def _die_at_once(self) -> None:
        if self._fault.name == "die" and self._fault.after is None:
            exit_now(self._fault.code)


def exit_now(code: int) -> None:
    """End the process from any thread, without waiting for the others."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
