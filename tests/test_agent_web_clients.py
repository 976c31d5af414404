"""Clients that are slow, silent, many, or mean no good: none can stall another, none leaves anything behind."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import pytest
import snapshots
from engines import wait_until
from freeport import free_port
from webclient import GET, connect, current, get, said, to_the_end, web_threads

from appliance_agent import web
from appliance_agent.config import MetricsConfig
from appliance_agent.front import Front
from appliance_agent.http_head import Answer
from appliance_agent.web import WebServer
from appliance_agent.web_listen import TcpPlace


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front(MetricsConfig("127.0.0.1", 0))
    made.open()
    made.publish(current(snapshots.good_night(2)))
    yield made
    made.close()
    assert web_threads() == []


def test_a_connection_is_kept_and_requests_may_come_in_one_piece(front: Front) -> None:
    answer = said(front, GET * 3 + b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")

    assert answer.count(b"HTTP/1.1 200 OK\r\n") == 4
    assert answer.count(b"Connection: keep-alive\r\n") == 3


def test_a_client_of_http_1_0_gets_its_answer_and_the_end(front: Front) -> None:
    closed = said(front, b"GET /-/ready HTTP/1.0\r\n\r\n")
    kept = said(front, b"GET /-/ready HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\nGET /-/ready HTTP/1.0\r\n\r\n")

    assert closed.endswith(b"\r\n\r\n2 of 2 slots serving\n")
    assert kept.count(b"HTTP/1.1 200 OK") == 2


def test_a_request_may_come_byte_by_byte(front: Front) -> None:
    with connect(front) as peer:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in b"\r\n" + GET:
            peer.sendall(bytes([byte]))

        assert peer.recv(65536).startswith(b"HTTP/1.1 200 OK")


def test_what_follows_a_body_is_no_request(front: Front) -> None:
    length = said(front, b"GET /-/ready HTTP/1.1\r\nHost: a\r\nContent-Length: 35\r\n\r\n" + GET)
    chunked = said(front, b"GET /-/ready HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + GET)

    assert length.count(b"HTTP/1.1 ") == chunked.count(b"HTTP/1.1 ") == 1


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET /\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : a\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\rb\r\n\r\n", 400),
        (b"GET http://[ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        (b"GET / HTTP/1.10\r\nHost: a\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 8192, 431),
        (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 431),
    ],
)
def test_what_is_no_request_is_refused_and_the_connection_ends(front: Front, words: bytes, status: int) -> None:
    assert said(front, words).startswith(f"HTTP/1.1 {status} ".encode())
    assert len(re.findall(rb"HTTP/1\.1 \d", said(front, GET + words + GET))) == 2


def test_a_big_piece_of_garbage_does_not_reset_the_answer_away(front: Front) -> None:
    assert said(front, b"POST / HTTP/1.1\r\nHost: a\r\n\r\n" + b"a" * 60_000).startswith(b"HTTP/1.1 405 ")


def test_a_silent_and_a_slow_client_are_cut_and_stall_no_one(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_REQUEST_S", 2.0)
    with connect(front) as silent, connect(front) as slow:
        slow.sendall(b"GET / HT")

        assert get(front, "/-/ready")[0] == 200
        assert to_the_end(silent) == b""
        assert to_the_end(slow).startswith(b"HTTP/1.1 408 ")


def test_a_client_that_drips_has_no_more_time_than_others(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_REQUEST_S", 1.5)
    monkeypatch.setattr(web, "_LINGER_S", 0.1)
    for first in (b"", GET + b"GET"):
        with connect(front) as dripping:
            dripping.sendall(first)
            ended = threading.Event()

            def drip(peer: socket.socket = dripping, ended: threading.Event = ended) -> None:
                try:
                    while not ended.wait(0.02):
                        peer.sendall(b"a")
                except OSError:
                    pass

            dripper = threading.Thread(target=drip)
            dripper.start()
            try:
                assert b"HTTP/1.1 408 " in received_before_reset(dripping)
            finally:
                ended.set()
                dripper.join()


def received_before_reset(peer: socket.socket) -> bytes:
    received = b""
    try:
        while more := peer.recv(65536):
            received += more
    except ConnectionResetError:
        pass
    return received


def test_a_client_that_does_not_read_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_ANSWER_S", 2.0)
    page = Answer(HTTPStatus.OK, b"a" * 50_000_000)
    server = WebServer(TcpPlace("127.0.0.1", 0), lambda _request, _own: page)
    server.open()
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=20) as peer:
            peer.sendall(GET)
            wait_until(lambda: "web-peer" in web_threads(), timeout_s=20, what="the connection")
            wait_until(lambda: "web-peer" not in web_threads(), timeout_s=20, what="its end")
    finally:
        server.close()


def test_a_client_that_leaves_in_the_middle_is_no_news(front: Front, caplog: pytest.LogCaptureFixture) -> None:
    for words in (b"", b"GET", GET, GET * 50):
        with connect(front) as peer:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")  # reset on close
            peer.sendall(words)
    wait_until(lambda: web_threads() == ["web"], timeout_s=20, what="the end of all connections")

    assert get(front, "/-/ready")[0] == 200
    assert caplog.text == ""


def test_too_many_connections_are_told_so_and_the_others_go_on(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_SILENT_S", "_REQUEST_S", "_REFUSAL_S"):
        monkeypatch.setattr(web, name, 20.0)
    held, crowd = [connect(front) for _ in range(web.CONNECTIONS)], list[socket.socket]()
    try:
        wait_until(lambda: web_threads().count("web-peer") == web.CONNECTIONS, timeout_s=20, what="all connections")
        status, headers, _ = get(front, "/-/ready")
        crowd += [connect(front) for _ in range(40)]
        wait_until(lambda: any(peeked(peer) == b"" for peer in crowd), timeout_s=20, what="a connection that is closed")

        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert web_threads().count("web-peer") <= web.CONNECTIONS + 8
        for peer in held:
            peer.sendall(GET)
            assert peer.recv(65536).startswith(b"HTTP/1.1 200 OK")
    finally:
        for peer in (*held, *crowd):
            peer.close()
    wait_until(lambda: get(front, "/-/ready")[0] == 200, timeout_s=20, what="room for others")


def peeked(peer: socket.socket) -> bytes | None:
    peer.setblocking(False)  # MSG_DONTWAIT alone would wait for as long as the socket's own timeout says
    try:
        return peer.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return None
    except ConnectionResetError:
        return b""


def test_connections_that_are_merely_kept_make_room_for_new_ones(front: Front) -> None:
    held = [connect(front) for _ in range(web.CONNECTIONS)]
    try:
        for peer in held:
            peer.sendall(GET)
            assert peer.recv(65536).startswith(b"HTTP/1.1 200 OK")

        assert [get(front, "/-/ready")[0] for _ in range(40)] == [200] * 40
    finally:
        for peer in held:
            peer.close()


def test_clients_that_say_nothing_make_room_for_those_that_do(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web, "_SILENT_S", 0.0)
    silent = [connect(front) for _ in range(web.CONNECTIONS)]
    try:
        wait_until(lambda: web_threads().count("web-peer") == web.CONNECTIONS, timeout_s=20, what="all connections")

        assert [get(front, "/-/ready")[0] for _ in range(40)] == [200] * 40
    finally:
        for peer in silent:
            peer.close()


def test_ten_thousand_requests_leave_nothing_behind(front: Front) -> None:
    def ask(number: int) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", front.port, timeout=20)
        statuses: list[int] = []
        for _ in range(50):
            connection.request("GET", "/-/ready", headers={"Connection": "close"} if number % 2 else {})
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()
        return statuses.count(200)

    with ThreadPoolExecutor(4) as pool:
        good = sum(pool.map(ask, range(200)))
    wait_until(lambda: web_threads() == ["web"], timeout_s=20, what="the end of all connections")

    assert good == 10_000


def test_closing_cuts_whoever_is_there_and_frees_the_port(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    made = Front(MetricsConfig("127.0.0.1", port))
    made.open()
    with connect(made) as silent, connect(made) as idle:
        idle.sendall(GET)
        idle.recv(65536)
        made.close()

        assert received_before_reset(silent) == received_before_reset(idle) == b""
    again = Front(MetricsConfig("127.0.0.1", port))
    again.open()
    again.close()
    again.close()
