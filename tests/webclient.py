"""Clients of the agent's HTTP server, polite ones and raw sockets."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from dataclasses import replace

from appliance_agent.front import Front
from appliance_agent.slots import Now
from appliance_agent.snapshot import Snapshot

GET = b"GET /-/ready HTTP/1.1\r\nHost: a\r\n\r\n"


def current(snapshot: Snapshot, *, age_s: float = 0.0) -> Snapshot:
    return replace(snapshot, now=Now(time.monotonic() - age_s, snapshot.now.wall_s))


def web_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("web")]


def get(front: Front, path: str, *, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
    try:
        connection.request(method, path, headers={name.replace("_", "-"): text for name, text in headers.items()})
        answer = connection.getresponse()
        return answer.status, {name.lower(): text for name, text in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def connect(front: Front) -> socket.socket:
    return socket.create_connection(("127.0.0.1", front.port), timeout=20)


def to_the_end(peer: socket.socket) -> bytes:
    received = b""
    while more := peer.recv(65536):
        received += more
    return received


def said(front: Front, words: bytes) -> bytes:
    """All that the server says to these words, until it closes the connection."""
    with connect(front) as peer:
        peer.sendall(words)
        return to_the_end(peer)
