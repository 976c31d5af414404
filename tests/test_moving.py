"""What is said of a plan before any of it moves."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Answer
from registries import Registry
from registry_client import Bytes, close_connections, open_repository
from samples import AMD64

from appliance_builder.built import BuiltImage
from appliance_builder.layer_cache import LayerCache
from appliance_builder.moving import Learning, carry_out, warn_of_limits
from appliance_builder.plan import Plan, PlannedImage, PlannedLayer, Role
from appliance_builder.progress import LineReporter
from appliance_builder.quirks import quirks_for
from appliance_builder.registry_errors import RegistryError
from appliance_builder.registry_sink import RegistrySink
from appliance_builder.report import Move
from appliance_image.oci import LAYER_TAR
from appliance_image.reference import ImageReference

HUGE = 404 * 1000**3


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_connections()


def never(earned: object) -> BuiltImage:
    raise AssertionError(earned)


def planned(size: int) -> Plan:
    layer = PlannedLayer(Role.WEIGHTS, size, LAYER_TAR, Bytes(b"x"), frozenset({AMD64}), None, None)
    return Plan((PlannedImage(AMD64, (layer,), never),), as_index=False)


def pushing(host: str, place: Path) -> RegistrySink:
    name = ImageReference.parse(f"{host}/ai/model:1")
    return RegistrySink(open_repository(host), name, quirks=quirks_for(host), mount_from=lambda _: [], sessions=place)


def test_a_layer_that_s3_may_end_is_warned_of_before_anything_is_sent(registry: Registry, tmp_path: Path) -> None:
    registry.proxy.add(Answer(403), method="POST")
    said = io.StringIO()
    learning = Learning(LayerCache(tmp_path / "layers.jsonl"), None)

    with pytest.raises(RegistryError, match="403"):
        carry_out(planned(HUGE), [pushing(registry.host, tmp_path)], learning=learning, reporter=LineReporter(said))

    assert said.getvalue().startswith(f"warning: {registry.host} gets a layer of 404.0 GB")
    assert "`multipartcopychunksize`" in said.getvalue()


@pytest.mark.parametrize(("there", "warnings"), [(True, 0), (False, 1)])
def test_only_layers_that_would_move_are_warned_of(tmp_path: Path, there: bool, warnings: int) -> None:
    sink, said = pushing("registry.lan", tmp_path), io.StringIO()

    warn_of_limits([Move(planned(HUGE).layers[0], sink.label, there)], [sink], LineReporter(said))

    assert said.getvalue().count("warning: registry.lan gets a layer of 404.0 GB") == warnings
