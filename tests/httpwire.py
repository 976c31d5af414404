"""HTTP/1.1 heads and bodies as bytes on a stream: just enough for a proxy that must know where a body ends."""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BufferedReader
from typing import Literal

PIECE_BYTES = 256 * 1024
Framing = Literal["none", "fixed", "chunked", "until-end"]


_TLS_HANDSHAKE = b"\x16"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n400 Bad Request"


class WireError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Head:
    first: str
    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """The value, or an empty string."""
        return next((value for key, value in self.fields if key.lower() == name.lower()), "")

    def without(self, *names: str) -> "Head":
        gone = {name.lower() for name in names}
        return Head(self.first, tuple(field for field in self.fields if field[0].lower() not in gone))

    def with_field(self, name: str, value: str) -> "Head":
        return Head(self.first, (*self.without(name).fields, (name, value)))

    def encode(self) -> bytes:
        lines = [self.first, *(f"{name}: {value}" for name, value in self.fields)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    @property
    def method(self) -> str:
        return self.first.partition(" ")[0]

    @property
    def target(self) -> str:
        return self.first.split(" ")[1]

    @property
    def status(self) -> int:
        return int(self.first.split(" ")[1])


def reader(connection: socket.socket) -> BufferedReader:
    return BufferedReader(connection.makefile("rb", buffering=0), PIECE_BYTES)


def read_head(stream: BufferedReader) -> Head | None:
    """The next head, or None where the peer has ended the connection."""
    if stream.peek(1)[:1] == _TLS_HANDSHAKE:
        raise WireError("the peer speaks TLS")  # and would wait for an answer before it sends a line's end
    first = stream.readline(65536)
    if not first:
        return None
    fields = []
    while line := stream.readline(65536).rstrip(b"\r\n"):
        name, colon, value = line.decode("latin-1").partition(":")
        if not colon:
            raise WireError(f"not a header: {line!r}")
        fields.append((name, value.strip()))
    head = Head(first.decode("latin-1").rstrip("\r\n"), tuple(fields))
    if len(head.first.split(" ")) < 2:
        raise WireError(f"not HTTP: {first!r}")
    return head


def request_framing(head: Head) -> Framing:
    if "chunked" in head.get("Transfer-Encoding").lower():
        return "chunked"
    return "fixed" if int(head.get("Content-Length") or 0) > 0 else "none"


def response_framing(head: Head, method: str) -> Framing:
    if method == "HEAD" or head.status in {204, 304} or head.status < 200:
        return "none"
    if "chunked" in head.get("Transfer-Encoding").lower():
        return "chunked"
    return "fixed" if head.get("Content-Length") else "until-end"


def read_body(stream: BufferedReader, head: Head, framing: Framing) -> Iterator[bytes]:
    match framing:
        case "none":
            return
        case "fixed":
            yield from _exactly(stream, int(head.get("Content-Length")))
        case "until-end":
            while piece := stream.read1(PIECE_BYTES):
                yield piece
        case "chunked":
            while size := _chunk_size(stream.readline(1024)):
                yield from _exactly(stream, size)
                stream.readline(16)
            while stream.readline(65536).rstrip(b"\r\n"):
                pass  # trailers


def framed(pieces: Iterable[bytes], framing: Framing) -> Iterator[bytes]:
    """The pieces as they go on the wire."""
    for piece in pieces:
        if piece:
            yield b"%x\r\n%b\r\n" % (len(piece), piece) if framing == "chunked" else piece
    if framing == "chunked":
        yield b"0\r\n\r\n"


def _chunk_size(line: bytes) -> int:
    try:
        return int(line.partition(b";")[0], 16)
    except ValueError:
        raise WireError(f"not a chunk's size: {line!r}") from None


def _exactly(stream: BufferedReader, size: int) -> Iterator[bytes]:
    left = size
    while left:
        # read1 gives what is there, not all of it: a slow sender must be seen as it sends.
        piece = stream.read1(min(left, PIECE_BYTES))
        if not piece:
            raise WireError(f"connection ended {left} bytes early")
        left -= len(piece)
        yield piece
