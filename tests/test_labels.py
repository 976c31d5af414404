"""The labels of an image: what is written is read back, what somebody else wrote is refused in words."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import labels, model

from appliance_image import contract
from appliance_image.contract import ContractError
from appliance_image.labels import THINK_KEPT, THINK_PATCHED, Labels

_COUNT = st.integers(0, 2**63)
_VARIABLE = st.from_regex(r"[A-Z_][A-Z0-9_]{0,12}", fullmatch=True)


@given(
    st.builds(
        Labels,
        layout=st.integers(0, contract.LAYOUT),
        model=st.text(min_size=1),
        source=st.text(),
        think=st.sampled_from([THINK_KEPT, THINK_PATCHED]),
        weights_bytes=_COUNT,
        parameters=st.text(),
        quantization=st.text(),
        family=st.text(),
        context_length=_COUNT,
        gpu_memory_bytes=st.none() | _COUNT,
        base=st.text(),
        ollama_version=st.text(),
        builder=st.text(),
        environment=st.lists(_VARIABLE).map(tuple),
    )
)
def test_labels_that_were_written_are_read_back_the_same(written: Labels) -> None:
    assert Labels.parse(written.render()) == written


def test_every_label_has_the_prefix_and_none_is_empty() -> None:
    rendered = labels(model()).render()

    assert all(name.startswith("io.github.ollama-appliance.") for name in rendered)
    assert all(rendered.values())
    assert contract.LABEL_GPU_MEMORY_BYTES not in rendered


def test_labels_of_other_tools_are_passed_over() -> None:
    written = labels(model())

    assert (
        Labels.parse({"maintainer": "somebody", "org.opencontainers.image.title": "x", **written.render()}) == written
    )


@pytest.mark.parametrize("missing", [contract.LABEL_LAYOUT, contract.LABEL_MODEL])
def test_an_image_without_layout_or_model_is_no_appliance_image(missing: str) -> None:
    rendered = labels(model()).render()
    del rendered[missing]

    with pytest.raises(ContractError, match="not an appliance image: its labels are missing"):
        Labels.parse(rendered)


def test_a_newer_layout_is_refused_and_says_what_to_install() -> None:
    newer = replace(labels(model()), layout=contract.LAYOUT + 1)

    with pytest.raises(ContractError, match="layout version 2, this program knows 1") as caught:
        Labels.parse(newer.render())

    assert caught.value.hint == "install a newer ollama-appliance"


@pytest.mark.parametrize(
    "name",
    [
        contract.LABEL_LAYOUT,
        contract.LABEL_WEIGHTS_BYTES,
        contract.LABEL_CONTEXT_LENGTH,
        contract.LABEL_GPU_MEMORY_BYTES,
    ],
)
@pytest.mark.parametrize("text", ["many", "-1", "1.5", " 1", "²", "0x10"])
def test_a_number_that_is_none_is_refused_by_the_name_of_its_label(name: str, text: str) -> None:
    with pytest.raises(ContractError, match=f"label {name} is no number") as caught:
        Labels.parse({**labels(model()).render(), name: text})

    assert repr(text) in caught.value.message


def test_an_image_of_an_older_builder_may_lack_all_but_layout_and_model() -> None:
    found = Labels.parse({contract.LABEL_LAYOUT: "1", contract.LABEL_MODEL: "r1:7b"})

    assert (found.model, found.think, found.weights_bytes, found.gpu_memory_bytes) == ("r1:7b", THINK_KEPT, 0, None)
    assert found.environment == ()
