"""The estimate of GPU memory: against sizes that llama.cpp prints for published models, and on shapes it cannot know."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance_builder.gguf import GgufHeader
from appliance_builder.memory import CARDS, Architecture, estimate, gpus_needed, kv_type, of_header, placement

_MIB = 1024 * 1024

# DeepSeek-R1-Distill-Qwen-32B, Q4_K_M, as Ollama's library has it.
_DISTILL_32B = GgufHeader(
    architecture="qwen2",
    name=None,
    file_type="Q4_K_M",
    parameter_count=32_763_876_352,
    tensor_count=771,
    tensor_bytes=19_845_357_568,
    data_offset=5_977_984,
    split_count=1,
    context_length=131_072,
    embedding_length=5120,
    block_count=64,
    head_count=40,
    head_count_kv=8,
    key_length=None,
    value_length=None,
    key_length_mla=None,
    value_length_mla=None,
    kv_lora_rank=None,
    sliding_window=None,
    sliding_window_pattern=None,
    expert_count=None,
    expert_used_count=None,
    vocabulary_size=152_064,
    chat_template=None,
)
_GPT_OSS_20B = replace(
    _DISTILL_32B,
    architecture="gpt-oss",
    embedding_length=2880,
    block_count=24,
    head_count=64,
    key_length=64,
    value_length=64,
    sliding_window=128,
    vocabulary_size=201_088,
)
_R1_671B = replace(
    _DISTILL_32B,
    architecture="deepseek2",
    embedding_length=7168,
    block_count=61,
    head_count=128,
    head_count_kv=1,
    key_length=576,
    value_length=512,
    key_length_mla=192,
    value_length_mla=128,
    kv_lora_rank=512,
    vocabulary_size=129_280,
)


def _kv_bytes(header: GgufHeader, *, context_length: int = 8192, parallel: int = 1, kv: str = "f16") -> int:
    found = of_header(header, context_length=context_length, parallel=parallel, kv_type=kv)
    assert found is not None
    return found.kv_bytes


@pytest.mark.parametrize(
    ("header", "context_length", "parallel", "kv", "expected"),
    [
        pytest.param(_DISTILL_32B, 8192, 1, "f16", 2048 * _MIB, id="grouped queries"),
        pytest.param(_DISTILL_32B, 4096, 4, "f16", 4096 * _MIB, id="context is that of one request"),
        pytest.param(_DISTILL_32B, 8192, 1, "q8_0", 1088 * _MIB, id="q8_0"),
        pytest.param(_DISTILL_32B, 8192, 1, "q4_0", 576 * _MIB, id="q4_0"),
        pytest.param(replace(_DISTILL_32B, head_count_kv=None), 8192, 1, "f16", 10240 * _MIB, id="no shared heads"),
        pytest.param(
            replace(_DISTILL_32B, key_length=64, value_length=64), 8192, 1, "f16", 1024 * _MIB, id="head size given"
        ),
        pytest.param(_GPT_OSS_20B, 8192, 1, "f16", (192 + 18) * _MIB, id="every second layer sees 128 tokens"),
        pytest.param(_GPT_OSS_20B, 512, 1, "f16", 24 * _MIB, id="a window is never larger than the context"),
        pytest.param(_R1_671B, 8192, 1, "f16", 61 * 576 * 2 * 8192, id="latent attention keeps no value"),
        pytest.param(
            replace(_R1_671B, key_length_mla=None, head_count_kv=128, key_length=192, value_length=128),
            8192,
            1,
            "f16",
            61 * 128 * (192 + 128) * 2 * 8192,
            id="the same model in a file from before latent attention",
        ),
        pytest.param(
            replace(_DISTILL_32B, block_count=4, head_count_kv=(8, 0, 8, 0)),
            8192,
            1,
            "f16",
            64 * _MIB,
            id="layers without attention",
        ),
        pytest.param(
            replace(_GPT_OSS_20B, architecture="unheard-of"), 8192, 1, "f16", 384 * _MIB, id="unknown rhythm of windows"
        ),
        pytest.param(
            replace(_GPT_OSS_20B, architecture="unheard-of", sliding_window_pattern=(1, 0) * 12),
            8192,
            1,
            "f16",
            (192 + 18) * _MIB,
            id="rhythm told by the file",
        ),
    ],
)
def test_the_cache_is_as_large_as_llama_cpp_makes_it(
    header: GgufHeader, context_length: int, parallel: int, kv: str, expected: int
) -> None:
    assert _kv_bytes(header, context_length=context_length, parallel=parallel, kv=kv) == expected


def test_the_32b_model_with_8192_tokens_fits_a_card_of_24_gb() -> None:
    needed = of_header(_DISTILL_32B, weights_bytes=19_851_335_552, context_length=8192, parallel=1)

    assert needed is not None
    assert 22.5e9 < needed.total_bytes < 24.0e9
    assert placement(needed) == {16: 2, 24: 1, 40: 1, 48: 1, 80: 1, 141: 1}


def test_the_671b_model_needs_six_cards_of_80_gb_or_three_h200() -> None:
    needed = of_header(_R1_671B, weights_bytes=404_000_000_000, context_length=8192, parallel=1)

    assert needed is not None
    assert placement(needed)[80] == 6
    assert placement(needed)[141] == 3


def test_what_no_number_of_cards_can_hold_is_told() -> None:
    needed = estimate(10**13, Architecture(layers=61, kv_elements=1), context_length=1, parallel=1)

    assert set(placement(needed).values()) == {None}


def test_a_layer_is_never_cut_in_two() -> None:
    needed = estimate(30 * 10**9, Architecture(layers=3, kv_elements=0), context_length=1, parallel=1)

    assert needed.bytes_on_each(2) > 20 * 10**9
    assert needed.bytes_on_each(4) == needed.bytes_on_each(3)


@pytest.mark.parametrize(
    "changes",
    [
        {"block_count": None},
        {"block_count": 0},
        {"block_count": 1 << 62},
        {"head_count": None, "head_count_kv": None},
        {"head_count_kv": (8, 8)},
        {"embedding_length": None},
        {"head_count": 0},
    ],
)
def test_a_header_that_tells_too_little_has_no_estimate(changes: dict[str, object]) -> None:
    header = replace(_DISTILL_32B, **changes)  # type: ignore[arg-type]  # the table's values are as the fields are

    assert of_header(header, context_length=8192, parallel=1) is None


@pytest.mark.parametrize(
    ("value", "kind"), [("q8_0", "q8_0"), ("Q4_0", "q4_0"), ("f16", "f16"), ("", "f16"), ("q5_1", "f16")]
)
def test_the_type_of_the_cache_is_read_from_the_environment(value: str, kind: str) -> None:
    assert kv_type({"OLLAMA_KV_CACHE_TYPE": value}) == kind


@given(
    weights=st.integers(1, 10**12),
    elements=st.integers(0, 10**7),
    context=st.integers(1, 1 << 20),
    parallel=st.integers(1, 64),
    gpu=st.sampled_from(list(CARDS.values())),
)
def test_more_of_anything_never_needs_less(weights: int, elements: int, context: int, parallel: int, gpu: int) -> None:
    shape = Architecture(layers=60, kv_elements=elements)
    less = estimate(weights, shape, context_length=context, parallel=parallel)
    more = estimate(weights * 2, shape, context_length=context + 1, parallel=parallel + 1)
    few, many = gpus_needed(less, gpu), gpus_needed(more, gpu)

    assert more.total_bytes > less.total_bytes > weights
    assert many is None or (few is not None and few <= many)
