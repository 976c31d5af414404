"""Every call of NVML that the agent makes of a GPU, as a table: how often, and what its answer fills in a reading."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any, Final

from appliance_agent.nvml_calls import Call, Values, number, numbers, structure
from appliance_agent.nvml_lists import busy_samples, gpm, processes, retired_pages
from appliance_agent.nvml_pace import Interval

_MEMORY_V2: Final = 0x2000028
_MARGIN_V1: Final = 0x1000008
_FABRIC_V2: Final = 0x2000024
_SM, _MEMORY = 1, 2  # domains of clocks
_CORE: Final = 0  # sensor
_OF_MIG: Final = frozenset({"memory_total_bytes", "processes", "sm_active_ratio"})
_SLOWDOWN: Final = 1  # threshold of temperature
_P_UNKNOWN: Final = 32
_FABRIC_COMPLETED: Final = 3
_SECOND, _TENS, _THIRTIES, _ONCE = Interval.SECOND, Interval.TENS, Interval.THIRTIES, Interval.ONCE
SLOWDOWN: Final = (
    "slowdown_c"  # asked once, and no part of a reading: what the margin is told from where the driver does not
)


class _Utilization(ctypes.Structure):
    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _MemoryV2(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint),
        ("total", ctypes.c_ulonglong),
        ("reserved", ctypes.c_ulonglong),
        ("free", ctypes.c_ulonglong),
        ("used", ctypes.c_ulonglong),
    )


class _Margin(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), ("celsius", ctypes.c_int))


class _Fabric(ctypes.Structure):
    _fields_ = (
        ("cluster", ctypes.c_ubyte * 16),
        ("status", ctypes.c_uint),
        ("clique", ctypes.c_uint),
        ("state", ctypes.c_ubyte),  # pynvml takes the byte for four
    )


class _FabricV2(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint), *_Fabric._fields_, ("health", ctypes.c_uint))


@dataclass(frozen=True, slots=True)
class Question:
    """The first of `calls` that the GPU supports answers; it is left out where a field has answered already.

    An unexplained error of a vital one makes the GPU unsound; that of another is counted, and that is all.
    """

    interval: Interval
    gives: str
    calls: tuple[Call, ...]
    is_vital: bool = True
    only_without: str = ""  # asked where this could not be told

    @property
    def is_of_mig(self) -> bool:
        """Temperature, power, clocks and errors are the whole card's: some drivers would tell them again for each part."""
        return self.gives in _OF_MIG


def _vital(interval: Interval, gives: str, *calls: Call) -> Question:
    return Question(interval, gives, calls)


def _extra(interval: Interval, gives: str, *calls: Call, only_without: str = "") -> Question:
    return Question(interval, gives, calls, is_vital=False, only_without=only_without)


def _store_utilization(values: Values, told: Any) -> None:
    values["utilization_ratio"] = told.gpu / 100
    values["memory_activity_ratio"] = told.memory / 100


def _store_memory(values: Values, told: Any) -> None:
    values["memory_total_bytes"], values["memory_used_bytes"] = told.total, told.used


def _store_memory_v2(values: Values, told: Any) -> None:
    _store_memory(values, told)
    values["memory_reserved_bytes"] = told.reserved


def _store_margin(values: Values, told: Any) -> None:
    values["thermal_margin_c"] = told.celsius


def _store_fabric(values: Values, told: Any) -> None:
    values["fabric_state"] = told.state or None
    values["fabric_status"] = told.status if told.state == _FABRIC_COMPLETED else None


def _from_milli(value: int) -> float:
    return value / 1000


def _from_mega(value: int) -> int:
    return value * 1_000_000


def _performance_state(value: int) -> int | None:
    return None if value == _P_UNKNOWN else value


def _ecc(gives: str, kind: int, counter: int) -> Question:
    return _vital(_TENS, gives, number("nvmlDeviceGetTotalEccErrors", gives, kind, counter, kind=ctypes.c_ulonglong))


def _reasons(name: str) -> Call:
    return number(name, "clock_event_reasons", kind=ctypes.c_ulonglong)


QUESTIONS: Final = (
    _vital(_SECOND, "utilization_ratio", structure("nvmlDeviceGetUtilizationRates", _Utilization, _store_utilization)),
    _vital(
        _SECOND, "memory_total_bytes",
        structure("nvmlDeviceGetMemoryInfo_v2", lambda: _MemoryV2(_MEMORY_V2), _store_memory_v2),
        structure("nvmlDeviceGetMemoryInfo", _Memory, _store_memory),
    ),
    _vital(_SECOND, "temperature_c", number("nvmlDeviceGetTemperature", "temperature_c", _CORE)),
    _vital(_SECOND, "power_w", number("nvmlDeviceGetPowerUsage", "power_w", read=_from_milli)),
    _vital(_SECOND, "sm_clock_hz", number("nvmlDeviceGetClockInfo", "sm_clock_hz", _SM, read=_from_mega)),
    _vital(_SECOND, "memory_clock_hz", number("nvmlDeviceGetClockInfo", "memory_clock_hz", _MEMORY, read=_from_mega)),
    _vital(
        _SECOND, "clock_event_reasons",
        _reasons("nvmlDeviceGetCurrentClocksEventReasons"), _reasons("nvmlDeviceGetCurrentClocksThrottleReasons"),
    ),
    _extra(
        _SECOND, "performance_state",
        number("nvmlDeviceGetPerformanceState", "performance_state", read=_performance_state),
    ),
    _vital(_SECOND, "mig_enabled", numbers("nvmlDeviceGetMigMode", {"mig_enabled": bool, "": None})),
    _vital(
        _SECOND, "processes",
        processes("nvmlDeviceGetComputeRunningProcesses_v3"), processes("nvmlDeviceGetComputeRunningProcesses_v2"),
    ),
    _vital(_TENS, "power_limit_w", number("nvmlDeviceGetEnforcedPowerLimit", "power_limit_w", read=_from_milli)),
    _ecc("corrected_ecc_errors", 0, 0),
    _ecc("uncorrected_ecc_errors", 1, 0),
    _ecc("corrected_ecc_errors_lifetime", 0, 1),
    _ecc("uncorrected_ecc_errors_lifetime", 1, 1),
    _extra(_TENS, "pcie_generation", number("nvmlDeviceGetCurrPcieLinkGeneration", "pcie_generation")),
    _extra(_TENS, "pcie_lanes", number("nvmlDeviceGetCurrPcieLinkWidth", "pcie_lanes")),
    _extra(_TENS, "pcie_replays", number("nvmlDeviceGetPcieReplayCounter", "pcie_replays")),
    _vital(_TENS, "persistence", number("nvmlDeviceGetPersistenceMode", "persistence", read=bool)),
    _extra(_TENS, "sm_active_ratio", gpm()),
    _extra(_TENS, "busy_s", busy_samples()),  # of which the driver keeps those of 14 s or more
    _extra(
        _TENS, "thermal_margin_c",
        structure("nvmlDeviceGetMarginTemperature", lambda: _Margin(_MARGIN_V1), _store_margin),
    ),
    _vital(
        _THIRTIES, "energy_j",
        number("nvmlDeviceGetTotalEnergyConsumption", "energy_j", kind=ctypes.c_ulonglong, read=_from_milli),
    ),
    _extra(
        _THIRTIES, "row_remap_pending",
        numbers(
            "nvmlDeviceGetRemappedRows",
            {
                "correctable_remapped_rows": int, "uncorrectable_remapped_rows": int,
                "row_remap_pending": bool, "row_remap_failed": bool,
            },
        ),
    ),
    _extra(_THIRTIES, "correctable_retired_pages", retired_pages(), only_without="row_remap_pending"),
    _extra(
        _THIRTIES, "retired_pages_pending",
        number("nvmlDeviceGetRetiredPagesPendingStatus", "retired_pages_pending", read=bool),
        only_without="row_remap_pending",
    ),
    _extra(
        _THIRTIES, "fabric_state",
        structure("nvmlDeviceGetGpuFabricInfoV", lambda: _FabricV2(_FABRIC_V2), _store_fabric),
        structure("nvmlDeviceGetGpuFabricInfo", _Fabric, _store_fabric),
    ),
    _extra(_ONCE, SLOWDOWN, number("nvmlDeviceGetTemperatureThreshold", SLOWDOWN, _SLOWDOWN)),
    _extra(_ONCE, "sm_clock_max_hz", number("nvmlDeviceGetMaxClockInfo", "sm_clock_max_hz", _SM, read=_from_mega)),
    _extra(
        _ONCE, "memory_clock_max_hz",
        number("nvmlDeviceGetMaxClockInfo", "memory_clock_max_hz", _MEMORY, read=_from_mega),
    ),
    _extra(_ONCE, "pcie_generation_max", number("nvmlDeviceGetMaxPcieLinkGeneration", "pcie_generation_max")),
    _extra(_ONCE, "pcie_lanes_max", number("nvmlDeviceGetMaxPcieLinkWidth", "pcie_lanes_max")),
)  # fmt: skip
