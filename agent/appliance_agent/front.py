"""What the agent shows over HTTP, put together: the published snapshot, what is counted, the pages and their servers.

With a `web_config` there is a second server: a socket in the unit's runtime directory, where root and the agent's group
need neither certificate nor password. `ollama-agent status` asks there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from appliance_agent.config import MetricsConfig
from appliance_agent.events import Events
from appliance_agent.evidence import Evidence
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
        self._looks: tuple[Callable[[], GpuSnapshot], Callable[[], Mapping[int, Evidence]]] | None = None
        self._shown: tuple[Snapshot, Snapshot] | None = None  # as it was published, and with the newest looks
        pages = Pages(self.snapshot, Exposition(self.snapshot, self.events), self.events.traffic.generated)
        self._access = WebAccess(Path(metrics.web_config)) if metrics.web_config else None
        self._server = WebServer(TcpPlace(metrics.address, metrics.port), pages, self._access)
        self._servers = [self._server]
        if self._access and runtime_directory:
            self._servers.append(WebServer(FilePlace(Path(runtime_directory, STATUS_SOCKET)), pages))

    @property
    def port(self) -> int:
        return self._server.port

    def watch(self, gpus: Callable[[], GpuSnapshot], evidence: Callable[[], Mapping[int, Evidence]]) -> None:
        """Where the newest looks are: they are shown before the loop comes to them."""
        self._looks = (gpus, evidence)

    def snapshot(self) -> Snapshot | None:
        published, looks, shown = self._snapshot, self._looks, self._shown
        if published is None or looks is None:
            return published
        gpus, evidence = looks[0](), looks[1]()
        if not shown or shown[0] is not published or shown[1].gpus is not gpus or shown[1].evidence != evidence:
            shown = self._shown = (published, replace(published, gpus=gpus, evidence=evidence))
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
