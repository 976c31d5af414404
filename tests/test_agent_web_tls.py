"""The agent's server with TLS: who gets in, who does not, and that a bad client can stall no other."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import snapshots
from authority import Authority, make_authority, make_client
from engines import wait_until
from webclient import GET, connect, current, said, to_the_end, web_threads
from webguard import PASSWORD, WITH_TLS, Answered, ask, basic, guarded, secured, trusting, users

from appliance_agent import status_client, web
from appliance_agent.config import MetricsConfig
from appliance_agent.front import STATUS_SOCKET, Front
from appliance_agent.status_client import StatusUnavailableError
from appliance_agent.web_config import WebConfigError


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    directory = tmp_path_factory.mktemp("authority")
    made = make_authority(directory)
    make_client(directory)
    return made


@pytest.fixture
def place(authority: Authority, tmp_path: Path) -> Path:
    """A directory with the certificates, and where web.yml goes."""
    for file in authority.certificate.parent.iterdir():
        shutil.copy(file, tmp_path)
    return tmp_path / "web.yml"


@pytest.fixture
def context(authority: Authority) -> ssl.SSLContext:
    return trusting(authority.certificate)


@pytest.fixture
def front(place: Path) -> Iterator[Front]:
    with guarded(place, WITH_TLS) as front:
        yield front


def refuses(front: Front, context: ssl.SSLContext) -> bool:
    """TLS 1.3 tells a client that is not welcome only after the handshake."""
    try:
        return not ask(front, context=context).body
    except (ssl.SSLError, ConnectionError, http.client.BadStatusLine):
        return True


def test_pages_are_served_over_tls_and_connections_are_kept(front: Front, context: ssl.SSLContext) -> None:
    connection = http.client.HTTPSConnection("127.0.0.1", front.port, timeout=20, context=context)
    statuses: list[int] = []
    for path in ("/metrics", "/status", "/-/ready", "/nope"):
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        statuses.append(answer.status)
    connection.close()

    assert statuses == [200, 200, 200, 404]
    assert len(web_threads()) <= 2


def test_the_end_of_an_answer_is_told_by_tls_too(front: Front, context: ssl.SSLContext) -> None:
    """Otherwise a client cannot tell it from a connection that was cut."""
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    with secured(front, context) as peer:
        peer.sendall(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

        assert to_the_end(peer).endswith(b"2 of 2 slots serving\n")


def test_a_big_piece_of_garbage_does_not_reset_the_answer_away(front: Front, context: ssl.SSLContext) -> None:
    with secured(front, context) as peer:
        peer.sendall(b"POST / HTTP/1.1\r\nHost: a\r\n\r\n" + b"a" * 60_000)

        assert peer.recv(65536).startswith(b"HTTP/1.1 405 ")


def test_plain_http_is_told_that_this_is_tls(front: Front) -> None:
    answer = said(front, GET)

    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert answer.endswith(b"this port speaks TLS: ask https://\n")


@pytest.mark.parametrize("newest", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_the_versions_in_use_are_spoken(front: Front, context: ssl.SSLContext, newest: ssl.TLSVersion) -> None:
    context.maximum_version = newest

    assert ask(front, context=context).status == 200


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_an_old_version_of_tls_is_refused(front: Front, context: ssl.SSLContext) -> None:
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")

    with pytest.raises(ssl.SSLError, match="ALERT_PROTOCOL_VERSION"):
        ask(front, context=context)


def test_the_least_version_of_the_file_is_kept(place: Path, context: ssl.SSLContext) -> None:
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with guarded(place, WITH_TLS + "  min_version: TLS13\n") as front, pytest.raises(ssl.SSLError, match="VERSION"):
        ask(front, context=context)


def test_a_client_that_offers_http_2_gets_http_1(front: Front, context: ssl.SSLContext) -> None:
    context.set_alpn_protocols(["h2", "http/1.1"])
    with secured(front, context) as peer:
        assert peer.selected_alpn_protocol() == "http/1.1"


def test_only_clients_with_a_certificate_of_the_authority_get_in(
    place: Path, authority: Authority, context: ssl.SSLContext, tmp_path_factory: pytest.TempPathFactory
) -> None:
    mutual = WITH_TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"
    with guarded(place, mutual) as front:
        nobody = refuses(front, context)
        others = tmp_path_factory.mktemp("others")
        make_authority(others)
        stranger = trusting(authority.certificate)
        stranger.load_cert_chain(*make_client(others))
        strange = refuses(front, stranger)
        context.load_cert_chain(place.parent / "client.crt", place.parent / "client.key")

        assert (nobody, strange, ask(front, context=context).status) == (True, True, 200)


def test_a_certificate_may_be_optional_but_never_a_wrong_one(
    place: Path, authority: Authority, context: ssl.SSLContext, tmp_path_factory: pytest.TempPathFactory
) -> None:
    optional = WITH_TLS + "  client_auth_type: VerifyClientCertIfGiven\n  client_ca_file: ca.crt\n"
    with guarded(place, optional) as front:
        others = tmp_path_factory.mktemp("others")
        make_authority(others)
        stranger = trusting(authority.certificate)
        stranger.load_cert_chain(*make_client(others))

        assert ask(front, context=context).status == 200
        assert refuses(front, stranger)


# --- clients that are slow ------------------------------------------------------------------------------------------


def hello(context: ssl.SSLContext) -> bytes:
    """The first flight of a handshake."""
    sent = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), sent, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return sent.read()


def test_handshakes_that_do_not_end_stall_no_one_and_are_cut(
    front: Front, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_REQUEST_S", 1.5)
    first = hello(context)
    with connect(front) as silent, connect(front) as half, connect(front) as whole, connect(front) as noise:
        half.sendall(first[:40])
        whole.sendall(first)
        noise.sendall(b"\x16" + b"x" * 100)
        statuses = [ask(front, context=context).status for _ in range(10)]

        assert statuses == [200] * 10
        assert to_the_end(silent) == b""
        with contextlib.suppress(ConnectionResetError):
            to_the_end(noise)
        with contextlib.suppress(ConnectionResetError):
            to_the_end(half)
        assert to_the_end(whole).startswith(b"\x16\x03\x03")
    wait_until(lambda: web_threads() == ["web"], timeout_s=20, what="the end of all connections")


def test_a_handshake_that_drips_has_no_more_time_than_others(
    front: Front, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_REQUEST_S", 2.0)
    ended = threading.Event()
    with connect(front) as dripping:

        def drip() -> None:
            try:
                for byte in hello(context) * 100:
                    if ended.wait(0.02):
                        return
                    dripping.sendall(bytes([byte]))
            except OSError:
                pass

        dripper = threading.Thread(target=drip)
        dripper.start()
        try:
            wait_until(lambda: "web-peer" in web_threads(), timeout_s=20, what="the connection")
            wait_until(lambda: "web-peer" not in web_threads(), timeout_s=20, what="its end")
        finally:
            ended.set()
            dripper.join()


def test_silent_peers_make_room_for_others(
    front: Front, context: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web, "_SILENT_S", 0.0)
    silent = [connect(front) for _ in range(web.CONNECTIONS)]
    try:
        wait_until(lambda: web_threads().count("web-peer") == web.CONNECTIONS, timeout_s=20, what="all connections")

        assert [ask(front, context=context).status for _ in range(40)] == [200] * 40
    finally:
        for peer in silent:
            peer.close()


def test_closing_cuts_whoever_shakes_hands(place: Path, context: ssl.SSLContext) -> None:
    with guarded(place, WITH_TLS) as front:
        peers = [connect(front) for _ in range(6)]
        idle = secured(front, context)
        for peer in peers[:3]:
            peer.sendall(hello(context)[:100])
        wait_until(lambda: web_threads().count("web-peer") == 7, timeout_s=20, what="all connections")
    for peer in (*peers, idle):
        peer.close()


def test_thousands_of_handshakes_leave_nothing_behind(front: Front, context: ssl.SSLContext) -> None:
    def descriptors() -> int:
        return len(os.listdir("/proc/self/fd"))  # noqa: PTH208

    ask(front, context=context)
    before = descriptors()
    with ThreadPoolExecutor(4) as pool:
        good = sum(answer.status == 200 for answer in pool.map(lambda _: ask(front, context=context), range(500)))
    wait_until(lambda: web_threads() == ["web"], timeout_s=20, what="the end of all connections")

    assert good == 500
    assert descriptors() <= before


# --- files that change ----------------------------------------------------------------------------------------------


def put(path: Path, text: str | bytes) -> None:
    """As people and programs should: whole or not at all."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(text if isinstance(text, bytes) else text.encode())
    new.replace(path)


def serial(front: Front) -> str:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with secured(front, context) as peer:
        return (peer.getpeercert(binary_form=True) or b"").hex()


def test_a_renewed_certificate_is_in_force_with_the_next_connection(
    front: Front, place: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    renewed = make_authority(tmp_path_factory.mktemp("renewed"))
    before = serial(front)

    put(place.parent / "server.crt", renewed.server_certificate.read_bytes())
    between = serial(front)  # the old certificate: the new one does not fit the old key
    put(place.parent / "server.key", renewed.server_key.read_bytes())
    after = serial(front)

    assert before == between != after
    assert ask(front, context=trusting(renewed.certificate)).status == 200


def problems(front: Front, context: ssl.SSLContext | None = None) -> list[str]:
    front.publish(current(snapshots.good_night(2)))
    return list(json.loads(ask(front, "/status", context=context).body)["host"]["problems"])


def test_a_file_that_breaks_later_changes_nothing_and_is_told(
    front: Front, place: Path, context: ssl.SSLContext, caplog: pytest.LogCaptureFixture
) -> None:
    put(place, WITH_TLS + "  min_version: TLS9\n")
    ask(front, context=context)
    ask(front, context=context)
    told = problems(front, context)

    assert len(told) == 1
    assert told[0].startswith(f"the old web_config stays in force: {place}, line 4: tls_server_config.min_version: ")
    assert caplog.text.count("stays in force") == 1
    assert b"\nappliance_host_problems 1\n" in ask(front, "/metrics", context=context).body

    put(place, WITH_TLS)
    ask(front, context=context)

    assert problems(front, context) == []
    assert f"{place} is in force" in caplog.text


def test_a_file_that_is_gone_changes_nothing_and_is_told(front: Front, place: Path, context: ssl.SSLContext) -> None:
    (place.parent / "server.key").unlink()
    ask(front, context=context)
    without_key = problems(front, context)
    place.unlink()
    ask(front, context=context)

    assert "no such file or directory" in without_key[0]
    assert f"web_config cannot be read: {place}" in problems(front, context)[0]


def test_tls_may_come_and_go(front: Front, place: Path, context: ssl.SSLContext) -> None:
    with_tls = ask(front, context=context).status
    put(place, "")
    without = ask(front).status
    put(place, WITH_TLS)

    assert (with_tls, without, ask(front, context=context).status) == (200, 200, 200)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tls_server_config: {cert_file: nope.crt, key_file: server.key}", "nope.crt with key "),
        ("tls_server_config: {cert_file: server.crt, key_file: client.key}", "key values mismatch"),
        ("tls_server_config: {cert_file: web.yml, key_file: server.key}", "certificate "),
        (WITH_TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: nope\n", "client_ca_file "),
        ("basic_auth_users: {a: b}", "is no bcrypt hash"),
    ],
)
def test_at_the_start_a_mistake_is_an_error_and_nothing_listens(place: Path, text: str, told: str) -> None:
    place.write_text(text)
    front = Front(MetricsConfig("127.0.0.1", 0, web_config=str(place)))
    with pytest.raises(WebConfigError) as raised:
        front.open()

    assert told in raised.value.message
    assert raised.value.hint
    assert web_threads() == []


def test_a_key_with_a_password_is_told_and_nobody_is_asked(place: Path) -> None:
    key = place.parent / "server.key"
    locked = place.parent / "locked.key"
    words = ["openssl", "rsa", "-aes256", "-passout", "pass:abc", "-in", str(key), "-out", str(locked)]
    assert os.spawnvp(os.P_WAIT, "openssl", words) == 0
    place.write_text("tls_server_config: {cert_file: server.crt, key_file: locked.key}")
    front = Front(MetricsConfig("127.0.0.1", 0, web_config=str(place)))

    with pytest.raises(WebConfigError, match="the key has a password"):
        front.open()


# --- discovery, headers, and the agent's own host -------------------------------------------------------------------


def test_discovery_says_that_this_is_https(front: Front, context: ssl.SSLContext) -> None:
    (group,) = json.loads(ask(front, "/sd", context=context, Host="gpuhost7.lan:9440").body)

    assert group["targets"] == ["gpuhost7.lan:9440"]
    assert group["labels"]["__scheme__"] == "https"


def test_headers_of_the_file_are_in_every_answer_once(place: Path, context: ssl.SSLContext) -> None:
    text = WITH_TLS + (
        "http_server_config:\n  headers:\n    Strict-Transport-Security: max-age=60\n"
        "    X-Content-Type-Options: nosniff\n    X-Frame-Options: deny\n"
    )
    with guarded(place, text) as front, secured(front, context) as peer:
        peer.sendall(b"GET /nope HTTP/1.0\r\n\r\n")
        answer = to_the_end(peer)

    for line in (
        b"Strict-Transport-Security: max-age=60",
        b"X-Frame-Options: deny",
        b"X-Content-Type-Options: nosniff",
    ):
        assert answer.count(b"\r\n" + line + b"\r\n") == 1


def test_the_own_host_may_ask_without_certificate_and_password(place: Path) -> None:
    with guarded(place, WITH_TLS + users(prometheus=PASSWORD), runtime=str(place.parent)) as front:
        file = place.parent / STATUS_SOCKET
        told = status_client.ask(f"unix://{file}")

        assert json.loads(told.text)["slots"]
        assert file.stat().st_mode & 0o777 == 0o660
        assert front.port
    assert not file.exists()
    with pytest.raises(StatusUnavailableError, match="no agent answers at unix:///"):
        status_client.ask(f"unix://{file}")


def test_a_socket_that_a_killed_agent_left_is_taken_over(place: Path) -> None:
    file = place.parent / STATUS_SOCKET
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(file))
    with guarded(place, WITH_TLS, runtime=str(place.parent)):
        assert json.loads(status_client.ask(f"unix://{file}").text)["slots"]


def test_with_a_web_config_the_socket_is_where_the_agent_is_asked() -> None:
    assert status_client.url_of(MetricsConfig(web_config="/etc/web.yml")) == "unix:///run/ollama-agent/status.sock"


def test_tls_and_password_go_together(place: Path, context: ssl.SSLContext) -> None:
    def status(front: Front, **headers: str) -> int:
        answer: Answered = ask(front, "/metrics", context=context, **headers)
        return answer.status

    with guarded(place, WITH_TLS + users(prometheus=PASSWORD)) as front:
        assert status(front) == 401
        assert status(front, Authorization=basic("prometheus")) == 200
