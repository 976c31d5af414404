"""Plans for images that exist: a new base under the same weights, or the same bytes somewhere else. Values in, values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from appliance_builder.assemble import Base, Settings, check_base, image
from appliance_builder.built import BuiltImage
from appliance_builder.customise import check_version
from appliance_builder.finished import FinishedImage
from appliance_builder.images import OpenImage, PlatformImage
from appliance_builder.plan import Plan, PlannedImage, PlannedLayer, Role
from appliance_image.digest import Digest
from appliance_image.labels import THINK_PATCHED
from appliance_image.oci import Descriptor, Platform


def plan_rebase(old: OpenImage, images: Sequence[PlatformImage], new: OpenImage, bases: Sequence[Base]) -> Plan:
    """`bases` belong to `images`, one each. Weights and model layers stay as they are, byte for byte."""
    finished = [FinishedImage.parse(entry.manifest, entry.config) for entry in images]
    platforms = frozenset(entry.config.platform for entry in images)
    weights = {layer: _existing(old, layer, layer.digest, Role.WEIGHTS, platforms) for layer in finished[0].weights}
    planned: list[PlannedImage] = []
    for entry, base in zip(finished, bases, strict=True):
        check_base(base)
        check_version(base, patched=entry.labels.think == THINK_PATCHED)
        alone = frozenset({base.platform})
        bottom = tuple(
            weights.get(layer) or _existing(old, layer, layer.digest, Role.WEIGHTS, alone) for layer in entry.weights
        )
        top = _existing(old, entry.model, entry.config.diff_ids[-1], Role.MODEL, alone)
        middle = tuple(
            _existing(new, layer.as_oci_layer(), diff_id, Role.BASE, alone)
            for layer, diff_id in zip(base.manifest.layers, base.config.diff_ids, strict=True)
        )
        planned.append(PlannedImage(base.platform, (*bottom, *middle, top), _Rebased(entry, base)))
    return Plan(tuple(planned), as_index=old.is_index)


def plan_push(opened: OpenImage, images: Sequence[PlatformImage]) -> Plan:
    """The image as it is: no byte of any manifest changes."""
    planned: list[PlannedImage] = []
    for entry in images:
        alone = frozenset({entry.config.platform})
        layers = tuple(
            _existing(opened, layer, diff_id, Role.BASE, alone)
            for layer, diff_id in zip(entry.manifest.layers, entry.config.diff_ids, strict=True)
        )
        planned.append(PlannedImage(entry.config.platform, layers, _AsServed(entry)))
    return Plan(tuple(planned), opened.is_index, opened.body if opened.is_index else None)


@dataclass(frozen=True, slots=True)
class _Rebased:
    finished: FinishedImage
    base: Base

    def __call__(self, earned: Mapping[PlannedLayer, Digest]) -> BuiltImage:
        del earned  # every digest is known
        old = self.finished
        labels = replace(old.labels, base=self.base.reference, ollama_version=self.base.ollama_version)
        before = old.config.environment
        environment = {name: before[name] for name in old.labels.environment if name in before}
        standard = {
            name: text for name, text in old.config.labels.items() if name.startswith("org.opencontainers.image.")
        }
        settings = Settings(environment, {**standard, **labels.render()}, old.model.annotations)
        return image(self.base, settings, weights=old.weights, model=old.model)


@dataclass(frozen=True, slots=True)
class _AsServed:
    image: PlatformImage

    def __call__(self, earned: Mapping[PlannedLayer, Digest]) -> BuiltImage:
        del earned
        entry = self.image
        return BuiltImage(
            entry.config.platform, entry.config_body, entry.manifest, entry.config.diff_ids, as_served=entry.body
        )


def _existing(
    opened: OpenImage, layer: Descriptor, diff_id: Digest, role: Role, platforms: frozenset[Platform]
) -> PlannedLayer:
    content = opened.source.blob(layer)
    return PlannedLayer(role, layer.size, layer.media_type, content, platforms, layer.digest, diff_id)
