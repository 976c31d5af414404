"""The verbs of the command line as recipes: each opens a workshop, prepares, acts, and returns the lines for stdout."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from appliance_builder import config, models_table, progress, recipe_files, recipes
from appliance_builder.finished import FinishedImage
from appliance_builder.images import OpenImage, PlatformImage, split_scheme
from appliance_builder.moving import Learning, carry_out, check_limits, moves, warn_of_limits
from appliance_builder.ports import Sink
from appliance_builder.prepare import Prepared, base_of, mount_places, prepare, this_platform
from appliance_builder.progress import render_size
from appliance_builder.rebasing import plan_push, plan_rebase
from appliance_builder.report import Inspection, PlanReport, columns
from appliance_builder.request import BuildRequest, Options, Targets
from appliance_builder.template_change import template_diff
from appliance_builder.verify import verify as problems_of
from appliance_builder.workshop import Workshop
from appliance_image.contract import MEBIBYTE
from appliance_image.errors import ApplianceError
from appliance_image.oci import Platform
from appliance_image.reference import ImageReference


@contextmanager
def _workshop(options: Options) -> Generator[Workshop, None, None]:
    settings = config.load(options, os.environ)
    chunk_bytes = options.chunk_size * MEBIBYTE if options.chunk_size else None
    with (
        progress.choose(sys.stderr, as_json=options.as_json) as reporter,
        Workshop(settings, reporter, os.environ, chunk_bytes=chunk_bytes) as shop,
    ):
        yield shop


def build(request: BuildRequest, targets: Targets, options: Options) -> list[str]:
    with _workshop(options) as shop:
        prepared = _prepare(request, targets, shop)
        sinks = shop.sinks(targets, prepared.name, mount_from=prepared.mount_from)
        lines = carry_out(prepared.plan, sinks, learning=Learning(shop.layers, prepared.source), reporter=shop.reporter)
        return _printable(sinks, lines)


def plan(request: BuildRequest, targets: Targets, options: Options) -> list[str]:
    with _workshop(options) as shop:
        prepared = _prepare(request, targets, shop)
        sinks = shop.sinks(targets, prepared.name, mount_from=prepared.mount_from)
        found = moves(prepared.plan, sinks)
        warn_of_limits(found, sinks, shop.reporter)
        report = PlanReport(prepared, found, tuple(check_limits(prepared.plan, sinks)))
        if options.as_json:
            return [json.dumps(report.json(), ensure_ascii=False)]
        return report.text().splitlines()


def inspect(image: str, platform: Platform | None, options: Options) -> list[str]:
    with _workshop(options) as shop:
        opened = shop.open_image(image)
        entry = _one(opened, platform)
        finished = FinishedImage.parse(entry.manifest, entry.config)
        report = Inspection(image, entry.descriptor.digest, finished, template_diff(opened, finished))
        if options.as_json:
            return [json.dumps(report.json(), ensure_ascii=False)]
        return report.text().splitlines()


def verify(image: str, platform: Platform | None, options: Options, *, question: str | None, gpus: bool) -> list[str]:
    with _workshop(options) as shop:
        opened = shop.open_image(image)
        entry = _one(opened, platform)
        finished = FinishedImage.parse(entry.manifest, entry.config)
        problems = problems_of(finished, opened.source, reporter=shop.reporter)
        for problem in problems:
            shop.reporter.step(f"wrong: {problem}")
        if problems:
            raise ApplianceError(
                f"`{image}` is not what the contract promises: {len(problems)} findings",
                hint="build it again: `appliance build MODEL -t IMAGE`",
            )
        if question is not None:
            from appliance_builder.smoke_run import smoke  # noqa: PLC0415 - needs docker, as nothing else here does

            smoke(opened, entry, finished, question, gpus=gpus, shop=shop)
        return [f"{image}@{entry.descriptor.digest}" if "@" not in image else image]


def rebase(image: str, base: str, ollama_version: str | None, targets: Targets, options: Options) -> list[str]:
    with _workshop(options) as shop:
        old, new = shop.open_image(image), shop.open_image(base)
        images = old.platform_images(None)
        bases = [base_of(new, entry, ollama_version) for entry in new.platform_images(_platforms(images))]
        planned = plan_rebase(old, images, new, bases)
        name = _rebased_name(old, targets)
        wanted = targets if (targets.push or targets.load or targets.outputs) else replace(targets, push=True)
        mount_from = mount_places([entry.reference for entry in (old, new)])
        sinks = shop.sinks(wanted, name, mount_from=mount_from)
        lines = carry_out(planned, sinks, learning=Learning(shop.layers, None), reporter=shop.reporter)
        return _printable(sinks, lines)


def push(image: str, source: str, options: Options) -> list[str]:
    with _workshop(options) as shop:
        if not split_scheme(source)[0]:
            raise ApplianceError(
                f"not a layout or archive: {source!r}", hint="use `--from oci:DIR` or `--from oci-archive:FILE`"
            )
        opened = shop.open_image(source)
        planned = plan_push(opened, opened.platform_images(None))
        sinks = shop.sinks(Targets(None, push=True), ImageReference.parse(image), mount_from={})
        return carry_out(planned, sinks, learning=Learning(shop.layers, None), reporter=shop.reporter)


def models(recipe: Path | None, options: Options) -> list[str]:
    settings = config.load(options, os.environ)
    products = [recipe_files.load(recipe)] if recipe else list(recipe_files.all_products(settings.recipes))
    if options.as_json:
        return [json.dumps(models_table.as_json(products), ensure_ascii=False)]
    return models_table.render(products).splitlines()


def cache(options: Options, *, clear: bool) -> list[str]:
    with _workshop(options) as shop:
        if clear:
            cleared = shop.blobs.clear()
            busy = f", {cleared.in_use} in use by another build left alone" if cleared.in_use else ""
            return [f"{render_size(cleared.bytes)} in {cleared.blobs} downloads cleared{busy}"]
        rows = [("BLOB", "KEPT", "OF", "STATE")]
        for kept in shop.blobs.kept():
            state = "in use" if kept.in_use else "complete" if kept.complete else "partial"
            rows.append((kept.digest.short, render_size(kept.kept_bytes), render_size(kept.size), state))
        return [f"{shop.cache_directory}", *columns(rows)]


def _prepare(request: BuildRequest, targets: Targets, shop: Workshop) -> Prepared:
    if request.recipe:
        product: recipes.Product | None = recipe_files.load(request.recipe)
    else:
        product = recipe_files.find(request.model, directories=shop.config.recipes)
    recipe = recipes.resolve(request.model, product)
    prepared = prepare(request, recipe, targets, shop)
    shop.reporter.step(f"model {prepared.customised.model.source}: {prepared.customised.because}")
    for base in prepared.bases:
        shop.reporter.step(f"base {base}")
    return prepared


def _printable(sinks: Sequence[Sink], lines: Sequence[str]) -> list[str]:
    """Nothing may follow an archive on stdout."""
    return [] if any(getattr(sink, "writes_stdout", False) for sink in sinks) else list(lines)


def _one(opened: OpenImage, platform: Platform | None) -> PlatformImage:
    if platform or opened.is_index:
        return opened.platform_images([platform or this_platform()])[0]
    return opened.platform_images(None)[0]


def _platforms(images: Sequence[PlatformImage]) -> list[Platform]:
    return [entry.config.platform for entry in images]


def _rebased_name(old: OpenImage, targets: Targets) -> ImageReference:
    if targets.name:
        return targets.name
    if old.reference and not old.reference.digest:
        return old.reference
    raise ApplianceError(f"`{old.name}` has no name that the new image could take", hint="give one with `-t IMAGE`")
