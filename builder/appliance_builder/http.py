"""HTTP/1.1 exchanges over httpx, which no other module imports. Knows hosts, proxies and what went wrong on the way;
knows nothing of registries. A status is never an error here, and no redirect is followed."""

from __future__ import annotations

import os
import threading
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

import httpcore
import httpx

from appliance_builder.certificates import trust
from appliance_builder.network import Network
from appliance_builder.network_errors import Fault, NetworkError, Situation, network_error, os_fault, proxy_fault
from appliance_builder.outgoing import Outgoing
from appliance_builder.proxies import proxy_for
from appliance_builder.sockets import SocketBackend
from appliance_image.errors import ApplianceError
from appliance_image.reference import DOCKER_HUB

_AGENT = "ollama-appliance"
_IDLE_S = 20.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """None of them bounds a whole exchange: what moves may take its time."""

    connect_s: float = 10.0
    read_s: float = 60.0
    write_s: float = 60.0


class Answer:
    """A response whose body is still on the wire."""

    def __init__(self, response: httpx.Response, situation: Situation) -> None:
        self.status: int = response.status_code
        self.headers: Mapping[str, str] = response.headers
        self.url = str(response.request.url)
        self._response = response
        self._situation = situation

    def chunks(self) -> Iterator[bytes]:
        """Bytes as they come, not decoded; a body that ends before its announced size is a NetworkError."""
        try:
            yield from self._response.iter_raw()
        except httpx.TransportError as error:
            raise _network_error(error, self._situation) from error

    def body(self, *, limit_bytes: int) -> bytes:
        """The first `limit_bytes` bytes; what is beyond them stays unread."""
        parts: list[bytes] = []
        size = 0
        for chunk in self.chunks():
            parts.append(chunk)
            size += len(chunk)
            if size >= limit_bytes:
                break
        return b"".join(parts)[:limit_bytes]


class Http:
    """One pool of connections for each origin. Safe to use from many threads; opens nothing before it is asked."""

    def __init__(
        self, network: Network, *, environ: Mapping[str, str] = os.environ, timeouts: Timeouts | None = None
    ) -> None:
        self.network = network
        self._environ = environ
        self._timeouts = timeouts or Timeouts()
        self._clients: dict[tuple[str, str], httpx.Client] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        with self._lock:
            clients = list(self._clients.values())
            self._clients.clear()
        for client in clients:
            client.close()

    @contextmanager
    def exchange(
        self,
        method: str,
        url: str,
        *,
        doing: str,
        headers: Mapping[str, str] | None = None,
        body: bytes | Outgoing | None = None,
        read_s: float | None = None,
        answer_s: float = 0,
    ) -> Generator[Answer]:
        """`doing` begins the message of an error: `uploading layer 3f2a`. `read_s` waits longer for the answer and for
        each piece of it; for its beginning `answer_s`, if that is more."""
        timeouts = self._timeouts
        read_s = read_s or timeouts.read_s
        waits = httpx.Timeout(connect=timeouts.connect_s, read=max(read_s, answer_s), write=timeouts.write_s, pool=None)
        fields = dict(headers or {})
        if isinstance(body, Outgoing) and body.size is not None:
            fields["Content-Length"] = str(body.size)
        situation = Situation(doing, urlsplit(url).netloc.rpartition("@")[2], self._proxy_host(url), waits.read or 0)
        try:
            client = self._client(url)
            content = body.chunks if isinstance(body, Outgoing) else body
            request = client.build_request(method, url, headers=fields, content=content, timeout=waits)
            response = client.send(request, stream=True)
            request.extensions["timeout"]["read"] = read_s  # looked up anew for the body
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise _network_error(error, situation) from error
        try:
            yield Answer(response, replace(situation, read_s=read_s))
        finally:
            response.close()

    def _proxy_host(self, url: str) -> str | None:
        proxy = proxy_for(url, self._environ)
        return urlsplit(proxy).netloc.rpartition("@")[2] if proxy else None

    def _client(self, url: str) -> httpx.Client:
        parts = urlsplit(url)
        key = (parts.scheme, parts.netloc.rpartition("@")[2])
        with self._lock:
            if key not in self._clients:
                self._clients[key] = self._make_client(url, *key)
            return self._clients[key]

    def _make_client(self, url: str, scheme: str, place: str) -> httpx.Client:
        proxy = proxy_for(url, self._environ)
        try:
            pool = httpcore.ConnectionPool(
                ssl_context=trust(place, self._authority(place)) if scheme == "https" else None,
                proxy=_proxy(proxy) if proxy else None,
                network_backend=SocketBackend(),
                max_connections=None,
                keepalive_expiry=_IDLE_S,
            )
        except (ImportError, RuntimeError) as error:
            raise ApplianceError("SOCKS proxies need one more package", hint="`pip install socksio`") from error
        return httpx.Client(
            transport=_PoolTransport(pool),
            headers={"User-Agent": _AGENT, "Accept-Encoding": "identity"},
            # Docker keeps none either; Harbor asks clients that show its cookies for a CSRF token.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    def _authority(self, place: str) -> Path | None:
        hub = DOCKER_HUB if place.endswith(f".{DOCKER_HUB}") else place
        return self.network.ca.get(place) or self.network.ca.get(hub)


class _PoolTransport(httpx.HTTPTransport):
    """httpx's own, over a pool with our sockets: the pool is all that its constructor would have made."""

    def __init__(self, pool: httpcore.ConnectionPool) -> None:
        self._pool = pool


def _proxy(url: str) -> httpcore.Proxy:
    parts = urlsplit(url)
    auth = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    place = f"{host}:{parts.port}" if parts.port else str(host)
    return httpcore.Proxy(f"{parts.scheme}://{place}", auth=auth)


def _network_error(error: httpx.TransportError | httpx.InvalidURL, situation: Situation) -> NetworkError:
    match error:
        case httpx.ConnectTimeout():
            fault, detail = Fault.CONNECT_TIMEOUT, ""
        case httpx.TimeoutException():
            fault, detail = Fault.TIMEOUT, ""
        case httpx.ProxyError():
            fault, detail = proxy_fault(str(error)), str(error)
        case httpx.UnsupportedProtocol() | httpx.LocalProtocolError() | httpx.InvalidURL():
            fault, detail = Fault.REQUEST, str(error)
        case _:
            fault, detail = os_fault(error) or (Fault.BROKEN, str(error).rstrip(".").lower())
    return network_error(fault, detail, situation)
