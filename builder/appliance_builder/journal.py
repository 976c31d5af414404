"""The journal of a download: which segments of a blob are on disk for good. Text in, values out; no files.

    appliance-journal 1 19851335552 16777216      blob size, segment size
    0 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b…   segment 0 is there, with this sha256
    -0                                            it is not: it was found damaged

Lines are only ever added, each after its segment was flushed. Whatever follows the first line that is not whole was
never promised: a kill leaves at most a torn last line, a power cut may leave zeros.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from appliance_image.contract import MEBIBYTE
from appliance_image.digest import Digest

SEGMENT_BYTES: Final = 16 * MEBIBYTE

_HEADER = re.compile(rb"appliance-journal 1 ([0-9]{1,19}) ([0-9]{1,19})")
_PRESENT = re.compile(rb"([0-9]{1,12}) ([0-9a-f]{64})")
_DROPPED = re.compile(rb"-([0-9]{1,12})")


@dataclass(frozen=True, slots=True)
class Segments:
    """How a blob is cut: all segments alike, the last one may be shorter."""

    size: int
    segment_bytes: int = SEGMENT_BYTES

    @property
    def count(self) -> int:
        return -(-self.size // self.segment_bytes)

    def span(self, index: int) -> tuple[int, int]:
        """First byte of a segment, and the one behind its last."""
        start = index * self.segment_bytes
        return start, min(start + self.segment_bytes, self.size)

    def at(self, offset: int) -> int:
        return offset // self.segment_bytes


@dataclass(frozen=True, slots=True)
class Journal:
    segments: Segments
    present: Mapping[int, Digest] = field(default_factory=dict[int, Digest], hash=False)

    @property
    def complete(self) -> bool:
        return len(self.present) == self.segments.count

    @property
    def present_bytes(self) -> int:
        spans = (self.segments.span(index) for index in self.present)
        return sum(end - start for start, end in spans)


def render_header(segments: Segments) -> bytes:
    return f"appliance-journal 1 {segments.size} {segments.segment_bytes}\n".encode()


def render_present(index: int, digest: Digest) -> bytes:
    return f"{index} {digest.hex}\n".encode()


def render_dropped(index: int) -> bytes:
    return f"-{index}\n".encode()


def parse_journal(text: bytes) -> tuple[Journal, int] | None:
    """The journal and how many bytes of `text` it took; None where not even the first line is whole."""
    lines = text.split(b"\n")[:-1]
    header = _HEADER.fullmatch(lines[0]) if lines else None
    if not header or not int(header[2]):
        return None
    segments = Segments(int(header[1]), int(header[2]))
    present: dict[int, Digest] = {}
    taken = len(lines[0]) + 1
    for line in lines[1:]:
        if not _apply(line, segments, present):
            break
        taken += len(line) + 1
    return Journal(segments, present), taken


def _apply(line: bytes, segments: Segments, present: dict[int, Digest]) -> bool:
    if match := _PRESENT.fullmatch(line):
        index = int(match[1])
        if index < segments.count:
            present[index] = Digest(match[2].decode())
            return True
        return False
    if match := _DROPPED.fullmatch(line):
        present.pop(int(match[1]), None)
        return True
    return False
