"""The components that other tests stand on are real, reachable, and misbehave as told."""

import contextlib
import hashlib
import http.client
import json
import os
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import pytest
import smallbase
from authority import Authority
from blobsources import RegistrySource, StoreSource
from conftest import BASE_VERSION, MakeEngine, MakeFront, MakeRegistry
from debian_root import debian_root
from engine_directory import EngineDirectory, sweep
from engines import Engine, EngineError, EngineKind, PrivateEngine, engines_directory, wait_until
from faultproxy import FaultProxy
from faults import Answer, Corrupt, Cut, DropResponse, Headers, IgnoreRange, Shorten, Slow, Stall, session_lost
from ollamafront import Manners
from registries import PASSWORD, USER, Options, Registry
from tokenserver import basic

CREDENTIALS = {"Authorization": basic(USER, PASSWORD)}
BLOB = bytes(range(256)) * 4096
DIGEST = f"sha256:{hashlib.sha256(BLOB).hexdigest()}"
BLOB_PATH = f"/v2/some/model/blobs/{DIGEST}"
UPLOADS = "/v2/some/model/blobs/uploads/"


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def location(self) -> str:
        place = urlsplit(self.headers["location"])
        return f"{place.path}?{place.query}" if place.query else place.path


def ask(
    host: str,
    method: str,
    path: str,
    *,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    trust: Path | None = None,
) -> Reply:
    if trust:
        context = ssl.create_default_context(cafile=trust)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(host, context=context, timeout=30)
    else:
        connection = http.client.HTTPConnection(host, timeout=30)
    with contextlib.closing(connection):
        connection.request(method, path, body=body, headers=dict(headers or {}))
        with connection.getresponse() as response:
            return Reply(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())


def upload(registry: Registry, *, headers: Mapping[str, str] | None = None) -> Reply:
    session = ask(registry.host, "POST", UPLOADS, headers=headers)
    return ask(registry.host, "PUT", f"{session.location}&digest={DIGEST}", body=BLOB, headers=headers)


def token(registry: Registry) -> dict[str, str]:
    assert registry.tokens is not None
    realm = urlsplit(registry.tokens.realm)
    query = urlencode({"service": "test registry", "scope": "repository:some/model:pull,push"})
    reply = ask(realm.netloc, "GET", f"{realm.path}?{query}", headers=CREDENTIALS)
    return {"Authorization": f"Bearer {json.loads(reply.body)['token']}"}


@pytest.fixture(scope="module")
def base_archive(small_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("archive") / "base.tar"
    smallbase.archive(small_base, file, "small-base:1", version=BASE_VERSION)
    return file


@contextlib.contextmanager
def running(engine: Engine, image: str, *words: str) -> Iterator[str]:
    name = f"infrastructure-{uuid.uuid4().hex[:8]}"
    engine.run_cli("run", "-d", "--name", name, "-p", "127.0.0.1::11434", *words, image)
    try:
        yield name
    finally:
        engine.run_cli("rm", "-f", name)


def greeting(engine: Engine, container: str) -> bytes:
    port = engine.published_port(container, 11434)

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return engine.http_get(port).status == 200
        return False

    wait_until(answers, timeout_s=20, what="the container to answer")
    return engine.http_get(port).body


# Engines


def test_an_engine_runs_the_small_base_and_a_program_in_its_network_reaches_it(
    engine: Engine, base_archive: Path
) -> None:
    engine.run_cli("load", "-i", str(base_archive))

    with running(engine, "small-base:1", "--read-only", "--tmpfs", "/root") as container:
        said = greeting(engine, container)
        inside = engine.netns_exec(
            [sys.executable, "-c", _FETCH, str(engine.published_port(container, 11434))]
        ).stdout.strip()
        version = engine.run_cli("exec", container, "/bin/ollama", "--version").stdout

    assert said == b"Ollama is running"
    assert inside == "Ollama is running"
    assert BASE_VERSION in version


_FETCH = """
import sys, urllib.request
print(urllib.request.urlopen(f"http://127.0.0.1:{sys.argv[1]}/").read().decode())
"""


def test_each_engine_has_the_store_of_its_kind(engine: Engine) -> None:
    status = engine.run_cli("info", "--format", "{{json .DriverStatus}}").stdout

    assert ("io.containerd.snapshotter" in status) == (engine.kind == "containerd")


@pytest.mark.parametrize("auth", ["none", "basic", "token", "oauth"])
def test_an_engine_pulls_from_a_registry_under_test(
    engine: Engine, make_registry: MakeRegistry, small_base: Path, auth: str
) -> None:
    storage = make_registry()
    smallbase.push(small_base, f"{storage.host}/base:1", version=BASE_VERSION)
    registry = make_registry(Options(auth="token" if auth == "oauth" else auth, storage=storage.storage))
    if registry.tokens:
        registry.tokens.oauth = auth == "oauth"
    engine.expose(*registry.ports)
    if auth != "none":
        engine.run_cli("login", "-u", USER, "-p", PASSWORD, registry.host)

    engine.run_cli("pull", f"{registry.host}/base:1")

    assert any(each.status == 200 for each in registry.requests(path="/v2/base/manifests/"))
    engine.run_cli("image", "rm", f"{registry.host}/base:1")


@pytest.mark.parametrize("kind", ["classic", "containerd"])
def test_an_engine_trusts_an_authority_it_is_given(
    make_engine: MakeEngine, make_registry: MakeRegistry, authority: Authority, small_base: Path, kind: EngineKind
) -> None:
    storage = make_registry()
    smallbase.push(small_base, f"{storage.host}/base:1", version=BASE_VERSION)
    registry = make_registry(Options(tls=authority, storage=storage.storage))
    engine = make_engine(kind)
    engine.expose(*registry.ports)
    engine.trust(registry.host, authority.certificate)

    engine.run_cli("pull", f"{registry.host}/base:1")

    assert engine.run_cli("image", "ls", "-q").stdout.strip()


def test_a_frozen_engine_is_silent_until_it_thaws(make_engine: MakeEngine) -> None:
    engine = make_engine("classic")

    with engine.frozen(), pytest.raises(subprocess.TimeoutExpired):
        engine.run_cli("version", timeout_s=0.5)

    assert engine.run_cli("version", "--format", "{{.Server.Version}}").stdout.strip() == engine.version


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_an_engine_comes_back_with_its_images(make_engine: MakeEngine, base_archive: Path, how: signal.Signals) -> None:
    engine = make_engine("classic")
    engine.run_cli("load", "-i", str(base_archive))

    engine.stop(how=how)
    gone = engine.run_cli("version", check=False).returncode
    engine.start()

    assert gone != 0
    assert engine.run_cli("image", "ls", "-q", "small-base").stdout.strip()


def test_a_small_disk_runs_full(make_engine: MakeEngine, base_archive: Path) -> None:
    engine = make_engine("classic", disk_bytes=24 << 20)

    with pytest.raises(EngineError, match="no space left on device"):
        engine.run_cli("load", "-i", str(base_archive))


def test_nothing_of_an_engine_is_left_after_it_is_closed(make_engine: MakeEngine) -> None:
    engine = make_engine("classic")
    name = engine.directory.name

    engine.close()

    assert not engine.directory.exists()
    assert not any(name in text for text in _command_lines())


@pytest.fixture
def engines_of_its_own(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Engines in a directory of one test's own: whoever else starts one clears up, too."""
    engines_directory().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="own-", dir=engines_directory()) as directory:
        monkeypatch.setenv("APPLIANCE_TEST_ENGINES", directory)
        yield


def test_an_engine_dies_with_the_tests_and_the_next_run_clears_up(
    engines_of_its_own: None, make_engine: MakeEngine
) -> None:
    make_engine("classic")
    program = "from engines import start_engine; e = start_engine('classic'); print(e.directory, flush=True); input()"
    path = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=path
    ) as tests:
        assert tests.stdout is not None
        directory = Path(tests.stdout.readline().strip())
        tests.kill()

    wait_until(lambda: not any(directory.name in text for text in _command_lines()), timeout_s=60, what="the end")
    left = directory.exists()
    make_engine("classic")

    assert left
    assert directory.parent == engines_directory()
    assert not directory.exists()


def test_those_who_clear_up_at_once_do_not_hinder_each_other(tmp_path: Path) -> None:
    alive = EngineDirectory(tmp_path, "classic")
    made = tmp_path / "just-being-made"
    made.mkdir()
    for number in range(3):
        for name in ("a/b/c", "d"):
            place = tmp_path / f"left-{number}" / name
            place.mkdir(parents=True)
            for file in range(200):
                (place / str(file)).touch()
        (tmp_path / f"left-{number}" / "owner").touch()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(sweep, tmp_path) for _ in range(8)]:
            done.result()

    assert sorted(tmp_path.iterdir()) == sorted([alive.path, made])
    alive.discard()
    assert list(tmp_path.iterdir()) == [made]


def _command_lines() -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(process.read_text(errors="replace"))
    return found


def test_a_host_engine_is_not_touched(classic_engine: Engine) -> None:
    if not isinstance(classic_engine, PrivateEngine):
        pytest.skip("a private Docker Engine needs root")
    own = str(Path("/proc/self/ns/net").readlink())
    inside = classic_engine.netns_exec(["readlink", "/proc/self/ns/net"]).stdout.strip()

    assert own != inside


def test_the_debian_root_is_made_once(containerd_engine: Engine) -> None:
    started_s = time.monotonic()

    root = debian_root()

    assert (root / "usr/sbin/dockerd").exists()
    assert time.monotonic() - started_s < 5


# Registries


def test_a_registry_takes_and_gives_a_blob_and_counts_it(registry: Registry) -> None:
    stored = upload(registry)
    got = ask(registry.host, "GET", BLOB_PATH)

    assert stored.status == 201
    assert registry.has_blob(DIGEST)
    assert got.body == BLOB
    assert [(each.method, each.status) for each in registry.requests()] == [("POST", 202), ("PUT", 201), ("GET", 200)]
    assert registry.requests("PUT")[0].request_bytes == len(BLOB)
    assert registry.requests("GET", "/blobs/")[0].response_bytes == len(BLOB)


def test_basic_credentials_open_a_registry(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="basic"))

    refused = ask(registry.host, "GET", "/v2/")
    admitted = ask(registry.host, "GET", "/v2/", headers=CREDENTIALS)

    assert refused.status == 401
    assert refused.headers["www-authenticate"].startswith("Basic ")
    assert admitted.status == 200


def test_a_token_runs_out_in_mid_upload(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token", token_lifetime_s=4))
    first = token(registry)
    session = ask(registry.host, "POST", UPLOADS, headers=first)

    wait_until(
        lambda: ask(registry.host, "GET", session.location, headers=first).status == 401, timeout_s=30, what="a 401"
    )
    late = ask(registry.host, "PUT", f"{session.location}&digest={DIGEST}", body=BLOB, headers=first)
    renewed = ask(registry.host, "PUT", f"{session.location}&digest={DIGEST}", body=BLOB, headers=token(registry))

    assert session.status == 202
    assert late.status == 401
    assert 'error="invalid_token"' in late.headers["www-authenticate"]
    assert renewed.status == 201


def test_a_token_is_refused_to_a_wrong_password(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token"))
    challenge = ask(registry.host, "GET", "/v2/")
    assert registry.tokens is not None
    realm = urlsplit(registry.tokens.realm)

    refused = ask(realm.netloc, "GET", f"{realm.path}?scope=repository:some/model:pull")

    assert f'realm="{registry.tokens.realm}"' in challenge.headers["www-authenticate"]
    assert refused.status == 401
    assert [request.granted for request in registry.tokens.asked] == [False]


def test_a_read_only_registry_gives_and_does_not_take(make_registry: MakeRegistry) -> None:
    writable = make_registry()
    upload(writable)
    registry = make_registry(Options(storage=writable.storage, read_only=True))

    assert ask(registry.host, "GET", BLOB_PATH).body == BLOB
    assert ask(registry.host, "POST", UPLOADS).status == 405


def test_a_blob_can_be_deleted_unless_deletion_is_off(make_registry: MakeRegistry) -> None:
    registry = make_registry()
    upload(registry)
    strict = make_registry(Options(storage=registry.storage, delete=False))

    assert ask(strict.host, "DELETE", BLOB_PATH).status == 405
    assert ask(registry.host, "DELETE", BLOB_PATH).status == 202


def test_a_registry_runs_out_of_disk(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(storage_bytes=256 << 10))

    reply = upload(registry)

    assert reply.status == 500
    assert b"no space left on device" in reply.body


def test_a_registry_speaks_tls_for_those_who_trust_its_authority(
    make_registry: MakeRegistry, authority: Authority
) -> None:
    registry = make_registry(Options(tls=authority))

    trusted = ask(registry.host, "POST", UPLOADS, trust=authority.certificate)
    with pytest.raises(ssl.SSLCertVerificationError):
        ask(registry.host, "GET", "/v2/", trust=Path(ssl.get_default_verify_paths().cafile or "/etc/ssl/cert.pem"))

    assert trusted.headers["location"].startswith(f"https://{registry.host}/")


def test_a_restarted_registry_keeps_what_it_stored(registry: Registry) -> None:
    upload(registry)

    registry.stop()
    with pytest.raises(http.client.RemoteDisconnected):
        ask(registry.host, "GET", BLOB_PATH)
    registry.start()

    assert ask(registry.host, "GET", BLOB_PATH).body == BLOB


# Faults


@pytest.fixture
def stocked(registry: Registry) -> Registry:
    upload(registry)
    registry.forget()
    return registry


def test_a_response_is_cut_by_a_reset_after_so_many_bytes(stocked: Registry) -> None:
    stocked.proxy.add(Cut(after=1000))

    with pytest.raises(ConnectionResetError):
        ask(stocked.host, "GET", BLOB_PATH)

    assert stocked.requests()[0].response_bytes == 1000
    assert stocked.requests()[0].status == 200


def test_a_response_shorter_than_its_head_said_ends_in_silence(stocked: Registry) -> None:
    stocked.proxy.add(Cut(after=1000, how="fin"))

    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(stocked.host, "GET", BLOB_PATH)

    assert len(caught.value.partial) == 1000
    assert caught.value.expected == len(BLOB) - 1000


@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_request_is_cut_and_the_server_saw_only_its_beginning(registry: Registry, how: str) -> None:
    registry.proxy.add(Cut(after=70_000, of="request", how="rst" if how == "rst" else "fin"), method="PUT")

    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        upload(registry)

    assert registry.requests("PUT")[0].request_bytes == 70_000
    assert not registry.has_blob(DIGEST)


def test_an_upload_is_stored_although_the_client_never_learns(registry: Registry) -> None:
    registry.proxy.add(DropResponse(), method="PUT")

    with pytest.raises(http.client.RemoteDisconnected):
        upload(registry)

    assert registry.has_blob(DIGEST)


def test_an_upload_is_stored_although_the_client_is_told_it_timed_out(registry: Registry) -> None:
    registry.proxy.add(Answer(504, carry_out=True), method="PUT")

    reply = upload(registry)

    assert reply.status == 504
    assert registry.has_blob(DIGEST)


def test_a_shortened_body_looks_whole(stocked: Registry) -> None:
    stocked.proxy.add(Shorten(to=5000))

    reply = ask(stocked.host, "GET", BLOB_PATH)

    assert reply.headers["content-length"] == "5000"
    assert reply.body == BLOB[:5000]


def test_one_byte_is_wrong(stocked: Registry) -> None:
    stocked.proxy.add(Corrupt(at=300_000))

    body = ask(stocked.host, "GET", BLOB_PATH).body

    assert [place for place in range(len(BLOB)) if body[place] != BLOB[place]] == [300_000]


def test_one_byte_of_an_upload_is_wrong_and_the_registry_refuses_it(registry: Registry) -> None:
    registry.proxy.add(Corrupt(at=5, of="request"), method="PUT")

    reply = upload(registry)

    assert reply.status == 400
    assert b"DIGEST_INVALID" in reply.body


@pytest.mark.parametrize(
    "answer",
    [
        Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'}),
        Answer(403),
        Answer(404, b"gone"),
        Answer(416),
        Answer(429, headers={"Retry-After": "7"}),
        Answer(500),
        Answer(503, b"try later"),
        Answer(200, b"<html>please log in</html>", {"Content-Type": "text/html"}),
    ],
    ids=lambda answer: str(answer.status),
)
def test_an_answer_is_made_up_and_the_server_is_not_asked(stocked: Registry, answer: Answer) -> None:
    stocked.proxy.add(answer, times=1)

    reply = ask(stocked.host, "GET", BLOB_PATH)
    after = ask(stocked.host, "GET", BLOB_PATH)

    assert (reply.status, reply.body) == (answer.status, answer.body)
    assert {k.lower(): v for k, v in answer.headers.items()}.items() <= reply.headers.items()
    assert after.body == BLOB


def test_an_upload_session_is_lost(registry: Registry) -> None:
    registry.proxy.add(session_lost(), method="PUT", path="/blobs/uploads/", nth=1)

    lost = upload(registry)
    again = upload(registry)

    assert (lost.status, json.loads(lost.body)["errors"][0]["code"]) == (404, "BLOB_UPLOAD_UNKNOWN")
    assert again.status == 201


def test_a_server_answers_before_it_has_the_body(registry: Registry) -> None:
    registry.proxy.add(Answer(401, early=True), method="PUT")

    reply = upload(registry)

    assert reply.status == 401
    assert registry.requests("PUT")[0].request_bytes == 0


def test_a_range_is_ignored(stocked: Registry) -> None:
    stocked.proxy.add(IgnoreRange(), times=1)

    whole = ask(stocked.host, "GET", BLOB_PATH, headers={"Range": "bytes=10-19"})
    part = ask(stocked.host, "GET", BLOB_PATH, headers={"Range": "bytes=10-19"})

    assert (whole.status, whole.body) == (200, BLOB)
    assert (part.status, part.body) == (206, BLOB[10:20])


def test_a_range_is_lied_about(stocked: Registry) -> None:
    stocked.proxy.add(Headers({"Content-Range": "bytes 0-9/10"}))

    reply = ask(stocked.host, "GET", BLOB_PATH, headers={"Range": "bytes=10-19"})

    assert (reply.status, reply.headers["content-range"]) == (206, "bytes 0-9/10")


def test_a_length_is_withheld(stocked: Registry) -> None:
    stocked.proxy.add(Headers({"Content-Length": None, "Content-Type": "text/plain"}))

    reply = ask(stocked.host, "GET", BLOB_PATH)

    assert "content-length" not in reply.headers
    assert reply.headers["content-type"] == "text/plain"
    assert reply.body == BLOB


def test_a_response_stalls_until_it_is_released(stocked: Registry) -> None:
    stall = Stall(after=100)
    stocked.proxy.add(stall, path="/blobs/")
    connection = http.client.HTTPConnection(stocked.host, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", BLOB_PATH)
        with connection.getresponse() as response:
            first = response.read(100)
            assert stall.reached.wait(30)
            connection.sock.settimeout(0.3)
            with pytest.raises(TimeoutError):
                response.read(1)

    stocked.proxy.clear()

    assert first == BLOB[:100]
    assert ask(stocked.host, "GET", BLOB_PATH).body == BLOB


def test_a_slow_line_takes_its_time(stocked: Registry) -> None:
    stocked.proxy.add(Slow(bytes_per_s=4 * len(BLOB)))
    started_s = time.monotonic()

    body = ask(stocked.host, "GET", BLOB_PATH).body

    assert body == BLOB
    assert 0.2 < time.monotonic() - started_s < 5


def test_only_the_exchange_that_is_meant_is_hurt(stocked: Registry) -> None:
    rule = stocked.proxy.add(Answer(500), method="GET", path=r"/blobs/sha256:", host=stocked.host, nth=2)

    statuses = [ask(stocked.host, "GET", BLOB_PATH).status for _ in range(3)]
    other = ask(stocked.host, "HEAD", BLOB_PATH).status

    assert statuses == [200, 500, 200]
    assert other == 200
    assert (rule.seen, rule.hits) == (3, 1)


def test_faults_add_up(stocked: Registry) -> None:
    stocked.proxy.add(Corrupt(at=3))
    stocked.proxy.add(Cut(after=10, how="fin"))

    with pytest.raises(http.client.IncompleteRead) as caught:
        ask(stocked.host, "GET", BLOB_PATH)

    assert caught.value.partial == BLOB[:3] + bytes([BLOB[3] ^ 0xFF]) + BLOB[4:10]


def test_a_test_can_wait_for_what_passes_through(stocked: Registry) -> None:
    stocked.proxy.add(Stall(after=70_000))
    connection = http.client.HTTPConnection(stocked.host, timeout=30)
    with contextlib.closing(connection):
        connection.request("GET", BLOB_PATH)

        stocked.proxy.wait_for(lambda log: any(each.response_bytes >= 70_000 for each in log))

        assert not stocked.requests()[0].finished


def test_many_exchanges_share_a_connection(stocked: Registry) -> None:
    connection = http.client.HTTPConnection(stocked.host, timeout=30)
    with contextlib.closing(connection):
        for _ in range(3):
            connection.request("GET", BLOB_PATH)
            connection.getresponse().read()
        place = connection.sock.getsockname()
        connection.request("HEAD", BLOB_PATH)
        connection.getresponse().read()

        assert connection.sock.getsockname() == place


def test_a_server_that_is_not_there_ends_the_connection() -> None:
    proxy = FaultProxy(("127.0.0.1", 1)).start()
    with contextlib.closing(proxy), pytest.raises(http.client.RemoteDisconnected):
        ask(proxy.host, "GET", "/")


# The front that stands for registry.ollama.ai


@pytest.fixture
def store(tmp_path: Path) -> Path:
    top = tmp_path / "models"
    for name in ("registry.ollama.ai/library/some-model/7b", "hf.co/someone/Some-GGUF/Q4_K_M"):
        manifest = top / "manifests" / name
        manifest.parent.mkdir(parents=True)
        manifest.write_bytes(b'{"schemaVersion":2}\n')
    (top / "blobs").mkdir()
    (top / "blobs" / DIGEST.replace(":", "-")).write_bytes(BLOB)
    return top


MANIFEST_PATH = "/v2/library/some-model/manifests/7b"
MODEL_BLOB = f"/v2/library/some-model/blobs/{DIGEST}"


def follow(reply: Reply, *, method: str = "GET", headers: Mapping[str, str] | None = None) -> Reply:
    return ask(urlsplit(reply.headers["location"]).netloc, method, reply.location, headers=headers)


@pytest.mark.parametrize("path", [MANIFEST_PATH, "/v2/someone/Some-GGUF/manifests/Q4_K_M"])
def test_the_front_gives_a_manifest_as_text_without_a_length(make_front: MakeFront, store: Path, path: str) -> None:
    front = make_front(StoreSource(store))

    reply = ask(front.host, "GET", path)

    assert reply.body == b'{"schemaVersion":2}\n'
    assert reply.headers["content-type"].startswith("text/plain")
    assert "content-length" not in reply.headers


def test_the_front_has_no_version_page_and_says_what_it_does_not_know(make_front: MakeFront, store: Path) -> None:
    front = make_front(StoreSource(store))

    unknown = ask(front.host, "GET", "/v2/library/absent/manifests/1")

    assert ask(front.host, "GET", "/v2/").status == 404
    assert unknown.status == 404
    assert json.loads(unknown.body)["errors"][0]["code"] == "MANIFEST_UNKNOWN"


def test_a_blob_lies_behind_a_link_to_another_host_name(make_front: MakeFront, store: Path) -> None:
    front = make_front(StoreSource(store))

    size = ask(front.host, "HEAD", MODEL_BLOB)
    redirect = ask(front.host, "GET", MODEL_BLOB)
    part = follow(redirect, headers={"Range": "bytes=100-199"})
    whole = follow(redirect)

    assert (size.status, size.headers["content-length"]) == (200, str(len(BLOB)))
    assert redirect.status == 307
    assert urlsplit(redirect.headers["location"]).hostname == "localhost"
    assert (part.status, part.body) == (206, BLOB[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(BLOB)}"
    assert (whole.status, whole.body) == (200, BLOB)
    assert sum(each.response_bytes for each in front.blob_requests()) == len(BLOB) + 100


def test_a_link_runs_out_and_a_new_one_works(make_front: MakeFront, store: Path) -> None:
    front = make_front(StoreSource(store), Manners(link_uses=1))
    redirect = ask(front.host, "GET", MODEL_BLOB)

    statuses = [follow(redirect).status for _ in range(2)]
    renewed = ask(front.host, "GET", MODEL_BLOB)
    front.expire_links()
    expired = follow(renewed)

    assert statuses == [200, 403]
    assert expired.status == 403
    assert b"Request has expired" in expired.body
    assert follow(ask(front.host, "GET", MODEL_BLOB)).status == 200


def test_a_link_has_a_lifetime(make_front: MakeFront, store: Path) -> None:
    front = make_front(StoreSource(store), Manners(link_lifetime_s=0.2))
    redirect = ask(front.host, "GET", MODEL_BLOB)

    wait_until(lambda: follow(redirect).status == 403, timeout_s=5, what="the link to run out")

    assert "X-Amz-Expires=0" in redirect.location


def test_credentials_shown_to_the_blob_host_are_noticed(make_front: MakeFront, store: Path) -> None:
    front = make_front(StoreSource(store))

    reply = follow(ask(front.host, "GET", MODEL_BLOB), headers=CREDENTIALS)

    assert reply.status == 400
    assert len(front.violations) == 1
    front.violations.clear()


def test_the_front_wants_a_token(make_front: MakeFront, store: Path) -> None:
    front = make_front(StoreSource(store), Manners(auth="bearer", token_needs_password=True))

    challenge = ask(front.host, "GET", MANIFEST_PATH)
    refused = ask(front.host, "GET", "/token")
    granted = ask(front.host, "GET", "/token", headers=CREDENTIALS)
    bearer = {"Authorization": f"Bearer {json.loads(granted.body)['token']}"}

    assert challenge.headers["www-authenticate"] == (
        f'Bearer realm="{front.url}/token",service="{front.host}",scope="repository:library/some-model:pull"'
    )
    assert refused.status == 401
    assert ask(front.host, "GET", MANIFEST_PATH, headers=bearer).status == 200
    front.revoke_tokens()
    assert ask(front.host, "GET", MANIFEST_PATH, headers=bearer).status == 401


@pytest.mark.parametrize(("manner", "status"), [("answer", 200), ("redirect", 307), ("refuse", 405)])
def test_a_front_has_its_way_with_head(make_front: MakeFront, store: Path, manner: str, status: int) -> None:
    front = make_front(StoreSource(store), Manners(head_of_blob=manner))  # type: ignore[arg-type]  # one of the table's

    reply = ask(front.host, "HEAD", MODEL_BLOB)

    assert reply.status == status
    if status == 307:
        assert follow(reply, method="HEAD").headers["content-length"] == str(len(BLOB))


def test_a_front_without_links_gives_the_blob_itself(make_front: MakeFront, store: Path) -> None:
    front = make_front(StoreSource(store), Manners(redirect=False, manifest_length=True))

    assert ask(front.host, "GET", MODEL_BLOB).body == BLOB
    assert ask(front.host, "GET", MANIFEST_PATH).headers["content-length"] == "20"


def test_a_front_stands_before_a_real_registry(make_front: MakeFront, registry: Registry) -> None:
    upload(registry)
    front = make_front(RegistrySource(registry.host))

    redirect = ask(front.host, "GET", BLOB_PATH)

    assert redirect.status == 307
    assert follow(redirect).body == BLOB
    assert follow(redirect, headers={"Range": "bytes=5-9"}).body == BLOB[5:10]
    assert ask(front.host, "GET", "/v2/some/model/manifests/none").status == 404


def test_the_blob_host_can_be_made_to_fail(make_front: MakeFront, store: Path) -> None:
    front = make_front(StoreSource(store))
    front.blob_proxy.add(Cut(after=10, how="fin"), nth=1)
    redirect = ask(front.host, "GET", MODEL_BLOB)

    with pytest.raises(http.client.IncompleteRead):
        follow(redirect)

    assert follow(redirect).body == BLOB


# The small base


def test_the_base_has_the_same_bytes_each_time(tmp_path: Path, small_base: Path) -> None:
    smallbase.assemble(tmp_path / "again", version=BASE_VERSION)

    assert (tmp_path / "again/index.json").read_bytes() == (small_base / "index.json").read_bytes()


def test_another_version_differs_in_its_top_layer_only(tmp_path: Path, small_base: Path) -> None:
    smallbase.assemble(tmp_path / "next", version="0.33.0")

    old, new = _layers(small_base), _layers(tmp_path / "next")

    assert len(old) == 3
    assert old[:2] == new[:2]
    assert old[2] != new[2]


def test_two_platforms_are_one_index_over_the_same_layers(registry: Registry, tmp_path: Path) -> None:
    smallbase.assemble(tmp_path / "both", version="1.2.3", platforms=("linux/amd64", "linux/arm64"))

    smallbase.push(tmp_path / "both", f"{registry.host}/base:1.2.3", version="1.2.3")

    accept = {"Accept": "application/vnd.oci.image.index.v1+json"}
    index = json.loads(ask(registry.host, "GET", "/v2/base/manifests/1.2.3", headers=accept).body)
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]
    assert len(registry.requests("PUT", "/blobs/uploads/")) == 5


@pytest.mark.ollama
def test_a_base_is_made_from_a_real_ollama(classic_engine: Engine, tmp_path: Path) -> None:
    smallbase.assemble(tmp_path / "real", version="0", ollama_bin=Path(os.environ["OLLAMA_BIN"]))
    smallbase.archive(tmp_path / "real", tmp_path / "real.tar", "real-base:1", version="0")
    classic_engine.run_cli("load", "-i", str(tmp_path / "real.tar"))

    with running(classic_engine, "real-base:1") as container:
        assert greeting(classic_engine, container) == b"Ollama is running"


def _layers(layout: Path) -> list[str]:
    index = json.loads((layout / "index.json").read_bytes())
    manifest = layout / "blobs/sha256" / index["manifests"][0]["digest"].removeprefix("sha256:")
    return [layer["digest"] for layer in json.loads(manifest.read_bytes())["layers"]]
