"""A web proxy as sites have them: it opens tunnels, all to one server, and refuses those it is told to."""

import contextlib
import socket
import threading
from collections.abc import Iterator, Mapping

from httpwire import read_head, reader

_PIECE_BYTES = 256 * 1024


class ConnectProxy:
    """`refused`: the status that the nth CONNECT gets, counted from 1, in place of a tunnel to `upstream`."""

    def __init__(self, upstream: tuple[str, int], refused: Mapping[int, str]) -> None:
        self.asked: list[str] = []
        self._upstream = upstream
        self._refused = refused
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def start(self) -> None:
        self._threads[0].start()

    def close(self) -> None:
        """When its clients have gone."""
        self._listener.shutdown(socket.SHUT_RDWR)
        while self._threads:
            self._threads.pop().join(timeout=30)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._converse, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _converse(self, client: socket.socket) -> None:
        with client, reader(client) as stream:
            head = read_head(stream)
            if head is None:
                return
            self.asked.append(f"{head.method} {head.target}")
            if status := self._refused.get(len(self.asked)):
                client.sendall(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                return
            client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with socket.create_connection(self._upstream) as server:
                back = threading.Thread(target=_carry, args=(server, client), daemon=True)
                back.start()
                _carry(client, server)
                back.join()


def _carry(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def connect_proxy(port: int, refused: Mapping[int, str]) -> Iterator[ConnectProxy]:
    proxy = ConnectProxy(("127.0.0.1", port), refused)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.close()
