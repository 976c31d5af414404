"""Asks a running agent for its status over HTTP. No proxy, no redirect, no more than one answer's worth of patience.

Where a `web_config` asks for certificates or passwords, the agent's own host is asked through a socket that wants none.
"""

from __future__ import annotations

import http.client
import socket
from dataclasses import dataclass
from urllib.parse import urlsplit

from appliance_agent.config import MetricsConfig
from appliance_image.errors import ApplianceError

_TIMEOUT_S = 3.0
_MOST_BYTES = 16 * 1024 * 1024
_START = "`systemctl status ollama-agent` says whether it runs, `systemctl start ollama-agent` starts it"
_AGAIN = "ask again in a few seconds"
_ON_HOST = "run `ollama-agent status` without `--url` on the agent's own host: there it needs no password"
_URL = "give the address of an agent, for example `--url http://127.0.0.1:9440/status`"
_SOCKET = "unix:///run/ollama-agent/status.sock"
_GROUP = "root and members of group ollama-agent may ask: `sudo ollama-agent status`"


class StatusUnavailableError(ApplianceError):
    pass


@dataclass(frozen=True, slots=True)
class Told:
    text: str  # JSON
    age_s: float  # of the state


def url_of(metrics: MetricsConfig) -> str:
    """Where an agent with this configuration answers on its own host."""
    if metrics.web_config:
        return _SOCKET
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(metrics.address, metrics.address)
    return f"http://[{host}]:{metrics.port}/status" if ":" in host else f"http://{host}:{metrics.port}/status"


def ask(url: str, *, timeout_s: float = _TIMEOUT_S) -> Told:
    """Raises StatusUnavailableError."""
    connection, path = _connection(url, timeout_s)
    try:
        connection.request("GET", path, headers={"Accept": "application/json", "Connection": "close"})
        answer = connection.getresponse()
        text = answer.read(_MOST_BYTES).decode()
    except (OSError, http.client.HTTPException, UnicodeDecodeError) as error:
        hint = _GROUP if isinstance(error, PermissionError) else _START
        raise StatusUnavailableError(f"no agent answers at {url}: {_words(error)}", hint=hint) from error
    finally:
        connection.close()
    if answer.status != 200 or not answer.getheader("Content-Type", "").startswith("application/json"):
        sentence, hint = _refused(answer.status, text)
        raise StatusUnavailableError(f"{url} answers {answer.status} {answer.reason}: {sentence}", hint=hint)
    age = answer.getheader("Age", "0")
    return Told(text, float(age) if age.isdecimal() else 0.0)


def _refused(status: int, text: str) -> tuple[str, str]:
    """What it means, and what to do."""
    match status:
        case 503:
            return text.strip().partition("\n")[0][:200], _AGAIN
        case 401:
            return "it asks for a name and a password", _ON_HOST
        case _:
            return "is another program on this port, or another page at this path?", _URL


def _connection(url: str, timeout_s: float) -> tuple[http.client.HTTPConnection, str]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise StatusUnavailableError(f"not a URL: {url}", hint=_URL) from error
    if parts.scheme == "unix" and parts.path.strip("/"):
        return _FileConnection(parts.path, timeout_s), "/status"
    if parts.scheme not in ("http", "https") or not host:
        raise StatusUnavailableError(f"not a URL: {url}", hint=_URL)
    path = parts.path if parts.path.strip("/") else "/status"
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, port, timeout=timeout_s), path
    return http.client.HTTPConnection(host, port, timeout=timeout_s), path


class _FileConnection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def _words(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, http.client.HTTPException):
        return "what answers there does not speak HTTP"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
