"""A small valid GGUF file with the standard library alone, padded to any size in constant memory.

No real server speaks with it (see `scriptedgguf` for that); the stand-in does, and says what `standin.script` holds.
The same arguments give the same bytes.
"""

import hashlib
import random
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ALIGNMENT = 32
CHUNK_BYTES = 1 << 20
WIDTH = 32

_U32, _F32, _BOOL, _STRING, _ARRAY = 4, 6, 7, 8, 9
_TENSOR_F32, _TENSOR_I8 = 0, 24

Value = bool | int | float | str | list[str]


@dataclass(frozen=True, slots=True)
class Written:
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    size: int


def write_tiny_gguf(
    path: Path,
    *,
    script: str | None = None,
    endless: bool = False,
    pad_bytes: int = 0,
    seed: int = 0,
    metadata: Mapping[str, Value] | None = None,
) -> Written:
    """`script` is what the stand-in says (its own default if None), `endless` says it again and again; `pad_bytes`
    is the size of one more tensor, filled from `seed`."""
    entries: dict[str, Value] = {
        "general.architecture": "qwen2",
        "general.name": "tiny stand-in",
        "general.file_type": 1,
        "qwen2.context_length": 4096,
        "qwen2.embedding_length": WIDTH,
        "qwen2.block_count": 1,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.tokens": ["a", "b", "c"],
        **({} if script is None else {"standin.script": script}),
        **({"standin.endless": True} if endless else {}),
        **(metadata or {}),
    }
    tensors = [_Tensor("token_embd.weight", (WIDTH, 3), _TENSOR_F32, 4 * 3 * WIDTH)]
    tensors += [_Tensor("output_norm.weight", (WIDTH,), _TENSOR_F32, 4 * WIDTH)]
    tensors += [_Tensor("standin.padding", (pad_bytes,), _TENSOR_I8, pad_bytes)] if pad_bytes else []
    digest, size = hashlib.sha256(), 0
    with path.open("wb") as file:
        for data in _parts(entries, tensors, seed):
            file.write(data)
            digest.update(data)
            size += len(data)
    return Written(size, digest.hexdigest())


def _parts(entries: Mapping[str, Value], tensors: list[_Tensor], seed: int) -> Iterator[bytes]:
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(entries))
    head += b"".join(_string(key) + _typed(value) for key, value in entries.items())
    offset = 0
    for tensor in tensors:
        shape = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        head += _string(tensor.name) + shape + struct.pack("<IQ", tensor.kind, offset)
        offset += _aligned(tensor.size)
    yield head.ljust(_aligned(len(head)), b"\0")
    for number, tensor in enumerate(tensors):
        yield from _stream(tensor.size, random.Random(f"{seed} {number}"))
        yield b"\0" * (_aligned(tensor.size) - tensor.size)


def _stream(size: int, source: random.Random) -> Iterator[bytes]:
    for at in range(0, size, CHUNK_BYTES):
        yield source.randbytes(min(CHUNK_BYTES, size - at))


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: Value) -> bytes:
    match value:
        case bool():
            return struct.pack("<I?", _BOOL, value)
        case int():
            return struct.pack("<II", _U32, value)
        case float():
            return struct.pack("<If", _F32, value)
        case str():
            return struct.pack("<I", _STRING) + _string(value)
        case list():
            return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
