"""One life of NVML between init and shutdown: which GPUs there are, and a look at each. Only the NVML process has one."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from appliance_agent import nvml_calls
from appliance_agent.gpus import Gpu, GpuReading, GpuSnapshot
from appliance_agent.nvml_calls import COSTLY, FIELD_BATCH, FIELDS, QUESTIONS, Fault, Handle, Question, nvml

_UNKNOWN: Final = 999  # NVML's own code for what it cannot explain
_ASKED: Final = (nvml_calls.NvmlError, AttributeError)


@dataclass(frozen=True, slots=True)
class Pace:
    enumerate_s: float = 10.0  # names, indexes and MIG devices are looked at again
    reopen_s: float = 60.0  # while a GPU is unsound: some only come back to an NVML that is initialised anew
    seldom_s: float = 30.0  # between two questions that cost the driver milliseconds
    return_s: float = 10.0  # after one came back: its handle and its events may be those of the time before


Condition = tuple[bool, bool | None]  # sound, MIG enabled


class NvmlDownError(Exception):
    """NVML does not work on this host at this moment; the message is for a person."""


@dataclass(slots=True)
class Device:
    """A GPU with its handle, and what it was found not to support."""

    gpu: Gpu
    handle: Handle | None  # None: it is known from before, and does not open now
    fault: Exception | None = None  # why
    unsupported: set[str] = field(default_factory=set[str])
    costly: Mapping[str, Any] = field(default_factory=dict[str, Any])  # the last answers to what is asked seldom
    costly_s: float = float("-inf")


class Session:
    def __init__(self, known: Sequence[Gpu] = (), pace: Pace = Pace()) -> None:
        """`known` are the GPUs of an earlier session: a lost one does not tell its name any more."""
        self._devices = {gpu.uuid: Device(gpu, None) for gpu in known}
        self._pace = pace
        self._versions = ("", "")
        self._enumerated_s = 0.0
        self._opened_s = 0.0
        self._count = 0
        self._unseen = ""  # GPUs that cannot be named, in words
        self._conditions: dict[str, Condition] = {}
        self._returned = False  # a GPU that was unsound is sound again

    def open(self, now_s: float) -> None:
        """Raises NvmlDownError."""
        try:
            nvml.nvmlInit()
        except _ASKED as error:
            raise NvmlDownError(nvml_calls.why_not_up(error)) from error
        self._versions = (_text(nvml.nvmlSystemGetDriverVersion), _cuda_version())
        self._opened_s = now_s
        self._enumerate(now_s)

    def close(self) -> None:
        self._devices = {}
        try:
            nvml.nvmlShutdown()
        except _ASKED:
            return  # it was down already

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        return tuple(device.gpu for device in self._devices.values())

    @property
    def handles(self) -> Mapping[str, Handle]:
        """Of whole GPUs, which are those that report XIDs."""
        return {
            uuid: device.handle for uuid, device in self._devices.items() if device.handle and not device.gpu.is_mig
        }

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
        )

    def _changed(self, readings: Mapping[str, GpuReading]) -> bool:
        """Whether GPUs were lost, came back or changed their mode; what they support is then asked again."""
        before = self._conditions
        self._conditions = {uuid: (reading.sound, reading.mig_enabled) for uuid, reading in readings.items()}
        changed = [uuid for uuid in before if self._conditions.get(uuid, before[uuid]) != before[uuid]]
        for uuid in changed:
            self._devices[uuid].unsupported.clear()
            self._returned |= self._conditions[uuid][0] and not before[uuid][0]
        return bool(changed)

    def _read_all(self, now_s: float) -> dict[str, GpuReading]:
        return {uuid: read(device, now_s, self._pace.seldom_s) for uuid, device in self._devices.items()}

    def _enumerate(self, now_s: float) -> None:
        before = self._devices
        self._count = _count()
        self._enumerated_s = now_s
        self._unseen = ""
        devices: dict[str, Device] = {}
        for device in self._found(before):
            uuid = device.gpu.uuid
            if uuid not in devices or devices[uuid].handle is None:
                devices[uuid] = device
            if uuid in before and before[uuid].gpu == device.gpu:
                device.unsupported |= before[uuid].unsupported
        self._devices = devices

    def _found(self, before: Mapping[str, Device]) -> Iterator[Device]:
        """A GPU that does not tell its name keeps the one it had; without one it cannot be listed."""
        for index in range(self._count):
            try:
                handle = nvml.nvmlDeviceGetHandleByIndex(index)
                gpu = _identity(handle, index)
            except _ASKED as error:
                _raise_if_down(error)
                known = [device for device in before.values() if device.gpu.index == index]
                yield from (replace(device, fault=error) for device in known)
                if not known:
                    self._unseen = f"GPU {index} does not tell who it is: {str(error).lower()}"
                continue
            yield Device(gpu, handle)
            yield from _mig_devices(handle, gpu)


def read(device: Device, now_s: float, seldom_s: float) -> GpuReading:
    """Raises NvmlDownError."""
    is_due = now_s - device.costly_s >= seldom_s
    values: dict[str, Any] = {"at_s": now_s, **({} if is_due else device.costly)}
    try:
        if device.handle is None:
            fault = device.fault or nvml_calls.NvmlError(_UNKNOWN)
            return GpuReading(now_s, error=_note(device, "nvmlDeviceGetHandleByIndex", fault) or str(fault).lower())
        values |= _fields(device, is_due=is_due)
        for question in QUESTIONS:
            if question.gives not in values and (is_due or question.gives not in COSTLY):
                values = {**_answer(device, question), **values}  # the first error is the one that is told
    except _GpuGoneError as gone:
        values[gone.marks] = True
    if is_due:
        device.costly_s, device.costly = now_s, {name: values[name] for name in COSTLY if name in values}
    return GpuReading(**values)


class _GpuGoneError(Exception):
    """The GPU answers nothing more: the rest of its calls are not worth asking."""

    def __init__(self, marks: str) -> None:
        super().__init__(marks)
        self.marks = marks


def _fields(device: Device, *, is_due: bool) -> Mapping[str, Any]:
    known = (field for field in FIELDS if field.key not in device.unsupported)
    wanted = tuple(field for field in known if is_due or field.gives not in COSTLY)
    if not wanted or FIELD_BATCH in device.unsupported:
        return {}
    try:
        answers = nvml_calls.ask_fields(device.handle, wanted)
    except _ASKED as error:
        words = _note(device, FIELD_BATCH, error)
        return {"error": words} if words else {}
    for field_, code, _, _ in answers:
        if code:
            _note(device, field_.key, nvml_calls.NvmlError(code))
    return {field_.gives: value for field_, code, value, _ in answers if not code}


def _answer(device: Device, question: Question) -> Mapping[str, Any]:
    for call in question.calls:
        if call.name in device.unsupported:
            continue
        try:
            return call.ask(device.handle)
        except _ASKED as error:
            if words := _note(device, call.name, error):
                return {"error": words}
    return {}


def _note(device: Device, name: str, error: Exception) -> str:
    """The error in words, if it is one to tell of."""
    match nvml_calls.fault_of(error):
        case Fault.UNSUPPORTED:
            device.unsupported.add(name)
        case Fault.LOST:
            raise _GpuGoneError("lost") from error
        case Fault.RESET_REQUIRED:
            raise _GpuGoneError("reset_required") from error
        case Fault.HOST:
            raise NvmlDownError(nvml_calls.why_not_up(error)) from error
        case Fault.OTHER:
            return f"{name}: {str(error).lower()}"
        case Fault.NOT_NOW:
            pass
    return ""


def _identity(handle: Handle, index: int) -> Gpu:
    return Gpu(
        uuid=_decoded(nvml.nvmlDeviceGetUUID(handle)),
        index=index,
        minor=_or_none(nvml.nvmlDeviceGetMinorNumber, handle),
        name=_decoded(_or_none(nvml.nvmlDeviceGetName, handle) or ""),
        memory_bytes=_memory_bytes(handle),
        pci_bus_id=_bus_id(handle),
    )


def _mig_devices(parent: Handle, gpu: Gpu) -> Iterator[Device]:
    mode = _or_none(nvml.nvmlDeviceGetMigMode, parent)
    if not mode or not mode[0]:
        return
    for slot in range(_or_none(nvml.nvmlDeviceGetMaxMigDeviceCount, parent) or 0):
        handle = _or_none(nvml.nvmlDeviceGetMigDeviceHandleByIndex, parent, slot)
        if handle is None:
            continue
        mig = Gpu(
            uuid=_decoded(nvml.nvmlDeviceGetUUID(handle)),
            index=gpu.index,
            minor=gpu.minor,
            name=_decoded(_or_none(nvml.nvmlDeviceGetName, handle) or ""),
            memory_bytes=_memory_bytes(handle),
            pci_bus_id=gpu.pci_bus_id,
            parent_uuid=gpu.uuid,
            gpu_instance=_or_none(nvml.nvmlDeviceGetGpuInstanceId, handle),
            compute_instance=_or_none(nvml.nvmlDeviceGetComputeInstanceId, handle),
        )
        yield Device(mig, handle)


def _bus_id(handle: Handle) -> str:
    place = _or_none(nvml.nvmlDeviceGetPciInfo, handle)
    return _decoded(place.busId) if place else ""


def _memory_bytes(handle: Handle) -> int:
    memory = _or_none(nvml.nvmlDeviceGetMemoryInfo, handle)
    return int(memory.total) if memory else 0


def _count() -> int:
    try:
        return int(nvml.nvmlDeviceGetCount())
    except _ASKED as error:
        raise NvmlDownError(nvml_calls.why_not_up(error)) from error


def _or_none(call: Any, *arguments: Any) -> Any:
    try:
        return call(*arguments)
    except _ASKED as error:
        _raise_if_down(error)
        return None


def _raise_if_down(error: Exception) -> None:
    if nvml_calls.fault_of(error) is Fault.HOST:
        raise NvmlDownError(nvml_calls.why_not_up(error)) from error


def _cuda_version() -> str:
    version = _or_none(nvml.nvmlSystemGetCudaDriverVersion)
    return f"{version // 1000}.{version % 1000 // 10}" if version else ""


def _text(call: Any) -> str:
    return _decoded(_or_none(call) or "")


def _decoded(text: str | bytes) -> str:
    return text.decode(errors="replace") if isinstance(text, bytes) else text


def address_of(handle: Handle) -> int:
    """What two handles of one GPU have in common."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0
