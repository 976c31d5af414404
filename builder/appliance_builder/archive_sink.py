"""Sink `oci-archive:FILE`: the hybrid tar in a file that appears when it is whole, or on standard output.

In a file, a layer's name is put before it once its digest is earned; on a pipe the digest must be known first.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Final, Protocol

from appliance_builder import hybrid
from appliance_builder.built import Built, LayerOutline
from appliance_builder.outfile import Output, OutputError, Pipe, UnfinishedFile, check_space, disk_errors, sweep
from appliance_builder.ports import Payload, Transfer
from appliance_image.digest import Digest
from appliance_image.reference import ImageReference

_UNKNOWN: Final = Digest("0" * 64)


class _Target(Protocol):
    """Where the tar goes: how it begins, how names come before layers, how it ends."""

    label: str
    digests_first: bool

    def check(self, total_bytes: int) -> None: ...

    def finished(self, built: Built, name: ImageReference) -> str | None: ...

    def open(self) -> Output: ...

    def rename_entry(self, offset: int, header: bytes) -> None: ...

    def finish(self) -> str: ...

    def discard(self) -> None: ...


class ArchiveSink:
    def __init__(self, target: _Target, name: ImageReference) -> None:
        self.label = target.label
        self.digests_first = target.digests_first
        self.writes_stdout = isinstance(target, _Stdout)
        self._target = target
        self._name = name
        self._output: Output | None = None
        self._written: set[Digest] = set()

    @classmethod
    def to_file(cls, path: Path, name: ImageReference) -> ArchiveSink:
        return cls(_File(path), name)

    @classmethod
    def to_stdout(cls, name: ImageReference) -> ArchiveSink:
        """Nothing else may go to standard output: what `commit` returns is for people."""
        return cls(_Stdout(), name)

    def preflight(self, total_bytes: int) -> None:
        self._target.check(total_bytes)

    def finished(self, built: Built) -> str | None:
        return self._target.finished(built, self._name)

    def has(self, layer: LayerOutline) -> bool:
        """An archive is always written anew, but a layer that an image has twice only once."""
        return layer.descriptor.digest in self._written

    def adopt(self, layer: LayerOutline) -> bool:
        return self.has(layer)

    def write(self, payload: Payload, media_type: str, transfer: Transfer) -> None:
        del media_type
        output = self._opened()
        begin = output.position
        known = payload.known_digest
        output.write(hybrid.entry_header(hybrid.blob_name(known or _UNKNOWN), payload.size))
        for chunk in payload.read():
            output.write(chunk)
            transfer.advance(len(chunk))
        output.write(hybrid.entry_padding(payload.size))
        digest = payload.earned_digest()
        if digest != known:
            self._target.rename_entry(begin, hybrid.entry_header(hybrid.blob_name(digest), payload.size))
        self._written.add(digest)

    def commit(self, built: Built) -> str:
        self._opened().write(hybrid.closing(built, self._name))
        line = self._target.finish()
        self._output = None
        return line

    def abort(self) -> None:
        if self._output:
            self._output = None
            self._target.discard()

    def _opened(self) -> Output:
        if self._output is None:
            self._output = self._target.open()
            self._output.write(hybrid.opening())
        return self._output


class _File:
    digests_first = False

    def __init__(self, path: Path) -> None:
        self.label = f"oci-archive:{path}"
        self._path = path
        self._prefix = f".{path.name}.unfinished-"
        self._file: UnfinishedFile | None = None

    def check(self, total_bytes: int) -> None:
        with disk_errors(self._path.parent):
            if self._path.exists() and not self._path.is_file():
                raise OutputError(
                    f"{self._path} is no file", hint="give the path of a file, or `oci-archive:-` for standard output"
                )
        if not self._path.parent.is_dir():
            raise OutputError(f"no such directory: {self._path.parent}", hint=f"`mkdir -p {self._path.parent}`")
        check_space(self._path.parent, total_bytes)

    def finished(self, built: Built, name: ImageReference) -> str | None:
        """The archive of an image is the same on every machine, so what lies around its layers tells."""
        whole = hybrid.frame(built, name)
        if not self._path.is_file() or self._path.stat().st_size != whole.size:
            return None
        with disk_errors(self._path.parent), self._path.open("rb") as file:
            same = all(os.pread(file.fileno(), len(part), offset) == part for offset, part in whole.parts)
        return str(self._path) if same else None

    def open(self) -> Output:
        sweep(self._path.parent, self._prefix)
        self._file = UnfinishedFile(self._path.parent, self._prefix)
        return self._file

    def rename_entry(self, offset: int, header: bytes) -> None:
        self._unfinished().write_at(offset, header)

    def finish(self) -> str:
        self._unfinished().finish(self._path)
        return str(self._path)

    def discard(self) -> None:
        self._unfinished().discard()

    def _unfinished(self) -> UnfinishedFile:
        if self._file is None:
            raise AssertionError("the archive was never opened")
        return self._file


class _Stdout:
    label = "oci-archive:-"
    digests_first = True

    def check(self, total_bytes: int) -> None:
        del total_bytes
        if sys.stdout.isatty():
            raise OutputError(
                "not writing an archive to a terminal",
                hint="send it on, for example `| docker load` or `| ssh HOST docker load`, or to a file with `>`",
            )

    def finished(self, built: Built, name: ImageReference) -> str | None:
        del built, name
        return None

    def open(self) -> Output:
        sys.stdout.flush()
        return Pipe(sys.stdout.fileno(), "standard output")

    def rename_entry(self, offset: int, header: bytes) -> None:
        raise AssertionError(f"a layer of unknown digest on a pipe, at {offset}: {header[:80]!r}")

    def finish(self) -> str:
        return self.label

    def discard(self) -> None:
        """What is out is out; a tar without its last entries names no image."""
