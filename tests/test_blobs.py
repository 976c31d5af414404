"""Blobs read from a real docker-registry whose connection, links and answers misbehave."""

import json
from collections.abc import Iterator

import pytest
from authority import Authority
from conftest import MakeRegistry
from faultproxy import FaultProxy
from faults import Answer, Corrupt, Cut, DropResponse, Fault, Headers, IgnoreRange, Shorten
from registries import Options, Registry
from registry_client import (
    BLOB,
    BLOBS,
    BODY,
    MIB,
    Bar,
    Bytes,
    builder,
    close_connections,
    open_repository,
    pattern,
    store,
    trusting,
)

from appliance_builder.quirks import quirks_for
from appliance_builder.registry_errors import RegistryError
from appliance_builder.upload import upload
from appliance_image.digest import Digest
from appliance_image.oci import LAYER_TAR, Descriptor


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_connections()


PAGE = b"<!DOCTYPE html><html>please log in</html>"
HTML = {"Content-Type": "text/html"}


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
