"""A host of fake GPUs with the agent's real source watching it: change the world, wait for what the source says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import fakenvml
from engines import wait_until
from fakenvml import World

from appliance_agent.gpu_source import NvmlSource, Patience
from appliance_agent.gpus import NO_GPUS, Gpu, GpuReading, GpuSnapshot
from appliance_agent.nvml_process import COMMAND, Kill, kill

FAST = (*COMMAND, "--faster=20")
BRISK = Patience(answer_s=2.0, init_s=20.0, respawn_s=0.2)
_WAIT_S = 30.0


class GpuHost:
    def __init__(self, directory: Path, library: Path, world: World) -> None:
        self.world = world
        self.path = directory / "world"
        self.environment = {**os.environ, **fakenvml.environment(library, self.path)}
        self.kernel_log = directory / "kmsg"
        self.woken = 0
        self.seen_when_woken = NO_GPUS
        self._source: NvmlSource | None = None
        os.mkfifo(self.kernel_log)
        self._kernel = os.open(self.kernel_log, os.O_RDWR)
        world.write(self.path)

    @contextmanager
    def watched(
        self,
        *,
        patience: Patience = BRISK,
        command: Sequence[str] = FAST,
        kill: Kill = kill,
    ) -> Iterator[NvmlSource]:
        self._source = NvmlSource(
            self._wake,
            patience=patience,
            command=command,
            environment=self.environment,
            kernel_log=self.kernel_log,
            kill=kill,
        )
        self._source.start()
        try:
            yield self._source
        finally:
            self._source.close()

    def _wake(self) -> None:
        self.woken += 1  # first: see until_woken
        self.seen_when_woken = self.seen

    def close(self) -> None:
        os.close(self._kernel)

    @property
    def seen(self) -> GpuSnapshot:
        assert self._source
        return self._source.snapshot()

    @property
    def gpu(self) -> Gpu:
        return self.seen.gpus[0]

    @property
    def reading(self) -> GpuReading:
        """Of the first GPU."""
        return self.seen.readings[self.gpu.uuid]

    def change(self) -> None:
        """Makes the world what its values say."""
        self.world.write(self.path)

    def kernel(self, line: str) -> None:
        os.write(self._kernel, line.encode())

    def until(self, true: Callable[[GpuSnapshot], bool], what: str) -> GpuSnapshot:
        found = [self.seen]

        def holds() -> bool:
            found[:] = [self.seen]
            return true(found[0])

        wait_until(holds, timeout_s=_WAIT_S, what=f"{what}; seen: {found[0]}")
        return found[0]

    def until_up(self) -> GpuSnapshot:
        return self.until(lambda seen: seen.up, "NVML to answer")

    def until_woken(self, true: Callable[[GpuSnapshot], bool], what: str) -> int:
        """How often the loop was woken until it saw that: a snapshot is there a moment before it wakes anybody."""
        wait_until(lambda: true(self.seen_when_woken), timeout_s=_WAIT_S, what=f"the loop to be woken by {what}")
        return self.woken

    def until_later(self) -> GpuSnapshot:
        """Until a look has been taken that began after now."""
        at_s = self.seen.at_s
        self.until(lambda seen: seen.at_s > at_s, "a look")
        at_s = self.seen.at_s
        return self.until(lambda seen: seen.at_s > at_s, "another look")
