"""What a repository holds, asked of a real docker-registry: blobs, manifests, tags, mounts, the right to push."""

from collections.abc import Iterator

import pytest
from conftest import MakeRegistry
from faults import Answer, Corrupt, DropResponse, Fault, Headers
from registries import Options, Registry
from registry_client import BLOB, BLOBS, BODY, MIB, close_connections, open_repository, store

from appliance_builder.registry_errors import RegistryError
from appliance_image.digest import Digest
from appliance_image.oci import CONFIG, MANIFEST, Descriptor, Manifest


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_connections()


def store_image(registry: Registry, tag: str = "1") -> Manifest:
    repository = store(registry)
    config = b'{"rootfs":{"type":"layers","diff_ids":[]}}'
    manifest = Manifest(Descriptor(CONFIG, repository.put_small_blob(config), len(config)), (BLOB,))
    repository.put_manifest(tag, manifest.render(), MANIFEST)
    return manifest


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


BLOB_UNKNOWN = b'{"errors":[{"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown to registry"}]}'
AWAY = Answer(400, BLOB_UNKNOWN, {"Content-Type": "application/json"})  # while somebody else commits the same blob


@pytest.mark.parametrize("fault", [DropResponse(), Answer(502), Answer(500, carry_out=True), AWAY])
def test_a_manifest_is_written_though_the_answer_is_lost(registry: Registry, fault: Fault) -> None:
    registry.proxy.add(fault, method="PUT", path="/manifests/", nth=1)

    manifest = store_image(registry)

    assert open_repository(registry.host).manifest("1")[1] == manifest.render()


def test_a_small_blob_that_arrived_wrong_once_is_sent_again(registry: Registry) -> None:
    registry.proxy.add(Corrupt(1, of="request"), method="PUT", nth=1)
    repository = open_repository(registry.host)

    digest = repository.put_small_blob(b"a configuration")

    assert repository.blob_size(digest) == len(b"a configuration")
    assert len(registry.requests("PUT")) == 2


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
