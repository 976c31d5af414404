"""The way to a host: certificates, plain HTTP, proxies, names, silence."""

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from authority import Authority, make_authority
from conftest import MakeRegistry
from connectproxy import connect_proxy
from faults import Answer, Slow, Stall
from freeport import free_port
from registries import PASSWORD, Options, Registry
from registry_client import (
    BLOB,
    BLOBS,
    BODY,
    MIB,
    Bar,
    Bytes,
    Time,
    close_connections,
    nobody,
    open_repository,
    pattern,
    store,
    trusting,
)

from appliance_agent.check_registry import Asking, ask
from appliance_builder.http import Http, Timeouts
from appliance_builder.network import Network
from appliance_builder.network_errors import Fault as NetworkFault
from appliance_builder.network_errors import NetworkError
from appliance_builder.proxies import proxy_for
from appliance_builder.quirks import quirks_for
from appliance_builder.registry_errors import RegistryError, registry_error
from appliance_builder.upload import upload
from appliance_image.reference import ImageReference

FAR = "registry.example.com"


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_connections()


def test_an_authority_of_ones_own_is_trusted(make_registry: MakeRegistry, authority: Authority) -> None:
    registry = make_registry(Options(tls=authority))
    with trusting(registry, authority) as http:
        repository = open_repository(registry.host, http=http)

        upload(repository, Bytes(BODY), Bar(), quirks=quirks_for(registry.host))
        body = b"".join(repository.blob(BLOB).read())

    assert body == BODY


def test_an_authority_that_does_not_say_what_its_key_is_for_is_trusted(
    make_registry: MakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every Python checks here as 3.13 does."""
    usual = ssl.create_default_context

    def strict() -> ssl.SSLContext:
        context = usual()
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VERIFY_X509_STRICT
        return context

    monkeypatch.setattr(ssl, "create_default_context", strict)
    authority = make_authority(tmp_path, key_usage=False)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.certificate))
    registry = make_registry(Options(tls=authority))
    asking = Asking(ImageReference.parse(f"{registry.host}/ai/model:1"), None, "amd64", insecure=False, timeout_s=60)

    with trusting(registry, authority) as http:
        open_repository(registry.host, http=http).put_small_blob(BODY)
    said = ask(asking)

    assert registry.has_blob(str(BLOB.digest))
    assert said.status == 404


def test_an_early_answer_is_heard_over_tls(make_registry: MakeRegistry, authority: Authority) -> None:
    registry = make_registry(Options(tls=authority))
    registry.proxy.add(Answer(403, early=True), method="PATCH")
    bar = Bar()

    with trusting(registry, authority) as http, pytest.raises(RegistryError, match="403"):
        upload(
            open_repository(registry.host, http=http), Bytes(pattern(64 * MIB)), bar, quirks=quirks_for(registry.host)
        )

    assert bar.done < 32 * MIB


def test_an_unknown_authority_is_told_with_the_flag_that_helps(
    make_registry: MakeRegistry, authority: Authority
) -> None:
    registry = make_registry(Options(tls=authority))
    network = Network(mirrors={"r.example.com": registry.url})

    with (
        Http(network, environ={}) as http,
        pytest.raises(NetworkError, match=r"certificate of .* is not trusted") as caught,
    ):
        open_repository("r.example.com", http=http).tags(1)

    assert caught.value.fault is NetworkFault.UNTRUSTED
    assert f"--ca {registry.host}=FILE" in caught.value.hint


def test_plain_http_where_tls_is_expected_is_told_with_the_flag_that_helps(registry: Registry) -> None:
    place = f"127.0.0.1:{registry.backend_port}"
    network = Network(mirrors={"r.example.com": f"https://{place}"})

    with Http(network, environ={}) as http, pytest.raises(NetworkError, match="speaks plain HTTP, not TLS") as caught:
        open_repository("r.example.com", http=http).tags(1)

    assert f"--insecure {place}" in caught.value.hint


def test_tls_where_plain_http_is_expected_is_told_with_the_flag_that_helps() -> None:
    error = registry_error("h:1", "reading x", 400, {}, b"Client sent an HTTP request to an HTTPS server.\n")

    assert error.message == "reading x: h:1 speaks TLS, not plain HTTP"
    assert "--ca h:1=FILE" in error.hint


def test_nobody_listening_is_an_error_within_seconds() -> None:
    host = f"127.0.0.1:{free_port()}"
    time = Time()

    with pytest.raises(NetworkError, match=f"{host} refuses connections"):
        open_repository(host, time=time).tags(1)

    assert sum(time.slept) < 15


def test_a_registry_that_was_there_is_waited_for(registry: Registry) -> None:
    time = Time()
    repository = open_repository(f"127.0.0.1:{registry.backend_port}", time=time)
    repository.tags(1)
    registry.stop()

    with pytest.raises(NetworkError, match="refuses connections"):
        repository.tags(1)

    assert sum(time.slept) >= 120


def test_an_unknown_name_is_an_error() -> None:
    network = Network(insecure=frozenset({"no-such-host.invalid"}))

    with Http(network, environ={}) as http, pytest.raises(NetworkError, match="no address is known") as caught:
        open_repository("no-such-host.invalid", http=http).tags(1)

    assert caught.value.fault is NetworkFault.NAME


def test_silence_has_an_end(registry: Registry) -> None:
    stall = Stall()
    registry.proxy.add(stall, method="POST", path="")
    registry.proxy.add(Stall(0, of="request"), method="POST")

    with Http(Network(), environ={}, timeouts=Timeouts(read_s=0.2)) as http:
        repository = open_repository(registry.host, http=http, patience_s=0)
        with pytest.raises(NetworkError, match=r"was silent for 0 s") as caught:
            repository.put_small_blob(BODY)

    assert "APPLIANCE_PATIENCE" in caught.value.hint


def test_who_is_patient_waits_longer_for_an_answer_to_begin(registry: Registry) -> None:
    """As of a mirror that stores a blob before it sends the first byte of it."""
    body = pattern(100_000)
    registry.proxy.add(Slow(len(body) // 2, of="request"), method="PUT")  # so it is silent for two seconds

    with Http(Network(), environ={}, timeouts=Timeouts(read_s=1)) as http:
        transport = open_repository(registry.host, http=http, patience_s=0, answer_s=300).transport
        url = transport.url("ai/model/manifests/1")
        reply = transport.call("PUT", url, doing="writing nonsense", scopes=(), expect=(400,), body=body)

    assert reply.status == 400


def test_patience_is_no_reason_to_wait_longer_for_the_middle_of_an_answer(registry: Registry) -> None:
    """With the patience of this registry the test would end by its time limit."""
    store(registry)
    registry.proxy.add(Stall(1000), method="GET", path=BLOBS)

    with Http(Network(), environ={}, timeouts=Timeouts(read_s=0.5)) as http:
        repository = open_repository(registry.host, http=http, patience_s=0, answer_s=3600)
        with pytest.raises(NetworkError, match=r"was silent for 0 s"):
            b"".join(repository.blob(BLOB).read())


def test_a_proxy_carries_what_is_not_on_loopback(registry: Registry) -> None:
    host = "registry.example.com"
    environ = {"http_proxy": f"http://ann:{PASSWORD}@{registry.host}"}

    with Http(Network(insecure=frozenset({host})), environ=environ) as http:
        repository = open_repository(host, http=http)
        upload(repository, Bytes(BODY), Bar(), quirks=quirks_for(host))

    assert registry.has_blob(str(BLOB.digest))
    assert all(each.host == host for each in registry.requests())


def test_a_proxy_that_is_not_there_is_named_without_its_password() -> None:
    place = f"127.0.0.1:{free_port()}"
    environ = {"https_proxy": f"http://ann:{PASSWORD}@{place}"}

    with Http(Network(), environ=environ) as http, pytest.raises(NetworkError) as caught:
        open_repository("registry.example.com", http=http).tags(1)

    assert f"the proxy {place} refuses connections" in caught.value.message
    assert PASSWORD not in caught.value.message + caught.value.hint


@contextmanager
def tunnelled(registry: Registry, authority: Authority, refused: dict[int, str]) -> Iterator[tuple[Http, list[str]]]:
    """To a registry of another name that only a proxy reaches, and what the proxy was asked for."""
    network = Network(ca={FAR: authority.certificate})
    with (
        connect_proxy(registry.proxy.port, refused) as proxy,
        Http(network, environ={"https_proxy": proxy.url}) as http,
    ):
        yield http, proxy.asked


@pytest.mark.parametrize("status", ["502 Bad Gateway", "503 Service Unavailable", "504 Gateway Timeout", "429 Slow"])
def test_a_proxy_that_opens_one_tunnel_of_many_not_is_asked_again(
    make_registry: MakeRegistry, authority: Authority, status: str
) -> None:
    registry = make_registry(Options(tls=authority))
    time = Time()

    with tunnelled(registry, authority, {1: status, 3: status}) as (http, asked):
        repository = open_repository(FAR, http=http, time=time)
        repository.put_small_blob(BODY)
        http.close()
        found = repository.blob_size(BLOB.digest)

    assert found == BLOB.size
    assert asked == [f"CONNECT {FAR}:443"] * 4
    assert len(time.slept) == 2


@pytest.mark.parametrize("status", ["403 Forbidden", "407 Proxy Authentication Required"])
def test_a_proxy_that_refuses_is_believed(make_registry: MakeRegistry, authority: Authority, status: str) -> None:
    registry = make_registry(Options(tls=authority))
    time = Time()

    with (
        tunnelled(registry, authority, {1: status}) as (http, asked),
        pytest.raises(NetworkError, match=f"the proxy .* refused: {status}"),
    ):
        open_repository(FAR, http=http, time=time).tags(1)

    assert asked == [f"CONNECT {FAR}:443"]
    assert time.slept == []


def test_a_proxy_that_never_reaches_a_host_says_so_within_seconds(
    make_registry: MakeRegistry, authority: Authority
) -> None:
    """Squid answers 503 to a name that nobody has."""
    registry = make_registry(Options(tls=authority))
    time = Time()

    with (
        tunnelled(registry, authority, dict.fromkeys(range(1, 100), "503 Service Unavailable")) as (http, _),
        pytest.raises(NetworkError, match=f"did not reach {FAR}: 503 Service Unavailable"),
    ):
        open_repository(FAR, http=http, time=time).tags(1)

    assert sum(time.slept) < 15


@pytest.mark.parametrize(
    ("url", "environ", "proxy"),
    [
        ("https://r.example.com/v2/", {}, None),
        ("https://r.example.com/v2/", {"HTTPS_PROXY": "http://p:3128"}, "http://p:3128"),
        ("https://r.example.com/v2/", {"https_proxy": "p:3128"}, "http://p:3128"),
        ("https://r.example.com/v2/", {"http_proxy": "http://p:3128"}, None),
        ("http://r.example.com/v2/", {"http_proxy": "http://p:3128"}, "http://p:3128"),
        ("https://r.example.com/v2/", {"ALL_PROXY": "socks5://p:1080"}, "socks5://p:1080"),
        ("http://127.0.0.1:5000/", {"http_proxy": "http://p:3128"}, None),
        ("http://localhost:5000/", {"all_proxy": "http://p:3128"}, None),
        ("https://[::1]:5000/", {"https_proxy": "http://p:3128"}, None),
        ("https://r.example.com/", {"https_proxy": "http://p", "no_proxy": "example.com"}, None),
        ("https://r.example.com/", {"https_proxy": "http://p", "no_proxy": ".example.com"}, None),
        ("https://r.example.com/", {"https_proxy": "http://p", "no_proxy": "*.example.com"}, None),
        ("https://example.com/", {"https_proxy": "http://p", "no_proxy": ".example.com"}, "http://p"),
        ("https://rexample.com/", {"https_proxy": "http://p", "no_proxy": "example.com"}, "http://p"),
        ("https://r.example.com/", {"https_proxy": "http://p", "NO_PROXY": "a.com, r.example.com:443"}, None),
        ("https://r.example.com/", {"https_proxy": "http://p", "NO_PROXY": "r.example.com:8443"}, "http://p"),
        ("https://10.1.2.3:5000/", {"https_proxy": "http://p", "no_proxy": "10.0.0.0/8"}, None),
        ("https://11.1.2.3:5000/", {"https_proxy": "http://p", "no_proxy": "10.0.0.0/8"}, "http://p"),
        ("https://[fd00::5]/", {"https_proxy": "http://p", "no_proxy": "fd00::/8"}, None),
        ("https://r.example.com/", {"https_proxy": "http://p", "no_proxy": "*"}, None),
    ],
)
def test_a_proxy_is_chosen_as_everywhere(url: str, environ: dict[str, str], proxy: str | None) -> None:
    assert proxy_for(url, environ) == proxy


def test_a_ca_file_that_is_none_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nonsense")

    with (
        Http(Network(ca={"r.example.com": file}), environ={}) as http,
        pytest.raises(Exception, match="not a certificate"),
    ):
        open_repository("r.example.com", http=http).tags(1)


def test_a_registry_behind_a_prefix_is_asked_there(registry: Registry) -> None:
    network = Network(mirrors={"r.example.com": f"{registry.url}/cache/"})

    with Http(network, environ={}) as http, pytest.raises(RegistryError):
        open_repository("r.example.com", http=http, credentials=nobody).manifest("1")

    assert registry.requests()[0].path == "/cache/v2/ai/model/manifests/1"
