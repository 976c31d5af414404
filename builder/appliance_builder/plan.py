"""The plan: which layers an image has, which bytes are known already, what has to move. Values in, values out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from appliance_builder.assemble import Base, Settings, built, image, small_layer, weights_descriptor
from appliance_builder.built import Built, BuiltImage, LayerOutline
from appliance_builder.layer_bytes import LayerContent
from appliance_builder.model import Model
from appliance_builder.ports import Content
from appliance_image.contract import ContractError
from appliance_image.digest import Digest
from appliance_image.layer import Blob, LayerPlan, pack, weights_layer
from appliance_image.oci import LAYER_TAR, Descriptor, Platform


class Role(Enum):
    WEIGHTS = "weights"
    BASE = "base"
    MODEL = "model"


@dataclass(frozen=True, slots=True, eq=False)
class PlannedLayer:
    role: Role
    size: int
    media_type: str
    content: Content
    platforms: frozenset[Platform]
    digest: Digest | None  # None: earned when its bytes are read
    diff_id: Digest | None  # the same as digest for every layer made here
    plan: LayerPlan | None = None  # of a layer that is put together here

    @property
    def blobs(self) -> tuple[Blob, ...]:
        return self.plan.blobs if self.plan else ()

    @property
    def title(self) -> str:
        """For people: what it is and enough of a digest to tell it from others."""
        digest = self.blobs[0].digest if len(self.blobs) == 1 else self.digest
        parts = [
            self.role.value,
            digest.short if digest else "",
            f"({len(self.blobs)} blobs)" if len(self.blobs) > 1 else "",
        ]
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class PlannedImage:
    platform: Platform
    layers: tuple[PlannedLayer, ...]  # bottom first
    finish: Callable[[Mapping[PlannedLayer, Digest]], BuiltImage]


@dataclass(frozen=True, slots=True)
class Plan:
    images: tuple[PlannedImage, ...]
    as_index: bool
    index_as_served: bytes | None = None  # of images that are only moved

    @property
    def layers(self) -> tuple[PlannedLayer, ...]:
        """Every layer once, bottom first; the weights are shared by all platforms."""
        return tuple(dict.fromkeys(layer for planned in self.images for layer in planned.layers))

    def outline(self, layer: PlannedLayer, earned: Mapping[PlannedLayer, Digest]) -> LayerOutline:
        """What a sink needs to know to tell whether it has the layer. The layer's digest must be known by now."""
        planned = next(candidate for candidate in self.images if layer in candidate.layers)
        below = planned.layers[: planned.layers.index(layer) + 1]
        diff_ids = [entry.diff_id or earned.get(entry) for entry in below]
        whole = tuple(diff_id for diff_id in diff_ids if diff_id is not None)
        descriptor = Descriptor(layer.media_type, layer.digest or earned[layer], layer.size)
        return LayerOutline(descriptor, whole if len(whole) == len(below) else (), layer.platforms)

    def finish(self, earned: Mapping[PlannedLayer, Digest]) -> Built:
        images = [planned.finish(earned) for planned in self.images]
        return (
            Built(tuple(images), self.index_as_served)
            if self.index_as_served
            else built(images, as_index=self.as_index)
        )

    def finished_already(self) -> Built | None:
        """The whole image, if every digest in it is known before a byte was read."""
        known = {layer: layer.digest for layer in self.layers if layer.digest is not None}
        return self.finish(known) if len(known) == len(self.layers) else None


@dataclass(frozen=True, slots=True)
class KnownLayer:
    """A weights layer that exists somewhere: what holds these blobs, and where its bytes can be had, if they can."""

    digest: Digest
    content: Content | None = None


def plan_build(
    model: Model,
    bases: Sequence[tuple[Base, Mapping[Digest, Content]]],
    settings: Callable[[Base], Settings],
    *,
    weights: Mapping[Digest, Content],
    known: Callable[[Sequence[Blob]], KnownLayer | None],
    as_index: bool,
) -> Plan:
    """`bases` come with the contents of their layers; `weights` may lack what `known` layers can deliver."""
    platforms = frozenset(base.platform for base, _ in bases)
    bottom = tuple(_weights(group, weights, known(group), platforms) for group in pack(model.weights))
    small = small_layer(model)
    images: list[PlannedImage] = []
    for base, contents in bases:
        alone = frozenset({base.platform})
        middle = tuple(
            PlannedLayer(Role.BASE, layer.size, layer.media_type, contents[layer.digest], alone, layer.digest, diff_id)
            for layer, diff_id in zip(
                (layer.as_oci_layer() for layer in base.manifest.layers), base.config.diff_ids, strict=True
            )
        )
        top = _model(small, alone)
        finish = _Finish(base, settings(base), bottom, top)
        images.append(PlannedImage(base.platform, (*bottom, *middle, top), finish))
    return Plan(tuple(images), as_index)


@dataclass(frozen=True, slots=True)
class _Finish:
    base: Base
    settings: Settings
    weights: tuple[PlannedLayer, ...]
    model: PlannedLayer

    def __call__(self, earned: Mapping[PlannedLayer, Digest]) -> BuiltImage:
        weights = [weights_descriptor(layer.digest or earned[layer], layer.size, layer.blobs) for layer in self.weights]
        digest = self.model.digest or earned[self.model]
        model = Descriptor(LAYER_TAR, digest, self.model.size, self.settings.model_annotations)
        return image(self.base, self.settings, weights=weights, model=model)


def _weights(
    group: Sequence[Blob],
    contents: Mapping[Digest, Content],
    known: KnownLayer | None,
    platforms: frozenset[Platform],
) -> PlannedLayer:
    plan = weights_layer(group)
    digest = known.digest if known else None
    if not (known and known.content) and any(blob.digest not in contents for blob in group):
        raise ContractError(
            "the image does not tell which of its layers hold the weights: its annotations were lost",
            hint="`docker push` and `docker save` drop them; build it again from the model, or take it from where "
            "`appliance` put it",
        )
    content = known.content if known and known.content else LayerContent(plan, contents)
    return PlannedLayer(Role.WEIGHTS, plan.size, LAYER_TAR, content, platforms, digest, digest, plan)


def _model(small: LayerPlan, platforms: frozenset[Platform]) -> PlannedLayer:
    content = LayerContent(small, {})
    digest = Digest.of(b"".join(content.read()))
    return PlannedLayer(Role.MODEL, small.size, LAYER_TAR, content, platforms, digest, digest, small)
