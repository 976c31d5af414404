"""One container for a moment: started as strictly as a careful operator would, published on loopback, removed in the end."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

from appliance_builder.engine import Engine

_PORT = "11434/tcp"
_LOG_BYTES = 8192


@dataclass(frozen=True, slots=True)
class Container:
    engine: Engine
    id: str

    @property
    def url(self) -> str:
        ports = self._state("NetworkSettings")["Ports"][_PORT]
        return f"http://127.0.0.1:{ports[0]['HostPort']}"

    def alive(self) -> bool:
        return bool(self._state("State")["Running"])

    def log(self) -> str:
        """The end of what it said, the frames of the engine's stream taken out."""
        chunks = self.engine.client.download(
            f"containers/{self.id}/logs?stdout=1&stderr=1&tail=40", doing="reading a container's log", chunk_bytes=65536
        )
        data, text = b"".join(chunks), b""
        while len(data) >= 8:
            size = int.from_bytes(data[4:8], "big")
            text, data = text + data[8 : 8 + size], data[8 + size :]
        return text[-_LOG_BYTES:].decode(errors="replace")

    def _state(self, key: str) -> dict[str, Any]:
        seen = self.engine.client.json(f"containers/{self.id}/json", doing="looking at a container")
        return cast("dict[str, Any]", seen[key])


@contextmanager
def running(engine: Engine, image: str, *, gpus: bool) -> Generator[Container, None, None]:
    """Read-only root, no capabilities, nobody's user: what the contract promises must be enough."""
    host: dict[str, Any] = {
        "ReadonlyRootfs": True,
        "CapDrop": ["ALL"],
        "PortBindings": {_PORT: [{"HostIp": "127.0.0.1", "HostPort": ""}]},
    }
    if gpus:
        host["DeviceRequests"] = [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]
    body: dict[str, Any] = {"Image": image, "User": "65534:65534", "HostConfig": host, "ExposedPorts": {_PORT: {}}}
    made = engine.client.post("containers/create", body, doing=f"creating a container of {image}")
    container = Container(engine, made["Id"])
    try:
        engine.client.call("POST", f"containers/{container.id}/start", doing="starting the container")
        yield container
    finally:
        engine.client.call("DELETE", f"containers/{container.id}", doing="removing the container", force="1", v="1")
