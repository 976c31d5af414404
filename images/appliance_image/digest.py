"""A sha256 digest, valid by construction; knows both ways of writing it (OCI `sha256:…`, Ollama's files `sha256-…`)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from appliance_image.errors import ApplianceError

_PATTERN = re.compile(r"sha256[:-]([0-9a-f]{64})")


class DigestError(ApplianceError):
    pass


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        if not (match := _PATTERN.fullmatch(text)):
            raise DigestError(f"not a sha256 digest: {text!r}", hint="a digest is `sha256:` and 64 hexadecimal digits")
        return cls(match[1])

    @classmethod
    def of(cls, content: bytes) -> Digest:
        return cls(hashlib.sha256(content).hexdigest())

    @property
    def file_name(self) -> str:
        return f"sha256-{self.hex}"

    @property
    def short(self) -> str:
        return self.hex[:12]

    def __str__(self) -> str:
        return f"sha256:{self.hex}"
