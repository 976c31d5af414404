"""A plan on its way into its sinks: what is there already, what would stop it, then the execution and what it teaches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from appliance_builder.execute import execute
from appliance_builder.layer_bytes import CorruptBlobError
from appliance_builder.layer_cache import LayerCache
from appliance_builder.plan import Plan, PlannedLayer
from appliance_builder.ports import Reporter, Sink
from appliance_builder.quirks import DOUBT_HINT, limit_doubt, limit_problems
from appliance_builder.registry_sink import RegistrySink
from appliance_builder.report import Move
from appliance_builder.sources import ModelSource
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError


@dataclass(frozen=True, slots=True)
class Learning:
    """Remembers earned digests, and tells the source which blobs proved good or bad."""

    cache: LayerCache
    source: ModelSource | None

    def good(self, layer: PlannedLayer, digest: Digest) -> None:
        self.cache.learn_layer(layer.blobs, digest)
        self._settle(layer, good=True)

    def bad(self, layer: PlannedLayer, error: CorruptBlobError) -> None:
        if layer.digest is not None and layer.blobs:
            self.cache.forget_layer(layer.blobs)
        if error.digest in {blob.digest for blob in layer.blobs}:
            if self.source:
                self.source.settle(error.digest, good=False)
        else:
            self._settle(layer, good=False)

    def _settle(self, layer: PlannedLayer, *, good: bool) -> None:
        if self.source:
            for blob in layer.blobs:
                self.source.settle(blob.digest, good=good)


def moves(plan: Plan, sinks: Sequence[Sink]) -> list[Move]:
    """For every layer and sink, whether bytes would move. Asks the sinks, changes nothing."""
    found: list[Move] = []
    for layer in plan.layers:
        outline = plan.outline(layer, {}) if layer.digest else None
        found += [Move(layer, sink.label, outline is not None and sink.has(outline)) for sink in sinks]
    return found


def check_limits(plan: Plan, sinks: Sequence[Sink]) -> list[str]:
    """What is known of the registries that would refuse these layers."""
    sizes = [layer.size for layer in plan.layers]
    return [problem for sink in sinks if isinstance(sink, RegistrySink) for problem in limit_problems(sink.host, sizes)]


def warn_of_limits(found: Sequence[Move], sinks: Sequence[Sink], reporter: Reporter) -> None:
    """What a registry of which no limit is known may do about the layers that would move there."""
    for sink in sinks:
        if isinstance(sink, RegistrySink):
            sizes = [move.layer.size for move in found if move.sink == sink.label and not move.there]
            if doubt := limit_doubt(sink.host, sizes):
                reporter.warning(doubt, hint=DOUBT_HINT)


def carry_out(plan: Plan, sinks: Sequence[Sink], *, learning: Learning, reporter: Reporter) -> list[str]:
    """Returns what each sink wants printed, in their order. Nothing is sent where the image is there already."""
    lines = _finished(plan, sinks)
    rest = [sink for sink, line in zip(sinks, lines, strict=True) if line is None]
    for sink, line in zip(sinks, lines, strict=True):
        if line is not None:
            reporter.step(f"{sink.label}: is there already")
    if rest:
        _preflight(plan, rest, reporter)
        made = iter(execute(plan, rest, settled=learning, reporter=reporter))
        lines = [next(made) if line is None else line for line in lines]
    for sink in sinks:
        if isinstance(sink, RegistrySink):
            _learn_places(plan, sink, learning.cache)
    return [line or "" for line in lines]


def _finished(plan: Plan, sinks: Sequence[Sink]) -> list[str | None]:
    whole = plan.finished_already()
    return [sink.finished(whole) if whole else None for sink in sinks]


def _preflight(plan: Plan, sinks: Sequence[Sink], reporter: Reporter) -> None:
    if problems := check_limits(plan, sinks):
        raise ApplianceError(
            problems[0], hint="push to another registry, or use `--load` or `--output oci-archive:FILE`"
        )
    for sink in sinks:
        found = moves(plan, [sink])
        warn_of_limits(found, [sink], reporter)
        there = {move.layer for move in found if move.there}
        sink.preflight(sum(layer.size for layer in plan.layers if layer not in there))


def _learn_places(plan: Plan, sink: RegistrySink, cache: LayerCache) -> None:
    for layer in plan.layers:
        if digest := layer.digest or cache.layer(layer.blobs):
            cache.learn_repository(digest, host=sink.host, repository=sink.repository_name)
