"""A way to an engine's socket on which events get lost, as they do when a listener is too slow."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable
from pathlib import Path

_EVENTS = b"/events"


class LeakySocket:
    """Listens at `path`. While `loses_events`, what the engine says about events is thrown away, and nobody is told."""

    def __init__(self, path: Path, engine: Path) -> None:
        self.path = path
        self.loses_events = False
        self._engine = engine
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.socket(socket.AF_UNIX)

    def open(self) -> None:
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._start(self._serve)

    def close(self) -> None:
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)
        for each in (self._listener, *self._open):
            each.close()

    def cut(self) -> int:
        """Ends all connections of the moment; new ones are welcome. How many there were."""
        cut = [each for each in self._open if each.fileno() >= 0]
        for each in cut:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        return len(cut) // 2

    def _start(self, work: Callable[..., None], *words: object) -> None:
        thread = threading.Thread(target=work, args=words, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            try:
                far.connect(str(self._engine))
            except OSError:
                near.close()
                far.close()
                continue
            self._open = [each for each in self._open if each.fileno() >= 0] + [near, far]
            self._start(self._carry, near, far)

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        """The request, and beside it whatever comes back; both ends are closed when the engine has no more to say."""
        is_events = threading.Event()
        sender = threading.Thread(target=self._ask, args=(near, far, is_events), daemon=True)
        sender.start()
        with contextlib.suppress(OSError):
            while chunk := far.recv(1 << 16):
                if not (is_events.is_set() and self.loses_events):
                    near.sendall(chunk)
        for each in (near, far):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        sender.join()
        near.close()
        far.close()

    def _ask(self, near: socket.socket, far: socket.socket, is_events: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while chunk := near.recv(1 << 16):
                if _EVENTS in chunk.partition(b"\r\n")[0]:
                    is_events.set()
                far.sendall(chunk)
            far.shutdown(socket.SHUT_WR)
