"""From what was asked to a plan: reads manifests and small blobs, and leaves every decision to a pure module."""

from __future__ import annotations

import platform as machine
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from appliance_builder.assemble import Base, check_base
from appliance_builder.customise import Customised, check_version, customise, ollama_version, settings
from appliance_builder.gguf import GgufError, GgufHeader, read_header
from appliance_builder.gguf_source import GgufFile
from appliance_builder.image_source import read_image
from appliance_builder.images import OpenImage, PlatformImage, split_scheme
from appliance_builder.known import KnownImage, KnownLayers, known_image
from appliance_builder.memory import kv_type, of_header
from appliance_builder.model import MODEL, ModelError
from appliance_builder.plan import Plan, plan_build
from appliance_builder.recipes import Recipe, ThinkMode
from appliance_builder.registry_errors import RegistryError
from appliance_builder.request import BuildRequest, Targets
from appliance_builder.sources import ModelSource, Reading, read_model
from appliance_builder.store import FileContent, Store, find
from appliance_builder.workshop import Workshop
from appliance_image.digest import Digest
from appliance_image.oci import Platform
from appliance_image.reference import ImageReference, ModelName

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class Prepared:
    plan: Plan
    name: ImageReference
    recipe: Recipe
    customised: Customised
    bases: tuple[str, ...]
    source: ModelSource | None
    mount_from: dict[str, list[str]]
    gpu_memory_bytes: int | None


def prepare(request: BuildRequest, recipe: Recipe, targets: Targets, shop: Workshop) -> Prepared:
    name = targets.name or ImageReference.parse(f"{recipe.name}:{recipe.tag}".lower())
    reading, origin = _read(request, recipe, shop)
    _check_pin(reading, recipe, request)
    think = recipe.think is ThinkMode.PATCH if request.think is None else request.think
    customised = customise(reading.model, recipe, think=think)
    opened = shop.open_image(request.base or str(shop.config.base or recipe.base))
    platforms = request.platforms or shop.config.platforms or (this_platform(),)
    images = opened.platform_images(list(platforms))
    bases = [base_of(opened, image, request.ollama_version) for image in images]
    for base in bases:
        check_base(base)
        check_version(base, patched=customised.patched)
    gpu_memory_bytes = _gpu_memory(reading, recipe, origin)
    plan = plan_build(
        customised.model,
        [(base, opened.contents(base.manifest)) for base in bases],
        lambda base: settings(
            customised, recipe, base, gpu_memory_bytes=gpu_memory_bytes, builder=version("ollama-appliance")
        ),
        weights=reading.weights,
        known=KnownLayers([*([origin] if origin else []), *_remote(targets, name, shop)], shop.layers),
        as_index=len(platforms) > 1,
    )
    return Prepared(
        plan=plan,
        name=name,
        recipe=recipe,
        customised=customised,
        bases=tuple(base.reference for base in bases),
        source=reading.source,
        mount_from=mount_places([opened.reference, _origin_reference(request)]),
        gpu_memory_bytes=gpu_memory_bytes,
    )


def this_platform() -> Platform:
    return Platform("linux", _MACHINES.get(machine.machine(), machine.machine()))


def _read(request: BuildRequest, recipe: Recipe, shop: Workshop) -> tuple[Reading, KnownImage | None]:
    name = ModelName.parse(f"{recipe.name}:{recipe.tag}")
    if request.from_image:
        return read_image(shop.open_image(request.from_image), name=name)
    source = _source(request, recipe, shop)
    known_as = recipe.source.short if not request.from_gguf else str(request.from_gguf.name)
    return read_model(source, name=name, known_as=known_as), None


def _source(request: BuildRequest, recipe: Recipe, shop: Workshop) -> ModelSource:
    if request.from_gguf:
        return GgufFile(request.from_gguf, _gguf_header(request.from_gguf), shop.reporter)
    if request.from_store == "auto":
        return find(recipe.source, environ=shop.environ, home=Path.home())
    if request.from_store:
        return Store(Path(request.from_store), recipe.source)
    return shop.model_registry(recipe.source)


def _gguf_header(path: Path) -> GgufHeader:
    try:
        header = read_header(FileContent(path, path.stat().st_size).read())
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror}", hint="give the path of a GGUF file") from error
    if header.split_count > 1:
        raise ModelError(
            f"{path} is one of {header.split_count} parts of a model, which Ollama does not run",
            hint="join them first: `llama-gguf-split --merge FIRST-PART whole.gguf`",
        )
    return header


def _check_pin(reading: Reading, recipe: Recipe, request: BuildRequest) -> None:
    if recipe.manifest is None or not request.pinned or request.from_gguf or request.from_image:
        return
    served = Digest.of(reading.model.manifest)
    if served != recipe.manifest:
        raise ModelError(
            f"`{recipe.source}` is not what its recipe pins: served {served.short}, pinned {recipe.manifest.short}",
            hint="the library may have a newer one: accept it with `--no-pin`",
        )


def base_of(opened: OpenImage, image: PlatformImage, stated_version: str | None) -> Base:
    tag = opened.reference.tag if opened.reference else None
    version_text = ollama_version(tag, image.config.labels, stated_version)
    return Base(opened.label, image.manifest, image.config, version_text)


def _gpu_memory(reading: Reading, recipe: Recipe, origin: KnownImage | None) -> int | None:
    """From the header of the weights; else what the recipe says; else what the image said that they come from."""
    weights = next((layer for layer in reading.model.parsed.layers if layer.media_type == MODEL), None)
    if reading.source and weights:
        try:
            header = read_header(reading.source.head(weights))
        except GgufError:  # safetensors, or a format of tomorrow: no reason not to build
            return recipe.gpu_memory_bytes
        need = of_header(
            header,
            weights_bytes=reading.model.weights_bytes,
            context_length=recipe.context_length,
            parallel=recipe.num_parallel,
            kv_type=kv_type(recipe.environment),
        )
        return need.total_bytes if need else recipe.gpu_memory_bytes
    return recipe.gpu_memory_bytes or (origin.image.labels.gpu_memory_bytes if origin else None)


def _remote(targets: Targets, name: ImageReference, shop: Workshop) -> list[KnownImage]:
    """What the images under the target's name tell about their weights; a registry that cannot be read tells nothing."""
    if not targets.push:
        return []
    try:
        opened = shop.open_image(str(name))
        found = [known_image(image, None) for image in opened.platform_images(None)]
    except RegistryError as error:
        if error.status in (401, 403, 404):  # the push itself will say what is wrong, if anything is
            return []
        raise
    return [image for image in found if image]


def mount_places(references: Sequence[ImageReference | None]) -> dict[str, list[str]]:
    """Repositories on each registry host that may hold layers of the image to be."""
    places: dict[str, list[str]] = {}
    for reference in references:
        if reference:
            places.setdefault(reference.host, []).append(reference.repository)
    return places


def _origin_reference(request: BuildRequest) -> ImageReference | None:
    if request.from_image and not split_scheme(request.from_image)[0]:
        return ImageReference.parse(request.from_image)
    return None
