"""What the agent's HTTP server answers, all of it from the published snapshot: never asks NVML, Docker or a model."""

from __future__ import annotations

import html
import json
import re
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus

from appliance_agent import scrape_format, status_json
from appliance_agent.exposition import Exposition, Snapshots
from appliance_agent.generated import Generated
from appliance_agent.http_head import Answer, Request
from appliance_agent.snapshot import Snapshot

_HEALTHY_S = 15.0  # without a tick for so long the loop hangs
_JSON = "application/json"
_OWN_NAME = re.compile(r"([0-9A-Za-z][0-9A-Za-z.-]{0,253}|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?")
_STARTING = Answer(HTTPStatus.SERVICE_UNAVAILABLE, b"the agent has only just started\n")
_INDEX = {
    "/metrics": "for Prometheus",
    "/status": "all slots, GPUs and what was done lately, as JSON",
    "/-/healthy": "200 while the agent's loop runs",
    "/-/ready": "200 while at least one slot serves",
    "/sd": "this agent as a target, for Prometheus' HTTP service discovery",
}


class Pages:
    def __init__(
        self,
        snapshots: Snapshots,
        exposition: Exposition,
        generated: Callable[[], Mapping[int, Generated]] = dict,
        mono_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._snapshots = snapshots
        self._generated = generated
        self._exposition = exposition
        self._mono_s = mono_s

    def __call__(self, request: Request, own_url: str) -> Answer:
        pages: dict[str, Callable[[], Answer]] = {
            "/": lambda: _index(self._snapshots()),
            "/metrics": lambda: self._metrics(request),
            "/status": self._status,
            "/-/healthy": self._healthy,
            "/-/ready": self._ready,
            "/sd": lambda: _discovery(self._snapshots(), request, own_url),
        }
        page = pages.get(request.path)
        return page() if page else Answer(HTTPStatus.NOT_FOUND, b"not found; / lists what there is\n")

    def _metrics(self, request: Request) -> Answer:
        form, gzip = scrape_format.chosen(request.headers.get("accept", "")), request.accepts_gzip
        headers = {"Vary": "Accept, Accept-Encoding"} | ({"Content-Encoding": "gzip"} if gzip else {})
        return Answer(HTTPStatus.OK, self._exposition.body(form, gzip=gzip), form.value, headers)

    def _status(self) -> Answer:
        snapshot = self._snapshots()
        if snapshot is None:
            return _STARTING
        age = {"Age": str(int(self._age_s(snapshot)))}
        return Answer(HTTPStatus.OK, status_json.render(snapshot, self._generated()).encode(), _JSON, age)

    def _healthy(self) -> Answer:
        snapshot = self._snapshots()
        if snapshot is None:
            return _STARTING
        age_s = self._age_s(snapshot)
        if age_s > _HEALTHY_S:
            return Answer(
                HTTPStatus.SERVICE_UNAVAILABLE, f"the loop hangs: its last tick was {age_s:.0f} s ago\n".encode()
            )
        return Answer(HTTPStatus.OK, b"healthy\n")

    def _ready(self) -> Answer:
        snapshot = self._snapshots()
        if snapshot is None:
            return _STARTING
        serving = snapshot.ready
        status = HTTPStatus.OK if serving else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer(status, f"{serving} of {len(snapshot.host.slots)} slots serving\n".encode())

    def _age_s(self, snapshot: Snapshot) -> float:
        return max(self._mono_s() - snapshot.now.mono_s, 0.0)


def _discovery(snapshot: Snapshot | None, request: Request, own_url: str) -> Answer:
    """Under the name that was asked for: it is the one by which Prometheus reaches this host."""
    name = request.headers.get("host", "")
    scheme, _, own_address = own_url.partition("://")
    target = name if _OWN_NAME.fullmatch(name) else own_address
    labels = {"__scheme__": scheme} if scheme == "https" else {}
    if snapshot:
        labels |= {"__meta_appliance_version": snapshot.version, "__meta_appliance_host": snapshot.hostname}
    body = json.dumps([{"targets": [target], "labels": labels}], indent=2) + "\n"
    return Answer(HTTPStatus.OK, body.encode(), _JSON)


def _index(snapshot: Snapshot | None) -> Answer:
    title = html.escape(f"ollama-agent {snapshot.version} {snapshot.hostname}".strip() if snapshot else "ollama-agent")
    items = "".join(f'<li><a href="{path}">{path}</a> {html.escape(what)}</li>\n' for path, what in _INDEX.items())
    page = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{title}</title>\n'
        f"<h1>{title}</h1>\n<ul>\n{items}</ul>\n</html>\n"
    )
    return Answer(HTTPStatus.OK, page.encode(), "text/html; charset=utf-8")
