"""The template of a finished image, compared with the one it had before it was patched."""

from __future__ import annotations

from appliance_builder.finished import FinishedImage
from appliance_builder.images import OpenImage
from appliance_builder.layer_reader import read_model_layer
from appliance_builder.think import render_diff
from appliance_image import contract


def template_diff(opened: OpenImage, image: FinishedImage) -> str:
    """Empty where nothing was patched, or where an engine dropped the annotation that remembers the template."""
    before = image.model.annotations.get(contract.ANNOTATION_TEMPLATE)
    if before is None:
        return ""
    body = b"".join(opened.source.blob(image.model).read())
    return render_diff(before, read_model_layer(body, source="").template or "")
