"""The body of a request that is read as it goes. Apart from `http`, so that who never asks a server never loads httpx."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outgoing:
    """Without a size it goes in chunked transfer encoding."""

    chunks: Iterator[bytes]
    size: int | None
