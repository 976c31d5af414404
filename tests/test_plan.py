"""The plan: what is shared, what is known before a byte moves, and where bytes come from."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Mapping, Sequence

import pytest
from samples import AMD64, ARM64, WEIGHTS, Bytes, base, base_contents, base_layers, model, settings, weights_contents

from appliance_builder.finished import FinishedImage
from appliance_builder.plan import KnownLayer, Plan, PlannedLayer, Role, plan_build
from appliance_builder.ports import Content
from appliance_image import contract
from appliance_image.contract import ContractError
from appliance_image.digest import Digest
from appliance_image.layer import Blob, weights_layer
from appliance_image.oci import ImageConfig, Platform

BLOBS = tuple(Blob(Digest.of(body), len(body)) for body in WEIGHTS)


def nothing_known(blobs: Sequence[Blob]) -> KnownLayer | None:
    del blobs
    return None


def bottom_layer() -> bytes:
    contents = dict(zip(BLOBS, WEIGHTS, strict=True))
    return b"".join(part if isinstance(part, bytes) else contents[part] for part in weights_layer(BLOBS).parts)


def planned(
    *platforms: Platform,
    known: Callable[[Sequence[Blob]], KnownLayer | None] = nothing_known,
    weights: Mapping[Digest, Content] | None = None,
) -> Plan:
    return plan_build(
        model(),
        [(base(platform), base_contents(platform)) for platform in platforms or (AMD64,)],
        lambda _: settings(model()),
        weights=weights_contents() if weights is None else weights,
        known=known,
        as_index=len(platforms) > 1,
    )


def earned(plan: Plan) -> dict[PlannedLayer, Digest]:
    return {layer: Digest.of(b"".join(layer.content.read())) for layer in plan.layers}


def test_layers_come_bottom_first_with_their_true_sizes() -> None:
    plan = planned()

    assert [layer.role for layer in plan.layers] == [Role.WEIGHTS, Role.BASE, Role.BASE, Role.MODEL]
    assert all(len(b"".join(layer.content.read())) == layer.size for layer in plan.layers)


def test_the_weights_are_one_layer_for_all_platforms_and_the_rest_is_each_ones_own() -> None:
    plan = planned(AMD64, ARM64)
    weights = [layer for layer in plan.layers if layer.role is Role.WEIGHTS]

    assert len(weights) == 1
    assert weights[0].platforms == {AMD64, ARM64}
    assert all(image.layers[0] is weights[0] for image in plan.images)
    assert {layer.platforms for layer in plan.layers if layer.role is not Role.WEIGHTS} == {
        frozenset({AMD64}),
        frozenset({ARM64}),
    }


def test_what_has_to_be_read_before_its_digest_is_known_is_the_weights_alone() -> None:
    assert [layer.role for layer in planned().layers if layer.digest is None] == [Role.WEIGHTS]


def test_the_outline_of_a_layer_has_the_whole_chain_below_it() -> None:
    plan = planned(AMD64, ARM64)
    digests = earned(plan)
    for image in plan.images:
        unpacked = [Digest.of(bottom_layer())]
        unpacked += [Digest.of(gzip.decompress(body)) for body in base_layers(image.platform)]
        chains = [plan.outline(layer, digests).diff_ids for layer in image.layers[:-1]]

        assert chains == [tuple(unpacked[: index + 1]) for index in range(len(unpacked))]


def test_the_chain_is_unknown_while_a_layer_below_is() -> None:
    plan = planned()
    outline = plan.outline(plan.layers[1], {})

    assert outline.diff_ids == ()
    assert outline.descriptor.digest == plan.layers[1].digest
    assert outline.platforms == {AMD64}


def test_an_image_is_finished_only_when_every_digest_is_known() -> None:
    layer = Digest.of(bottom_layer())
    known = planned(known=lambda _: KnownLayer(layer))
    unknown = planned()

    assert unknown.finished_already() is None
    assert known.finished_already() == unknown.finish(earned(unknown))


def test_a_known_layer_is_read_from_where_it_lies_and_without_the_models_blobs() -> None:
    body = bottom_layer()
    plan = planned(known=lambda _: KnownLayer(Digest.of(body), Bytes(body)), weights={})

    assert b"".join(plan.layers[0].content.read()) == body


def test_what_is_known_is_asked_for_by_the_blobs_of_one_layer() -> None:
    asked: list[tuple[Blob, ...]] = []

    def known(blobs: Sequence[Blob]) -> KnownLayer | None:
        asked.append(tuple(blobs))
        return None

    planned(AMD64, ARM64, known=known)

    assert asked == [BLOBS]


def test_the_finished_image_can_be_read_back_and_found_by_its_blobs() -> None:
    plan = planned(AMD64, ARM64)
    whole = plan.finish(earned(plan))

    assert whole.index is not None
    for image in whole.images:
        finished = FinishedImage.parse(image.manifest, ImageConfig.parse(image.config))
        found = finished.holds(BLOBS)

        assert found is not None
        assert (found.digest, found.size) == (Digest.of(bottom_layer()), len(bottom_layer()))


def test_the_same_words_give_the_same_image() -> None:
    first, second = planned(AMD64, ARM64), planned(AMD64, ARM64)

    assert first.finish(earned(first)) == second.finish(earned(second))


def test_a_layer_is_titled_by_its_role_and_what_tells_it_from_others() -> None:
    titles = [layer.title for layer in planned().layers]

    assert titles[0] == "weights (2 blobs)"
    assert all(title.split()[0] in ("base", "model") and len(title.split()[1]) == 12 for title in titles[1:])


def test_a_large_blob_has_a_layer_of_its_own_titled_by_the_blob() -> None:
    large = Blob(Digest.of(b"large"), contract.OWN_LAYER_BYTES)
    layer = PlannedLayer(
        Role.WEIGHTS, 1, "", Bytes(b""), frozenset(), digest=None, diff_id=None, plan=weights_layer([large])
    )

    assert layer.title == f"weights {large.digest.short}"


@pytest.mark.parametrize("known", [None, KnownLayer(Digest.of(b"learnt here, but where are its bytes"))])
def test_weights_that_can_be_had_nowhere_are_refused_before_anything_moves(known: KnownLayer | None) -> None:
    with pytest.raises(ContractError, match="does not tell which of its layers hold the weights"):
        planned(known=lambda _: known, weights={})
