"""An HTTP/1.1 answer whose body is lines, sans I/O: bytes in, lines out, boundaries irrelevant."""

from __future__ import annotations

from typing import Final

_HEAD_MAX: Final = 65536


class HttpLinesError(Exception):
    """What arrives is not HTTP."""


class HttpLines:
    """`status` is 0 until the head is there; `ended` is true after a proper end of a chunked body."""

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self._chunked = False
        self._raw = b""
        self._body = b""

    def feed(self, data: bytes) -> list[bytes]:
        self._raw += data
        if not self.status and not self._take_head():
            return []
        if self._chunked:
            while not self.ended and self._take_chunk():
                pass
        else:
            self._body, self._raw = self._body + self._raw, b""
        *lines, self._body = self._body.split(b"\n")
        return [line.rstrip(b"\r") for line in lines if line.strip()]

    @property
    def rest(self) -> bytes:
        """A last line without an end."""
        return self._body

    def _take_head(self) -> bool:
        head, end, rest = self._raw.partition(b"\r\n\r\n")
        if not end:
            if len(self._raw) > _HEAD_MAX:
                raise HttpLinesError("a head without an end")
            return False
        first, *fields = head.split(b"\r\n")
        words = first.split(b" ")
        if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit():
            raise HttpLinesError(f"not HTTP: {first[:60]!r}")
        self.status, self._raw = int(words[1]), rest
        self._chunked = any(field.lower().replace(b" ", b"") == b"transfer-encoding:chunked" for field in fields)
        return True

    def _take_chunk(self) -> bool:
        line, end, rest = self._raw.partition(b"\r\n")
        if not end:
            return False
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError as error:
            raise HttpLinesError(f"not the size of a chunk: {line[:60]!r}") from error
        if size == 0:
            self.ended = True
            return False
        if len(rest) < size + 2:
            return False
        self._body, self._raw = self._body + rest[:size], rest[size + 2 :]
        return True
