"""The driver, asked for as long as GPUs are wanted: a reload may begin to want them or their NVLink, or cease to."""

from __future__ import annotations

from appliance_agent.config import Config, GpuChoice
from appliance_agent.gpu_source import NvmlSource
from appliance_agent.gpus import GpuSnapshot
from appliance_agent.nvml_process import COMMAND
from appliance_agent.ports import Wake


class GpuSwitch:
    """The `GpuSource` of the agent. `configure` may wait a moment for a source that ends."""

    def __init__(self, wake: Wake) -> None:
        self._wake = wake
        self._source: NvmlSource | None = None
        self._with_nvlink = False

    def configure(self, config: Config) -> None:
        wanted = config.gpus != GpuChoice.NONE
        if not wanted or config.metrics.nvlink != self._with_nvlink:
            self.close()
        if wanted and self._source is None:
            self._with_nvlink = config.metrics.nvlink
            source = NvmlSource(self._wake, command=(*COMMAND, "--nvlink") if self._with_nvlink else COMMAND)
            source.start()
            self._source = source

    def snapshot(self) -> GpuSnapshot:
        source = self._source
        return source.snapshot() if source else GpuSnapshot(at_s=0.0, up=False, because="no GPU is wanted")

    def close(self) -> None:
        source, self._source = self._source, None
        if source:
            source.close()
