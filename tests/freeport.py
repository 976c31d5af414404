"""Ports for servers that can only be told their port before they bind it."""

from __future__ import annotations

import random
import socket
from typing import Final

# Below Linux' ephemeral ports, which begin at 32768: a test at the same time that binds port 0, or connects to somewhere,
# never gets one of these, so that it cannot come in between.
_FIRST: Final = 15_000
_LAST: Final = 32_000


def free_port() -> int:
    """Of all addresses. Raises OSError if none is found."""
    for _ in range(100):
        port = random.randint(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise OSError(f"no free port from {_FIRST} to {_LAST}")
