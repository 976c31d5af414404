"""A model of an Ollama registry: the library, a mirror of it, `hf.co`, or any OCI registry that was given one.

What Ollama's registries do differently is borne here: manifests come as text/plain without a length, `/v2/` and HEAD
may not be served, and tags cannot be listed everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from appliance_builder.download import Downloads
from appliance_builder.model import SMALL_BLOB_BYTES, ModelError
from appliance_builder.network_errors import NetworkError
from appliance_builder.ports import Content
from appliance_builder.ranges import RangeFetcher, fetcher_for_oci
from appliance_builder.registry import Repository
from appliance_builder.registry_errors import RegistryError
from appliance_builder.transport import Transport
from appliance_image.digest import Digest
from appliance_image.oci import DOCKER_MANIFEST, MANIFEST, Descriptor, Manifest, OciError
from appliance_image.reference import OLLAMA_LIBRARY, ModelName

_MANIFEST_BYTES: Final = 4 * 1024 * 1024
_ACCEPT: Final = f"{DOCKER_MANIFEST}, {MANIFEST}"
_OLLAMA: Final = (OLLAMA_LIBRARY, "ollama.com", "www.ollama.com")
_HUGGING_FACE: Final = ("hf.co", "huggingface.co")
_SHOWN_TAGS: Final = 10


class OllamaRegistry:
    def __init__(self, name: ModelName, transport: Transport, downloads: Downloads) -> None:
        mirrored = transport.place != transport.host
        self.label = f"{transport.host} (mirror {transport.place})" if mirrored else transport.host
        self._name = name
        self._transport = transport
        self._repository = Repository(transport, f"{name.namespace}/{name.model}")
        self._downloads = downloads

    def manifest(self) -> bytes:
        """The very bytes: their sha256 is the model's ID."""
        try:
            reply = self._transport.call(
                "GET",
                self._transport.url(f"{self._repository.name}/manifests/{self._name.tag}"),
                doing=f"reading model `{self._name}`",
                scopes=self._repository.scopes,
                expect=(200,),
                headers={"Accept": _ACCEPT},
                limit_bytes=_MANIFEST_BYTES,
            )
        except RegistryError as error:
            explained = self._explained(error)
            if explained is None:
                raise
            raise explained from error
        if "text/html" in reply.headers.get("content-type", "") or reply.body.lstrip().startswith(b"<"):
            raise ModelError(
                f"{self.label} answered with a web page, not with the manifest of `{self._name}`",
                hint="check the address: a login page or a proxy may stand before it",
            )
        try:
            Manifest.parse(reply.body)
        except OciError as error:
            raise ModelError(
                f"{self.label} has no model under `{self._name}`: {error.message}",
                hint="check the name: it may belong to a container image",
            ) from error
        return reply.body

    def small(self, descriptor: Descriptor) -> bytes:
        return self._repository.small_blob(descriptor, limit_bytes=SMALL_BLOB_BYTES)

    def content(self, descriptor: Descriptor) -> Content:
        return self._downloads.content(self.fetcher(descriptor), descriptor)

    def head(self, descriptor: Descriptor) -> Iterable[bytes]:
        return self._repository.blob(descriptor).read()

    def settle(self, digest: Digest, *, good: bool) -> None:
        self._downloads.settle(digest, good=good)

    def fetcher(self, descriptor: Descriptor) -> RangeFetcher:
        return fetcher_for_oci(self._repository, descriptor)

    def _explained(self, error: RegistryError) -> ModelError | None:
        if error.status == 404:
            return self._not_found()
        hint = _hint(self._name, error, login=self._transport.place)
        return ModelError(error.message, hint=hint) if hint else None

    def _not_found(self) -> ModelError:
        """Registries give one answer for a wrong model and a wrong tag; where tags can be listed, they tell which."""
        tags: list[str] = []
        with suppress(RegistryError, NetworkError):
            tags = self._repository.tags(_SHOWN_TAGS)
        if tags:
            names = ", ".join(tags)
            return ModelError(
                f"model `{self._name}` not found: {self.label} has the model, but no tag `{self._name.tag}`",
                hint=f"its tags: {names}{', …' if len(tags) == _SHOWN_TAGS else ''}",
            )
        return ModelError(f"model `{self._name}` not found on {self.label}", hint=_where_to_look(self._name))


def _where_to_look(name: ModelName) -> str:
    if name.host in _OLLAMA:
        page = f"library/{name.model}" if name.namespace == "library" else f"{name.namespace}/{name.model}"
        return f"check name and tag at https://ollama.com/{page}/tags; `appliance models` lists recipes"
    if name.host in _HUGGING_FACE:
        return f"check name and quantisation at https://huggingface.co/{name.namespace}/{name.model}"
    return "check name and tag; `appliance models` lists recipes"


def _hint(name: ModelName, error: RegistryError, *, login: str) -> str | None:
    """What only people who know these registries can tell; None: the registry client's own hint is good."""
    if name.host in _HUGGING_FACE:
        page = f"https://huggingface.co/{name.namespace}/{name.model}"
        if error.status in (401, 403):
            return (
                f"accept the terms at {page}, then `docker login {login}` with an access token as the password, "
                "or download the file with its own tool and give it with `--from-gguf FILE`"
            )
        if error.status == 400 and "shard" in error.message.lower():
            return (
                "Ollama cannot run a model in several files: choose another quantisation, or merge them with "
                "`llama-gguf-split --merge` and give the file with `--from-gguf FILE`"
            )
    if name.host in _OLLAMA and error.status in (401, 403):
        mirror = "" if login in _OLLAMA else f"`docker login {login}` where the mirror wants it; "
        return (
            f"{mirror}private models are opened with Ollama's own key, which `appliance` cannot use: `ollama pull {name}`, "
            "then build with `--from-store auto`"
        )
    return None
