"""Ports for servers that can only be told their port before they bind it."""

from __future__ import annotations

import os
import random
import socket
from typing import Final

# Below Linux' ephemeral ports, which begin at 32768: a test at the same time that binds port 0, or connects to somewhere,
# never gets one of these, so that it cannot come in between. Above the ports that tests of the agent give their slots.
_FIRST: Final = 20_000
_LAST: Final = 32_000
_WORKERS: Final = 8  # each has ports of its own: what one has chosen, no other binds before the server does


def free_port() -> int:
    """Of all addresses. Raises OSError if none is found."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
    for _ in range(100):
        port = random.randrange(_FIRST + worker, _LAST, _WORKERS)
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
        return port
    raise OSError(f"no free port from {_FIRST} to {_LAST}")
