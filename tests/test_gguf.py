"""The GGUF header reader: against the `gguf` package's writer, against every truncation, and against garbage."""

import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tinygguf import write_tiny_gguf

from appliance_builder.gguf import GgufError, GgufHeader, GgufTruncatedError, read_header
from appliance_builder.gguf_types import BLOCKS, FILE_TYPES

_U8, _U32, _STRING, _ARRAY = 0, 4, 8, 9


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _text(key) + struct.pack("<I", kind) + value


def _u32(key: str, value: int) -> bytes:
    return _entry(key, _U32, struct.pack("<I", value))


def _tensor(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


_ARCHITECTURE = _entry("general.architecture", _STRING, _text("qwen2"))


def _file(*entries: bytes, tensors: tuple[bytes, ...] = (), version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, len(tensors), len(entries)) + b"".join((*entries, *tensors))


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


def _parse(data: bytes, *, piece: int = 1 << 20) -> GgufHeader:
    return read_header(_pieces(data, piece))


def _written(path: Path, fill: Callable[[gguf.GGUFWriter], None], *, architecture: str = "qwen2") -> bytes:
    writer = gguf.GGUFWriter(path, architecture)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def _distill(writer: gguf.GGUFWriter) -> None:
    writer.add_name("DeepSeek R1 Distill Qwen 32B")
    writer.add_context_length(131072)
    writer.add_embedding_length(5120)
    writer.add_block_count(64)
    writer.add_head_count(40)
    writer.add_head_count_kv(8)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_K_M)
    writer.add_token_list([f"token {number}" for number in range(5000)])
    writer.add_token_types([1] * 5000)
    writer.add_token_merges(["a b", "b c"])
    writer.add_chat_template("{{ '<think>' }}")
    writer.add_tensor("token_embd.weight", np.zeros((7, 32), dtype=np.float32))
    writer.add_tensor("output_norm.weight", np.zeros((33,), dtype=np.float16))


@pytest.mark.parametrize("piece", [1, 7, 4096, 1 << 20])
def test_a_file_of_the_gguf_package_is_read_as_it_was_meant(tmp_path: Path, piece: int) -> None:
    data = _written(tmp_path / "x.gguf", _distill)

    header = _parse(data, piece=piece)

    assert header.architecture == "qwen2"
    assert header.name == "DeepSeek R1 Distill Qwen 32B"
    assert header.file_type == "Q4_K_M"
    assert (header.context_length, header.embedding_length, header.block_count) == (131072, 5120, 64)
    assert (header.head_count, header.head_count_kv) == (40, 8)
    assert header.vocabulary_size == 5000
    assert header.chat_template == "{{ '<think>' }}"
    assert header.parameter_count == 7 * 32 + 33
    assert header.tensor_bytes == 7 * 32 * 4 + 33 * 2


def test_offsets_and_sizes_agree_with_the_reader_of_the_gguf_package(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    data = _written(path, _distill)
    theirs = gguf.GGUFReader(path)

    header = _parse(data)

    assert header.data_offset == theirs.data_offset
    assert header.tensor_count == len(theirs.tensors)
    assert header.tensor_bytes == sum(int(tensor.n_bytes) for tensor in theirs.tensors)
    assert header.parameter_count == sum(int(tensor.n_elements) for tensor in theirs.tensors)


def test_lists_for_each_layer_are_kept(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count_kv([8, 0, 8, 4])
        writer.add_sliding_window(1024)
        writer.add_sliding_window_pattern([True, False, True, True])
        writer.add_expert_count(128)
        writer.add_expert_used_count(8)

    header = _parse(_written(tmp_path / "x.gguf", fill, architecture="gemma3"))

    assert header.head_count_kv == (8, 0, 8, 4)
    assert header.sliding_window == 1024
    assert header.sliding_window_pattern == (1, 0, 1, 1)
    assert (header.expert_count, header.expert_used_count) == (128, 8)


def test_the_compressed_attention_of_deepseek2_is_read(tmp_path: Path) -> None:
    def fill(writer: gguf.GGUFWriter) -> None:
        writer.add_head_count_kv(1)
        writer.add_key_length(576)
        writer.add_value_length(512)
        writer.add_key_length_mla(192)
        writer.add_value_length_mla(128)
        writer.add_kv_lora_rank(512)

    header = _parse(_written(tmp_path / "x.gguf", fill, architecture="deepseek2"))

    assert (header.key_length, header.value_length) == (576, 512)
    assert (header.key_length_mla, header.value_length_mla, header.kv_lora_rank) == (192, 128, 512)


@pytest.mark.parametrize("quantization", list(gguf.GGMLQuantizationType), ids=lambda kind: str(kind.name))
def test_every_tensor_type_of_the_gguf_package_has_its_size(quantization: gguf.GGMLQuantizationType) -> None:
    assert tuple(BLOCKS[quantization.value]) == gguf.GGML_QUANT_SIZES[quantization]


@pytest.mark.parametrize("kind", list(gguf.LlamaFileType), ids=lambda kind: str(kind.name))
def test_every_file_type_of_the_gguf_package_has_its_name(kind: gguf.LlamaFileType) -> None:
    name = kind.name.removeprefix("MOSTLY_").removeprefix("ALL_").removesuffix("_MOE")

    assert FILE_TYPES.get(kind.value, "") == ("" if name == "GUESSED" else name)


def test_the_stand_in_of_the_tests_is_a_gguf_file(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    size = write_tiny_gguf(path, pad_bytes=1000).size

    header = _parse(path.read_bytes())

    assert header.architecture == "qwen2"
    assert header.data_offset + header.tensor_bytes <= size


def test_any_truncation_is_told_as_one(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path)
    data = path.read_bytes()
    whole = _parse(data)
    cuts = range(whole.data_offset - 31)

    for cut in cuts:
        with pytest.raises(GgufTruncatedError):
            _parse(data[:cut])

    assert _parse(data[: whole.data_offset]) == whole


def test_no_chunk_is_taken_that_the_header_does_not_need(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_tiny_gguf(path, pad_bytes=1 << 20)
    taken = 0

    def chunks() -> Iterator[bytes]:
        nonlocal taken
        with path.open("rb") as file:
            while chunk := file.read(512):
                taken += len(chunk)
                yield chunk

    header = read_header(chunks())

    assert taken <= header.data_offset + 512


def test_a_vocabulary_of_150000_tokens_is_stepped_over_quickly() -> None:
    tokens = b"".join(_text(f"tok{number}") for number in range(150_000))
    array = struct.pack("<IQ", _STRING, 150_000) + tokens
    types = struct.pack("<IQ", _U32, 150_000) + bytes(600_000)
    data = _file(
        _ARCHITECTURE,
        _entry("tokenizer.ggml.tokens", _ARRAY, array),
        _entry("tokenizer.ggml.merges", _ARRAY, array),
        _entry("tokenizer.ggml.token_type", _ARRAY, types),
    )
    taken_s = []

    for _ in range(5):
        begin = time.perf_counter()
        header = _parse(data)
        taken_s.append(time.perf_counter() - begin)
        assert header.vocabulary_size == 150_000

    assert min(taken_s) < 0.5  # some 0.05 s on a quiet machine


def test_a_tensor_type_newer_than_the_table_takes_what_lies_before_the_next() -> None:
    tensors = (_tensor("a", (32,), 999, 0), _tensor("b", (32,), 2, 640), _tensor("c", (32,), 999, 672))
    data = _file(_ARCHITECTURE, tensors=tensors)
    offset = _parse(data).data_offset

    without_end, with_end = _parse(data).tensor_bytes, read_header([data], file_bytes=offset + 700).tensor_bytes

    assert without_end == 640 + 18
    assert with_end == 640 + 18 + 28


def test_version_2_is_read() -> None:
    assert _parse(_file(_ARCHITECTURE, version=2)).architecture == "qwen2"


def test_a_file_type_that_is_not_known_has_no_name() -> None:
    assert _parse(_file(_ARCHITECTURE, _u32("general.file_type", 1024))).file_type == ""


def test_the_alignment_of_the_file_counts() -> None:
    data = _file(_ARCHITECTURE, _u32("general.alignment", 4096))

    assert _parse(data).data_offset == 4096


def test_an_entry_of_the_wrong_type_counts_as_missing() -> None:
    data = _file(_ARCHITECTURE, _entry("qwen2.block_count", _STRING, _text("many")))

    assert _parse(data).block_count is None


@pytest.mark.parametrize(
    ("elements", "size"),
    [(32_763_876_352, "32.8B"), (7 * 10**9, "7B"), (494_032_768, "494.03M"), (161_000, "161K"), (12, "12")],
)
def test_the_number_of_parameters_is_written_as_ollama_writes_it(elements: int, size: str) -> None:
    data = _file(_ARCHITECTURE, tensors=(_tensor("a", (elements,), 0, 0),))

    assert _parse(data).parameter_size == size


def _nested(depth: int) -> bytes:
    return struct.pack("<IQ", _ARRAY, 1) * depth + struct.pack("<IQ", _U8, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"ggjt" + bytes(20), "does not begin with"),
        (_file(version=1), "version 1"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
        (b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0), "too many tensors"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60), "too many entries"),
        (_file(struct.pack("<Q", 1 << 40)), "too many bytes in a string"),
        (_file(_entry("x", _ARRAY, struct.pack("<IQ", _U8, 1 << 40))), "too many elements"),
        (_file(_entry("x", _ARRAY, struct.pack("<IQQ", _STRING, 1, 1 << 40))), "too many bytes in a string"),
        (_file(_entry("x", _ARRAY, _nested(40))), "nested too deep"),
        (_file(_entry("x", 77, b"")), "unknown type: 77"),
        (_file(_ARCHITECTURE, tensors=(_text("t") + struct.pack("<I", 1 << 30),)), "too many dimensions"),
        (_file(_ARCHITECTURE, tensors=(_tensor("t", (1 << 40, 1 << 40), 0, 0),)), "impossible number of elements"),
        (_file(_ARCHITECTURE, _u32("general.alignment", 33)), "not a power of two"),
        (_file(_ARCHITECTURE, _ARCHITECTURE), "appears twice"),
        (_file(_u32("a", 1)), "does not name its architecture"),
    ],
)
def test_a_file_that_cannot_be_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(GgufError, match=message):
        _parse(data)


def test_a_header_without_end_is_given_up() -> None:
    def endless() -> Iterator[bytes]:
        yield b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 16)
        entry = _entry("x", _ARRAY, struct.pack("<IQ", _U8, 1 << 20))
        for number in range(1 << 16):
            yield _text(str(number)) + entry[9:] + bytes(1 << 20)

    with pytest.raises(GgufError, match="more than 64 MiB"):
        read_header(endless())


@given(st.binary(max_size=400))
def test_garbage_is_nothing_but_a_gguf_error(garbage: bytes) -> None:
    for data in (garbage, b"GGUF" + garbage, _file(garbage), _file(_ARCHITECTURE, garbage, tensors=(garbage,))):
        try:
            header = _parse(data)
        except GgufError:
            continue
        assert isinstance(header, GgufHeader)


@pytest.fixture(scope="module")
def distill(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return _written(tmp_path_factory.mktemp("gguf") / "x.gguf", _distill)


@given(place=st.floats(0, 1, exclude_max=True), byte=st.integers(0, 255))
def test_one_wrong_byte_is_a_header_or_a_gguf_error(distill: bytes, place: float, byte: int) -> None:
    data = bytearray(distill)
    data[int(place**4 * len(data))] = byte  # most often among the entries at the beginning

    try:
        header = _parse(bytes(data))
    except GgufError:
        return
    assert header.tensor_bytes >= 0
