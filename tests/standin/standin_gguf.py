"""The head of a GGUF file: metadata, tensor table, and whether the weights are all there."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path


class GgufError(Exception):
    """A model file that no server loads."""


_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY, _F32 = 8, 9, 6
_TENSOR_TYPES = {  # number: (name, weights a block, bytes a block)
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 24: ("I8", 1, 1), 25: ("I16", 1, 2),
    26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
}  # fmt: skip


@dataclass(frozen=True)
class Tensor:
    name: str
    type_name: str
    shape: tuple[int, ...]
    end: int  # offset of the first byte behind it, in the file


@dataclass(frozen=True)
class Gguf:
    metadata: dict[str, object]
    tensors: tuple[Tensor, ...]
    file_bytes: int

    @property
    def cut_off_tensor(self) -> Tensor | None:
        return next((tensor for tensor in self.tensors if tensor.end > self.file_bytes), None)

    @property
    def parameters(self) -> int:
        return sum(math.prod(tensor.shape) for tensor in self.tensors)

    def text(self, key: str) -> str:
        value = self.metadata.get(key, "")
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int:
        value = self.metadata.get(key, 0)
        return value if isinstance(value, int) else 0


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def scalar(self, form: str) -> int:
        value = self._unpack(form)
        return value if isinstance(value, int) else int(value)

    def string(self) -> str:
        return self._bytes(self.scalar("<Q")).decode("utf-8", "replace")

    def value(self, kind: int) -> object:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            item_kind, count = self.scalar("<I"), self.scalar("<Q")
            return [self.value(item_kind) for _ in range(count)]
        if kind not in _SCALARS:
            raise GgufError(f"invalid type: {kind}")
        value = self._unpack(_SCALARS[kind])
        return shortest_float32(value) if kind == _F32 and isinstance(value, float) else value

    def position(self) -> int:
        return self._file.tell()

    def _unpack(self, form: str) -> float:
        (value,) = struct.unpack(form, self._bytes(struct.calcsize(form)))
        if isinstance(value, (int, float)):
            return value
        raise GgufError("invalid value")

    def _bytes(self, count: int) -> bytes:
        data = self._file.read(count) if count < 1 << 30 else b""
        if len(data) != count:
            raise GgufError("unexpected EOF")
        return data


def shortest_float32(value: float) -> float:
    """0.000001 and not 9.99999997e-07, as Go prints a float32."""
    packed = struct.pack("<f", value)
    for digits in range(1, 10):
        short = float(f"{value:.{digits}g}")
        if struct.pack("<f", short) == packed:
            return short
    return value


def read_gguf(path: Path) -> Gguf:
    """Header, metadata and tensor table; the weights stay where they are. Raises GgufError or OSError."""
    with path.open("rb") as file:
        reader = _Reader(file)
        if file.read(4) != b"GGUF":
            raise GgufError("invalid file magic")
        if reader.scalar("<I") not in {2, 3}:
            raise GgufError("unsupported GGUF version")
        tensor_count, entry_count = reader.scalar("<Q"), reader.scalar("<Q")
        metadata: dict[str, object] = {}
        for _ in range(entry_count):
            key = reader.string()
            metadata[key] = reader.value(reader.scalar("<I"))
        table = [_tensor_entry(reader) for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        step = alignment if isinstance(alignment, int) and alignment > 0 else 32
        start = -(-reader.position() // step) * step
        tensors = tuple(Tensor(name, kind, shape, start + end) for name, kind, shape, end in table)
        return Gguf(metadata, tensors, path.stat().st_size)


def _tensor_entry(reader: _Reader) -> tuple[str, str, tuple[int, ...], int]:
    name = reader.string()
    shape = tuple(reader.scalar("<Q") for _ in range(reader.scalar("<I")))
    kind, offset = reader.scalar("<I"), reader.scalar("<Q")
    if kind not in _TENSOR_TYPES:
        raise GgufError(f"tensor '{name}' has an unknown type {kind}")
    type_name, block, block_bytes = _TENSOR_TYPES[kind]
    return name, type_name, shape, offset + math.prod(shape) // block * block_bytes
