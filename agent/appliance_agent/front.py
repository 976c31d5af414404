"""What the agent shows over HTTP, put together: the published snapshot, what is counted, the pages and their server."""

from __future__ import annotations

from appliance_agent.config import MetricsConfig
from appliance_agent.events import Events
from appliance_agent.exposition import Exposition
from appliance_agent.pages import Pages
from appliance_agent.snapshot import Snapshot
from appliance_agent.web import WebServer


class Front:
    """`publish` belongs to the loop, `events.canary` to whoever probes."""

    def __init__(self, metrics: MetricsConfig) -> None:
        self.events = Events()
        self._snapshot: Snapshot | None = None
        self._server = WebServer(
            metrics.address, metrics.port, Pages(self.snapshot, Exposition(self.snapshot, self.events))
        )

    @property
    def port(self) -> int:
        return self._server.port

    def snapshot(self) -> Snapshot | None:
        return self._snapshot

    def publish(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self.events.tick(snapshot.tick_s, snapshot.late_s)

    def open(self) -> None:
        """Raises WebError."""
        self._server.open()

    def close(self) -> None:
        self._server.close()
