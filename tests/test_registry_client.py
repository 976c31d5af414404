"""The registry client against a real docker-registry: reading through faults, logins, names, certificates, proxies."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from authority import Authority
from conftest import MakeRegistry
from faultproxy import FaultProxy
from faults import Answer, Corrupt, Cut, DropResponse, Fault, Headers, IgnoreRange, Shorten, Stall
from registries import PASSWORD, USER, Options, Registry
from registry_client import MIB, Bar, Bytes, Time, builder, close_connections, nobody, open_repository, pattern

from appliance_builder.challenge import Basic, Bearer, merged_scopes, parse_challenge
from appliance_builder.credentials import CredentialError, Credentials
from appliance_builder.http import Http, Timeouts
from appliance_builder.network import Network
from appliance_builder.network_errors import Fault as NetworkFault
from appliance_builder.network_errors import NetworkError
from appliance_builder.proxies import proxy_for
from appliance_builder.quirks import quirks_for
from appliance_builder.registry import Repository
from appliance_builder.registry_errors import RegistryError, registry_error
from appliance_builder.upload import upload
from appliance_builder.waiting import Patience, retry_after_s
from appliance_image.digest import Digest
from appliance_image.oci import CONFIG, LAYER_TAR, MANIFEST, Descriptor, Manifest

BODY = pattern(5 * MIB + 4321)
BLOB = Descriptor(LAYER_TAR, Digest.of(BODY), len(BODY))
BLOBS = r"/blobs/sha256:"
PAGE = b"<!DOCTYPE html><html>please log in</html>"
HTML = {"Content-Type": "text/html"}


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_connections()


def store(registry: Registry, body: bytes = BODY, name: str = "ai/model") -> Repository:
    repository = open_repository(registry.host, name)
    upload(repository, Bytes(body), Bar(), quirks=quirks_for(registry.host))
    return repository


def store_image(registry: Registry, tag: str = "1") -> Manifest:
    repository = store(registry)
    config = b'{"rootfs":{"type":"layers","diff_ids":[]}}'
    manifest = Manifest(Descriptor(CONFIG, repository.put_small_blob(config), len(config)), (BLOB,))
    repository.put_manifest(tag, manifest.render(), MANIFEST)
    return manifest


# --- reading a blob

READ: dict[str, list[tuple[Fault, dict[str, object]]]] = {
    "nothing": [],
    "reset": [(Cut(3 * MIB), {"nth": 1})],
    "closed": [(Cut(3 * MIB, how="fin"), {"nth": 1})],
    "reset before the first byte": [(Cut(0), {"nth": 1})],
    "reset after each MiB": [(Cut(MIB), {"times": 5})],
    "no answer at all": [(DropResponse(), {"nth": 1})],
    "cut, and no range support": [(Cut(3 * MIB), {"nth": 1}), (IgnoreRange(), {})],
    "shortened, with a length that agrees": [(Shorten(2 * MIB), {"nth": 1})],
    "shortened, without a length": [(Cut(2 * MIB), {"nth": 1}), (Headers({"Content-Length": None}), {"nth": 1})],
    "a web page": [(Answer(200, PAGE, HTML), {"times": 2})],
    "another range": [
        (Cut(MIB), {"nth": 1}),
        (Headers({"Content-Range": f"bytes 0-{len(BODY) - 1}/{len(BODY)}"}), {"nth": 2}),
    ],
    "no range": [(Cut(MIB), {"nth": 1}), (Headers({"Content-Range": None}), {"nth": 2})],
    "another size": [(Cut(MIB), {"nth": 1}), (Headers({"Content-Range": "bytes 1048576-9/10"}), {"nth": 2})],
    "429": [(Answer(429, headers={"Retry-After": "3"}), {"nth": 1})],
    "503 page": [(Answer(503, PAGE, HTML), {"times": 3})],
    "522 after a cut": [(Cut(MIB), {"nth": 1}), (Answer(522), {"nth": 2})],
}


@pytest.mark.parametrize("name", READ)
def test_a_blob_is_read_whole_whatever_happens(registry: Registry, name: str) -> None:
    repository = store(registry)
    rules = [registry.proxy.add(fault, method="GET", path=BLOBS, **where) for fault, where in READ[name]]  # type: ignore[arg-type]  # a table's values

    body = b"".join(repository.blob(BLOB).read())

    assert body == BODY
    assert all(rule.hits for rule in rules)


@pytest.mark.parametrize("offset", [0, 1, 3 * MIB, len(BODY) - 1, len(BODY)])
def test_a_blob_is_read_from_any_place(registry: Registry, offset: int) -> None:
    repository = store(registry)

    assert b"".join(repository.blob(BLOB).read(offset)) == BODY[offset:]


def test_after_a_cut_only_the_rest_is_fetched(registry: Registry) -> None:
    repository = store(registry)
    registry.proxy.add(Cut(3 * MIB, how="fin"), method="GET", path=BLOBS, nth=1)

    b"".join(repository.blob(BLOB).read())

    first, second = registry.requests("GET", BLOBS)
    assert second.headers["range"] == f"bytes={3 * MIB}-"
    assert first.response_bytes + second.response_bytes == len(BODY)


def test_far_into_a_blob_a_server_without_ranges_is_an_error(registry: Registry) -> None:
    body = pattern(66 * MIB)
    repository = store(registry, body)
    registry.proxy.add(Cut(65 * MIB, how="fin"), method="GET", path=BLOBS, nth=1)
    registry.proxy.add(IgnoreRange(), method="GET", path=BLOBS)

    with pytest.raises(RegistryError, match="cannot go on in the middle of a blob") as caught:
        b"".join(repository.blob(Descriptor(LAYER_TAR, Digest.of(body), len(body))).read())

    assert "range" in caught.value.hint


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Answer(200, PAGE, HTML), "a web page"),
        (Shorten(MIB), f"{MIB} bytes, not {len(BODY)}"),
        (Answer(404, json.dumps({"errors": [{"code": "BLOB_UNKNOWN", "message": "blob unknown"}]}).encode()), "404 BLOB_UNKNOWN: blob unknown"),
        (Answer(403, PAGE, HTML), "a web page"),
        (Answer(503), "503"),
    ],
)  # fmt: skip
def test_a_blob_that_never_comes_is_an_error(registry: Registry, fault: Fault, words: str) -> None:
    repository = store(registry)
    registry.proxy.add(fault, method="GET", path=BLOBS)

    with pytest.raises(RegistryError, match=words):
        b"".join(repository.blob(BLOB).read())

    assert len(registry.requests("GET", BLOBS)) < 30


def test_a_small_blob_is_verified(registry: Registry) -> None:
    repository = store(registry)
    registry.proxy.add(Corrupt(77), method="GET", path=BLOBS, nth=1)

    with pytest.raises(RegistryError, match=f"not {BLOB.digest}"):
        repository.small_blob(BLOB)

    assert repository.small_blob(BLOB) == BODY


def test_a_blob_that_is_not_small_is_not_fetched(registry: Registry) -> None:
    repository = open_repository(registry.host)

    with pytest.raises(RegistryError, match="at most"):
        repository.small_blob(BLOB, limit_bytes=MIB)

    assert registry.requests() == []


# --- redirects


@pytest.fixture
def storage(registry: Registry) -> Iterator[FaultProxy]:
    """Another host from which the registry's blobs come."""
    proxy = FaultProxy(("127.0.0.1", registry.backend_port)).start()
    yield proxy
    proxy.close()


def redirect(registry: Registry, url: str) -> None:
    target = f"{url}/v2/ai/model/blobs/{BLOB.digest}?X-Signature=abc%2Fdef"
    registry.proxy.add(Answer(307, headers={"Location": target}), path=BLOBS)


def test_a_redirect_is_followed_without_the_login(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="basic"))
    repository = open_repository(registry.host, credentials=builder)
    upload(repository, Bytes(BODY), Bar(), quirks=quirks_for(registry.host))
    plain = make_registry(Options(storage=registry.storage))
    redirect(registry, plain.url)

    body = b"".join(repository.blob(BLOB).read(MIB))

    assert body == BODY[MIB:]
    fetched = plain.requests("GET")[0]
    assert "authorization" not in fetched.headers
    assert fetched.query == "X-Signature=abc%2Fdef"
    assert fetched.headers["range"] == f"bytes={MIB}-"
    assert "authorization" in registry.requests("GET", BLOBS)[-1].headers


@pytest.mark.parametrize("status", [400, 401, 403])
def test_an_expired_link_is_fetched_anew(registry: Registry, storage: FaultProxy, status: int) -> None:
    repository = store(registry)
    redirect(registry, storage.url)
    storage.add(Cut(3 * MIB), method="GET", nth=1)
    storage.add(Answer(status, b"<Error>expired</Error>"), method="GET", nth=2)

    body = b"".join(repository.blob(BLOB).read())

    assert body == BODY
    assert len(registry.requests("GET", BLOBS)) == 3


def test_a_link_that_never_works_is_an_error_that_names_the_storage(registry: Registry, storage: FaultProxy) -> None:
    repository = store(registry)
    redirect(registry, storage.url)
    storage.add(Answer(403, b"<Error>expired</Error>"), method="GET")

    with pytest.raises(RegistryError, match=rf"{storage.host} answered 403") as caught:
        b"".join(repository.blob(BLOB).read())

    assert "Signature" not in caught.value.message


def test_a_redirect_without_end_is_an_error(registry: Registry) -> None:
    redirect(registry, registry.url)

    with pytest.raises(RegistryError, match="redirects 5 times"):
        b"".join(open_repository(registry.host).blob(BLOB).read())


def test_a_redirect_away_from_encryption_is_refused(make_registry: MakeRegistry, authority: Authority) -> None:
    registry = make_registry(Options(tls=authority))
    redirect(registry, "http://storage.example.com")
    http = trusting(registry, authority)

    with http, pytest.raises(RegistryError, match=r"redirects to storage\.example\.com without encryption") as caught:
        b"".join(open_repository(registry.host, http=http).blob(BLOB).read())

    assert "--insecure storage.example.com" in caught.value.hint


# --- what is there


def test_the_size_of_a_blob_tells_whether_it_is_there(registry: Registry) -> None:
    repository = store(registry)

    assert repository.blob_size(BLOB.digest) == len(BODY)
    assert repository.blob_size(Digest.of(b"other")) is None


@pytest.mark.parametrize(
    "fault", [Answer(405), Answer(403), Answer(501), Headers({"Content-Length": None})], ids=lambda f: str(f)[:12]
)
def test_the_size_is_known_where_head_does_not_tell_it(registry: Registry, fault: Fault) -> None:
    repository = store(registry)
    registry.proxy.add(fault, method="HEAD")

    assert repository.blob_size(BLOB.digest) == len(BODY)
    assert registry.requests("GET", BLOBS)[0].response_bytes <= 1


def test_a_manifest_is_read_by_tag_and_by_digest(registry: Registry) -> None:
    manifest = store_image(registry)
    repository = open_repository(registry.host, push=False)

    descriptor, body = repository.manifest("1")

    assert body == manifest.render()
    assert descriptor == Descriptor(MANIFEST, Digest.of(body), len(body))
    assert repository.manifest(str(descriptor.digest)) == (descriptor, body)
    assert repository.head_manifest("1") == descriptor
    assert repository.head_manifest("2") is None


@pytest.mark.parametrize(
    "missing", [{"Docker-Content-Digest": None}, {"Content-Type": None}, {"Content-Type": "text/plain; charset=utf-8"}]
)
def test_a_manifest_is_known_without_the_servers_help(registry: Registry, missing: dict[str, str | None]) -> None:
    manifest = store_image(registry)
    registry.proxy.add(Headers(missing), path="/manifests/")

    descriptor = open_repository(registry.host).head_manifest("1")

    assert descriptor == Descriptor(MANIFEST, Digest.of(manifest.render()), len(manifest.render()))


@pytest.mark.parametrize(
    "fault", [Corrupt(30), Headers({"Docker-Content-Digest": f"sha256:{'0' * 64}"})], ids=["corrupt", "other digest"]
)
def test_a_manifest_that_is_not_its_digest_is_refused(registry: Registry, fault: Fault) -> None:
    store_image(registry)
    registry.proxy.add(fault, path="/manifests/")

    with pytest.raises(RegistryError, match="the manifest is sha256:"):
        open_repository(registry.host).manifest("1")


def test_a_manifest_has_a_limit(registry: Registry) -> None:
    registry.proxy.add(Answer(200, b" " * (5 * MIB)), path="/manifests/")

    with pytest.raises(RegistryError, match="larger than 4 MiB"):
        open_repository(registry.host).manifest("1")


def test_an_unknown_tag_names_the_known_ones(registry: Registry) -> None:
    store_image(registry, "7b")

    with pytest.raises(RegistryError, match=r"ai/model has no 8b") as caught:
        open_repository(registry.host).manifest("8b")

    assert "7b" in caught.value.hint


def test_an_unknown_repository_is_told_from_an_unknown_tag(registry: Registry) -> None:
    with pytest.raises(RegistryError, match=r"has no repository ai/model"):
        open_repository(registry.host).manifest("1")


@pytest.mark.parametrize("fault", [DropResponse(), Answer(502), Answer(500, carry_out=True)])
def test_a_manifest_is_written_though_the_answer_is_lost(registry: Registry, fault: Fault) -> None:
    registry.proxy.add(fault, method="PUT", path="/manifests/", nth=1)

    manifest = store_image(registry)

    assert open_repository(registry.host).manifest("1")[1] == manifest.render()


def test_a_manifest_before_its_layers_is_refused_with_the_registrys_words(registry: Registry) -> None:
    manifest = Manifest(Descriptor(CONFIG, Digest.of(b"{}"), 2), ())

    with pytest.raises(RegistryError, match=r"400 MANIFEST_BLOB_UNKNOWN: blob unknown to registry"):
        open_repository(registry.host).put_manifest("1", manifest.render(), MANIFEST)


def test_tags_come_page_by_page(registry: Registry) -> None:
    further = {"Link": '</v2/ai/model/tags/list?last=b&n=3>; rel="next"'}
    registry.proxy.add(Answer(200, b'{"tags": ["a", "b"]}', further), path=r"/tags/list\?n=3")
    registry.proxy.add(Answer(200, b'{"tags": ["c", "d"]}', further), path=r"/tags/list\?last=b")

    assert open_repository(registry.host).tags(3) == ["a", "b", "c"]
    assert len(registry.requests()) == 2


@pytest.mark.parametrize("body", [b'{"name": "x", "tags": null}', b'{"tags": []}'])
def test_a_repository_without_tags_has_none(registry: Registry, body: bytes) -> None:
    registry.proxy.add(Answer(200, body))

    assert open_repository(registry.host).tags(3) == []


def test_a_small_blob_is_written_once(registry: Registry) -> None:
    repository = open_repository(registry.host)
    registry.proxy.add(DropResponse(), method="PUT", nth=1)

    digest = repository.put_small_blob(b"{}")
    repository.put_small_blob(b"{}")

    assert registry.has_blob(str(digest))
    assert len(registry.requests("PUT")) == 1


def test_a_blob_is_mounted_from_another_repository(registry: Registry) -> None:
    store(registry)
    other = open_repository(registry.host, "ai/other")

    assert other.mount(BLOB.digest, "ai/model")
    assert other.blob_size(BLOB.digest) == len(BODY)


def test_what_cannot_be_mounted_leaves_no_upload_behind(registry: Registry) -> None:
    repository = open_repository(registry.host)

    assert not repository.mount(BLOB.digest, "ai/none")
    assert [each.method for each in registry.requests()] == ["POST", "DELETE"]
    assert list(registry.storage.glob("**/_uploads/*/startedat")) == []


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405])
def test_a_mount_that_is_refused_is_no_error(registry: Registry, status: int) -> None:
    registry.proxy.add(Answer(status), method="POST")

    assert not open_repository(registry.host).mount(BLOB.digest, "ai/none")


def test_a_ping_leaves_nothing_behind(registry: Registry) -> None:
    open_repository(registry.host).ping()

    assert list(registry.storage.glob("**/_uploads/*/startedat")) == []


def test_a_ping_to_a_read_only_registry_says_so(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(read_only=True))

    with pytest.raises(RegistryError, match="answered 405") as caught:
        open_repository(registry.host).ping()

    assert "read-only" in caught.value.hint


# --- logins


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


# --- the way there


def trusting(registry: Registry, authority: Authority) -> Http:
    return Http(Network(ca={registry.host: authority.certificate}), environ={})


def test_an_authority_of_ones_own_is_trusted(make_registry: MakeRegistry, authority: Authority) -> None:
    registry = make_registry(Options(tls=authority))
    with trusting(registry, authority) as http:
        repository = open_repository(registry.host, http=http)

        upload(repository, Bytes(BODY), Bar(), quirks=quirks_for(registry.host))
        body = b"".join(repository.blob(BLOB).read())

    assert body == BODY


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
    with socket.create_server(("127.0.0.1", 0)) as probe:
        host = f"127.0.0.1:{probe.getsockname()[1]}"
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
        with pytest.raises(NetworkError, match=r"was silent for 0 s"):
            repository.put_small_blob(BODY)


def test_a_proxy_carries_what_is_not_on_loopback(registry: Registry) -> None:
    host = "registry.example.com"
    environ = {"http_proxy": f"http://ann:{PASSWORD}@{registry.host}"}

    with Http(Network(insecure=frozenset({host})), environ=environ) as http:
        repository = open_repository(host, http=http)
        upload(repository, Bytes(BODY), Bar(), quirks=quirks_for(host))

    assert registry.has_blob(str(BLOB.digest))
    assert all(each.host == host for each in registry.requests())


def test_a_proxy_that_is_not_there_is_named_without_its_password() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        place = f"127.0.0.1:{probe.getsockname()[1]}"
    environ = {"https_proxy": f"http://ann:{PASSWORD}@{place}"}

    with Http(Network(), environ=environ) as http, pytest.raises(NetworkError) as caught:
        open_repository("registry.example.com", http=http).tags(1)

    assert f"the proxy {place} refuses connections" in caught.value.message
    assert PASSWORD not in caught.value.message + caught.value.hint


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


# --- waiting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("7", 7.0),
        ("0", 0.0),
        ("", None),
        ("soon", None),
        ("-3", None),
        ("Thu, 01 Jan 1970 00:20:00 GMT", 200.0),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0.0),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, expected: float | None) -> None:
    assert retry_after_s({"retry-after": text}, now=1000.0) == expected


def failure(told_s: float | None = None) -> RegistryError:
    return RegistryError("trouble", hint="", host="h", status=503, retry_after_s=told_s)


def test_patience_is_time_without_progress() -> None:
    time = Time()
    patience = Patience(time.waiting(60))
    while patience.wait(failure()):
        pass
    spent_s = sum(time.slept)
    patience.progressed()

    assert 60 <= spent_s < 90
    assert patience.wait(failure())


def test_patience_begins_with_the_first_failure() -> None:
    time = Time()
    patience = Patience(time.waiting(60))
    time.now_s += 3600

    assert patience.wait(failure())


def test_waits_that_were_asked_for_do_not_use_up_the_patience() -> None:
    time = Time()
    patience = Patience(time.waiting(10))

    assert [patience.wait(failure(100.0)) for _ in range(4)] == [True, True, True, False]
    assert sum(time.slept) >= 300


def test_a_note_tells_why_it_waits_and_goes_away() -> None:
    notes: list[str] = []
    patience = Patience(Time().waiting(), notes.append)

    patience.wait(failure(5.0))
    patience.progressed()
    patience.progressed()

    assert notes == ["waiting 6 s: trouble", ""]


def test_a_registry_behind_a_prefix_is_asked_there(registry: Registry) -> None:
    network = Network(mirrors={"r.example.com": f"{registry.url}/cache/"})

    with Http(network, environ={}) as http, pytest.raises(RegistryError):
        open_repository("r.example.com", http=http, credentials=nobody).manifest("1")

    assert registry.requests()[0].path == "/cache/v2/ai/model/manifests/1"
