"""A table for people: every NVML call and field that the agent uses, what this machine answers, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from statistics import median
from typing import Any, Final

from appliance_agent.gpu_wire import Writer
from appliance_agent.nvml_calls import (
    XID_EVENT,
    Ask,
    Call,
    Handle,
    Meters,
    NvmlError,
    Subject,
    Values,
    code_of,
    nvml,
)
from appliance_agent.nvml_device import NvmlDownError
from appliance_agent.nvml_fields import FIELD_BATCH, FIELDS, NVLINK_FIELDS, Batch, value_of
from appliance_agent.nvml_questions import QUESTIONS
from appliance_agent.nvml_session import Session

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
    subject = Subject(handle, Meters())
    for question in QUESTIONS:
        for call in question.calls:
            yield _row(call.name, _repeated(call, subject))
    batch = Batch((*FIELDS, *NVLINK_FIELDS))
    yield _row(f"{FIELD_BATCH}, all {len(batch.fields)}", lambda: _checked(batch.ask(handle), "answered"))
    for field, (_, _, _, latency_us, kind, code, raw) in batch.told():
        shown = f"error {code}: {NvmlError(code)}" if code else f"{field.gives}={value_of(field, kind, raw)}"
        yield f"  field {field.id:3} {field.name:<38} driver says {latency_us:8} us  type {kind}  {shown}"


def _named(name: str, *arguments: Any) -> Any:
    return getattr(nvml, name)(*arguments)


def _repeated(call: Call, subject: Subject) -> Callable[[], str]:
    prepared: list[Ask] = []

    def ask() -> str:
        if not prepared:
            prepared.append(call.prepare(subject))
        values: Values = {}
        code = prepared[0](subject.handle, values)
        return _checked(code, " ".join(f"{name}={value}" for name, value in values.items()))

    return ask


def _checked(code: int, answer: str) -> str:
    if code:
        raise NvmlError(code)
    return answer


def _events(handles: Mapping[str, Handle]) -> Iterator[str]:
    try:
        events = nvml.nvmlEventSetCreate()
    except NvmlError as error:
        yield f"  nvmlEventSetCreate: {error}"
        return
    for handle in handles.values():
        yield _row(
            "nvmlDeviceRegisterEvents", partial(_named, "nvmlDeviceRegisterEvents", handle, XID_EVENT, events), 1
        )
    yield _row("nvmlEventSetWait_v2, 100 ms", lambda: nvml.nvmlEventSetWait_v2(events, 100), 1)
    nvml.nvmlEventSetFree(events)


def _looks(session: Session) -> Iterator[str]:
    session.look(time.monotonic())
    writer, line = Writer(), b""
    took_s: list[float] = []
    processor_s = time.process_time()
    for _ in range(_ROUNDS):
        started_s = time.monotonic()
        snapshot = session.look(started_s)
        line = writer.render(snapshot)
        took_s.append(time.monotonic() - started_s)
    processor_s = (time.process_time() - processor_s) / _ROUNDS
    yield f"a whole look          p50 {_ms(median(took_s))}  worst {_ms(max(took_s))}  processor {_ms(processor_s)}"
    yield f"a line has            {len(line)} bytes"


def _row(name: str, call: Callable[[], Any], rounds: int = _ROUNDS) -> str:
    took_s: list[float] = []
    shown = ""
    for _ in range(rounds):
        started_s = time.perf_counter()
        try:
            shown = str(call())
        except NvmlError as error:
            shown = f"error {code_of(error)}: {error}"
        except AttributeError as error:
            shown = f"pynvml: {error}"
        took_s.append(time.perf_counter() - started_s)
    shown = " ".join(shown.split())
    shown = shown if len(shown) <= _WIDTH else shown[: _WIDTH - 3] + "..."
    return f"  {name:<48} p50 {_ms(median(took_s))}  {shown}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:9.3f} ms"
