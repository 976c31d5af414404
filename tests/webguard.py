"""A front with a web-config file, and clients that speak TLS and have passwords."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import bcrypt
import snapshots
from webclient import current, web_threads

from appliance_agent.config import MetricsConfig
from appliance_agent.front import Front

PASSWORD = "sesam öffne dich"
WITH_TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"


def hashed(password: str = PASSWORD, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def users(**passwords: str) -> str:
    return "basic_auth_users:\n" + "".join(f'  {name}: "{hashed(word)}"\n' for name, word in passwords.items())


def basic(name: str, password: str = PASSWORD) -> str:
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


@contextlib.contextmanager
def guarded(path: Path, text: str, *, runtime: str = "") -> Iterator[Front]:
    path.write_text(text)
    front = Front(MetricsConfig("127.0.0.1", 0, web_config=str(path)), runtime)
    front.open()
    try:
        front.publish(current(snapshots.good_night(2)))
        yield front
    finally:
        front.close()
    assert web_threads() == []


@dataclass(frozen=True, slots=True)
class Answered:
    status: int
    headers: dict[str, str]
    body: bytes


def trusting(authority: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority)


def ask(front: Front, path: str = "/-/ready", *, context: ssl.SSLContext | None = None, **headers: str) -> Answered:
    kind = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
    if context:
        kind = http.client.HTTPSConnection("127.0.0.1", front.port, timeout=20, context=context)
    with contextlib.closing(kind) as connection:
        connection.request("GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return Answered(answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read())


def secured(front: Front, context: ssl.SSLContext) -> ssl.SSLSocket:
    return context.wrap_socket(
        socket.create_connection(("127.0.0.1", front.port), timeout=20), server_hostname="127.0.0.1"
    )
