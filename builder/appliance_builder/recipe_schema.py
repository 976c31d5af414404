"""A recipe file's text made a `Product`, or every mistake in it. Knows the keys, their types and which exclude each other."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from appliance_builder.memory import LARGE_VOCABULARY, WIDE_EMBEDDING, Architecture
from appliance_builder.model_parameters import read_parameters
from appliance_builder.recipes import DEFAULT_BASE, NO_TAG, Product, RecipeError, ThinkMode, Variant, split_tag
from appliance_image import contract
from appliance_image.digest import Digest
from appliance_image.reference import ImageReference, ModelName, NameSyntaxError
from appliance_image.strict_toml import Table, did_you_mean

_GIGABYTE: Final = 10**9
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_CONTEXT_MAX: Final = 1 << 24
_RESERVED: Final = {
    "OLLAMA_CONTEXT_LENGTH": "has a key of its own, `context_length`",
    "OLLAMA_NUM_PARALLEL": "has a key of its own, `num_parallel`",
    "OLLAMA_HOST": "cannot be changed: the health check and the agent ask where Ollama's image listens",
}
HINT: Final = "correct the file; `template.toml.example` beside the shipped recipes shows every key"


def parse(text: str, *, name: str, where: str) -> Product:
    """`name` is what the file is called; it is the model's name unless the command line gives another."""
    table = Table.parse(text, where=where)
    common = _common(table)
    _check_context(table, common)
    think = ThinkMode(table.choice("think", [mode.value for mode in ThinkMode], default=ThinkMode.KEEP))
    opening, closing = table.text("think_opening"), table.text("think_closing")
    if (opening is None) != (closing is None):
        table.problem("think_opening", "stands only together with `think_closing`")
    variants = {tag: _variant(inner, common) for tag, inner in table.table("tags").tables().items()}
    product = Product(
        name=name,
        description=table.text("description", default=""),
        base=table.value("base", ImageReference.parse) or DEFAULT_BASE,
        source=table.value("source", _source),
        think=think,
        think_opening=opening,
        think_closing=closing,
        template=_without_last_newline(table.text("template")),
        system=_without_last_newline(table.text("system")),
        license=table.text("license"),
        default_tag=_default_tag(table, variants),
        common=common,
        variants=variants,
    )
    _check_names(table, product)
    table.check(RecipeError, hint=HINT)
    return product


def _common(table: Table) -> Variant:
    return Variant(
        context_length=table.integer("context_length", minimum=64, maximum=_CONTEXT_MAX),
        num_parallel=table.integer("num_parallel", minimum=1, maximum=1024),
        parameters=read_parameters(table.table("parameters")),
        environment=_environment(table.table("environment")),
    )


def _variant(table: Table, common: Variant) -> Variant:
    variant = replace(
        _common(table),
        manifest=table.value("manifest", Digest.parse),
        parameter_size=table.text("parameter_size"),
        weights_bytes=_bytes(table, "weights_gb"),
        gpu_memory_bytes=_bytes(table, "gpu_memory_gb"),
        architecture=_architecture(table.table("architecture")) if table.has("architecture") else None,
    )
    if table.has("architecture") and table.has("gpu_memory_gb"):
        table.problem("gpu_memory_gb", "stands only without `architecture`, from which it is computed")
    if table.has("architecture") and not table.has("weights_gb"):
        table.problem("architecture", "needs `weights_gb` beside it to tell the GPU memory")
    _check_context(table, variant.over(common))
    return variant


def _architecture(table: Table) -> Architecture | None:
    layers = table.integer("layers", minimum=1, maximum=4096)
    kv_heads = table.integer("kv_heads", minimum=1, maximum=4096)
    head_dim = table.integer("head_dim", minimum=1, maximum=65536)
    kv_bytes = table.integer("kv_bytes_per_token", minimum=2, maximum=1 << 30)  # of all layers, two bytes a number
    window = table.integer("window", minimum=1, maximum=_CONTEXT_MAX, default=0)
    window_layers = table.integer("window_layers", minimum=1, maximum=4096, default=0)
    embedding = table.integer("embedding", minimum=1, maximum=1 << 20)
    vocabulary = table.integer("vocabulary", minimum=1, maximum=1 << 24)
    if not table.has("layers"):
        table.problem("layers", "is missing")
    given = [table.has(key) for key in ("kv_heads", "head_dim", "kv_bytes_per_token")]
    if given not in ([True, True, False], [False, False, True]):
        table.problem("kv_heads", "stands with `head_dim`, or else `kv_bytes_per_token` stands without both")
    if table.has("window") != table.has("window_layers") or (window and kv_bytes) or window_layers > (layers or 4096):
        table.problem("window", "stands with `kv_heads` and with `window_layers`, which are at most all layers")
    if layers is None:
        return None
    per_layer = 2 * (kv_heads or 0) * (head_dim or 0)
    return Architecture(
        layers=layers,
        kv_elements=kv_bytes // 2 if kv_bytes else per_layer * (layers - window_layers),
        window_elements=per_layer * window_layers,
        window=window,
        embedding=embedding or WIDE_EMBEDDING,
        vocabulary=vocabulary or LARGE_VOCABULARY,
    )


def _environment(table: Table) -> dict[str, str]:
    for name in table.keys():  # noqa: SIM118 - a table is no mapping
        if not _VARIABLE.fullmatch(name):
            table.problem(name, "not the name of a variable")
        elif name in contract.ENVIRONMENT:
            table.problem(name, "belongs to the image and cannot be changed")
        elif reason := _RESERVED.get(name):
            table.problem(name, reason)
    environment = table.mapping(str)
    for name, value in contract.ENVIRONMENT_PATCHED.items():
        if environment.get(name, value) != value:
            table.problem(name, f"can only be `{value}`: a patched template needs it")
    return environment


def _check_context(table: Table, variant: Variant) -> None:
    num_ctx = variant.parameters.get("num_ctx")
    if num_ctx is not None and variant.context_length not in (None, num_ctx):
        table.problem("context_length", "differs from `num_ctx` of the parameters, which Ollama would take: give one")


def _default_tag(table: Table, variants: Mapping[str, Variant]) -> str:
    tag = table.text("default_tag", default=next(iter(variants), NO_TAG) if len(variants) == 1 else NO_TAG)
    if table.has("default_tag") and tag not in variants:
        table.problem("default_tag", f"is none of the tags{did_you_mean(tag, variants)}")
    return tag


def _check_names(table: Table, product: Product) -> None:
    if "/" in product.name or split_tag(product.name)[1] is not None:
        table.problem("tags", f"cannot be those of {product.name!r}: a recipe file is called as a model, without a tag")
        return
    for tag in (NO_TAG, *product.variants):
        try:
            ModelName.parse(f"{product.name}:{tag}")
        except NameSyntaxError as error:
            table.problem("tags", error.message)


def _source(text: str) -> str:
    ModelName.parse(text)
    return text


def _without_last_newline(text: str | None) -> str | None:
    """A newline at the end of a template goes into the prompt; the one before the closing quotes is nobody's wish."""
    return None if text is None else text.removesuffix("\n")


def _bytes(table: Table, key: str) -> int | None:
    gigabytes = table.number(key, minimum=0.001, maximum=100_000)
    return None if gigabytes is None else round(gigabytes * _GIGABYTE)
