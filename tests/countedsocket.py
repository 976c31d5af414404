"""A way to an engine's socket that counts what goes in, so that a test can say how many bytes an engine was sent."""

import contextlib
import socket
import threading
from pathlib import Path


class CountedSocket:
    def __init__(self, listening: Path, engine: Path) -> None:
        self.docker_host = f"unix://{listening}"
        self.sent_bytes = 0
        self._engine = engine
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(listening))
        self._listener.listen()
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._serve)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(timeout=10)
        for each in (self._listener, *self._open):
            each.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.socket(socket.AF_UNIX)
            far.connect(str(self._engine))
            self._open += [near, far]
            for source, sink, counts in ((near, far, True), (far, near, False)):
                thread = threading.Thread(target=self._pump, args=(source, sink, counts))
                self._threads.append(thread)
                thread.start()

    def _pump(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := source.recv(1 << 18):
                self.sent_bytes += len(chunk) if counts else 0
                sink.sendall(chunk)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
