"""Model source `--from-image`: an appliance image that is somewhere already. Its small layer is read, its weights are layers."""

from __future__ import annotations

from dataclasses import replace

from appliance_builder.finished import FinishedImage
from appliance_builder.images import OpenImage
from appliance_builder.known import KnownImage
from appliance_builder.layer_reader import MODEL_LAYER_BYTES, read_model_layer
from appliance_builder.model import Model
from appliance_builder.sources import Reading
from appliance_image import contract
from appliance_image.contract import ContractError
from appliance_image.reference import ModelName


def appliance_model(opened: OpenImage) -> tuple[Model, KnownImage]:
    """The model as it lies in the image. Any platform will do: weights and model are the same in all."""
    image = opened.platform_images(None)[0]
    finished = FinishedImage.parse(image.manifest, image.config)
    if finished.model.size > MODEL_LAYER_BYTES:
        raise ContractError(
            f"the model layer of `{opened.name}` is too large: {finished.model.size} bytes",
            hint="build the image again",
        )
    body = b"".join(opened.source.blob(finished.model).read())
    model = read_model_layer(body, source=finished.labels.source)
    return model, KnownImage(finished, opened.source)


def read_image(opened: OpenImage, *, name: ModelName) -> tuple[Reading, KnownImage]:
    """With the template as it was before it was patched, where the image remembers it, so that it can be patched anew."""
    model, known = appliance_model(opened)
    before = known.image.model.annotations.get(contract.ANNOTATION_TEMPLATE)
    if before is not None:
        model = model.with_template(before)
    return Reading(replace(model, name=name), {}, None), known
