"""Every call of NVML that the agent makes, as tables: what is asked of one GPU, and what its answer fills in a reading.

The one door to `pynvml`, and only the NVML process may pass it: a call that hangs in the driver cannot be ended.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final

import pynvml  # pyright: ignore[reportMissingTypeStubs]

from appliance_agent.gpus import GpuProcess, RecoveryAction

nvml: Any = pynvml
Handle = Any  # a pointer of ctypes
Values = Mapping[str, Any]  # fields of a GpuReading
NvmlError: type[Exception] = pynvml.NVMLError

_RATIO: Final = 0.01
_MILLI: Final = 0.001
_MEGA: Final = 1e6
XID_EVENT: Final = 0x8


class Fault(Enum):
    """What a return code says of the GPU, the host or the question."""

    UNSUPPORTED = "unsupported"  # never ask this GPU again
    NOT_NOW = "not now"
    LOST = "lost"
    RESET_REQUIRED = "reset required"
    HOST = "host"  # NVML itself is not usable any more
    OTHER = "other"


_FAULTS: Final = {
    1: Fault.HOST,  # UNINITIALIZED
    2: Fault.UNSUPPORTED,  # INVALID_ARGUMENT: a field or a structure that an older driver does not know
    3: Fault.UNSUPPORTED,  # NOT_SUPPORTED
    4: Fault.UNSUPPORTED,  # NO_PERMISSION
    6: Fault.NOT_NOW,  # NOT_FOUND
    7: Fault.NOT_NOW,  # INSUFFICIENT_SIZE: processes came between two calls
    9: Fault.HOST,  # DRIVER_NOT_LOADED
    10: Fault.NOT_NOW,  # TIMEOUT
    12: Fault.HOST,  # LIBRARY_NOT_FOUND
    13: Fault.UNSUPPORTED,  # FUNCTION_NOT_FOUND
    15: Fault.LOST,  # GPU_IS_LOST
    16: Fault.RESET_REQUIRED,  # RESET_REQUIRED
    18: Fault.HOST,  # LIB_RM_VERSION_MISMATCH
    19: Fault.NOT_NOW,  # IN_USE
    21: Fault.NOT_NOW,  # NO_DATA
    25: Fault.UNSUPPORTED,  # ARGUMENT_VERSION_MISMATCH
    26: Fault.UNSUPPORTED,  # DEPRECATED
}
_INIT_WORDS: Final = {
    4: "no permission to use NVML: this user cannot open /dev/nvidiactl",
    9: "the NVIDIA kernel module is not loaded: try `modprobe nvidia`, then see `dmesg | grep -i nvrm`",
    12: "no NVIDIA driver: libnvidia-ml.so.1 was not found",
    15: "NVML cannot be initialised, a GPU is lost: see `dmesg | grep -i xid`, then reboot",
    18: "the NVIDIA library and the loaded kernel module are of different versions: reboot, or load the module anew",
}


def code_of(error: Exception) -> int:
    """999 is NVML's own code for what it cannot explain."""
    return int(getattr(error, "value", 999))


def fault_of(error: Exception) -> Fault:
    if isinstance(error, AttributeError):  # the installed pynvml is older than the call
        return Fault.UNSUPPORTED
    return _FAULTS.get(code_of(error), Fault.OTHER)


def why_not_up(error: Exception) -> str:
    return _INIT_WORDS.get(code_of(error), f"NVML cannot be initialised: {str(error).lower()}")


@dataclass(frozen=True, slots=True)
class Call:
    name: str
    ask: Callable[[Handle], Values]


@dataclass(frozen=True, slots=True)
class Question:
    """The first of `calls` that the GPU supports answers; it is left out where a field has answered already."""

    gives: str
    calls: tuple[Call, ...]


@dataclass(frozen=True, slots=True)
class Field:
    """An entry of nvmlDeviceGetFieldValues."""

    id: int
    name: str
    gives: str
    scale: float = 1.0

    @property
    def key(self) -> str:
        return f"field {self.id}"


FIELDS: Final = (
    Field(185, "POWER_AVERAGE", "power_w", _MILLI),
    Field(190, "POWER_CURRENT_LIMIT", "power_limit_w", _MILLI),
    Field(83, "TOTAL_ENERGY_CONSUMPTION", "energy_j", _MILLI),
    Field(4, "ECC_DBE_VOL_TOTAL", "uncorrected_ecc_errors"),
    Field(230, "GET_GPU_RECOVERY_ACTION", "recovery_action"),
)
COSTLY: Final = frozenset({"energy_j"})  # 3 to 5 ms of the driver's time each, on an H200
FIELD_BATCH: Final = "nvmlDeviceGetFieldValues"


def ask_fields(handle: Handle, wanted: tuple[Field, ...]) -> tuple[tuple[Field, int, Any, int], ...]:
    """For each field: its return code, its value, and what it cost the driver in microseconds."""
    answers = nvml.nvmlDeviceGetFieldValues(handle, [field.id for field in wanted])
    return tuple(
        (field, int(answer.nvmlReturn), _field_value(answer, field), int(answer.latencyUsec))
        for field, answer in zip(wanted, answers, strict=True)
    )


_UNION_MEMBERS: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")  # by NVML's value type


def _field_value(answer: Any, field: Field) -> Any:
    if answer.nvmlReturn:
        return None
    kind = int(answer.valueType)
    number = getattr(answer.value, _UNION_MEMBERS[kind] if kind < len(_UNION_MEMBERS) else "ullVal")
    if field.gives == "recovery_action":
        known = number in {action.value for action in RecoveryAction}
        return RecoveryAction(number) if known else RecoveryAction.OTHER
    return number * field.scale if field.scale != 1.0 else int(number)


def _memory_v2(handle: Handle) -> Values:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
    return {
        "memory_total_bytes": memory.total,
        "memory_used_bytes": memory.used,
        "memory_reserved_bytes": memory.reserved,
    }


def _memory_v1(handle: Handle) -> Values:
    memory = nvml.nvmlDeviceGetMemoryInfo(handle)
    return {"memory_total_bytes": memory.total, "memory_used_bytes": memory.used}


def _processes(call: str) -> Callable[[Handle], Values]:
    def ask(handle: Handle) -> Values:
        found = getattr(nvml, call)(handle)
        return {"processes": tuple(GpuProcess(process.pid, process.usedGpuMemory) for process in found)}

    return ask


def _number(name: str, gives: str, *arguments: Any, scale: float = 1.0) -> Call:
    def ask(handle: Handle) -> Values:
        number = getattr(nvml, name)(handle, *arguments)
        return {gives: number * scale if scale != 1.0 else number}

    return Call(f"{name}({', '.join(map(str, arguments))})" if arguments else name, ask)


def _question(gives: str, *calls: Call) -> Question:
    return Question(gives, calls)


QUESTIONS: Final = (
    _question(
        "utilization_ratio",
        Call(
            "nvmlDeviceGetUtilizationRates",
            lambda handle: {"utilization_ratio": nvml.nvmlDeviceGetUtilizationRates(handle).gpu * _RATIO},
        ),
    ),
    _question(
        "memory_total_bytes",
        Call("nvmlDeviceGetMemoryInfo_v2", _memory_v2),
        Call("nvmlDeviceGetMemoryInfo", _memory_v1),
    ),
    _question("temperature_c", _number("nvmlDeviceGetTemperature", "temperature_c", pynvml.NVML_TEMPERATURE_GPU)),
    _question("power_w", _number("nvmlDeviceGetPowerUsage", "power_w", scale=_MILLI)),
    _question("power_limit_w", _number("nvmlDeviceGetEnforcedPowerLimit", "power_limit_w", scale=_MILLI)),
    _question("energy_j", _number("nvmlDeviceGetTotalEnergyConsumption", "energy_j", scale=_MILLI)),
    _question("sm_clock_hz", _number("nvmlDeviceGetClockInfo", "sm_clock_hz", pynvml.NVML_CLOCK_SM, scale=_MEGA)),
    _question(
        "memory_clock_hz", _number("nvmlDeviceGetClockInfo", "memory_clock_hz", pynvml.NVML_CLOCK_MEM, scale=_MEGA)
    ),
    _question(
        "clock_event_reasons",
        _number("nvmlDeviceGetCurrentClocksEventReasons", "clock_event_reasons"),
        _number("nvmlDeviceGetCurrentClocksThrottleReasons", "clock_event_reasons"),
    ),
    _question(
        "uncorrected_ecc_errors",
        _number(
            "nvmlDeviceGetTotalEccErrors",
            "uncorrected_ecc_errors",
            pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
            pynvml.NVML_VOLATILE_ECC,
        ),
    ),
    _question(
        "persistence",
        Call(
            "nvmlDeviceGetPersistenceMode",
            lambda handle: {"persistence": bool(nvml.nvmlDeviceGetPersistenceMode(handle))},
        ),
    ),
    _question(
        "mig_enabled",
        Call("nvmlDeviceGetMigMode", lambda handle: {"mig_enabled": bool(nvml.nvmlDeviceGetMigMode(handle)[0])}),
    ),
    _question(
        "processes",
        Call("nvmlDeviceGetComputeRunningProcesses_v3", _processes("nvmlDeviceGetComputeRunningProcesses_v3")),
        Call("nvmlDeviceGetComputeRunningProcesses_v2", _processes("nvmlDeviceGetComputeRunningProcesses_v2")),
    ),
)
