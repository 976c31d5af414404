"""Models out of registries: one with the manners of registry.ollama.ai, a plain OCI one, and what they refuse."""

import json
import random
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from blobsources import StoreSource
from faults import Answer, Corrupt, Cut
from ollamafront import PASSWORD, USER, Manners, OllamaFront, start_front
from registries import Registry
from registry_client import Time

from appliance_builder.blobcache import BlobCache
from appliance_builder.credentials import Credentials
from appliance_builder.download import Downloads
from appliance_builder.http import Http
from appliance_builder.model import ModelError
from appliance_builder.network import Network
from appliance_builder.network_errors import NetworkError
from appliance_builder.ollama_registry import OllamaRegistry
from appliance_builder.pace import Pace
from appliance_builder.ports import Transfer
from appliance_builder.registry import Repository
from appliance_builder.registry_errors import RegistryError
from appliance_builder.sources import ModelSource, read_model
from appliance_builder.transport import Transport
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.oci import DOCKER_MANIFEST, Descriptor, Manifest
from appliance_image.reference import ModelName

SEGMENT = 64 * 1024
WEIGHTS = random.Random(1).randbytes(5 * SEGMENT + 17)
TEMPLATE = b"{{ .Prompt }}"
CONFIG = b'{"model_family":"qwen2","model_type":"32.8B","file_type":"Q4_K_M"}\n'
PARTS = {
    "application/vnd.docker.container.image.v1+json": CONFIG,
    "application/vnd.ollama.image.model": WEIGHTS,
    "application/vnd.ollama.image.template": TEMPLATE,
}


def described(media_type: str) -> Descriptor:
    content = PARTS[media_type]
    return Descriptor(media_type, Digest.of(content), len(content))


CONFIG_DESCRIPTOR, WEIGHTS_DESCRIPTOR, TEMPLATE_DESCRIPTOR = (described(media_type) for media_type in PARTS)
# Indented, as no program here would write it: the bytes must come through as they are.
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": CONFIG_DESCRIPTOR.json,
        "layers": [WEIGHTS_DESCRIPTOR.json, TEMPLATE_DESCRIPTOR.json],
    },
    indent=3,
).encode()


class Quiet:
    def step(self, message: str) -> None: ...

    def warning(self, message: str, *, hint: str) -> None: ...

    @contextmanager
    def transfer(self, name: str, *, size: int) -> Generator[Transfer, None, None]:
        yield self

    def advance(self, size: int) -> None: ...

    def restart(self, done: int) -> None: ...

    def note(self, text: str) -> None: ...


def make_front(store: Path) -> OllamaFront:
    (store / "blobs").mkdir(parents=True)
    for content in PARTS.values():
        (store / "blobs" / Digest.of(content).file_name).write_bytes(content)
    for name in ("library/tiny", "someone/their.model"):
        path = store / "manifests/registry.ollama.ai" / name / "32b"
        path.parent.mkdir(parents=True)
        path.write_bytes(MANIFEST)
    return start_front(StoreSource(store))


@pytest.fixture(scope="module")
def shared_front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaFront]:
    made = make_front(tmp_path_factory.mktemp("store"))
    yield made
    made.close()
    assert made.violations == []


@pytest.fixture
def front(shared_front: OllamaFront) -> Iterator[OllamaFront]:
    yield shared_front
    shared_front.manners = Manners()
    for proxy in (shared_front.proxy, shared_front.blob_proxy):
        proxy.clear()
        proxy.forget()


@pytest.fixture
def mortal_front(tmp_path: Path) -> Iterator[OllamaFront]:
    """For a test that closes it."""
    made = make_front(tmp_path / "store")
    yield made
    made.close()


class Client:
    """Opens models as a command would, and closes what it opened."""

    def __init__(self, cache: Path) -> None:
        self._cache = BlobCache(cache, segment_bytes=SEGMENT)
        self._opened: list[Http | Downloads] = []

    def open(
        self,
        model: str,
        *,
        mirrors: Mapping[str, str] | None = None,
        login: Credentials | None = None,
    ) -> OllamaRegistry:
        name = ModelName.parse(model)
        http = Http(Network(mirrors=mirrors or {}), environ={})
        downloads = Downloads(self._cache, Quiet(), pace=Pace(patience_s=10, doubt_s=10, first_s=0.01))
        self._opened += [downloads, http]
        transport = Transport(name.host, http, credentials=lambda _: login, waiting=Time().waiting(10))
        return OllamaRegistry(name, transport, downloads)

    def close(self) -> None:
        for opened in self._opened:
            opened.close()


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    made = Client(tmp_path / "cache")
    yield made
    made.close()


def read_weights(source: ModelSource) -> bytes:
    body = b"".join(source.content(WEIGHTS_DESCRIPTOR).read())
    source.settle(WEIGHTS_DESCRIPTOR.digest, good=body == WEIGHTS)
    return body


@pytest.mark.parametrize("name", ["library/tiny", "someone/their.model"])
def test_a_model_comes_with_its_manifest_byte_for_byte(front: OllamaFront, client: Client, name: str) -> None:
    source = client.open(f"{front.host}/{name}:32b")

    reading = read_model(source, name=ModelName.parse("tiny:32b"), known_as=name)

    assert reading.model.manifest == MANIFEST
    assert reading.model.template == TEMPLATE.decode()
    assert reading.model.config.parameters == "32.8B"
    assert read_weights(source) == WEIGHTS


def test_the_docker_media_type_is_asked_for_first(front: OllamaFront, client: Client) -> None:
    client.open(f"{front.host}/library/tiny:32b").manifest()

    assert front.requests()[0].headers["accept"].split(", ")[0] == DOCKER_MANIFEST


def test_nothing_is_asked_before_something_is_read(front: OllamaFront, client: Client) -> None:
    client.open(f"{front.host}/library/tiny:32b").content(WEIGHTS_DESCRIPTOR)

    assert front.requests() == []


def test_a_mirror_takes_the_place_of_the_library(front: OllamaFront, client: Client) -> None:
    source = client.open("tiny:32b", mirrors={"registry.ollama.ai": front.url})

    assert source.manifest() == MANIFEST
    assert read_weights(source) == WEIGHTS


def test_a_registry_that_sends_blobs_itself_does_as_well(front: OllamaFront, client: Client) -> None:
    front.manners = Manners(redirect=False, manifest_length=True)
    source = client.open(f"{front.host}/library/tiny:32b")

    assert source.small(TEMPLATE_DESCRIPTOR) == TEMPLATE
    assert read_weights(source) == WEIGHTS


@pytest.mark.parametrize("manners", [Manners(auth="basic"), Manners(auth="bearer", token_needs_password=True)])
def test_logins_go_to_the_registry_and_never_to_its_storage(
    front: OllamaFront, client: Client, manners: Manners
) -> None:
    front.manners = manners
    source = client.open(f"{front.host}/library/tiny:32b", login=Credentials(USER, PASSWORD))

    assert source.manifest() == MANIFEST
    assert source.small(TEMPLATE_DESCRIPTOR) == TEMPLATE
    assert read_weights(source) == WEIGHTS
    assert all("authorization" not in exchange.headers for exchange in front.blob_requests())


def test_a_public_model_needs_a_token_but_no_login(front: OllamaFront, client: Client) -> None:
    front.manners = Manners(auth="bearer")

    assert read_weights(client.open(f"{front.host}/library/tiny:32b")) == WEIGHTS


def test_a_token_that_is_revoked_in_the_middle_is_replaced(front: OllamaFront, client: Client) -> None:
    front.manners = Manners(auth="bearer", redirect=False)
    source = client.open(f"{front.host}/library/tiny:32b")
    source.manifest()

    front.revoke_tokens()

    assert read_weights(source) == WEIGHTS


def test_links_that_run_out_in_the_middle_are_replaced(front: OllamaFront, client: Client) -> None:
    front.manners = Manners(link_uses=2)

    assert read_weights(client.open(f"{front.host}/library/tiny:32b")) == WEIGHTS


def test_a_connection_that_breaks_while_a_small_blob_is_read_is_made_again(front: OllamaFront, client: Client) -> None:
    front.blob_proxy.add(Cut(3), times=2)

    assert client.open(f"{front.host}/library/tiny:32b").small(TEMPLATE_DESCRIPTOR) == TEMPLATE


def test_a_small_blob_with_a_wrong_byte_is_refused(front: OllamaFront, client: Client) -> None:
    front.blob_proxy.add(Corrupt(1))

    with pytest.raises(ApplianceError, match="not sha256:"):
        client.open(f"{front.host}/library/tiny:32b").small(TEMPLATE_DESCRIPTOR)


def test_an_unknown_model_is_named_with_where_to_look(front: OllamaFront, client: Client) -> None:
    source = client.open("nothing:7b", mirrors={"registry.ollama.ai": front.url})

    with pytest.raises(ModelError, match=r"model `nothing:7b` not found on registry\.ollama\.ai") as caught:
        source.manifest()

    assert "https://ollama.com/library/nothing/tags" in caught.value.hint
    assert "appliance models" in caught.value.hint


def pushed(registry: Registry) -> None:
    with Http(Network(), environ={}) as http:
        repository = Repository(Transport(registry.host, http), "library/tiny", push=True)
        for content in PARTS.values():
            repository.put_small_blob(content)
        for tag in ("32b", "latest"):
            repository.put_manifest(tag, MANIFEST, DOCKER_MANIFEST)


def test_a_model_of_a_plain_oci_registry_is_read(registry: Registry, client: Client) -> None:
    pushed(registry)
    source = client.open(f"{registry.host}/library/tiny:32b")

    assert source.manifest() == MANIFEST
    assert source.small(CONFIG_DESCRIPTOR) == CONFIG
    assert read_weights(source) == WEIGHTS


def test_an_unknown_tag_is_told_with_the_tags_that_there_are(registry: Registry, client: Client) -> None:
    pushed(registry)

    with pytest.raises(ModelError, match="has the model, but no tag `7b`") as caught:
        client.open(f"{registry.host}/library/tiny:7b").manifest()

    assert caught.value.hint in ("its tags: 32b, latest", "its tags: latest, 32b")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(200, b"<html>log in</html>", {"Content-Type": "text/html"}), "answered with a web page"),
        (Answer(200, b"\n<!doctype html>", {"Content-Type": "text/plain"}), "answered with a web page"),
        (Answer(200, b'{"schemaVersion":2,"manifests":[]}'), "has no model under"),
        (Answer(200, b"{"), "has no model under"),
        (Answer(200, b""), "has no model under"),
    ],
)
def test_what_is_no_manifest_is_refused(front: OllamaFront, client: Client, answer: Answer, words: str) -> None:
    front.proxy.add(answer, path="/manifests/")

    with pytest.raises(ApplianceError, match=words):
        client.open(f"{front.host}/library/tiny:32b").manifest()


@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_registry_in_trouble_is_asked_again(front: OllamaFront, client: Client, status: int) -> None:
    front.proxy.add(Answer(status, b"later"), path="/manifests/", times=2)

    assert client.open(f"{front.host}/library/tiny:32b").manifest() == MANIFEST


def test_a_private_model_of_the_library_names_the_way_through_ollama(front: OllamaFront, client: Client) -> None:
    front.proxy.add(Answer(401, b""), path="/manifests/")

    with pytest.raises(ModelError, match="401") as caught:
        client.open("someone/secret", mirrors={"registry.ollama.ai": front.url}).manifest()

    assert "`ollama pull someone/secret:latest`" in caught.value.hint
    assert "--from-store auto" in caught.value.hint


def test_a_refused_token_of_the_library_names_the_way_through_ollama(front: OllamaFront, client: Client) -> None:
    front.manners = Manners(auth="bearer", token_needs_password=True)

    with pytest.raises(ModelError, match="401") as caught:
        client.open("someone/secret", mirrors={"registry.ollama.ai": front.url}).manifest()

    assert "`ollama pull someone/secret:latest`" in caught.value.hint


def test_a_gated_model_of_hugging_face_names_the_terms_and_the_token(front: OllamaFront, client: Client) -> None:
    body = b'{"error":"Access to this repository requires authentication"}'
    front.proxy.add(Answer(401, body, {"Content-Type": "application/json"}), path="/manifests/")

    with pytest.raises(ModelError, match="requires authentication") as caught:
        client.open("hf.co/meta/Some-GGUF:Q4_K_M", mirrors={"hf.co": front.url}).manifest()

    assert "https://huggingface.co/meta/Some-GGUF" in caught.value.hint
    assert (
        f"docker login {front.host}" in caught.value.hint
    )  # the mirror's, which never gets the one of what it mirrors


def test_a_model_in_several_files_is_refused_in_hugging_faces_words(front: OllamaFront, client: Client) -> None:
    body = b'{"error":"The specified tag is a sharded GGUF. Ollama does not support this yet."}'
    front.proxy.add(Answer(400, body, {"Content-Type": "application/json"}), path="/manifests/")

    with pytest.raises(ModelError, match="sharded GGUF") as caught:
        client.open("hf.co/someone/Big-GGUF:Q8_0", mirrors={"hf.co": front.url}).manifest()

    assert "llama-gguf-split --merge" in caught.value.hint


def test_a_login_that_another_registry_wants_is_asked_for_by_name(front: OllamaFront, client: Client) -> None:
    front.manners = Manners(auth="basic")

    with pytest.raises(RegistryError, match="401") as caught:
        client.open(f"{front.host}/library/tiny:32b").manifest()

    assert f"docker login {front.host}" in caught.value.hint


def test_a_registry_that_is_not_there_is_named(mortal_front: OllamaFront, client: Client) -> None:
    mortal_front.close()

    with pytest.raises(NetworkError, match="refuses connections"):
        client.open(f"{mortal_front.host}/library/tiny:32b").manifest()


def test_a_downloaded_model_is_there_for_the_next_build(mortal_front: OllamaFront, client: Client) -> None:
    name = f"{mortal_front.host}/library/tiny:32b"
    read_weights(client.open(name))
    mortal_front.close()

    assert read_weights(client.open(name)) == WEIGHTS


def test_the_manifest_that_is_used_here_is_one() -> None:
    assert Manifest.parse(MANIFEST).layers == (WEIGHTS_DESCRIPTOR, TEMPLATE_DESCRIPTOR)
