"""A table for people: every NVML call and field that the agent uses, what this machine answers, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any, Final

from appliance_agent import nvml_calls
from appliance_agent.gpu_wire import render
from appliance_agent.nvml_calls import FIELD_BATCH, FIELDS, QUESTIONS, XID_EVENT, Call, Handle, nvml
from appliance_agent.nvml_session import NvmlDownError, Session

_ROUNDS: Final = 20
_WIDTH: Final = 60
_IDENTITY: Final = (
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetName",
    "nvmlDeviceGetIndex",
    "nvmlDeviceGetMinorNumber",
    "nvmlDeviceGetPciInfo",
    "nvmlDeviceGetMaxMigDeviceCount",
    "nvmlDeviceGetSupportedEventTypes",
)


def probe() -> Iterator[str]:
    """Lines of the table."""
    session = Session()
    started_s = time.monotonic()
    try:
        session.open(started_s)
    except NvmlDownError as error:
        yield f"NVML is down: {error}"
        return
    yield f"init and enumeration  {_ms(time.monotonic() - started_s)}"
    for name in ("nvmlSystemGetDriverVersion", "nvmlSystemGetNVMLVersion", "nvmlSystemGetCudaDriverVersion"):
        yield _row(name, partial(_named, name))
    yield _row("nvmlDeviceGetCount", nvml.nvmlDeviceGetCount)
    for uuid, handle in session.handles.items():
        yield ""
        yield uuid
        yield from _gpu(handle)
    yield ""
    yield from _events(session.handles)
    yield from _looks(session)
    session.close()


def _gpu(handle: Handle) -> Iterator[str]:
    for name in _IDENTITY:
        yield _row(name, partial(_named, name, handle))
    for question in QUESTIONS:
        for call in question.calls:
            yield _row(call.name, partial(_answer, call, handle))
    yield _row(f"{FIELD_BATCH}, all {len(FIELDS)}", lambda: nvml_calls.ask_fields(handle, FIELDS) and "answered")
    try:
        answers = nvml_calls.ask_fields(handle, FIELDS)
    except nvml_calls.NvmlError:
        return
    for field, code, value, latency_us in answers:
        shown = f"error {code}: {nvml_calls.NvmlError(code)}" if code else f"{field.gives}={value}"
        yield f"  field {field.id:3} {field.name:<38} driver says {latency_us:8} us  {shown}"


def _named(name: str, *arguments: Any) -> Any:
    return getattr(nvml, name)(*arguments)


def _answer(call: Call, handle: Handle) -> str:
    return " ".join(f"{name}={value}" for name, value in call.ask(handle).items())


def _events(handles: Mapping[str, Handle]) -> Iterator[str]:
    try:
        events = nvml.nvmlEventSetCreate()
    except nvml_calls.NvmlError as error:
        yield f"  nvmlEventSetCreate: {error}"
        return
    for handle in handles.values():
        yield _row(
            "nvmlDeviceRegisterEvents", partial(_named, "nvmlDeviceRegisterEvents", handle, XID_EVENT, events), 1
        )
    yield _row("nvmlEventSetWait_v2, 100 ms", lambda: nvml.nvmlEventSetWait_v2(events, 100), 1)
    nvml.nvmlEventSetFree(events)


def _looks(session: Session) -> Iterator[str]:
    snapshot = session.look(time.monotonic())
    took_s: list[float] = []
    processor_s = time.process_time()
    for _ in range(_ROUNDS):
        started_s = time.monotonic()
        snapshot = session.look(started_s)
        render(snapshot)
        took_s.append(time.monotonic() - started_s)
    processor_s = (time.process_time() - processor_s) / _ROUNDS
    yield f"a whole look          p50 {_ms(median(took_s))}  worst {_ms(max(took_s))}  processor {_ms(processor_s)}"
    yield f"a line has            {len(render(snapshot))} bytes"


def _row(name: str, call: Callable[[], Any], rounds: int = _ROUNDS) -> str:
    took_s: list[float] = []
    shown = ""
    for _ in range(rounds):
        started_s = time.perf_counter()
        try:
            shown = str(call())
        except nvml_calls.NvmlError as error:
            shown = f"error {nvml_calls.code_of(error)}: {error}"
        except AttributeError as error:
            shown = f"pynvml: {error}"
        took_s.append(time.perf_counter() - started_s)
    shown = " ".join(shown.split())
    shown = shown if len(shown) <= _WIDTH else shown[: _WIDTH - 3] + "..."
    return f"  {name:<48} p50 {_ms(median(took_s))}  {shown}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:9.3f} ms"
