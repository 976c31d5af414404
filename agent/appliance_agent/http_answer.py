"""An HTTP/1.1 answer, sans I/O: bytes in, its body out, boundaries irrelevant."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_HEAD_MAX: Final = 65536
_STATUS: Final = re.compile(rb"HTTP/1\.(\d) (\d{3})(?: |$)")


class HttpAnswerError(Exception):
    """What arrives is not HTTP, or less than was announced."""


class HttpAnswer:
    """`status` is 0 until the head is there; `ended` is true after a proper end of the body. Trailers are dropped."""

    def __init__(self) -> None:
        self.status = 0
        self.ended = False
        self._raw = b""
        self._keeps = False  # the server does not hang up after it
        self._chunked = False
        self._trailers = False  # the last chunk was there
        self._left: int | None = None  # of the body, or of the chunk; None: all that comes

    def feed(self, data: bytes) -> bytes:
        """What it adds to the body. Raises HttpAnswerError."""
        self._raw += data
        if not self.status and not self._take_head():
            return b""
        return b"".join(self._chunks()) if self._chunked else self._plain()

    def close(self) -> None:
        """The connection has ended. Raises HttpAnswerError if the answer has not."""
        if not self.status:
            raise HttpAnswerError("no answer")
        if not self.ended and (self._chunked or self._left is not None):
            raise HttpAnswerError("the answer broke off")
        self.ended = True

    @property
    def frees_connection(self) -> bool:
        """It has ended, nothing came after it, and the server does not hang up."""
        return self.ended and self._keeps and not self._raw

    def _take_head(self) -> bool:
        """Of the answer itself: those of 1xx, which come before it, say nothing."""
        while True:
            head, end, rest = self._raw.partition(b"\r\n\r\n")
            if not end:
                if len(self._raw) > _HEAD_MAX:
                    raise HttpAnswerError("a head without an end")
                return False
            first, *fields = head.split(b"\r\n")
            match = _STATUS.match(first)
            if not match:
                raise HttpAnswerError(f"not HTTP: {first[:60]!r}")
            self._raw = rest
            if not match[2].startswith(b"1"):
                break
        self.status = int(match[2])
        self._take_fields(fields, is_old=match[1] == b"0", is_bare=self.status in (204, 304))
        return True

    def _take_fields(self, fields: list[bytes], *, is_old: bool, is_bare: bool) -> None:
        """How long the body is, and what comes after it."""
        closes = is_old
        for field in fields:
            name, _, value = field.lower().partition(b":")
            words = [word.strip() for word in value.split(b",")]
            if name == b"transfer-encoding":
                self._chunked = words == [b"chunked"]
            elif name == b"connection":
                closes = b"close" in words
            elif name == b"content-length":
                self._left = _number(value.strip(), 10)
        if is_bare or self._chunked:
            self._left = 0
        self._chunked = self._chunked and not is_bare
        self._keeps = self._left is not None and not closes

    def _plain(self) -> bytes:
        if self._left is None:
            body, self._raw = self._raw, b""
            return body
        body, self._raw = self._raw[: self._left], self._raw[self._left :]
        self._left -= len(body)
        self.ended = self._left == 0
        return body

    def _chunks(self) -> Iterator[bytes]:
        while self._raw and not self.ended:
            if self._left:
                piece, self._raw = self._raw[: self._left], self._raw[self._left :]
                self._left -= len(piece)
                yield piece
                continue
            line, end, rest = self._raw.partition(b"\r\n")
            if not end:
                if len(self._raw) > _HEAD_MAX:
                    raise HttpAnswerError("the size of a chunk without an end")
                return
            self._raw = rest
            if self._trailers:
                self.ended = not line
            elif line:  # else it is the end of the chunk before
                self._left = _number(line.partition(b";")[0].strip(), 16)
                self._trailers = self._left == 0


class HttpLines:
    """An answer whose body is lines."""

    def __init__(self) -> None:
        self._answer = HttpAnswer()
        self._rest = b""

    @property
    def status(self) -> int:
        return self._answer.status

    @property
    def ended(self) -> bool:
        return self._answer.ended

    @property
    def rest(self) -> bytes:
        """A last line without an end."""
        return self._rest

    def feed(self, data: bytes) -> list[bytes]:
        """Raises HttpAnswerError."""
        *lines, self._rest = (self._rest + self._answer.feed(data)).split(b"\n")
        return [line.rstrip(b"\r") for line in lines if line.strip()]


def _number(text: bytes, base: int) -> int:
    if not text.isalnum():  # int() also takes signs, spaces and underscores
        raise HttpAnswerError(f"not a size: {text[:60]!r}")
    try:
        return int(text, base)
    except ValueError as error:
        raise HttpAnswerError(f"not a size: {text[:60]!r}") from error
