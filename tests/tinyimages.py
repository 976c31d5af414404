"""Small images that really start: an uncompressed layer at the bottom, gzip layers of a base, a small layer on top.

The base's one program, `/cat FILE`, is a hundred bytes of machine code, so no compiler and no distribution is needed.
"""

import gzip
import io
import os
import platform
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from smallbase import MADE

from appliance_builder.built import Built, BuiltImage, LayerOutline
from appliance_builder.ports import Sink
from appliance_image.digest import Digest
from appliance_image.oci import CONFIG, LAYER_GZIP, LAYER_TAR, Descriptor, Manifest, Platform, render_json

AMD64 = Platform("linux", "amd64")
ARM64 = Platform("linux", "arm64")
HERE = ARM64 if platform.machine() == "aarch64" else AMD64
CHUNK = 1 << 20

# open(argv[1], O_RDONLY); sendfile(1, it, NULL, 2 GiB - 1); exit(0)
_CODE = {
    AMD64: bytes.fromhex(
        "488b7c241031f631d2b8020000000f0589c6bf0100000031d241baffffff7fb8280000000f05b83c00000031ff0f05"
    ),
    ARM64: struct.pack(
        "<15I",
        0x92800C60,  # mov x0, #-100
        0xF9400BE1,  # ldr x1, [sp, #16]
        0xD2800002,  # mov x2, #0
        0xD2800708,  # mov x8, #56
        0xD4000001,  # svc #0
        0xAA0003E1,  # mov x1, x0
        0xD2800020,  # mov x0, #1
        0xD2800002,  # mov x2, #0
        0xB2407BE3,  # mov x3, #0x7fffffff
        0xD28008E8,  # mov x8, #71
        0xD4000001,  # svc #0
        0xD2800000,  # mov x0, #0
        0xD2800BA8,  # mov x8, #93
        0xD4000001,  # svc #0
        0,
    ),
}


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer whose bytes lie in memory."""

    body: bytes = field(repr=False)
    media_type: str = LAYER_TAR

    @property
    def digest(self) -> Digest:
        return Digest.of(self.body)

    @property
    def diff_id(self) -> Digest:
        return Digest.of(gzip.decompress(self.body)) if self.media_type == LAYER_GZIP else self.digest

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(self.media_type, self.digest, len(self.body))

    def payload(self, *, known: bool = True) -> "MemoryPayload":
        return MemoryPayload(self.body, self.digest if known else None)


class MemoryPayload:
    """A payload as the one pass makes them; `error` is what its check finds in the end."""

    def __init__(self, body: bytes, known: Digest | None, *, error: Exception | None = None) -> None:
        self.known_digest = known
        self.identity = str(known) if known else None
        self.size = len(body)
        self._body, self._error = body, error

    def read(self, offset: int = 0) -> Iterator[bytes]:
        for start in range(offset, len(self._body), CHUNK):
            yield self._body[start : start + CHUNK]

    def earned_digest(self) -> Digest:
        if self._error:
            raise self._error
        return Digest.of(self._body)


class SilentTransfer:
    """A bar nobody looks at; remembers where it stands and what was noted."""

    def __init__(self) -> None:
        self.done = 0
        self.notes: list[str] = []

    def advance(self, size: int) -> None:
        self.done += size

    def restart(self, done: int) -> None:
        self.done = done

    def note(self, text: str) -> None:
        self.notes.append(text)


class QuietReporter:
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.warnings: list[str] = []

    def step(self, message: str) -> None:
        self.steps.append(message)

    def warning(self, message: str, *, hint: str) -> None:
        self.warnings.append(f"{message}; {hint}")

    @contextmanager
    def transfer(self, name: str, *, size: int) -> Iterator[SilentTransfer]:
        yield SilentTransfer()


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes, gone again afterwards."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def skopeo(*words: str) -> str:
    program = shutil.which("skopeo")
    if program is None:
        pytest.skip("install skopeo")
    result = subprocess.run([program, *words], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def write_all(sink: Sink, layers: Sequence["Layer"], *, known: bool = True) -> list["Layer"]:
    """What a build does with a sink before it commits; returns the layers whose bytes had to move."""
    moved = [layer for layer in layers if not sink.has(outline(layers, layer))]
    for layer in moved:
        sink.write(layer.payload(known=known), layer.media_type, SilentTransfer())
    return moved


def tar(files: dict[str, bytes], *, mode: int = 0o644) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), mode
            archive.addfile(entry, io.BytesIO(content))
    return out.getvalue()


def base_layers(where: Platform = HERE, *, version: str = "1") -> list[Layer]:
    """Two gzip layers: the program, and a file that differs from version to version."""
    layers = [tar({"cat": _elf(where)}, mode=0o755), tar({"etc/version": version.encode()})]
    return [Layer(gzip.compress(layer, mtime=0), LAYER_GZIP) for layer in layers]


def weights_layer(content: bytes) -> Layer:
    return Layer(tar({"models/blobs/weights": content}))


def model_layer(text: str) -> Layer:
    return Layer(tar({"models/template": text.encode()}))


def image(layers: Sequence[Layer], where: Platform = HERE, *, labels: dict[str, str] | None = None) -> BuiltImage:
    config = render_json(
        {
            "created": MADE,
            "architecture": where.architecture,
            "os": where.os,
            "config": {"Entrypoint": ["/cat"], "Labels": labels or {"made-by": "test"}},
            "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
            "history": [{"created_by": f"layer {number}"} for number, _ in enumerate(layers)],
        }
    )
    manifest = Manifest(Descriptor(CONFIG, Digest.of(config), len(config)), tuple(layer.descriptor for layer in layers))
    return BuiltImage(where, config, manifest, tuple(layer.diff_id for layer in layers))


def built(layers: Sequence[Layer], *, labels: dict[str, str] | None = None) -> Built:
    return Built((image(layers, labels=labels),))


def outline(layers: Sequence[Layer], layer: Layer, *platforms: Platform) -> LayerOutline:
    below = layers[: list(layers).index(layer) + 1]
    return LayerOutline(layer.descriptor, tuple(one.diff_id for one in below), frozenset(platforms or {HERE}))


def _elf(where: Platform) -> bytes:
    code = _CODE[where]
    machine = {AMD64: 62, ARM64: 183}[where]
    base, entry = 0x400000, 0x400078
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    size = 120 + len(code)
    return header + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code
