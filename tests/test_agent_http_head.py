"""The head of a request, sans I/O."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as some
from webclient import GET

from appliance_agent import http_head
from appliance_agent.http_head import RefusedRequest, Request


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunk_boundaries_do_not_matter(size: int) -> None:
    wire, received, paths = GET + GET.replace(b"ready", b"healthy").replace(b"\r", b"") + b"GET", b"", list[str]()
    for start in range(0, len(wire), size):
        received += wire[start : start + size]
        while taken := http_head.take(received):
            request, received = taken
            paths.append(request.path)

    assert paths == ["/-/ready", "/-/healthy"]
    assert received == b"GET"


@given(some.binary(max_size=300))
def test_any_bytes_are_a_request_or_refused_or_not_complete(noise: bytes) -> None:
    for words in (noise, noise + b"\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a\r\n" + noise + b"\r\n\r\n"):
        try:
            taken = http_head.take(words)
        except RefusedRequest as refused:
            outcome = str(refused.status.value)
        else:
            outcome = taken[0].method if taken else "incomplete"

        assert outcome in ("GET", "HEAD", "incomplete", "400", "405", "431", "505")


@pytest.mark.parametrize(
    ("offer", "accepted"),
    [("gzip", True), ("GZIP;q=1.0", True), ("br, gzip", True), ("*", True), ("gzip;q=0", False), ("gzip; q=0.000", False),
     ("", False), ("identity", False), ("x-gzip-not", False), ("gzip;q=0.001", True)],
)  # fmt: skip
def test_gzip_is_sent_to_whom_it_is_welcome(offer: str, accepted: bool) -> None:
    assert Request("GET", "/", {"accept-encoding": offer}, keep_alive=True).accepts_gzip is accepted
