"""A socket before a real engine that holds some requests back until it is told to let them go."""

from __future__ import annotations

import contextlib
import select
import socket
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

_PIECE = 65536


@dataclass(frozen=True, slots=True)
class Held:
    socket: Path
    asked: threading.Event = field(default_factory=threading.Event)  # something is held back
    go: threading.Event = field(default_factory=threading.Event)


@contextmanager
def held_engine(engine: Path, path: Path, *, what: str) -> Iterator[Held]:
    """Requests whose target ends with `what` wait for `go`."""
    held = Held(path)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (piece := self.request.recv(_PIECE)):
                    return
                head += piece
            if head.split()[1].decode().partition("?")[0].endswith(what):
                held.asked.set()
                held.go.wait()
            with socket.socket(socket.AF_UNIX) as upstream, contextlib.suppress(OSError):
                upstream.connect(str(engine))
                upstream.sendall(head)
                _pump(self.request, upstream)

    with socketserver.ThreadingUnixStreamServer(str(path), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield held
        finally:
            held.go.set()
            server.shutdown()
            thread.join()


def _pump(one: socket.socket, other: socket.socket) -> None:
    while True:
        for readable in select.select([one, other], [], [])[0]:
            piece = readable.recv(_PIECE)
            if not piece:
                return
            (other if readable is one else one).sendall(piece)
