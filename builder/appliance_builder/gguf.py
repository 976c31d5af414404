"""The header of a GGUF file, versions 2 and 3: bytes in, one value out. The bytes are a stranger's, so every count has a cap.

Reads from a stream and takes no more of it than the header, so it works on the first megabytes of a model that is still
to be downloaded. Token lists are stepped over, not kept.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from appliance_builder.gguf_types import BLOCKS, FILE_TYPES
from appliance_image.errors import ApplianceError

HEADER_BYTES: Final = 32 * 1024 * 1024  # of a published model some 5 to 15 MiB, nearly all of it the tokenizer
_HEADER_BYTES_MAX: Final = 64 * 1024 * 1024
_STRING_BYTES_MAX: Final = 8 * 1024 * 1024
_ENTRIES_MAX: Final = 1 << 16
_TENSORS_MAX: Final = 1 << 18
_ELEMENTS_MAX: Final = 1 << 23
_KEPT_ELEMENTS_MAX: Final = 4096
_PER_LAYER: Final = (".head_count", ".head_count_kv", ".sliding_window_pattern")
_NESTING_MAX: Final = 4
_DIMENSIONS_MAX: Final = 8
_ALIGNMENT_MAX: Final = 1 << 20
_ALIGNMENT: Final = 32
_NUMBER_BITS_MAX: Final = 63

_STRING, _ARRAY = 8, 9
_SCALARS: Final = {
    number: struct.Struct("<" + code)
    for number, code in {
        0: "B",
        1: "b",
        2: "H",
        3: "h",
        4: "I",
        5: "i",
        6: "f",
        7: "?",
        10: "Q",
        11: "q",
        12: "d",
    }.items()
}
_U32, _U64 = _SCALARS[4], _SCALARS[10]

Scalar = int | float | bool
PerLayer = int | tuple[int, ...]  # one number for all layers, or one for each


class GgufError(ApplianceError):
    def __init__(self, message: str, *, hint: str = "give a GGUF file of version 2 or 3, little-endian, whole") -> None:
        super().__init__(message, hint=hint)


class GgufTruncatedError(GgufError):
    """The stream ended inside the header: what a file cut short looks like, and a range that was too small."""


@dataclass(frozen=True, slots=True)
class _Counted:
    """An array that was stepped over."""

    size: int


_Value = Scalar | str | tuple[Scalar, ...] | _Counted


@dataclass(frozen=True, slots=True)
class GgufHeader:
    architecture: str
    name: str | None
    file_type: str  # as Ollama writes it, `Q4_K_M`; empty where unknown
    parameter_count: int
    tensor_count: int
    tensor_bytes: int
    data_offset: int
    split_count: int  # files that the model is cut into
    context_length: int | None
    embedding_length: int | None
    block_count: int | None
    head_count: PerLayer | None
    head_count_kv: PerLayer | None
    key_length: int | None
    value_length: int | None
    key_length_mla: int | None
    value_length_mla: int | None
    kv_lora_rank: int | None
    sliding_window: int | None
    sliding_window_pattern: PerLayer | None  # a period, or for each layer whether it slides
    expert_count: int | None
    expert_used_count: int | None
    vocabulary_size: int | None
    chat_template: str | None

    @property
    def parameter_size(self) -> str:
        """As Ollama writes it: `32.8B`."""
        for unit, size, digits in (("B", 10**9, 1), ("M", 10**6, 2)):
            if self.parameter_count >= size:
                number = self.parameter_count / size
                return f"{number:.0f}{unit}" if number.is_integer() else f"{number:.{digits}f}{unit}"
        return f"{self.parameter_count / 1000:.0f}K" if self.parameter_count >= 1000 else str(self.parameter_count)


def read_header(chunks: Iterable[bytes], *, file_bytes: int | None = None) -> GgufHeader:
    """Takes no chunk that it does not need. `file_bytes` is needed only to size a last tensor of an unknown type."""
    stream = _Stream(chunks)
    magic, version = stream.take(4), stream.number(_U32)
    if magic != b"GGUF":
        raise GgufError("not a GGUF file: it does not begin with `GGUF`")
    if version not in (2, 3):
        big_endian = version in (2 << 24, 3 << 24)
        raise GgufError("a big-endian GGUF file" if big_endian else f"GGUF version {version} is not known here")
    tensors = _capped(stream.number(_U64), _TENSORS_MAX, "tensors")
    entries = _capped(stream.number(_U64), _ENTRIES_MAX, "entries")
    facts = _Facts({})
    for _ in range(entries):
        key = stream.text()
        value = _value(stream, stream.number(_U32), nesting=0)
        if key in facts.values:
            raise GgufError(f"GGUF entry `{key[:80]}` appears twice")
        forgotten = isinstance(value, tuple) and not key.endswith(_PER_LAYER)
        facts.values[key] = _Counted(0) if forgotten else value
    infos = [_tensor(stream) for _ in range(tensors)]
    alignment = facts.alignment
    data_offset = -(-stream.consumed // alignment) * alignment
    end = None if file_bytes is None else max(0, file_bytes - data_offset)
    return facts.header(infos, data_offset=data_offset, tensor_bytes=_tensor_bytes(infos, end))


class _Stream:
    """A cursor over chunks of any size; what was read is forgotten."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._buffer = b""
        self._position = 0
        self._forgotten = 0

    @property
    def consumed(self) -> int:
        return self._forgotten + self._position

    def number(self, kind: struct.Struct) -> int:
        self._need(kind.size)
        number: int = kind.unpack_from(self._buffer, self._position)[0]
        self._position += kind.size
        return number

    def take(self, size: int) -> bytes:
        self._need(size)
        self._position += size
        return self._buffer[self._position - size : self._position]

    def text(self) -> str:
        return self.take(_string_size(self.number(_U64))).decode(errors="replace")

    def skip(self, size: int) -> None:
        self._position += size
        while self._position > len(self._buffer):
            rest = self._position - len(self._buffer)
            self._position = len(self._buffer)
            self._need(1)
            self._position += rest

    def skip_texts(self, count: int) -> None:
        """The one hot loop: 150,000 tokens in a few hundredths of a second."""
        unpack = _U64.unpack_from
        while count:
            buffer, position, last = self._buffer, self._position, len(self._buffer) - 8
            while count and position <= last:
                size: int = unpack(buffer, position)[0]
                position += 8 + (size if size <= _STRING_BYTES_MAX else _string_size(size))
                count -= 1
            self.skip(position - self._position)
            if count:
                self._need(8)

    def _need(self, size: int) -> None:
        missing = size - (len(self._buffer) - self._position)
        if missing <= 0:
            return
        if self.consumed + size > _HEADER_BYTES_MAX:
            raise GgufError("GGUF header is too large: more than 64 MiB")
        parts = [self._buffer[self._position :]]
        while missing > 0:
            chunk = next(self._chunks, None)
            if chunk is None:
                raise GgufTruncatedError(f"GGUF header is cut short after {self.consumed} bytes")
            parts.append(chunk)
            missing -= len(chunk)
        self._forgotten += self._position
        self._buffer, self._position = b"".join(parts), 0


def _value(stream: _Stream, kind: int, *, nesting: int) -> _Value:
    if kind == _STRING:
        return stream.text()
    if scalar := _SCALARS.get(kind):
        return stream.number(scalar)
    if kind != _ARRAY:
        raise GgufError(f"GGUF value of unknown type: {kind}")
    if nesting >= _NESTING_MAX:
        raise GgufError("GGUF arrays are nested too deep")
    return _array(stream, nesting=nesting + 1)


def _array(stream: _Stream, *, nesting: int) -> _Value:
    kind = stream.number(_U32)
    count = _capped(stream.number(_U64), _ELEMENTS_MAX, "elements in an array")
    if kind == _STRING:
        stream.skip_texts(count)
    elif (scalar := _SCALARS.get(kind)) and count <= _KEPT_ELEMENTS_MAX:
        return tuple(stream.number(scalar) for _ in range(count))
    elif scalar:
        stream.skip(scalar.size * count)
    else:
        for _ in range(count):
            _value(stream, kind, nesting=nesting)
    return _Counted(count)


@dataclass(frozen=True, slots=True)
class _Tensor:
    kind: int
    elements: int
    offset: int


def _tensor(stream: _Stream) -> _Tensor:
    stream.skip(_string_size(stream.number(_U64)))
    elements = 1
    for _ in range(_capped(stream.number(_U32), _DIMENSIONS_MAX, "dimensions in a tensor")):
        elements *= stream.number(_U64)
    if elements.bit_length() > _NUMBER_BITS_MAX:
        raise GgufError("GGUF tensor has an impossible number of elements")
    return _Tensor(stream.number(_U32), elements, stream.number(_U64))


def _tensor_bytes(tensors: Sequence[_Tensor], end: int | None) -> int:
    """A type that is newer than the table takes what lies before the next tensor, padding included."""
    following = dict(pairwise(sorted({tensor.offset for tensor in tensors})))
    total = 0
    for tensor in tensors:
        if block := BLOCKS.get(tensor.kind):
            total += -(-tensor.elements // block.elements) * block.size
        else:
            total += max(0, following.get(tensor.offset, end or 0) - tensor.offset)
    return total


@dataclass(frozen=True, slots=True)
class _Facts:
    """Entries by name. One of another type than it should have counts as missing: Ollama's reader does the same."""

    values: dict[str, _Value]

    @property
    def alignment(self) -> int:
        alignment = self._whole("general.alignment") or _ALIGNMENT
        if alignment > _ALIGNMENT_MAX or alignment & (alignment - 1):
            raise GgufError(f"GGUF alignment is not a power of two: {alignment}")
        return alignment

    def header(self, tensors: Sequence[_Tensor], *, data_offset: int, tensor_bytes: int) -> GgufHeader:
        architecture = self._text("general.architecture")
        if not architecture:
            raise GgufError("GGUF file does not name its architecture")
        prefix, attention = f"{architecture}.", f"{architecture}.attention."
        tokens = self.values.get("tokenizer.ggml.tokens")
        return GgufHeader(
            architecture=architecture,
            name=self._text("general.name"),
            file_type=FILE_TYPES.get(-1 if (kind := self._whole("general.file_type")) is None else kind, ""),
            parameter_count=sum(tensor.elements for tensor in tensors),
            tensor_count=len(tensors),
            tensor_bytes=tensor_bytes,
            data_offset=data_offset,
            split_count=self._whole("split.count") or 1,
            context_length=self._whole(prefix + "context_length"),
            embedding_length=self._whole(prefix + "embedding_length"),
            block_count=self._whole(prefix + "block_count"),
            head_count=self._per_layer(attention + "head_count"),
            head_count_kv=self._per_layer(attention + "head_count_kv"),
            key_length=self._whole(attention + "key_length"),
            value_length=self._whole(attention + "value_length"),
            key_length_mla=self._whole(attention + "key_length_mla"),
            value_length_mla=self._whole(attention + "value_length_mla"),
            kv_lora_rank=self._whole(attention + "kv_lora_rank"),
            sliding_window=self._whole(attention + "sliding_window"),
            sliding_window_pattern=self._per_layer(attention + "sliding_window_pattern"),
            expert_count=self._whole(prefix + "expert_count"),
            expert_used_count=self._whole(prefix + "expert_used_count"),
            vocabulary_size=tokens.size if isinstance(tokens, _Counted) else self._whole(prefix + "vocab_size"),
            chat_template=self._text("tokenizer.chat_template"),
        )

    def _text(self, key: str) -> str | None:
        value = self.values.get(key)
        return value if isinstance(value, str) else None

    def _whole(self, key: str) -> int | None:
        value = self.values.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None

    def _per_layer(self, key: str) -> PerLayer | None:
        value = self.values.get(key)
        if isinstance(value, tuple) and all(isinstance(entry, int) and entry >= 0 for entry in value):
            return tuple(int(entry) for entry in value)
        return self._whole(key)


def _string_size(size: int) -> int:
    return _capped(size, _STRING_BYTES_MAX, "bytes in a string")


def _capped(count: int, limit: int, what: str) -> int:
    if count > limit:
        raise GgufError(f"GGUF file claims too many {what}: {count}")
    return count
