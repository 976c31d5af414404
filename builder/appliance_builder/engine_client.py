"""A connection to the user's Docker Engine: where it is, how it is reached, what is wrong when it is not. Knows no images.

`docker.APIClient` finds the way (sockets, TLS, ssh, contexts, API versions); every answer is judged by its status code here.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import docker
import requests
from docker.constants import DEFAULT_UNIX_SOCKET
from docker.context import ContextAPI
from docker.errors import DockerException
from docker.tls import TLSConfig
from docker.utils import kwargs_from_env

from appliance_image.errors import ApplianceError

_ANSWER_S: Final = 60
_OLDEST_API: Final = (1, 41)
_PIECE_BYTES: Final = 64 * 1024
_OTHERWISE: Final = "or do without an engine: `--push`, or `--output oci-archive:FILE`"
_LOG: Final = "the engine's log tells more: `journalctl -u docker -n 50`"
_START: Final = f"`sudo systemctl start docker`, {_OTHERWISE}"


class EngineError(ApplianceError):
    def __init__(self, message: str, *, hint: str = _LOG, status: int | None = None) -> None:
        super().__init__(message, hint=hint)
        self.status = status


@dataclass(frozen=True, slots=True)
class Endpoint:
    """`address` is a URL as in DOCKER_HOST."""

    address: str
    tls: TLSConfig | None

    @property
    def socket_path(self) -> Path | None:
        scheme, _, path = self.address.partition("://")
        return Path(f"/{path.lstrip('/')}") if scheme.removeprefix("http+") == "unix" else None


class EngineClient:
    def __init__(self, endpoint: Endpoint, client: docker.APIClient) -> None:
        self.endpoint = endpoint
        self._client = client

    @classmethod
    def connect(cls, environment: Mapping[str, str]) -> EngineClient:
        endpoint = _endpoint(environment)
        if endpoint.socket_path:
            _check_socket(endpoint.socket_path)
        try:
            client = _client(endpoint, "auto", timeout_s=_ANSWER_S)
        except (DockerException, requests.RequestException, OSError) as error:
            raise EngineError(
                f"the Docker Engine at {endpoint.address} cannot be reached: {error}",
                hint=f"check DOCKER_HOST and `docker version`, {_OTHERWISE}",
            ) from error
        if _numbers(client.api_version) < _OLDEST_API:
            client.close()
            raise EngineError(
                f"the Docker Engine at {endpoint.address} is too old: API {client.api_version}",
                hint=f"update it to 20.10 or newer, {_OTHERWISE}",
            )
        return cls(endpoint, client)

    def close(self) -> None:
        self._client.close()

    def json(self, path: str, *, doing: str, **parameters: str) -> Any:
        with self._talking(doing):
            return _checked(self._client.get(self._url(path), params=parameters, timeout=_ANSWER_S), doing).json()

    def call(self, method: str, path: str, *, doing: str, **parameters: str) -> None:
        with self._talking(doing):
            _checked(self._client.request(method, self._url(path), params=parameters, timeout=_ANSWER_S), doing)

    def post(self, path: str, body: object, *, doing: str, within_s: float = _ANSWER_S, **parameters: str) -> Any:
        with self._talking(doing):
            response = self._client.post(self._url(path), params=parameters, json=body, timeout=within_s)
            return _checked(response, doing).json()

    def answers(self, *, timeout_s: float) -> bool:
        """Whether the engine is alive, however busy."""
        try:
            client = _client(self.endpoint, self._client.api_version, timeout_s=timeout_s)
            with contextlib.closing(client):
                return client.get(f"{client.base_url}/_ping", timeout=timeout_s).status_code == 200
        except (DockerException, requests.RequestException, OSError):
            return False

    def download(self, path: str, *, doing: str, chunk_bytes: int) -> Iterator[bytes]:
        """Without a time limit: an engine may prepare a while before its first byte."""
        with self._talking(doing), contextlib.closing(self._patient()) as client:
            response = client.get(self._url(path), stream=True, timeout=None)
            with _checked(response, doing):
                yield from cast("Iterator[bytes]", response.iter_content(chunk_bytes))

    def upload(self, path: str, body: Iterable[bytes], *, doing: str, **parameters: str) -> Iterator[bytes]:
        """The lines of the answer. Without a time limit: an engine may work for minutes and say nothing."""
        with self._talking(doing), contextlib.closing(self._patient()) as client:
            headers = {"Content-Type": "application/x-tar"}
            url = self._url(path)
            response = client.post(
                url, params=parameters, data=_pieces(body), headers=headers, stream=True, timeout=None
            )
            with _checked(response, doing):
                yield from cast("Iterator[bytes]", response.iter_lines())

    def _url(self, path: str) -> str:
        return f"{self._client.base_url}/v{self._client.api_version}/{path}"

    def _patient(self) -> docker.APIClient:
        """With connections of its own: a pooled one remembers the time limit of its last use."""
        return _client(self.endpoint, self._client.api_version, timeout_s=None)

    @contextmanager
    def _talking(self, doing: str) -> Generator[None]:
        try:
            yield
        except (DockerException, requests.RequestException, ConnectionError, TimeoutError) as error:
            raise EngineError(f"{doing}: the Docker Engine went away: {_reason(error)}", hint=_START) from error


def _pieces(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """urllib3 copies whatever it sends in chunks: small copies lie where the last one lay, large ones on new pages."""
    for chunk in chunks:
        view = memoryview(chunk)
        for start in range(0, len(view), _PIECE_BYTES):
            yield cast("bytes", view[start : start + _PIECE_BYTES])  # which it takes, and the stubs do not know


def _client(endpoint: Endpoint, version: str, *, timeout_s: float | None) -> docker.APIClient:
    timeout = cast("int", timeout_s)  # the stubs know neither fractions nor None, requests does
    return docker.APIClient(endpoint.address, version=version, timeout=timeout, tls=endpoint.tls or False)


def _checked(response: requests.Response, doing: str) -> requests.Response:
    if response.status_code < 400:
        return response
    with response:
        reason = _message(response)
    raise EngineError(
        f"{doing}: the Docker Engine answered {response.status_code}: {reason}", status=response.status_code
    )


def _message(response: requests.Response) -> str:
    try:
        return str(cast("dict[str, object]", response.json())["message"])
    except (ValueError, KeyError, TypeError):
        return response.text.strip()[:200] or response.reason


def _endpoint(environment: Mapping[str, str]) -> Endpoint:
    """As the `docker` command decides: DOCKER_HOST, then DOCKER_CONTEXT, then the context in use, then the default."""
    try:
        if environment.get("DOCKER_HOST"):
            words = kwargs_from_env(environment)
            tls = words.get("tls")
            return Endpoint(words.get("base_url", DEFAULT_UNIX_SOCKET), tls if isinstance(tls, TLSConfig) else None)
        name = environment.get("DOCKER_CONTEXT")
        context = cast("Any", ContextAPI.get_context(name))  # the stubs do not know that it may be None
    except DockerException as error:
        raise EngineError(f"the Docker settings cannot be used: {error}", hint="try `docker version`") from error
    if context is None:
        raise EngineError(f"no docker context `{name or 'in use'}`", hint="`docker context ls` lists them")
    return Endpoint(str(context.Host or DEFAULT_UNIX_SOCKET), cast("TLSConfig | None", context.TLSConfig))


def _check_socket(path: Path) -> None:
    """Says what is wrong more exactly than any library: by the error that the kernel gives."""
    try:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(_ANSWER_S)
            probe.connect(str(path))
    except FileNotFoundError as error:
        raise EngineError(f"no Docker Engine here: no socket {path}", hint=_START) from error
    except PermissionError as error:
        raise EngineError(
            f"no permission for the Docker Engine's socket {path}",
            hint="`sudo usermod -aG docker $USER`, then log in again",
        ) from error
    except OSError as error:
        raise EngineError(f"no Docker Engine listens at {path}: {_reason(error)}", hint=_START) from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdecimal())


def _reason(error: BaseException) -> str:
    """The innermost cause has the words that a person knows."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno).lower()
    return str(error) or type(error).__name__
