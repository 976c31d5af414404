"""Recipes: what a model's image is made of, and which recipe a name on the command line means. Values only; no files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from appliance_builder import memory
from appliance_builder.memory import Architecture, Estimate
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.reference import ImageReference, ModelName

DEFAULT_BASE: Final = ImageReference("docker.io", "ollama/ollama", "0.32.15")
DEFAULT_CONTEXT_LENGTH: Final = 8192
DEFAULT_NUM_PARALLEL: Final = 1
THINK_SUFFIX: Final = "-think"
NO_TAG: Final = "latest"


class RecipeError(ApplianceError):
    pass


class ThinkMode(StrEnum):
    KEEP = "keep"
    PATCH = "patch"


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to build for one name and tag."""

    name: str  # as clients will call the model, without its tag
    tag: str
    description: str
    base: ImageReference
    source: ModelName
    think: ThinkMode
    think_opening: str | None = None  # for models whose template does not name its tags
    think_closing: str | None = None
    template: str | None = None
    system: str | None = None
    license: str | None = None
    parameters: Mapping[str, object] = field(default_factory=dict[str, object], hash=False)
    environment: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)
    context_length: int = DEFAULT_CONTEXT_LENGTH
    num_parallel: int = DEFAULT_NUM_PARALLEL
    manifest: Digest | None = None  # what the source must serve
    parameter_size: str | None = None
    weights_bytes: int | None = None  # approximate
    gpu_memory_bytes: int | None = None  # stated, or estimated for this context and these parallel requests
    estimate: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Variant:
    """What a tag may say for itself; None and empty: as the product says."""

    manifest: Digest | None = None
    parameter_size: str | None = None
    weights_bytes: int | None = None
    gpu_memory_bytes: int | None = None
    architecture: Architecture | None = None
    context_length: int | None = None
    num_parallel: int | None = None
    parameters: Mapping[str, object] = field(default_factory=dict[str, object], hash=False)
    environment: Mapping[str, str] = field(default_factory=dict[str, str], hash=False)

    def over(self, common: Variant) -> Variant:
        return replace(
            self,
            context_length=self.context_length or common.context_length,
            num_parallel=self.num_parallel or common.num_parallel,
            parameters={**common.parameters, **self.parameters},
            environment={**common.environment, **self.environment},
        )

    @property
    def context(self) -> int:
        """A `num_ctx` in the parameters wins over OLLAMA_CONTEXT_LENGTH in Ollama, so it is the one that counts."""
        num_ctx = self.parameters.get("num_ctx")
        return num_ctx if isinstance(num_ctx, int) else self.context_length or DEFAULT_CONTEXT_LENGTH

    @property
    def parallel(self) -> int:
        return self.num_parallel or DEFAULT_NUM_PARALLEL

    @property
    def estimate(self) -> Estimate | None:
        if self.architecture is None or self.weights_bytes is None:
            return None
        return memory.estimate(
            self.weights_bytes,
            self.architecture,
            context_length=self.context,
            parallel=self.parallel,
            kv_type=memory.kv_type(self.environment),
        )


@dataclass(frozen=True, slots=True)
class Product:
    """One recipe file."""

    name: str
    description: str
    base: ImageReference
    source: str | None  # with or without a tag; None: the name that was asked for
    think: ThinkMode
    think_opening: str | None
    think_closing: str | None
    template: str | None
    system: str | None
    license: str | None
    default_tag: str
    common: Variant
    variants: Mapping[str, Variant] = field(hash=False)

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.variants)

    def at(self, tag: str | None, *, name: str | None = None) -> Recipe:
        """A tag that the file does not list gets what the file says for all, and nothing is known of its memory."""
        name, tag = name or self.name, tag or self.default_tag
        variant = self.variants.get(tag, Variant()).over(self.common)
        estimate = variant.estimate
        return Recipe(
            name=name,
            tag=tag,
            description=self.description,
            base=self.base,
            source=self._source(name, tag),
            think=self.think,
            think_opening=self.think_opening,
            think_closing=self.think_closing,
            template=self.template,
            system=self.system,
            license=self.license,
            parameters=variant.parameters,
            environment=variant.environment,
            context_length=variant.context,
            num_parallel=variant.parallel,
            manifest=variant.manifest,
            parameter_size=variant.parameter_size,
            weights_bytes=variant.weights_bytes,
            gpu_memory_bytes=variant.gpu_memory_bytes or (estimate.total_bytes if estimate else None),
            estimate=estimate,
        )

    def _source(self, name: str, tag: str) -> ModelName:
        source = self.source or (without_think(name) if self.think is ThinkMode.PATCH else None) or name
        return ModelName.parse(source if split_tag(source)[1] else f"{source}:{tag}")


def resolve(model_text: str, product: Product | None) -> Recipe:
    """The recipe of that name wins; else `NAME-think:TAG` means `NAME:TAG`, with NAME's recipe if it has one, patched."""
    name, tag = model_key(model_text)
    plain = without_think(name)
    if product is None:
        source = ModelName.parse(f"{plain or name}:{tag or NO_TAG}")
        think = ThinkMode.PATCH if plain else ThinkMode.KEEP
        return Recipe(name, tag or NO_TAG, "", DEFAULT_BASE, source, think)
    if product.name == plain:
        product = replace(product, think=ThinkMode.PATCH)
    return product.at(tag, name=name)


def model_key(model_text: str) -> tuple[str, str | None]:
    """The name as Ollama shows it, without what it leaves out; the tag only if one was given."""
    parsed = ModelName.parse(model_text)
    return parsed.short.removesuffix(f":{parsed.tag}"), split_tag(model_text)[1]


def split_tag(text: str) -> tuple[str, str | None]:
    head, slash, last = text.rpartition("/")
    model, colon, tag = last.partition(":")
    return f"{head}{slash}{model}", tag if colon else None


def without_think(name: str) -> str | None:
    """NAME of `NAME-think`; None for any other name."""
    plain = name.removesuffix(THINK_SUFFIX)
    return plain if plain not in ("", name) and not plain.endswith("/") else None
