"""Who a GPU is: its names, its place and its MIG devices, as pynvml tells them. Asked seldom."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from typing import Any, Final

from appliance_agent.gpus import Gpu
from appliance_agent.nvml_calls import Fault, Handle, NvmlError, code_of, fault_of, nvml, why_not_up
from appliance_agent.nvml_device import NvmlDownError

_ASKED: Final = (NvmlError, AttributeError)
_ARCHITECTURES: Final = {
    2: "Kepler", 3: "Maxwell", 4: "Pascal", 5: "Volta", 6: "Turing", 7: "Ampere", 8: "Ada", 9: "Hopper", 10: "Blackwell",
    13: "Rubin",
}  # fmt: skip


def uuid_of(handle: Handle) -> str:
    """Raises NVML's error."""
    return _decoded(nvml.nvmlDeviceGetUUID(handle))


def gpu_of(handle: Handle, index: int) -> Gpu:
    capability = or_none(nvml.nvmlDeviceGetCudaComputeCapability, handle)
    return Gpu(
        uuid=uuid_of(handle),
        index=index,
        minor=or_none(nvml.nvmlDeviceGetMinorNumber, handle),
        name=_decoded(or_none(nvml.nvmlDeviceGetName, handle) or ""),
        memory_bytes=_memory_bytes(handle),
        pci_bus_id=_bus_id(handle),
        architecture=_ARCHITECTURES.get(or_none(nvml.nvmlDeviceGetArchitecture, handle) or 0, ""),
        compute_capability=".".join(map(str, capability or ())),
        vbios_version=_decoded(or_none(nvml.nvmlDeviceGetVbiosVersion, handle) or ""),
    )


def mig_devices(parent: Handle, gpu: Gpu) -> Iterator[tuple[Gpu, Handle]]:
    mode = or_none(nvml.nvmlDeviceGetMigMode, parent)
    if not mode or not mode[0]:
        return
    for slot in range(or_none(nvml.nvmlDeviceGetMaxMigDeviceCount, parent) or 0):
        handle = or_none(nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, slot)
        if handle is None:
            continue
        mig = Gpu(
            uuid=uuid_of(handle),
            index=gpu.index,
            minor=gpu.minor,
            name=_decoded(or_none(nvml.nvmlDeviceGetName, handle) or ""),
            memory_bytes=_memory_bytes(handle),
            pci_bus_id=gpu.pci_bus_id,
            parent_uuid=gpu.uuid,
            gpu_instance=or_none(nvml.nvmlDeviceGetGpuInstanceId, handle),
            compute_instance=or_none(nvml.nvmlDeviceGetComputeInstanceId, handle),
            architecture=gpu.architecture,
            compute_capability=gpu.compute_capability,
            vbios_version=gpu.vbios_version,
        )
        yield mig, handle


def driver_version() -> str:
    return _decoded(or_none(nvml.nvmlSystemGetDriverVersion) or "")


def cuda_version() -> str:
    version = or_none(nvml.nvmlSystemGetCudaDriverVersion)
    return f"{version // 1000}.{version % 1000 // 10}" if version else ""


def address_of(handle: Handle) -> int:
    """What two handles of one GPU have in common."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


def or_none(call: Any, *arguments: Any) -> Any:
    """Raises NvmlDownError."""
    try:
        return call(*arguments)
    except _ASKED as error:
        raise_if_down(code_of(error))
        return None


def raise_if_down(code: int) -> None:
    if fault_of(code) is Fault.HOST:
        raise NvmlDownError(why_not_up(code))


def _bus_id(handle: Handle) -> str:
    place = or_none(nvml.nvmlDeviceGetPciInfo, handle)
    return _decoded(place.busId) if place else ""


def _memory_bytes(handle: Handle) -> int:
    memory = or_none(nvml.nvmlDeviceGetMemoryInfo, handle)
    return int(memory.total) if memory else 0


def _decoded(text: str | bytes) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text
