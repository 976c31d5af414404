"""The one door to the `docker` library: JSON calls to the engine, judged by their status code. Knows no containers.

A door belongs to one thread and to one life of the engine; after an error other than a status, open another.
"""

from __future__ import annotations

import select
import time
from collections.abc import Generator, Mapping
from contextlib import closing, contextmanager
from typing import Any, Final, cast

import docker
import requests
from docker.errors import DockerException

from appliance_agent.engine_socket import (
    LOG_HINT,
    START_HINT,
    EngineAwayError,
    EngineError,
    EngineSilentError,
    Ping,
    Pong,
    dial,
)

_LONGEST_MESSAGE: Final = 2000


class DockerDoor:
    def __init__(self, path: str, client: docker.APIClient, *, timeout_s: float) -> None:
        self._path = path
        self._client = client
        self._timeout_s = timeout_s

    @classmethod
    def open(cls, path: str, *, timeout_s: float, pong: Pong | None = None) -> DockerDoor:
        """The API version is the engine's own, from `pong` or from a question now."""
        pong = pong or knock(path, timeout_s=timeout_s)
        timeout = cast("int", timeout_s)  # the stubs do not know fractions, requests does
        with _talking("connecting to the Docker Engine"):
            client = docker.APIClient(f"unix://{path}", version=pong.api_version, timeout=timeout)
        client.trust_env = False  # no proxy and no netrc on the way to a socket
        # An engine that is being stopped goes on to answer on connections that it has, and takes no new ones.
        client.headers["Connection"] = "close"
        return cls(path, client, timeout_s=timeout_s)

    @property
    def api_version(self) -> str:
        return str(self._client.api_version)

    def get(self, path: str, *, doing: str, **parameters: str) -> Any:
        return self.ask("GET", path, doing=doing, parameters=parameters)

    def ask(
        self,
        method: str,
        path: str,
        *,
        doing: str,
        body: Mapping[str, object] | None = None,
        within_s: float | None = None,
        parameters: Mapping[str, str] | None = None,
    ) -> Any:
        """The decoded answer, None where there is none. A status from 400 on is an EngineError with that status."""
        dial(self._path, timeout_s=self._timeout_s).close()  # the library says less of a socket that is not there
        url = f"{self._client.base_url}/v{self.api_version}{path}"
        with _talking(doing):
            response = self._client.request(
                method, url, params=parameters, json=body, timeout=self._timeout_s if within_s is None else within_s
            )
        if response.status_code >= 400:
            raise EngineError(f"{doing}: {_message(response)}", hint=LOG_HINT, status=response.status_code)
        return response.json() if response.content else None

    def close(self) -> None:
        self._client.close()


def knock(path: str, *, timeout_s: float) -> Pong:
    """Waits for an answer; raises EngineSilentError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    with closing(Ping(path)) as ping:
        ping.begin()
        while ping.socket and select.select([ping.socket], [], [], max(0.0, deadline - time.monotonic()))[0]:
            if pong := ping.finish():
                return pong
    raise EngineSilentError(f"the Docker Engine has not answered for {timeout_s:.0f} s")


@contextmanager
def _talking(doing: str) -> Generator[None]:
    try:
        yield
    except (DockerException, requests.RequestException, OSError) as error:
        causes = list(_causes(error))
        if any(isinstance(cause, TimeoutError | requests.Timeout) for cause in causes):
            raise EngineSilentError(f"{doing}: the Docker Engine did not answer in time") from error
        reasons = [cause.strerror.lower() for cause in causes if isinstance(cause, OSError) and cause.strerror]
        reason = reasons[-1] if reasons else type(error).__name__
        raise EngineAwayError(f"{doing}: the Docker Engine went away: {reason}", hint=START_HINT) from error


def _causes(error: BaseException | None) -> Generator[BaseException]:
    while error:
        yield error
        error = error.__cause__ or error.__context__


def _message(response: requests.Response) -> str:
    try:
        return str(cast("dict[str, object]", response.json())["message"])[:_LONGEST_MESSAGE]
    except (ValueError, KeyError, TypeError):
        return response.text.strip()[:200] or f"status {response.status_code}"
