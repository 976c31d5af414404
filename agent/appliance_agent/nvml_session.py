"""One life of NVML between init and shutdown: which GPUs there are, and a look at each. Only the NVML process has one."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from appliance_agent.gpus import Gpu, GpuReading, GpuSnapshot
from appliance_agent.nvml_calls import (
    FUNCTION_NOT_FOUND,
    Handle,
    Meters,
    NvmlError,
    code_of,
    function,
    nvml,
    why_not_up,
    words_of,
)
from appliance_agent.nvml_device import Device, NvmlDownError
from appliance_agent.nvml_identity import (
    address_of,
    cuda_version,
    driver_version,
    gpu_of,
    mig_devices,
    raise_if_down,
    uuid_of,
)
from appliance_agent.nvml_pace import USUAL, Pace

_ASKED: Final = (NvmlError, AttributeError)
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")  # 64 KiB on many an ARM server
_COUNTED: Final = ctypes.c_uint()

Condition = tuple[bool, bool | None]  # sound, MIG enabled


class Session:
    def __init__(
        self,
        known: Sequence[Gpu] = (),
        pace: Pace = USUAL,
        *,
        meters: Mapping[str, Meters] | None = None,
        with_nvlink: bool = False,
    ) -> None:
        """`known` are the GPUs of an earlier session: a lost one does not tell its name any more."""
        self._meters = dict(meters or {})
        self._with_nvlink = with_nvlink
        self._devices = {gpu.uuid: self._device(gpu, None) for gpu in known}
        self.gpus = tuple(known)
        self.handles: Mapping[str, Handle] = {}  # of whole GPUs, which are those that report XIDs
        self._pace = pace
        self._versions = ("", "")
        self._enumerated_s = 0.0
        self._opened_s = 0.0
        self._count = 0
        self._used: tuple[float | None, int | None] = (None, None)  # by this process: CPU seconds, memory
        self._unseen = ""  # GPUs that cannot be named, in words
        self._conditions: dict[str, Condition] = {}
        self._returned = False  # a GPU that was unsound is sound again

    def open(self, now_s: float) -> None:
        """Raises NvmlDownError."""
        try:
            nvml.nvmlInit()
        except _ASKED as error:
            raise NvmlDownError(why_not_up(code_of(error))) from error
        self._versions = (driver_version(), cuda_version())
        self._opened_s = now_s
        self._enumerate(now_s)

    def close(self) -> None:
        self._devices = {}
        try:
            nvml.nvmlShutdown()
        except _ASKED:
            return  # it was down already

    @property
    def meters(self) -> Mapping[str, Meters]:
        """By UUID, for the session after this one."""
        return self._meters

    def stale(self, now_s: float) -> bool:
        """Whether it should be closed and opened again."""
        age_s = now_s - self._opened_s
        sound = all(sound for sound, _ in self._conditions.values()) and not self._unseen
        return (self._returned and age_s >= self._pace.return_s) or (not sound and age_s >= self._pace.reopen_s)

    def look(self, now_s: float) -> GpuSnapshot:
        """Raises NvmlDownError."""
        if now_s - self._enumerated_s >= self._pace.enumerate_s or _count() != self._count:
            self._enumerate(now_s)
        readings = self._read_all(now_s)
        if self._changed(readings):
            self._enumerate(now_s)
            readings = self._read_all(now_s)
            self._changed(readings)
        return GpuSnapshot(
            at_s=now_s,
            up=True,
            because=self._unseen,
            driver_version=self._versions[0],
            cuda_version=self._versions[1],
            gpus=self.gpus,
            readings=readings,
            process_cpu_s=self._used[0],
            process_memory_bytes=self._used[1],
        )

    def _changed(self, readings: Mapping[str, GpuReading]) -> bool:
        """Whether GPUs were lost, came back or changed their mode; what they support is then asked again."""
        before = self._conditions
        self._conditions = {uuid: (reading.sound, reading.mig_enabled) for uuid, reading in readings.items()}
        if self._conditions == before:
            return False
        changed = [uuid for uuid in before if self._conditions.get(uuid, before[uuid]) != before[uuid]]
        for uuid in changed:
            self._devices[uuid].forget()
            self._returned |= self._conditions[uuid][0] and not before[uuid][0]
        return bool(changed)

    def _read_all(self, now_s: float) -> dict[str, GpuReading]:
        return {uuid: device.read(now_s, self._pace) for uuid, device in self._devices.items()}

    def _enumerate(self, now_s: float) -> None:
        before = self._devices
        self._count = _count()
        self._enumerated_s = now_s
        self._used = (round(time.process_time(), 3), _resident_bytes())
        self._unseen = ""
        devices: dict[str, Device] = {}
        for device in self._found(before):
            uuid = device.gpu.uuid
            if uuid not in devices or devices[uuid].handle is None:
                devices[uuid] = device
        self._devices = devices
        self.gpus = tuple(device.gpu for device in devices.values())
        self.handles = {
            uuid: device.handle for uuid, device in devices.items() if device.handle and not device.gpu.is_mig
        }

    def _found(self, before: Mapping[str, Device]) -> Iterator[Device]:
        """A GPU that does not tell its name keeps the one it had; without one it cannot be listed."""
        for index in range(self._count):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                device = self._whole(before, handle, index)
            except _ASKED as error:
                code = code_of(error)
                raise_if_down(code)
                known = [device for device in before.values() if device.gpu.index == index]
                for device in known:
                    device.fault = code
                    yield device
                if not known:
                    self._unseen = f"GPU {index} does not tell who it is: {words_of(code)}"
                continue
            yield device
            for gpu, part in mig_devices(handle, device.gpu):
                known_part = before.get(gpu.uuid)
                same = known_part is not None and known_part.gpu == gpu and _is_same(known_part.handle, part)
                yield known_part if known_part and same else self._device(gpu, part, parent=handle)

    def _whole(self, before: Mapping[str, Device], handle: Handle, index: int) -> Device:
        """The one that is known already, with all that is known of it, if it is still the same."""
        known = before.get(uuid_of(handle))
        if known and known.gpu.index == index and known.gpu.name and _is_same(known.handle, handle):
            return known
        return self._device(gpu_of(handle, index), handle)

    def _device(self, gpu: Gpu, handle: Handle | None, *, parent: Handle | None = None) -> Device:
        meters = self._meters.setdefault(gpu.uuid, Meters())
        return Device(gpu, handle, meters, parent=parent, with_nvlink=self._with_nvlink)


def _is_same(one: Handle | None, other: Handle) -> bool:
    return one is not None and address_of(one) == address_of(other)


def _count() -> int:
    try:
        code = function("nvmlDeviceGetCount_v2")(ctypes.byref(_COUNTED))
    except AttributeError:
        code = FUNCTION_NOT_FOUND
    if code:
        raise NvmlDownError(why_not_up(code))
    return _COUNTED.value


def _resident_bytes() -> int | None:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return None
