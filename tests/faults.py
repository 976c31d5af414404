"""What can go wrong with one exchange, and what it does to a body's bytes and a response's head. No sockets."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from httpwire import Framing, Head

Side = Literal["request", "response"]
How = Literal["rst", "fin"]


@dataclass(frozen=True, slots=True)
class Cut:
    """End the connection after so many bytes of a body; the head said there would be more."""

    after: int
    of: Side = "response"
    how: How = "rst"


@dataclass(frozen=True, slots=True)
class DropResponse:
    """The server has carried the request out, the client sees the connection end."""

    how: How = "fin"


@dataclass(frozen=True, slots=True)
class Answer:
    """This in place of the server's answer; `carry_out` lets the server do its work first, `early` does not wait
    for the request's body."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    carry_out: bool = False
    early: bool = False


@dataclass(frozen=True, slots=True)
class Shorten:
    """Fewer bytes, and a Content-Length that agrees with them."""

    to: int


@dataclass(frozen=True, slots=True)
class Corrupt:
    at: int
    of: Side = "response"


@dataclass(frozen=True, slots=True)
class Slow:
    bytes_per_s: int
    of: Side = "response"


@dataclass(frozen=True, slots=True)
class IgnoreRange:
    """The server never sees the Range header, so it answers 200 with everything."""


@dataclass(frozen=True, slots=True)
class Headers:
    """Response headers changed, added, or (None) left out; without a Content-Length the body goes out chunked."""

    change: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Stall:
    """Hold a body after so many bytes until `release`; `reached` is set once something waits.

    Of a request: the server has its head and so many bytes, the client has no answer. Of a response: the client has
    its head and so many bytes.
    """

    after: int = 0
    of: Side = "response"
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self.released.set()


Fault = Cut | DropResponse | Answer | Shorten | Corrupt | Slow | IgnoreRange | Headers | Stall


def session_lost() -> Answer:
    """What a registry says of an upload it has forgotten."""
    error = {"errors": [{"code": "BLOB_UPLOAD_UNKNOWN", "message": "blob upload unknown to registry"}]}
    return Answer(404, json.dumps(error).encode(), {"Content-Type": "application/json"})


class CutError(Exception):
    """The connection to the client ends here."""

    def __init__(self, how: How) -> None:
        super().__init__(f"cut on purpose: {how}")
        self.how: How = how


def faulty(pieces: Iterator[bytes], fault: Fault, side: Side) -> Iterator[bytes]:
    match fault:
        case Cut(after=after, of=of, how=how) if of == side:
            yield from _first(pieces, after)
            raise CutError(how)
        case Shorten(to=to) if side == "response":
            yield from _first(pieces, to)
            for _ in pieces:
                pass
        case Stall() if fault.of == side:
            yield from _stalled(pieces, fault)
        case Corrupt(at=at, of=of) if of == side:
            yield from _corrupted(pieces, at)
        case Slow(bytes_per_s=bytes_per_s, of=of) if of == side:
            yield from _paced(pieces, bytes_per_s)
        case _:
            yield from pieces


def _first(pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """Exactly `size` bytes, or all there are; what a piece holds beyond them is lost, as on a cut line."""
    while size > 0 and (piece := next(pieces, b"")):
        yield piece[:size]
        size -= len(piece)


def _stalled(pieces: Iterator[bytes], stall: Stall) -> Iterator[bytes]:
    left = stall.after
    for piece in pieces:
        yield piece[:left]
        if len(piece) >= left:
            break
        left -= len(piece)
    else:
        piece = b""
    stall.reached.set()
    stall.released.wait()
    yield piece[left:]
    yield from pieces


def _corrupted(pieces: Iterator[bytes], at: int) -> Iterator[bytes]:
    start = 0
    for piece in pieces:
        if start <= at < start + len(piece):
            wrong = bytearray(piece)
            wrong[at - start] ^= 0xFF
            yield bytes(wrong)
        else:
            yield piece
        start += len(piece)


def _paced(pieces: Iterator[bytes], bytes_per_s: int) -> Iterator[bytes]:
    step = max(1, bytes_per_s // 20)
    for piece in pieces:
        for start in range(0, len(piece), step):
            part = piece[start : start + step]
            yield part
            time.sleep(len(part) / bytes_per_s)


def changed_head(head: Head, framing: Framing, faults: tuple[Fault, ...]) -> tuple[Head, Framing]:
    head = head.without("Connection", "Keep-Alive")
    for fault in faults:
        if isinstance(fault, Shorten) and framing == "fixed":
            head = head.with_field("Content-Length", str(min(fault.to, int(head.get("Content-Length")))))
        if isinstance(fault, Headers):
            for name, value in fault.change.items():
                head = head.without(name) if value is None else head.with_field(name, value)
    if framing == "until-end" or (framing == "fixed" and not head.get("Content-Length")):
        return head.with_field("Transfer-Encoding", "chunked"), "chunked"
    return head, framing
