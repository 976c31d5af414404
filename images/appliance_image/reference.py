"""Names: container images as Docker writes them, models as Ollama writes them. Parsing only, no network."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError

DOCKER_HUB = "docker.io"
OLLAMA_LIBRARY = "registry.ollama.ai"

_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
_TAG = re.compile(r"\w[\w.-]{0,127}", re.ASCII)
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")
# types/model/name.go of Ollama: lengths and first characters of each part.
_MODEL_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:-]{0,349}")
_MODEL_NAMESPACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,79}")
_MODEL_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")


class NameSyntaxError(ApplianceError):
    pass


@dataclass(frozen=True, slots=True)
class ImageReference:
    """`[host/]repository[:tag][@digest]`; a name without a host is Docker Hub's, as everywhere."""

    host: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> ImageReference:
        hint = "an image is `[host[:port]/]name[:tag]`, for example `registry.example.com/ai/deepseek-r1:32b`"
        rest, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        tag: str | None = None
        if ":" in rest.rsplit("/", 1)[-1]:
            rest, tag = rest.rsplit(":", 1)
            if not _TAG.fullmatch(tag):
                raise NameSyntaxError(f"not a tag: {tag!r} in {text!r}", hint=hint)
        host, slash, repository = rest.partition("/")
        if not (slash and _looks_like_host(host)):
            host, repository = DOCKER_HUB, rest if slash else f"library/{rest}"
        elif host in ("index.docker.io", "registry-1.docker.io", DOCKER_HUB):
            host = DOCKER_HUB
            repository = repository if "/" in repository else f"library/{repository}"
        if not _HOST.fullmatch(host) or not _REPOSITORY.fullmatch(repository):
            raise NameSyntaxError(f"not an image reference: {text!r}", hint=hint)
        return cls(host, repository, tag, digest)

    @property
    def manifest(self) -> str:
        """What to ask a registry for: the digest where there is one, else the tag, else `latest`."""
        return str(self.digest) if self.digest else self.tag or "latest"

    @property
    def name(self) -> str:
        """The repository as Docker shows it: `ollama/ollama`, `127.0.0.1:5000/x`."""
        if self.host != DOCKER_HUB:
            return f"{self.host}/{self.repository}"
        short = self.repository.removeprefix("library/")
        return self.repository if "/" in short else short

    @property
    def canonical(self) -> str:
        """With host, and never a bare name: what a containerd store keys by."""
        return f"{self.host}/{self.repository}:{self.tag or 'latest'}"

    def at(self, digest: Digest) -> ImageReference:
        return replace(self, tag=None, digest=digest)

    def __str__(self) -> str:
        text = self.name
        if self.tag or not self.digest:
            text += f":{self.tag or 'latest'}"
        return text + (f"@{self.digest}" if self.digest else "")


def _looks_like_host(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost" or part != part.lower()


@dataclass(frozen=True, slots=True)
class ModelName:
    """`[host/][namespace/]model[:tag]` with Ollama's defaults filled in."""

    host: str
    namespace: str
    model: str
    tag: str

    @classmethod
    def parse(cls, text: str) -> ModelName:
        head, slash, last = text.rpartition("/")
        model, colon, tag = last.partition(":")
        parts = head.split("/") if slash else []
        if len(parts) > 2:
            raise _not_a_model(text)
        namespace = parts[-1] if parts else "library"
        host = parts[0] if len(parts) == 2 else OLLAMA_LIBRARY
        name = cls(host, namespace, model, tag if colon else "latest")
        if not (
            _MODEL_HOST.fullmatch(name.host)
            and _MODEL_NAMESPACE.fullmatch(name.namespace)
            and _MODEL_PART.fullmatch(name.model)
            and _MODEL_PART.fullmatch(name.tag)
        ):
            raise _not_a_model(text)
        return name

    @property
    def short(self) -> str:
        """As `ollama list` shows it: the defaults left out."""
        if self.host != OLLAMA_LIBRARY:
            return f"{self.host}/{self.namespace}/{self.model}:{self.tag}"
        if self.namespace != "library":
            return f"{self.namespace}/{self.model}:{self.tag}"
        return f"{self.model}:{self.tag}"

    @property
    def path(self) -> str:
        """Below `manifests/` in a store."""
        return f"{self.host}/{self.namespace}/{self.model}/{self.tag}"

    def __str__(self) -> str:
        return self.short


def _not_a_model(text: str) -> NameSyntaxError:
    return NameSyntaxError(
        f"not a model name: {text!r}",
        hint="a model is `[host/][namespace/]name[:tag]`, for example `deepseek-r1:32b`; `appliance models` lists recipes",
    )
