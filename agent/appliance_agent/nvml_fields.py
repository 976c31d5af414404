"""The values of nvmlDeviceGetFieldValues: all that are due are asked for in one call, each has a return code of its own."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from appliance_agent.gpu_meters import Bytes
from appliance_agent.gpus import RecoveryAction
from appliance_agent.nvml_calls import Handle, Meters, function
from appliance_agent.nvml_pace import Interval

FIELD_BATCH: Final = "nvmlDeviceGetFieldValues"
_FIELD: Final = struct.Struct("IIqqIiQ")  # id, scope, time, microseconds of the driver, type, return code, value
_UNSIGNED, _LONG = 1, (2, 3)  # of NVML's types of values
_ALL_LINKS: Final = 2**32 - 1
_ACTIONS: Final = {action.value: action for action in RecoveryAction}
_SECOND, _TENS, _THIRTIES = Interval.SECOND, Interval.TENS, Interval.THIRTIES


@dataclass(frozen=True, slots=True)
class Field:
    """Of two that give the same, the second is asked where the first is not supported."""

    id: int
    name: str
    gives: str
    interval: Interval
    read: Callable[[Any], Any] | None = None
    scope: int = 0
    counts: bool = False  # wraps, and is added up

    @property
    def key(self) -> str:
        return f"field {self.id}"


def _from_milli(number: int) -> float:
    return number / 1000


def _from_nano(number: int) -> float:
    return number / 1e9


def _from_kibi(number: int) -> int:
    return number * 1024


def _above_zero(number: int) -> int | None:
    """Cards without the sensor say 0 °C."""
    return number or None


def _action(number: int) -> RecoveryAction:
    return _ACTIONS.get(number, RecoveryAction.OTHER)


FIELDS: Final = (
    Field(185, "POWER_AVERAGE", "power_w", _SECOND, _from_milli),
    Field(82, "MEMORY_TEMP", "memory_temperature_c", _SECOND, _above_zero),
    Field(74, "PERF_POLICY_POWER", "sw_power_cap_s", _TENS, _from_nano),
    Field(76, "PERF_POLICY_SYNC_BOOST", "sync_boost_s", _TENS, _from_nano),
    Field(269, "CLOCKS_EVENT_REASON_SW_THERM_SLOWDOWN", "sw_thermal_s", _TENS, _from_nano),
    Field(75, "PERF_POLICY_THERMAL", "sw_thermal_s", _TENS, _from_nano),
    Field(270, "CLOCKS_EVENT_REASON_HW_THERM_SLOWDOWN", "hw_thermal_s", _TENS, _from_nano),
    Field(271, "CLOCKS_EVENT_REASON_HW_POWER_BRAKE", "hw_power_brake_s", _TENS, _from_nano),
    Field(230, "GET_GPU_RECOVERY_ACTION", "recovery_action", _SECOND, _action),
    Field(197, "PCIE_COUNT_TX_BYTES", "pcie_transmit_bytes", _SECOND, counts=True),
    Field(198, "PCIE_COUNT_RX_BYTES", "pcie_receive_bytes", _SECOND, counts=True),
    Field(190, "POWER_CURRENT_LIMIT", "power_limit_w", _TENS, _from_milli),
    Field(3, "ECC_SBE_VOL_TOTAL", "corrected_ecc_errors", _TENS),
    Field(4, "ECC_DBE_VOL_TOTAL", "uncorrected_ecc_errors", _TENS),
    Field(5, "ECC_SBE_AGG_TOTAL", "corrected_ecc_errors_lifetime", _TENS),
    Field(6, "ECC_DBE_AGG_TOTAL", "uncorrected_ecc_errors_lifetime", _TENS),
    Field(94, "PCIE_REPLAY_COUNTER", "pcie_replays", _TENS),
    Field(83, "TOTAL_ENERGY_CONSUMPTION", "energy_j", _THIRTIES, _from_milli),  # 3 to 5 ms of the driver's time
)
NVLINK_FIELDS: Final = (
    Field(138, "NVLINK_THROUGHPUT_DATA_TX", "nvlink_transmit_bytes", _TENS, _from_kibi, _ALL_LINKS),
    Field(139, "NVLINK_THROUGHPUT_DATA_RX", "nvlink_receive_bytes", _TENS, _from_kibi, _ALL_LINKS),
    Field(45, "NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", "nvlink_crc_errors", _TENS),
    Field(163, "NVLINK_ERROR_DL_CRC", "nvlink_crc_errors", _TENS, scope=_ALL_LINKS),
    Field(52, "NVLINK_REPLAY_ERROR_COUNT_TOTAL", "nvlink_replay_errors", _TENS),
    Field(161, "NVLINK_ERROR_DL_REPLAY", "nvlink_replay_errors", _TENS, scope=_ALL_LINKS),
    Field(59, "NVLINK_RECOVERY_ERROR_COUNT_TOTAL", "nvlink_recovery_errors", _TENS),
    Field(162, "NVLINK_ERROR_DL_RECOVERY", "nvlink_recovery_errors", _TENS, scope=_ALL_LINKS),
)


class Batch:
    """These fields, asked for together over and over. One for all GPUs that have them, see `shared`."""

    def __init__(self, fields: Sequence[Field]) -> None:
        """Raises AttributeError: the library lacks the function."""
        self._ask = function(FIELD_BATCH)
        self.fields = tuple(fields)
        self._buffer = ctypes.create_string_buffer(_FIELD.size * len(self.fields))
        for place, field in enumerate(self.fields):
            _FIELD.pack_into(self._buffer, place * _FIELD.size, field.id, field.scope, 0, 0, 0, 0, 0)

    def ask(self, handle: Handle) -> int:
        return self._ask(handle, len(self.fields), self._buffer)

    def told(self) -> Iterator[tuple[Field, tuple[int, ...]]]:
        """For each field what stands in memory: `_FIELD`, with a return code and what the driver says it took."""
        return zip(self.fields, _FIELD.iter_unpack(self._buffer), strict=True)


batch_of: Final = cache(Batch)


def value_of(field: Field, kind: int, raw: int) -> Any:
    number = raw & 0xFFFFFFFF if kind == _UNSIGNED else raw if kind in _LONG else _number(kind, raw)
    return field.read(number) if field.read else number


def _number(kind: int, raw: int) -> Any:
    match kind:
        case 0:
            return struct.unpack("d", raw.to_bytes(8, "little"))[0]
        case 4:
            return raw - (1 << 64) if raw >> 63 else raw
        case 5:
            low = raw & 0xFFFFFFFF
            return low - (1 << 32) if low >> 31 else low
        case 6:
            return raw & 0xFFFF
        case _:
            return raw & 0xFFFFFFFF


def counted(meters: Meters, field: Field, kind: int, raw: int, now_s: float) -> int:
    """What was counted since the process began, of a counter that may wrap."""
    bits = 64 if kind in _LONG else 32
    meter = meters.pcie.get(field.gives, Bytes()).after(value_of(field, kind, raw), bits=bits, now_s=now_s)
    meters.pcie[field.gives] = meter
    return meter.total
