"""Carrying a plan out: every layer once through the one pass into all sinks, then the names. Knows no source and no sink."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Protocol

from appliance_builder.layer_bytes import CorruptBlobError
from appliance_builder.plan import Plan, PlannedLayer
from appliance_builder.ports import Payload, Reporter, Sink, Transfer
from appliance_builder.stream import run_pass
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError


class Settled(Protocol):
    """Told what became of a layer that was put together here: worth remembering, or proved wrong."""

    def good(self, layer: PlannedLayer, digest: Digest) -> None: ...

    def bad(self, layer: PlannedLayer, error: CorruptBlobError) -> None: ...


def execute(plan: Plan, sinks: Sequence[Sink], *, settled: Settled, reporter: Reporter) -> list[str]:
    """Returns what each sink wants printed. On any error or interruption every sink is aborted, and nothing has a name."""
    earned: dict[PlannedLayer, Digest] = {}
    try:
        for layer in plan.layers:
            earned[layer] = _move(plan, layer, earned, sinks, settled=settled, reporter=reporter)
        whole = plan.finish(earned)
        return [sink.commit(whole) for sink in sinks]
    except BaseException:
        for sink in sinks:
            _abort(sink, reporter)
        raise


def _abort(sink: Sink, reporter: Reporter) -> None:
    """What cannot be cleaned up neither keeps the others from it nor hides why all was given up."""
    try:
        sink.abort()
    except (ApplianceError, OSError) as error:
        reporter.warning(f"{sink.label}: could not clean up: {error}", hint="an unfinished upload or file may be left")


def _move(
    plan: Plan,
    layer: PlannedLayer,
    earned: dict[PlannedLayer, Digest],
    sinks: Sequence[Sink],
    *,
    settled: Settled,
    reporter: Reporter,
) -> Digest:
    digest, is_read = layer.digest, False
    try:
        if digest is None and any(sink.digests_first for sink in sinks):
            digest, is_read = _read(layer, None, (), reporter), True
        wanted = list(sinks)
        if digest is not None:
            outline = plan.outline(layer, {**earned, layer: digest})
            wanted = [sink for sink in sinks if not (sink.has(outline) or sink.adopt(outline))]
        if wanted or digest is None:
            digest, is_read = _read(layer, digest, wanted, reporter), True
    except CorruptBlobError as error:
        settled.bad(layer, error)
        raise
    if is_read and layer.blobs:  # what nobody read may be remembered wrongly, or lie half fetched in a cache
        settled.good(layer, digest)
    return digest


def _read(layer: PlannedLayer, known: Digest | None, sinks: Sequence[Sink], reporter: Reporter) -> Digest:
    with ExitStack() as stack:
        consumers: list[Callable[[Payload], None]] = []
        for sink in sinks:
            transfer = stack.enter_context(reporter.transfer(f"{sink.label}: {layer.title}", size=layer.size))
            consumers.append(partial(_write, sink, layer.media_type, transfer))
        if not sinks:
            transfer = stack.enter_context(reporter.transfer(f"check: {layer.title}", size=layer.size))
            consumers.append(partial(_count, transfer))
        return run_pass(layer.content, consumers=consumers, known=known, plan=layer.plan)


def _write(sink: Sink, media_type: str, transfer: Transfer, payload: Payload) -> None:
    sink.write(payload, media_type, transfer)


def _count(transfer: Transfer, payload: Payload) -> None:
    for chunk in payload.read():
        transfer.advance(len(chunk))
