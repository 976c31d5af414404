"""Recipe files: where they lie, which of them a name means, reading them. Decides nothing about what is in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Final

import appliance_image
from appliance_builder import recipe_schema
from appliance_builder.recipes import Product, RecipeError, model_key, without_think

SUFFIX: Final = ".toml"  # so `template.toml.example`, which lies beside the shipped ones, is no recipe
_BYTES_MAX: Final = 1024 * 1024


def shipped() -> Path:
    """In an installed package `appliance_image/recipes`; in a checkout `images/recipes`, beside that package."""
    installed = Path(str(files(appliance_image))) / "recipes"
    return installed if installed.is_dir() else installed.parent.parent / "recipes"


def find(model_text: str, *, directories: Sequence[Path]) -> Product | None:
    """By name without tag, the first directory wins. `NAME-think` without a recipe of its own has NAME's."""
    name, _ = model_key(model_text)
    for wanted in (name, without_think(name)):
        for directory in directories if wanted and "/" not in wanted else ():
            path = directory / f"{wanted}{SUFFIX}"
            if path.is_file():
                return load(path)
    return None


def load(path: Path) -> Product:
    try:
        with path.open("rb") as file:
            body = file.read(_BYTES_MAX + 1)
        text = body.decode()
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}", hint="give the path of a file") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {path} is no UTF-8 text: {error}", hint=recipe_schema.HINT) from error
    if len(body) > _BYTES_MAX:
        raise RecipeError(f"the recipe {path} is larger than 1 MiB", hint=recipe_schema.HINT)
    return recipe_schema.parse(text, name=path.name.removesuffix(SUFFIX), where=str(path))


def all_products(directories: Iterable[Path]) -> tuple[Product, ...]:
    """By name; of two files with the same name the one that `find` takes."""
    paths: dict[str, Path] = {}
    for path in _paths(directories):
        paths.setdefault(path.name.removesuffix(SUFFIX), path)
    return tuple(load(path) for _, path in sorted(paths.items()))


def _paths(directories: Iterable[Path]) -> Iterator[Path]:
    for directory in directories:
        yield from directory.glob(f"*{SUFFIX}")
