"""The calls of NVML that are more than one number: processes, samples, retired pages, GPM's pairs of samples."""

from __future__ import annotations

import ctypes
import struct
import time
from functools import cache
from typing import Any, Final

from appliance_agent.gpu_meters import Bytes
from appliance_agent.gpus import GpuProcess
from appliance_agent.nvml_calls import (
    NOT_FOUND,
    NOT_SUPPORTED,
    SUCCESS,
    TOO_SMALL,
    Ask,
    Call,
    Handle,
    NvmlError,
    Subject,
    Values,
    code_of,
    function,
    nvml,
    shared,
)

_BUSY, _TRANSMIT, _RECEIVE = "busy_s", "pcie_transmit_bytes", "pcie_receive_bytes"
_PROCESS: Final = struct.Struct("I4xQII")  # process, bytes of memory, GPU instance, compute instance
_UNKNOWN_MEMORY: Final = 2**64 - 1
_PROCESSES: Final = 64
_SAMPLE: Final = struct.Struct("QI4x")  # microseconds, percent
_SAMPLES: Final = 256
_UTILIZATION_SAMPLES: Final = 1
_CAUSES: Final = (("correctable_retired_pages", 0), ("uncorrectable_retired_pages", 1))
_GPM: Final = (("sm_active_ratio", 2), ("tensor_active_ratio", 5), ("dram_active_ratio", 10))
_GPM_OF_CARD: Final = (*_GPM, (_BUSY, 1), (_TRANSMIT, 20), (_RECEIVE, 21))
_MIB: Final = 1024 * 1024


def processes(name: str) -> Call:
    def make() -> Ask:
        asked, count = function(name), ctypes.c_uint()
        room = [ctypes.create_string_buffer(_PROCESSES * _PROCESS.size)]

        def ask(handle: Handle, values: Values) -> int:
            count.value = len(room[0]) // _PROCESS.size
            code = asked(handle, ctypes.byref(count), room[0])
            if code == TOO_SMALL:
                room[0] = ctypes.create_string_buffer((2 * count.value + 1) * _PROCESS.size)
                count.value = len(room[0]) // _PROCESS.size
                code = asked(handle, ctypes.byref(count), room[0])
            if not code:
                told = memoryview(room[0])[: count.value * _PROCESS.size]
                values["processes"] = tuple(
                    GpuProcess(pid, None if used == _UNKNOWN_MEMORY else used)
                    for pid, used, _, _ in _PROCESS.iter_unpack(told)
                )
            return code

        return ask

    return Call(name, shared(make))


def busy_samples() -> Call:
    """Every sample that the driver took since the last look, added up."""
    name = "nvmlDeviceGetSamples"

    def prepare(subject: Subject) -> Ask:
        asked, meters = function(name), subject.meters
        kind, count = ctypes.c_int(), ctypes.c_uint()
        room = [ctypes.create_string_buffer(_SAMPLES * _SAMPLE.size)]

        def once(seen_us: int) -> int:
            count.value = len(room[0]) // _SAMPLE.size
            seen = ctypes.c_ulonglong(seen_us)
            return asked(
                subject.handle, _UTILIZATION_SAMPLES, seen, ctypes.byref(kind), ctypes.byref(count), room[0]
            )  # fmt: skip

        def ask(_: Handle, values: Values) -> int:
            code = once(meters.busy.seen_us)
            if code == TOO_SMALL:
                room[0] = ctypes.create_string_buffer(4 * len(room[0]))
                code = once(meters.busy.seen_us)
            if code not in (SUCCESS, NOT_FOUND):
                return code
            told = memoryview(room[0])[: count.value * _SAMPLE.size] if code == SUCCESS else b""
            meters.busy = meters.busy.after(_SAMPLE.iter_unpack(told))
            values[_BUSY] = round(meters.busy.seconds, 6)
            return SUCCESS

        return ask

    return Call(name, prepare)


def retired_pages() -> Call:
    name = "nvmlDeviceGetRetiredPages"

    def make() -> Ask:
        asked, count = function(name), ctypes.c_uint()

        def ask(handle: Handle, values: Values) -> int:
            for gives, cause in _CAUSES:
                count.value = 0
                code = asked(handle, cause, ctypes.byref(count), None)
                if code not in (SUCCESS, TOO_SMALL):
                    return code
                values[gives] = count.value
            return SUCCESS

        return ask

    return Call(name, shared(make))


@cache
def _comparison(metrics: tuple[tuple[str, int], ...]) -> tuple[Any, list[Any]]:
    """What nvmlGpmMetricsGet is asked with, and where it answers; one for all GPUs."""
    asked = nvml.c_nvmlGpmMetricsGet_t()
    asked.version, asked.numMetrics = nvml.NVML_GPM_METRICS_GET_VERSION, len(metrics)
    wanted = [asked.metrics[place] for place in range(len(metrics))]
    for metric, (_, number) in zip(wanted, metrics, strict=True):
        metric.metricId = number
    return asked, wanted


class _Gpm:
    """Two samples of one GPU, each compared with the one before: means over the time between, which nothing escapes."""

    def __init__(self, subject: Subject) -> None:
        self._samples: list[Any] = []
        self._subject = subject
        self._sample, self._result = function("nvmlGpmSampleGet"), function("nvmlGpmMetricsGet")
        self._mig_sample = function("nvmlGpmMigSampleGet") if subject.parent else None
        self._metrics = _GPM if subject.parent else _GPM_OF_CARD
        self._taken_s: float | None = None
        self._pairs = 0

    def ask(self, _: Handle, values: Values) -> int:
        if not self._samples and (code := self._open()):
            return code
        before, after = self._samples
        now_s = time.monotonic()
        if code := self._take(after):
            self._taken_s = None
            return code
        self._samples, first_s, self._taken_s = [after, before], self._taken_s, now_s
        return SUCCESS if first_s is None else self._compare(before, after, now_s - first_s, values)

    def _open(self) -> int:
        try:
            owner = self._subject.parent or self._subject.handle
            if not nvml.nvmlGpmQueryDeviceSupport(owner).isSupportedDevice:
                return NOT_SUPPORTED
            self._samples = [nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()]
        except (NvmlError, AttributeError) as error:
            return code_of(error)
        return SUCCESS

    def _take(self, sample: Any) -> int:
        if self._mig_sample:
            return self._mig_sample(self._subject.parent, self._subject.gpu_instance, sample)
        return self._sample(self._subject.handle, sample)

    def _compare(self, before: Any, after: Any, span_s: float, values: Values) -> int:
        asked, wanted = _comparison(self._metrics)
        asked.sample1, asked.sample2 = before, after
        if code := self._result(ctypes.byref(asked)):
            return code
        self._pairs += 1
        for metric, (gives, _) in zip(wanted, self._metrics, strict=True):
            if not metric.nvmlReturn:
                values[gives] = self._told(gives, metric.value, span_s)
        return SUCCESS

    def _told(self, gives: str, value: float, span_s: float) -> float:
        meters = self._subject.meters
        if gives == _BUSY:
            meters.busy = meters.busy.told(value / 100, span_s)
            return round(meters.busy.seconds, 6)
        if gives in (_TRANSMIT, _RECEIVE):
            moved = round(value * _MIB * span_s) if self._pairs > 1 else 0  # the fields have counted the first pair's
            meters.pcie[gives] = Bytes(meters.pcie.get(gives, Bytes()).total + moved)
            return meters.pcie[gives].total
        return round(value / 100, 6)

    def __del__(self) -> None:
        for sample in self._samples:
            nvml.nvmlLib.nvmlGpmSampleFree(sample)


def gpm() -> Call:
    return Call("nvmlGpmMetricsGet", lambda subject: _Gpm(subject).ask)
