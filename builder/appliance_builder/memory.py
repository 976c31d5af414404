"""How much GPU memory a model takes: an estimate from the shape of its attention, never a measurement. Pure.

    weights + 1.1 x (cache + compute)

- weights: the size of the model's file. Exact, and a little too much: the token embeddings stay in the host's memory.
- cache: for each token of context, of each parallel request, every layer keeps a key and a value of `head_dim` numbers
  for each of its key-value heads (llama.cpp, llama-kv-cache.cpp). Three exceptions:
  a sliding layer keeps its window and one batch at most, in steps of 256 (llama-kv-cache-iswa.cpp);
  multi-head latent attention keeps one compressed key and no value (the same file: `has_v = !is_mla`);
  a layer without key-value heads keeps nothing that grows with the context.
- compute: for each of the 512 tokens of a batch, in 4 bytes, the scores over the vocabulary, four vectors as wide as the model,
  and one line of the attention mask. That is Ollama's own formula for a llama on a GPU (fs/ggml/ggml.go, GraphSize) without its term of
  context x heads, which flash attention does not store. And 512 MiB for CUDA's context and kernels, on each GPU.
- the tenth more, on what is computed here, is for fragmentation and for what the formula does not know.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from appliance_builder.gguf import GgufHeader, PerLayer
from appliance_builder.gguf_types import Block

MEBIBYTE: Final = 1024 * 1024
KV_TYPES: Final = {"f16": Block(1, 2), "q8_0": Block(32, 34), "q4_0": Block(32, 18)}
KV_TYPE: Final = "f16"  # what Ollama takes where OLLAMA_KV_CACHE_TYPE is not set

# By the gigabytes a card is sold with: what the one that reports least of them reports, ECC on.
CARDS: Final = {
    16: 15360 * MEBIBYTE,  # T4
    24: 23028 * MEBIBYTE,  # A10, L4
    40: 40536 * MEBIBYTE,  # A100
    48: 46068 * MEBIBYTE,  # L40S
    80: 81251 * MEBIBYTE,  # A100, H100
    141: 143771 * MEBIBYTE,  # H200
}
GPUS_MAX: Final = 16

_BATCH: Final = 512  # llama-server's physical batch; Ollama sets another only where num_batch says so
_CUDA_BYTES: Final = 512 * MEBIBYTE
_WINDOW_STEP: Final = 256
_LAYERS_MAX: Final = 4096  # a header is a stranger's
WIDE_EMBEDDING: Final = (
    8192  # where neither header nor recipe tells: as a 70B model, so that the estimate is rather too high
)
LARGE_VOCABULARY: Final = 152_064

# Every n-th layer sees everything, the others a window: where the file tells the window and llama.cpp the rhythm.
# An architecture that is not here counts as seeing everything, which is never too little.
_WINDOW_PERIODS: Final = {
    "cohere2": 4,
    "exaone4": 4,
    "gemma2": 2,
    "gemma3": 6,
    "gemma3n": 5,
    "gpt-oss": 2,
    "gptoss": 2,
    "olmo2": 4,
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """`kv_elements` are the numbers that one token leaves in the cache of all layers that see everything."""

    layers: int
    kv_elements: int
    window_elements: int = 0  # the same for the layers that see a window
    window: int = 0
    embedding: int = WIDE_EMBEDDING
    vocabulary: int = LARGE_VOCABULARY

    @classmethod
    def of(cls, header: GgufHeader) -> Architecture | None:
        layers, heads = header.block_count, _for_each(header.head_count_kv or header.head_count, header.block_count)
        sizes = _head_sizes(header)
        if not layers or heads is None or sizes is None:
            return None
        sliding = _sliding(header, layers)
        elements = [count * sum(sizes) for count in heads]
        return cls(
            layers=layers,
            kv_elements=sum(size for size, slides in zip(elements, sliding, strict=True) if not slides),
            window_elements=sum(size for size, slides in zip(elements, sliding, strict=True) if slides),
            window=header.sliding_window or 0,
            embedding=header.embedding_length or WIDE_EMBEDDING,
            vocabulary=header.vocabulary_size or LARGE_VOCABULARY,
        )


@dataclass(frozen=True, slots=True)
class Estimate:
    weights_bytes: int
    kv_bytes: int
    compute_bytes: int  # on each GPU
    layers: int

    @property
    def total_bytes(self) -> int:
        """On one GPU."""
        return self.bytes_on_each(1)

    def bytes_on_each(self, gpus: int) -> int:
        """On the fullest of several GPUs: whole layers are dealt out."""
        share = -(-self.layers // gpus)
        weights, kv = (-(-size * share // self.layers) for size in (self.weights_bytes, self.kv_bytes))
        return weights + (kv + self.compute_bytes) * 11 // 10


def estimate(
    weights_bytes: int, architecture: Architecture, *, context_length: int, parallel: int, kv_type: str = KV_TYPE
) -> Estimate:
    """`context_length` is that of one request, as OLLAMA_CONTEXT_LENGTH is."""
    window = -(-(architecture.window + _BATCH) // _WINDOW_STEP) * _WINDOW_STEP
    elements = architecture.kv_elements * context_length + architecture.window_elements * min(window, context_length)
    block = KV_TYPES[kv_type]
    numbers = architecture.vocabulary + 4 * architecture.embedding + context_length * parallel
    return Estimate(
        weights_bytes=weights_bytes,
        kv_bytes=elements * parallel * block.size // block.elements,
        compute_bytes=4 * _BATCH * numbers + _CUDA_BYTES,
        layers=architecture.layers,
    )


def of_header(
    header: GgufHeader,
    *,
    weights_bytes: int | None = None,
    context_length: int,
    parallel: int,
    kv_type: str = KV_TYPE,
) -> Estimate | None:
    """`weights_bytes` where a model has more than this one file; None where the header tells too little."""
    architecture = Architecture.of(header)
    if architecture is None:
        return None
    weights = header.tensor_bytes if weights_bytes is None else weights_bytes
    return estimate(weights, architecture, context_length=context_length, parallel=parallel, kv_type=kv_type)


def kv_type(environment: Mapping[str, str]) -> str:
    """As the image's variables set it; Ollama takes f16 for what it does not know."""
    name = environment.get("OLLAMA_KV_CACHE_TYPE", KV_TYPE).lower()
    return name if name in KV_TYPES else KV_TYPE


def gpus_needed(needed: Estimate, gpu_bytes: int) -> int | None:
    """None: not even with `GPUS_MAX` of them."""
    for gpus in range(1, min(GPUS_MAX, needed.layers) + 1):
        if needed.bytes_on_each(gpus) <= gpu_bytes:
            return gpus
    return None


def placement(needed: Estimate) -> dict[int, int | None]:
    """For each size of card, how many of them."""
    return {gigabytes: gpus_needed(needed, gpu_bytes) for gigabytes, gpu_bytes in CARDS.items()}


def _for_each(heads: PerLayer | None, layers: int | None) -> tuple[int, ...] | None:
    if heads is None or layers is None or layers > _LAYERS_MAX:
        return None
    if isinstance(heads, int):
        return (heads,) * layers
    return heads if len(heads) == layers else None


def _head_sizes(header: GgufHeader) -> tuple[int, int] | None:
    """Numbers of a key and of a value, as they are kept."""
    heads = header.head_count if isinstance(header.head_count, int) else max(header.head_count or (0,))
    derived = (header.embedding_length or 0) // heads if heads else 0
    key, value = header.key_length or derived, header.value_length or derived
    if header.key_length_mla and header.value_length_mla:
        value = 0
    elif not value:
        return None
    return (key, value) if key else None


def _sliding(header: GgufHeader, layers: int) -> tuple[bool, ...]:
    pattern = header.sliding_window_pattern
    if not header.sliding_window:
        return (False,) * layers
    if isinstance(pattern, tuple):
        return tuple(map(bool, pattern)) if len(pattern) == layers else (False,) * layers
    period = pattern or _WINDOW_PERIODS.get(header.architecture, 1)
    return tuple(layer % period < period - 1 for layer in range(layers))
