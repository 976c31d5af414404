"""The bytes of layers: golden digests, so that a change of any byte is seen and LAYOUT grows with it."""

from __future__ import annotations

import io
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance_image import contract
from appliance_image.digest import Digest
from appliance_image.layer import Blob, LayerPlan, model_layer, pack, weights_layer

GIB = 1024**3


def blob(name: str, size: int) -> Blob:
    return Blob(Digest.of(name.encode()), size)


def joined(plan: LayerPlan, contents: dict[Digest, bytes]) -> bytes:
    return b"".join(part if isinstance(part, bytes) else contents[part.digest] for part in plan.parts)


def test_a_weights_layer_has_the_golden_digest_of_layout_1() -> None:
    content = b"weights of a model\n" * 1000
    one = Blob(Digest.of(content), len(content))

    tar = joined(weights_layer([one]), {one.digest: content})

    assert contract.LAYOUT == 1
    assert Digest.of(tar).hex == "6b1374fffd41c035da8ef01ebbbc9bd9d26de3695929cf47446bc1c70e8124fe"


def test_a_model_layer_has_the_golden_digest_of_layout_1() -> None:
    plan = model_layer("registry.ollama.ai/library/deepseek-r1/32b", b'{"schemaVersion":2}', [b"template", b"license"])

    assert Digest.of(joined(plan, {})).hex == "26d05448b524520a37821af4697afd5c0f871483c11f89b25d5196fad9466b40"


def test_a_header_beyond_8_gib_carries_its_size_in_a_pax_record_and_has_a_golden_digest() -> None:
    huge = blob("huge", 9 * GIB + 5)

    plan = weights_layer([huge])
    literal = b"".join(part for part in plan.parts if isinstance(part, bytes))

    assert plan.size == len(literal) + huge.size
    assert plan.size % 512 == 0
    assert b" size=9663676421\n" in literal
    assert Digest.of(literal).hex == "3fbd5776bd8fbef1d6735eb4c8a903dbd4dad99944158c5ad10f8e12bdb90dad"


def test_a_tar_reader_finds_what_the_contract_promises() -> None:
    contents = {Digest.of(text): text for text in (b"first", b"second" * 300)}
    plan = weights_layer([Blob(digest, len(text)) for digest, text in contents.items()])

    with tarfile.open(fileobj=io.BytesIO(joined(plan, contents))) as tar:
        entries = tar.getmembers()

    assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
    assert [entry.name for entry in entries][:2] == ["models", "models/blobs"]
    assert {entry.mtime for entry in entries} == {contract.MTIME}
    assert {(entry.uid, entry.gid, entry.uname, entry.gname) for entry in entries} == {(0, 0, "", "")}
    assert {entry.mode for entry in entries if entry.isfile()} == {0o644}
    assert {entry.mode for entry in entries if entry.isdir()} == {0o755}


@given(st.lists(st.integers(1, 200), max_size=80))
def test_packing_keeps_the_order_loses_nothing_and_stays_below_the_limit(sizes_mib: list[int]) -> None:
    blobs = [blob(str(index), size * contract.MEBIBYTE) for index, size in enumerate(sizes_mib)]

    groups = pack(blobs)

    assert sorted(b.digest for group in groups for b in group) == sorted(b.digest for b in blobs)
    assert len(groups) < contract.MODEL_LAYERS_MAX
    assert all(list(group) == sorted(group, key=blobs.index) for group in groups)


@pytest.mark.parametrize(
    ("sizes_mib", "groups"),
    [
        ([19_000], [[0]]),
        ([64, 64], [[0], [1]]),
        ([63, 63], [[0, 1]]),
        ([300, 1, 300, 1], [[0], [1, 3], [2]]),
        ([60] * 9, [[0, 1, 2, 3, 4, 5, 6, 7], [8]]),
    ],
)
def test_large_blobs_stand_alone_and_small_ones_share(sizes_mib: list[int], groups: list[list[int]]) -> None:
    blobs = [blob(str(index), size * contract.MEBIBYTE) for index, size in enumerate(sizes_mib)]

    assert [[blobs.index(b) for b in group] for group in pack(blobs)] == groups


def test_a_blob_that_a_manifest_lists_twice_is_stored_once() -> None:
    twice = blob("twice", 5)

    assert pack([twice, blob("other", 6), twice]) == ((twice, blob("other", 6)),)


def test_the_order_of_small_files_does_not_change_the_model_layer() -> None:
    first = model_layer("h/n/m/t", b"{}", [b"a", b"b"])
    second = model_layer("h/n/m/t", b"{}", [b"b", b"a"])

    assert first == second
