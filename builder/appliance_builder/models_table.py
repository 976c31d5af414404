"""What `appliance models` shows: a table for people, an object for programs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from appliance_builder.memory import CARDS, placement
from appliance_builder.progress import render_size
from appliance_builder.recipes import Product, Recipe

_COLUMNS = ("MODEL", "WEIGHTS", "GPU MEMORY", "CARDS", "CONTEXT", "THINK", "PINNED", "BASE")
_UNKNOWN = "-"


def render(products: Iterable[Product]) -> str:
    """A line for each tag. GPU memory is an estimate, for the context and the parallel requests of the recipe."""
    lines = [_line(recipe) for product in products for recipe in _recipes(product)]
    if not lines:
        return "no recipes\n"
    return "".join(f"{line}\n" for line in _columns([_COLUMNS, *lines]))


def as_json(products: Iterable[Product]) -> dict[str, object]:
    return {"recipes": [_product(product) for product in products]}


def _recipes(product: Product) -> list[Recipe]:
    return [product.at(tag) for tag in product.tags or (None,)]


def _line(recipe: Recipe) -> tuple[str, ...]:
    context = f"{recipe.num_parallel} x {recipe.context_length}"
    return (
        f"{recipe.name}:{recipe.tag}",
        _size(recipe.weights_bytes),
        _size(recipe.gpu_memory_bytes),
        _cards(recipe),
        context,
        recipe.think.value,
        recipe.manifest.short if recipe.manifest else _UNKNOWN,
        str(recipe.base),
    )


def _size(size: int | None) -> str:
    return _UNKNOWN if size is None else f"~{render_size(size)}"


def _cards(recipe: Recipe) -> str:
    """The smallest card that is enough alone, else the fewest of the largest."""
    if recipe.estimate:
        found = [(count, gigabytes) for gigabytes, count in placement(recipe.estimate).items() if count]
    else:
        stated = recipe.gpu_memory_bytes
        found = [(1, gigabytes) for gigabytes, gpu_bytes in CARDS.items() if stated and stated <= gpu_bytes]
    return "{} x {} GB".format(*min(found)) if found else _UNKNOWN


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _product(product: Product) -> dict[str, object]:
    return {
        "name": product.name,
        "description": product.description,
        "default_tag": product.default_tag,
        "think": product.think.value,
        "base": str(product.base),
        "tags": [_tag(recipe) for recipe in _recipes(product)],
    }


def _tag(recipe: Recipe) -> dict[str, object]:
    return {
        "tag": recipe.tag,
        "source": recipe.source.short,
        "manifest": str(recipe.manifest) if recipe.manifest else None,
        "parameter_size": recipe.parameter_size,
        "weights_bytes": recipe.weights_bytes,
        "gpu_memory_bytes": recipe.gpu_memory_bytes,
        "gpus": {str(size): count for size, count in placement(recipe.estimate).items()} if recipe.estimate else None,
        "context_length": recipe.context_length,
        "num_parallel": recipe.num_parallel,
    }
