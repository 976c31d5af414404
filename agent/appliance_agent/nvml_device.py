"""One GPU as the NVML process knows it: what it supports, what was asked of it last and when, and a look at it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from appliance_agent.gpus import Gpu, GpuReading
from appliance_agent.nvml_calls import (
    FUNCTION_NOT_FOUND,
    UNKNOWN,
    Ask,
    Fault,
    Handle,
    Meters,
    Subject,
    Values,
    fault_of,
    why_not_up,
    words_of,
)
from appliance_agent.nvml_fields import FIELD_BATCH, FIELDS, NVLINK_FIELDS, Batch, Field, batch_of, counted, value_of
from appliance_agent.nvml_pace import Interval, Pace
from appliance_agent.nvml_questions import QUESTIONS, SLOWDOWN, Question

_FAST: Final = (Interval.SECOND,)
_SLOW: Final = (Interval.TENS, Interval.THIRTIES, Interval.ONCE)
_EARLY: Final = 0.97  # looks are not exactly a second apart
_BLANK: Final[Values] = {"at_s": 0.0, **GpuReading._field_defaults}  # in the order of the fields
_TIMES: Final = {Interval.TENS: "tens_at_s", Interval.THIRTIES: "thirties_at_s"}


class NvmlDownError(Exception):
    """NVML does not work on this host at this moment; the message is for a person."""


class _GpuGoneError(Exception):
    """The GPU answers nothing more: the rest of its calls are not worth asking."""

    def __init__(self, *, is_lost: bool) -> None:
        super().__init__("lost" if is_lost else "needs a reset")
        self.is_lost = is_lost


@dataclass(slots=True)
class _Asked:
    """A question with its calls that are supported as far as is known, ready to be made."""

    question: Question
    calls: list[tuple[str, Ask]]


@dataclass(slots=True)
class Device:
    gpu: Gpu
    handle: Handle | None  # None: it is known from before, and does not open now
    meters: Meters = field(default_factory=Meters)
    parent: Handle | None = None  # of a MIG device
    fault: int = UNKNOWN  # why it does not open
    with_nvlink: bool = False
    unsupported: set[str] = field(default_factory=set[str])
    _plan: dict[Interval, list[_Asked]] = field(default_factory=dict[Interval, list[_Asked]])
    _batches: dict[tuple[Interval, ...], Batch | None] = field(default_factory=dict[tuple[Interval, ...], Batch | None])
    _kept: dict[Interval, Mapping[str, Any]] = field(default_factory=dict[Interval, Mapping[str, Any]])
    _next_s: dict[Interval, float] = field(default_factory=dict[Interval, float])  # when it is asked again
    _due_s: float = 0.0  # the first of these
    _slow: Values = field(default_factory=lambda: dict(_BLANK))
    _slowdown_c: float | None = None

    def forget(self) -> None:
        """What it supports and what it said are asked anew."""
        self.unsupported.clear()
        self._plan.clear()
        self._batches.clear()
        self._next_s.clear()
        self._due_s = 0.0

    def read(self, now_s: float, pace: Pace) -> GpuReading:
        """Raises NvmlDownError."""
        began_s = time.monotonic()
        due = self._due(now_s)
        fresh: dict[Interval, Values] = {interval: {} for interval in due}
        try:
            if self.handle is None:
                words = self._note("nvmlDeviceGetHandleByIndex", self.fault) or words_of(self.fault)
                return GpuReading(now_s, error=words, failed_calls=self.meters.failed_calls)
            self._ask_fields(due, fresh, now_s)
            for interval in due:
                self._ask_questions(interval, fresh[interval])
        except _GpuGoneError as gone:
            self._next_s.clear()
            self._due_s = 0.0
            return GpuReading(
                now_s, lost=gone.is_lost, reset_required=not gone.is_lost, failed_calls=self.meters.failed_calls
            )
        if len(due) > 1:
            self._leave_to_gpm(fresh)
            self._keep(fresh, due[1:], now_s, pace)
        return self._reading(fresh[Interval.SECOND], now_s, began_s)

    def _due(self, now_s: float) -> tuple[Interval, ...]:
        if now_s < self._due_s:
            return _FAST
        return (*_FAST, *(interval for interval in _SLOW if now_s >= self._next_s.get(interval, 0.0)))

    def _leave_to_gpm(self, fresh: Mapping[Interval, Values]) -> None:
        """Fields that wrap after 4 GiB are not asked where GPM counts the same."""
        for each in FIELDS:
            if each.counts and each.key not in self.unsupported and each.gives in fresh.get(Interval.TENS, ()):
                self.unsupported.add(each.key)
                self._batches.clear()

    def _keep(self, fresh: Mapping[Interval, Values], due: Sequence[Interval], now_s: float, pace: Pace) -> None:
        """What was asked now and is asked seldom, until it is asked again."""
        for interval in due:
            self._kept[interval] = fresh[interval]
            self._next_s[interval] = now_s + _EARLY * pace.interval_s(interval)
            if interval in _TIMES:
                fresh[interval][_TIMES[interval]] = now_s
        self._due_s = min(self._next_s.values())
        self._slow = dict(_BLANK)
        for interval in reversed(_SLOW):
            self._slow.update(self._kept[interval])
        self._slowdown_c = self._slow.pop(SLOWDOWN, None)

    def _reading(self, fast: Values, now_s: float, began_s: float) -> GpuReading:
        if self._slowdown_c and self._slow["thermal_margin_c"] is None and "temperature_c" in fast:
            fast["thermal_margin_c"] = self._slowdown_c - fast["temperature_c"]
        fast["at_s"], fast["failed_calls"] = now_s, self.meters.failed_calls
        fast["look_s"] = round(time.monotonic() - began_s, 6)
        return GpuReading._make({**self._slow, **fast}.values())

    def _ask_fields(self, due: tuple[Interval, ...], fresh: Mapping[Interval, Values], now_s: float) -> None:
        if due not in self._batches:
            self._batches[due] = self._batch(due)
        batch = self._batches[due]
        if batch is None:
            return
        if code := batch.ask(self.handle):
            if words := self._note(FIELD_BATCH, code):
                fresh[Interval.SECOND]["error"] = words
            return
        for field_, (_, _, _, _, kind, code, raw) in batch.told():
            if code:
                self._note(field_.key, code)
            elif field_.counts:
                fresh[field_.interval][field_.gives] = counted(self.meters, field_, kind, raw, now_s)
            elif (value := value_of(field_, kind, raw)) is not None:
                fresh[field_.interval][field_.gives] = value

    def _batch(self, due: tuple[Interval, ...]) -> Batch | None:
        if self.parent is not None or FIELD_BATCH in self.unsupported:
            return None
        known = (*FIELDS, *NVLINK_FIELDS) if self.with_nvlink else FIELDS
        wanted: dict[str, Field] = {}
        for each in known:
            if each.interval in due and each.key not in self.unsupported:
                wanted.setdefault(each.gives, each)
        try:
            return batch_of(tuple(wanted.values())) if wanted else None
        except AttributeError:
            self._note(FIELD_BATCH, FUNCTION_NOT_FOUND)
            return None

    def _ask_questions(self, interval: Interval, values: Values) -> None:
        if interval not in self._plan:
            self._plan[interval] = list(self._prepared(interval))
        for asked in self._plan[interval]:
            question = asked.question
            if question.gives in values or (question.only_without and question.only_without in values):
                continue
            for name, ask in asked.calls:
                code = ask(self.handle, values)
                if not code:
                    break
                if words := self._note(name, code):
                    if question.is_vital:
                        values.setdefault("error", words)  # the first error is the one that is told
                    break

    def _prepared(self, interval: Interval) -> Iterator[_Asked]:
        subject = self._subject()
        for question in QUESTIONS:
            if question.interval is not interval or (self.parent is not None and not question.is_of_mig):
                continue
            calls: list[tuple[str, Ask]] = []
            for call in question.calls:
                if call.name in self.unsupported:
                    continue
                try:
                    calls.append((call.name, call.prepare(subject)))
                except AttributeError:
                    self._note(call.name, FUNCTION_NOT_FOUND)
            if calls:
                yield _Asked(question, calls)

    def _subject(self) -> Subject:
        return Subject(self.handle, self.meters, self.parent, self.gpu.gpu_instance or 0)

    def _note(self, name: str, code: int) -> str:
        """The error in words, if it is one to tell of."""
        match fault_of(code):
            case Fault.UNSUPPORTED:
                self._leave_out(name)
            case Fault.LOST:
                self.meters.failed_calls += 1
                raise _GpuGoneError(is_lost=True)
            case Fault.RESET_REQUIRED:
                self.meters.failed_calls += 1
                raise _GpuGoneError(is_lost=False)
            case Fault.HOST:
                raise NvmlDownError(why_not_up(code))
            case Fault.OTHER:
                self.meters.failed_calls += 1
                return f"{name}: {words_of(code)}"
            case Fault.NOT_NOW:
                pass
        return ""

    def _leave_out(self, name: str) -> None:
        self.unsupported.add(name)
        self._batches.clear()
        self._plan.clear()
