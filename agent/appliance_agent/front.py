"""What the agent shows over HTTP, put together: the published snapshot, what is counted, the pages and their servers.

With a `web_config` there is a second server: a socket in the unit's runtime directory, where root and the agent's group
need neither certificate nor password. `ollama-agent status` asks there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from appliance_agent.config import MetricsConfig
from appliance_agent.events import Events
from appliance_agent.exposition import Exposition
from appliance_agent.gpus import GpuSnapshot
from appliance_agent.pages import Pages
from appliance_agent.snapshot import Snapshot
from appliance_agent.web import WebServer
from appliance_agent.web_access import WebAccess
from appliance_agent.web_listen import FilePlace, TcpPlace

STATUS_SOCKET = "status.sock"


class Front:
    """`publish` belongs to the loop, `events.canary` to whoever probes."""

    def __init__(self, metrics: MetricsConfig, runtime_directory: str = "") -> None:
        self.events = Events()
        self._snapshot: Snapshot | None = None
        self._gpus: Callable[[], GpuSnapshot] | None = None
        self._shown: tuple[Snapshot, Snapshot] | None = None  # as it was published, and with newer GPUs
        pages = Pages(self.snapshot, Exposition(self.snapshot, self.events), self.events.traffic.generated)
        self._access = WebAccess(Path(metrics.web_config)) if metrics.web_config else None
        self._server = WebServer(TcpPlace(metrics.address, metrics.port), pages, self._access)
        self._servers = [self._server]
        if self._access and runtime_directory:
            self._servers.append(WebServer(FilePlace(Path(runtime_directory, STATUS_SOCKET)), pages))

    @property
    def port(self) -> int:
        return self._server.port

    def watch(self, gpus: Callable[[], GpuSnapshot]) -> None:
        """Where the newest look at the GPUs is: it is shown before the loop comes to it."""
        self._gpus = gpus

    def snapshot(self) -> Snapshot | None:
        published, gpus = self._snapshot, self._gpus() if self._gpus else None
        if published is None or gpus is None or gpus.at_s <= published.gpus.at_s:
            return published
        shown = self._shown
        if shown is None or shown[0] is not published or shown[1].gpus is not gpus:
            shown = self._shown = (published, replace(published, gpus=gpus))
        return shown[1]

    def publish(self, snapshot: Snapshot) -> None:
        problem = self._access.problem if self._access else ""
        self._snapshot = replace(snapshot, problems=(*snapshot.problems, problem)) if problem else snapshot
        self.events.tick(snapshot.tick_s, snapshot.late_s)

    def open(self) -> None:
        """Raises WebError and WebConfigError; then nothing is open."""
        if self._access:
            self._access.open()
        try:
            for server in self._servers:
                server.open()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        for server in reversed(self._servers):
            server.close()
