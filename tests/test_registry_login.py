"""Logins at a registry: Basic, tokens and their scopes, identity tokens, and where a login must not go."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

import pytest
from conftest import MakeRegistry
from faultproxy import FaultProxy
from faults import Answer, Cut, Headers
from registries import PASSWORD, USER, Options, Registry
from registry_client import (
    BLOB,
    BODY,
    Bar,
    Bytes,
    Time,
    builder,
    close_connections,
    open_repository,
)

from appliance_builder.challenge import Basic, Bearer, merged_scopes, parse_challenge
from appliance_builder.credentials import CredentialError, Credentials
from appliance_builder.quirks import quirks_for
from appliance_builder.registry_errors import RegistryError
from appliance_builder.upload import upload


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_connections()


def test_a_login_is_used_where_it_is_demanded(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="basic"))
    repository = open_repository(registry.host, credentials=builder)

    repository.ping()
    repository.tags(1)

    assert [each.status for each in registry.requests()] == [401, 202, 204, 404]


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_wrong_password_is_told_with_the_command_that_helps(make_registry: MakeRegistry, auth: str) -> None:
    registry = make_registry(Options(auth=auth))
    repository = open_repository(registry.host, credentials=lambda _: Credentials(USER, "wrong-word"))

    with pytest.raises(RegistryError, match="401 UNAUTHORIZED") as caught:
        repository.ping()

    assert caught.value.hint == f"`docker login {registry.host}`"
    assert "wrong-word" not in caught.value.message
    assert len(registry.requests()) < 4


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_no_login_is_told_with_the_command_that_helps(make_registry: MakeRegistry, auth: str) -> None:
    registry = make_registry(Options(auth=auth))

    with pytest.raises(RegistryError, match="401") as caught:
        open_repository(registry.host).manifest("1")

    assert "docker login" in caught.value.hint


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_login_that_came_to_its_end_is_looked_up_again(make_registry: MakeRegistry, auth: str) -> None:
    """gcloud's helper gives passwords for an hour, and a download may take longer."""
    registry = make_registry(Options(auth=auth))
    time = Time()
    passwords = ["an hour ago's", PASSWORD]
    repository = open_repository(registry.host, credentials=lambda _: Credentials(USER, passwords.pop(0)), time=time)

    tags = repository.tags(1)

    assert tags == []
    assert passwords == []
    assert time.slept == []


@pytest.mark.parametrize("auth", ["basic", "token"])
def test_a_login_that_is_another_every_time_and_always_wrong_is_looked_up_twice(
    make_registry: MakeRegistry, auth: str
) -> None:
    registry = make_registry(Options(auth=auth))
    passwords = ["first", "second", "third", "fourth"]
    repository = open_repository(registry.host, credentials=lambda _: Credentials(USER, passwords.pop(0)))

    with pytest.raises(RegistryError, match="401 UNAUTHORIZED"):
        repository.ping()

    assert passwords == ["third", "fourth"]


def test_a_login_that_comes_to_its_end_between_two_tokens_is_looked_up_again(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token"))
    assert registry.tokens
    time = Time()
    passwords = [PASSWORD, "the next hour's"]
    repository = open_repository(registry.host, credentials=lambda _: Credentials(USER, passwords.pop(0)), time=time)
    repository.tags(1)
    registry.tokens.change_password("the next hour's")
    time.now_s += 400

    repository.put_small_blob(BODY)

    assert registry.has_blob(str(BLOB.digest))
    assert [asked.granted for asked in registry.tokens.asked] == [True, False, True]


def test_one_token_does_for_everything_in_a_repository(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token"))
    assert registry.tokens
    repository = open_repository(registry.host, credentials=builder)

    upload(repository, Bytes(BODY), Bar(), quirks=quirks_for(registry.host))
    repository.put_small_blob(b"{}")
    repository.tags(1)

    assert [asked.scopes for asked in registry.tokens.asked] == [("repository:ai/model:pull,push",)]


def test_a_mount_asks_for_both_repositories(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token"))
    assert registry.tokens
    source = open_repository(registry.host, "ai/base", credentials=builder)
    upload(source, Bytes(BODY), Bar(), quirks=quirks_for(registry.host))

    mounted = open_repository(registry.host, credentials=builder).mount(BLOB.digest, "ai/base")

    assert mounted
    assert registry.tokens.asked[-1].scopes == ("repository:ai/base:pull", "repository:ai/model:pull,push")


def test_reading_needs_no_login_where_the_registry_says_so(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token"))
    assert registry.tokens
    registry.tokens.anonymous_pull = True
    writer = open_repository(registry.host, credentials=builder)
    upload(writer, Bytes(BODY), Bar(), quirks=quirks_for(registry.host))

    reader = open_repository(registry.host, push=False)

    assert reader.blob_size(BLOB.digest) == len(BODY)
    assert registry.tokens.asked[-1].user == ""


def test_a_token_is_asked_for_again_when_its_time_ends(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token"))
    assert registry.tokens
    time = Time()
    repository = open_repository(registry.host, credentials=builder, time=time)
    repository.tags(1)
    time.now_s += 200
    repository.tags(1)
    time.now_s += 200

    repository.tags(1)

    assert len(registry.tokens.asked) == 2


def test_a_token_service_in_trouble_is_asked_again(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token"))
    assert registry.tokens
    front = FaultProxy(("127.0.0.1", registry.tokens.port)).start()
    front.add(Answer(503), times=2)
    front.add(Cut(5), nth=3)
    challenge = f'Bearer realm="{front.url}/token",service="test registry"'
    registry.proxy.add(Headers({"WWW-Authenticate": challenge}), path="/tags/", nth=1)
    try:
        tags = open_repository(registry.host, credentials=builder).tags(1)
    finally:
        front.close()

    assert tags == []
    assert len(registry.tokens.asked) == 2


def test_a_login_is_not_sent_unencrypted_to_another_host(registry: Registry) -> None:
    challenge = 'Bearer realm="http://auth.example.com/token",service="x"'
    registry.proxy.add(Answer(401, headers={"WWW-Authenticate": challenge}))

    with pytest.raises(CredentialError, match=r"unencrypted to auth\.example\.com") as caught:
        open_repository(registry.host, credentials=builder).ping()

    assert PASSWORD not in caught.value.message
    assert "--insecure auth.example.com" in caught.value.hint


class _Refresher(BaseHTTPRequestHandler):
    """An OAuth2 token service for identity tokens."""

    protocol_version = "HTTP/1.1"
    forms: list[dict[str, list[str]]]

    def do_POST(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        self.forms.append(form)
        body = b'{"access_token": "fresh"}' if form["refresh_token"] == ["identity-word"] else b"{}"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the name is the base class's
        """The test reads the forms."""


@pytest.fixture
def refresher() -> Iterator[tuple[str, list[dict[str, list[str]]]]]:
    forms: list[dict[str, list[str]]] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Refresher", (_Refresher,), {"forms": forms}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}/token", forms
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(("word", "works"), [("identity-word", True), ("stale-word", False)])
def test_an_identity_token_is_exchanged(
    registry: Registry, refresher: tuple[str, list[dict[str, list[str]]]], word: str, works: bool
) -> None:
    realm, forms = refresher
    challenge = f'Bearer realm="{realm}",service="hub"'
    registry.proxy.add(Answer(401, headers={"WWW-Authenticate": challenge}), nth=1)
    repository = open_repository(registry.host, credentials=lambda _: Credentials("<token>", identity_token=word))
    if works:
        repository.tags(1)
    else:
        with pytest.raises(RegistryError, match="logging in") as caught:
            repository.tags(1)
        assert word not in caught.value.message

    assert forms[0]["grant_type"] == ["refresh_token"]
    assert forms[0]["service"] == ["hub"]
    assert forms[0]["scope"] == ["repository:ai/model:pull,push"]
    if works:
        assert registry.requests()[-1].headers["authorization"] == "Bearer fresh"


@pytest.mark.parametrize(
    ("text", "challenge"),
    [
        ("", None),
        ("Negotiate", None),
        ("Basic realm=x", Basic()),
        ('Basic realm="a, b"', Basic()),
        ('Bearer realm="https://a/t"', Bearer("https://a/t", "", "")),
        (
            'bearer realm="https://a/t",service="s",scope="repository:x:pull,push"',
            Bearer("https://a/t", "s", "repository:x:pull,push"),
        ),
        ('Basic realm="x", Bearer realm="https://a/t",service=s', Bearer("https://a/t", "s", "")),
        ('Bearer realm="https://a/t", Basic realm="x"', Bearer("https://a/t", "", "")),
        ('Bearer realm="a\\"b" , service = "s"', Bearer('a"b', "s", "")),
        ("Bearer error=x", None),
    ],
)
def test_challenges_are_read(text: str, challenge: object) -> None:
    assert parse_challenge(text) == challenge


def test_scopes_of_one_repository_are_one() -> None:
    scopes = ("repository:b:pull", "repository:a/x:5000:pull,push", "repository:b:push,pull", "registry:catalog:*")

    assert merged_scopes(scopes) == (
        "registry:catalog:*",
        "repository:a/x:5000:pull,push",
        "repository:b:pull,push",
    )
