"""HTTP/1 sans I/O, as much as a read-only server needs: the head of a request in, the head of an answer out. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Final
from urllib.parse import unquote, urlsplit

HEAD_BYTES: Final = 8192
_END = re.compile(rb"\r?\n\r?\n")
_REQUEST_LINE = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) (\S+) HTTP/(\d)\.(\d)")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*(.*?)[ \t]*")
_METHODS = ("GET", "HEAD")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class RefusedRequest(Exception):  # noqa: N818 - no error of ours
    """What is not answered otherwise; the connection ends with it."""

    def __init__(self, status: HTTPStatus, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: Mapping[str, str]  # names in lower case
    keep_alive: bool

    @property
    def accepts_gzip(self) -> bool:
        for offer in self.headers.get("accept-encoding", "").split(","):
            coding, _, weight = offer.partition(";")
            if coding.strip().lower() in ("gzip", "*"):
                return re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight, re.IGNORECASE) is None
        return False


@dataclass(frozen=True, slots=True)
class Answer:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


def take(received: bytes) -> tuple[Request, bytes] | None:
    """The first request and what comes after it; None while its head is not complete. Raises RefusedRequest."""
    end = _END.search(received, 0, HEAD_BYTES)
    if end is None:
        if len(received) >= HEAD_BYTES:
            raise RefusedRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"more than {HEAD_BYTES} bytes of headers")
        return None
    return _parse(received[: end.start()].decode("latin-1")), received[end.end() :]


def render(answer: Answer, more: Mapping[str, str], *, keep_alive: bool, date: str) -> bytes:
    lines = [
        f"HTTP/1.1 {answer.status.value} {answer.status.phrase}",
        f"Date: {date}",
        f"Content-Type: {answer.content_type}",
        f"Content-Length: {len(answer.body)}",
        *(f"{name}: {value}" for headers in (answer.headers, more) for name, value in headers.items()),
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        f"Connection: {'keep-alive' if keep_alive else 'close'}",
    ]
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1")


def _parse(head: str) -> Request:
    first, *lines = re.split(r"\r?\n", head)
    match = _REQUEST_LINE.fullmatch(first)
    if not match:
        raise RefusedRequest(HTTPStatus.BAD_REQUEST, "not a request line of HTTP/1")
    method, target, major, minor = match[1], match[2], match[3], match[4]
    if major != "1":
        raise RefusedRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "HTTP/1.0 and HTTP/1.1 are spoken here")
    headers = _headers(lines)
    if minor != "0" and "host" not in headers:
        raise RefusedRequest(HTTPStatus.BAD_REQUEST, "no Host header")
    if method not in _METHODS:
        raise RefusedRequest(HTTPStatus.METHOD_NOT_ALLOWED, "only GET and HEAD are answered here")
    return Request(method, _path(target), headers, _keep_alive(minor, headers))


def _headers(lines: list[str]) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines:
        match = _FIELD.fullmatch(line)
        if not match or _CONTROL.search(match[2]):
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, "not a header line")
        name = match[1].lower()
        if name == "host" and name in headers:
            raise RefusedRequest(HTTPStatus.BAD_REQUEST, "two Host headers")
        headers[name] = f"{headers[name]}, {match[2]}" if name in headers else match[2]
    return headers


def _path(target: str) -> str:
    try:
        path = urlsplit(target).path if not target.startswith("/") else target.partition("?")[0].partition("#")[0]
    except ValueError as error:
        raise RefusedRequest(HTTPStatus.BAD_REQUEST, "not a request target") from error
    return unquote(path) or "/"


def _keep_alive(minor: str, headers: Mapping[str, str]) -> bool:
    """A body is never read, so what comes after one is no request."""
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
        return False
    options = {option.strip().lower() for option in headers.get("connection", "").split(",")}
    return "keep-alive" in options if minor == "0" else "close" not in options
