"""The NVML process as its parent has it: started, read without waiting, and given up without waiting."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from appliance_agent.gpu_wire import Line, Reader

# -P: a file in the working directory must not stand in for a module of ours.
COMMAND: Final = (sys.executable, "-P", "-m", "appliance_agent.nvml_child")
Kill = Callable[["subprocess.Popen[bytes]"], None]
_READ_BYTES: Final = 65536
_END_S: Final = 1.0


def kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()


class NvmlProcess:
    def __init__(self, command: Sequence[str], environment: Mapping[str, str] | None, kill: Kill) -> None:
        """Raises OSError if it cannot be started."""
        self._kill = kill
        self._rest = b""
        self._reader = Reader()
        # In a session of its own: a Ctrl-C meant for the agent must not end it in the middle of a line.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=None if environment is None else dict(environment),
            start_new_session=True,
        )
        assert self._process.stdout  # noqa: S101 - for the type checkers
        self.descriptor = self._process.stdout.fileno()
        os.set_blocking(self.descriptor, False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def lines(self) -> list[Line] | None:
        """What it has said since, None once it has closed its mouth. Raises WireError."""
        try:
            data = os.read(self.descriptor, _READ_BYTES)
        except BlockingIOError:
            return []
        if not data:
            return None
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [self._reader.parse(line) for line in lines]

    def abandon(self) -> None:
        """Killed, not waited for: in a call that hangs in the driver it may not die for days."""
        self._kill(self._process)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                pipe.close()

    def end(self) -> str:
        """Waits a moment, and says in words how it ended."""
        try:
            code = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            return "does not end"
        return f"was ended by signal {-code}" if code < 0 else f"ended with status {code}"
