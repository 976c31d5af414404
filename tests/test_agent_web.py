"""What the agent's HTTP server answers, and where it listens."""

from __future__ import annotations

import gzip
import http.client
import json
import re
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from http import HTTPStatus

import pytest
import snapshots
from webclient import current, get, said, web_threads

from appliance_agent.config import MetricsConfig
from appliance_agent.front import Front
from appliance_agent.http_head import Answer, Request
from appliance_agent.status_json import render
from appliance_agent.web import WebServer
from appliance_agent.web_listen import TcpPlace, WebError


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front(MetricsConfig("127.0.0.1", 0))
    made.open()
    made.publish(current(snapshots.good_night(2)))
    yield made
    made.close()
    assert web_threads() == []


def test_metrics_are_text_and_gzip_when_asked_for(front: Front) -> None:
    status, headers, plain = get(front, "/metrics", Accept_Encoding="identity")
    _, packed_headers, packed = get(front, "/metrics", Accept_Encoding="deflate, gzip;q=0.5")

    assert status == 200
    assert headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert b"appliance_backend_state" in plain
    assert packed_headers["content-encoding"] == "gzip"
    assert len(packed) < len(plain) / 5
    assert gzip.decompress(packed).startswith(b"# HELP")


def test_status_is_the_json_of_the_snapshot_with_its_age(front: Front) -> None:
    began_s = time.monotonic()
    snapshot = current(snapshots.bad_night(), age_s=42.5)
    front.publish(snapshot)

    status, headers, body = get(front, "/status")

    assert status == 200
    assert headers["content-type"] == "application/json"
    assert 42 <= int(headers["age"]) <= 42.5 + time.monotonic() - began_s
    assert body.decode() == render(snapshot)


@pytest.mark.parametrize(("age_s", "status"), [(0.0, 200), (12.0, 200), (16.0, 503), (86400.0, 503)])
def test_healthy_means_that_the_loop_ticks(front: Front, age_s: float, status: int) -> None:
    front.publish(current(snapshots.without_gpus(), age_s=age_s))

    assert get(front, "/-/healthy")[0] == status


def test_ready_means_that_some_slot_serves(front: Front) -> None:
    before = get(front, "/-/ready")
    front.publish(current(snapshots.without_gpus()))

    assert (before[0], before[2]) == (200, b"2 of 2 slots serving\n")
    assert get(front, "/-/ready")[0] == 503


def test_the_newest_looks_are_shown_before_the_loop_comes_to_them(front: Front) -> None:
    night = current(snapshots.good_night())
    newest = replace(night, gpus=replace(night.gpus, driver_version="999.1"))
    front.watch(lambda: newest.gpus, lambda: newest.evidence)
    front.publish(night)

    assert b'driver_version="999.1"' in get(front, "/metrics")[2]
    gpus = replace(night.gpus, driver_version="999.2")
    newest = replace(
        night,
        gpus=gpus,
        evidence={slot: replace(each, model_bytes=123456789) for slot, each in night.evidence.items()},
    )
    text = get(front, "/metrics")[2]

    assert b'driver_version="999.2"' in text
    assert b"123456789" in text


@pytest.mark.parametrize("path", ["/status", "/-/healthy", "/-/ready"])
def test_before_the_first_tick_there_is_nothing_to_say(path: str) -> None:
    made = Front(MetricsConfig("127.0.0.1", 0))
    made.open()
    try:
        assert get(made, path)[0] == 503
        assert get(made, "/metrics")[0] == 200
    finally:
        made.close()


@pytest.mark.parametrize(
    ("host", "target"),
    [
        ("gpuhost7.lan:9440", "gpuhost7.lan:9440"),
        ("192.0.2.7:9440", "192.0.2.7:9440"),
        ("[2001:db8::7]:9440", "[2001:db8::7]:9440"),
        ("gpuhost7", "gpuhost7"),
        ("evil.example/path", ""),
        ("", ""),
        ('a","b', ""),
    ],
)
def test_discovery_names_this_agent_as_it_was_reached(front: Front, host: str, target: str) -> None:
    _, headers, body = get(front, "/sd", Host=host)

    assert headers["content-type"] == "application/json"
    assert json.loads(body) == [
        {
            "targets": [target or f"127.0.0.1:{front.port}"],
            "labels": {"__meta_appliance_version": "0.1.0", "__meta_appliance_host": "gpuhost7"},
        }
    ]


def test_the_index_leads_to_every_page_and_other_paths_to_none(front: Front) -> None:
    links = re.findall(r'href="([^"]+)"', get(front, "/")[2].decode())

    assert [get(front, link)[0] for link in links] == [200] * 5
    for path in ("/metrics/", "/Status", "/../metrics", "//metrics", "/favicon.ico", "/%00", "/\x7f"):
        assert get(front, path.replace("\x7f", "%7f"))[0] == 404


def test_a_query_and_a_full_url_lead_to_the_same_page(front: Front) -> None:
    for target in ("/-/ready?a=b", "http://gpuhost7:9440/-/ready", "/%2D/ready"):
        assert said(front, f"GET {target} HTTP/1.0\r\n\r\n".encode()).startswith(b"HTTP/1.1 200 OK\r\n")


@pytest.mark.parametrize("path", ["/", "/metrics", "/status", "/nope", "/-/ready"])
def test_head_is_get_without_the_body(front: Front, path: str) -> None:
    status, headers, body = get(front, path, Accept_Encoding="identity")
    head_status, head_headers, head_body = get(front, path, method="HEAD", Accept_Encoding="identity")

    assert (head_status, head_body) == (status, b"")
    for name in headers.keys() - {"date", "age", "content-length"}:
        assert head_headers[name] == headers[name]
    assert abs(int(head_headers["content-length"]) - len(body)) < 200  # a scrape changes figures of the process


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "CONNECT", "BREW"])
def test_nothing_can_be_changed_here(front: Front, method: str) -> None:
    answer = said(front, f"{method} /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc".encode())

    assert answer.startswith(b"HTTP/1.1 405 Method Not Allowed\r\n")
    assert b"Allow: GET, HEAD\r\n" in answer


def test_a_page_that_fails_is_a_500_and_the_next_one_works(caplog: pytest.LogCaptureFixture) -> None:
    def pages(request: Request, _own: str) -> Answer:
        if request.path == "/bug":
            raise RuntimeError("a bug")
        return Answer(HTTPStatus.OK, b"fine")

    server = WebServer(TcpPlace("127.0.0.1", 0), pages)
    server.open()
    try:
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
        statuses: list[int] = []
        for path in ("/bug", "/"):
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            statuses.append(answer.status)
        connection.close()
    finally:
        server.close()

    assert statuses == [500, 200]
    assert "a bug" in caplog.text


def test_a_port_in_use_is_told_with_the_command_that_finds_who_has_it(front: Front) -> None:
    with pytest.raises(
        WebError, match=rf"cannot serve metrics on 127\.0\.0\.1:{front.port}: the port is in use"
    ) as told:
        Front(MetricsConfig("127.0.0.1", front.port)).open()

    assert f"ss -ltnp 'sport = :{front.port}'" in told.value.hint


@pytest.mark.parametrize("address", ["192.0.2.77", "2001:db8::77"])
def test_an_address_of_another_host_is_told(address: str) -> None:
    with pytest.raises(WebError, match="not an address of this host"):
        Front(MetricsConfig(address, 0)).open()


@pytest.mark.parametrize(
    ("address", "asked"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("0.0.0.0", ["127.0.0.1"])]
)
def test_addresses_of_both_families_are_served(address: str, asked: list[str]) -> None:
    if not has_ipv6():
        pytest.skip("this machine has no IPv6 on its loopback")
    made = Front(MetricsConfig(address, 0))
    made.open()
    try:
        for host in asked:
            connection = http.client.HTTPConnection(host, made.port, timeout=20)
            connection.request("GET", "/sd", headers={"Host": "-"})
            target = json.loads(connection.getresponse().read())[0]["targets"]
            connection.close()

            assert target == [f"[{host}]:{made.port}" if ":" in host else f"{host}:{made.port}"]
    finally:
        made.close()


def has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False
