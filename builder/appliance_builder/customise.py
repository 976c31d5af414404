"""A recipe applied to a model: template, system, licence, parameters, think patch, labels and environment. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from appliance_builder import think as thinking
from appliance_builder.assemble import Base, BaseError, Settings
from appliance_builder.model import LICENSE, SYSTEM, Model, ModelError
from appliance_builder.recipes import Recipe
from appliance_image import contract
from appliance_image.labels import THINK_KEPT, THINK_PATCHED, Labels

_VERSION = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True)
class Customised:
    model: Model
    patched: bool
    because: str  # one sentence on the template
    template_before: str | None  # set when it was changed
    diff: str


def customise(model: Model, recipe: Recipe, *, think: bool) -> Customised:
    changed = model
    if recipe.template is not None:
        changed = changed.with_template(recipe.template)
    if recipe.system is not None:
        changed = changed.with_layer(SYSTEM, recipe.system.encode())
    if recipe.license is not None:
        changed = changed.with_layer(LICENSE, recipe.license.encode())
    changed = changed.with_parameters(recipe.parameters)
    if not think:
        return Customised(changed, patched=False, because="template as served", template_before=None, diff="")
    return _patched(changed, recipe)


def _patched(model: Model, recipe: Recipe) -> Customised:
    before = model.template
    if before is None:
        raise ModelError(
            f"model `{model.name}` has no template to patch", hint="give one in a recipe, or build with `--no-think`"
        )
    config = model.config
    thinking.check_config(renderer=config.renderer, parser=config.parser)
    patch = thinking.patch(before, opening_tag=recipe.think_opening or "", closing_tag=recipe.think_closing or "")
    diff = thinking.render_diff(before, patch.template) if patch.changed else ""
    after = model.with_template(patch.template) if patch.changed else model
    return Customised(after, True, patch.because, before if patch.changed else None, diff)


def ollama_version(reference_tag: str | None, labels: dict[str, str], stated: str | None) -> str:
    """`0.32.15`, from what was said, our own label on a base, or the tag of an image called ollama; else empty."""
    for text in (stated, labels.get(contract.LABEL_OLLAMA_VERSION), reference_tag):
        if text and (match := _VERSION.match(text)):
            return ".".join(match.groups())
    return ""


def check_version(base: Base, *, patched: bool) -> None:
    if not patched:
        return
    if not base.ollama_version:
        raise BaseError(
            f"the version of Ollama in `{base.reference}` is not known, and a patched template needs 0.12.4 or newer",
            hint="say it with `--ollama-version X.Y.Z`; `docker run --rm IMAGE --version` prints it",
        )
    if tuple(int(part) for part in base.ollama_version.split(".")) < contract.OLLAMA_MINIMUM_FOR_THINK:
        raise BaseError(
            f"Ollama {base.ollama_version} in `{base.reference}` mis-reads a patched template, 0.12.4 or newer is needed",
            hint="use `--base ollama/ollama:0.32.15`, or build with `--no-think`",
        )


def settings(
    customised: Customised, recipe: Recipe, base: Base, *, gpu_memory_bytes: int | None, builder: str
) -> Settings:
    environment = {
        "OLLAMA_CONTEXT_LENGTH": str(recipe.context_length),
        "OLLAMA_NUM_PARALLEL": str(recipe.num_parallel),
        **(contract.ENVIRONMENT_PATCHED if customised.patched or recipe.template is not None else {}),
        **recipe.environment,
    }
    config, model = customised.model.config, customised.model
    labels = Labels(
        layout=contract.LAYOUT,
        model=model.name.short,
        source=model.source,
        think=THINK_PATCHED if customised.patched else THINK_KEPT,
        weights_bytes=model.weights_bytes,
        parameters=config.parameters,
        quantization=config.quantization,
        family=config.family,
        context_length=recipe.context_length,
        gpu_memory_bytes=gpu_memory_bytes,
        base=base.reference,
        ollama_version=base.ollama_version,
        builder=builder,
        environment=tuple(sorted(environment)),
    )
    title = {
        "org.opencontainers.image.title": model.name.short,
        "org.opencontainers.image.description": f"Ollama with {model.name.short}",
    }
    before = customised.template_before
    annotations = {contract.ANNOTATION_TEMPLATE: before} if before is not None else {}
    return Settings(environment, {**title, **labels.render()}, annotations)
