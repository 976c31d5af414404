"""Users' traffic, counted from what the containers' logs say. From any thread; labels are of a fixed set, whatever is said.

Counters live as long as the agent does: over restarts of containers and of models.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from appliance_agent import catalogue_slots as names
from appliance_agent.access_log import Access, Event, LoadFailed, ModelLoad, Offload, Result, Source, Timing, Truncated
from appliance_agent.generated import Generated
from appliance_agent.metric import Metric
from appliance_agent.slot_tallies import SlotTallies
from appliance_agent.tallies import Numbers, Spread, Tally

_APIS: Final = tuple(dict.fromkeys(names.APIS.values()))
_CODES: Final = frozenset({*names.CODES, *names.CODES_SEEN})


class _Slot:
    def __init__(self, index: int) -> None:
        gpu = str(index)
        self.generated = Generated()
        self.requests = Numbers(names.REQUESTS, gpu)
        self.duration = Spread(names.REQUEST_DURATION, gpu)
        self.output_token = Spread(names.OUTPUT_TOKEN, gpu)
        self.prompt_tokens = Numbers(names.PROMPT_TOKENS, gpu)
        self.generated_tokens = Numbers(names.GENERATED_TOKENS, gpu)
        self.prompt_seconds = Numbers(names.PROMPT_SECONDS, gpu)
        self.generation_seconds = Numbers(names.GENERATION_SECONDS, gpu)
        self.truncated = Numbers(names.TRUNCATED, gpu)
        self.load = Spread(names.MODEL_LOAD, gpu)
        self.load_failures = Numbers(names.MODEL_LOAD_FAILURES, gpu)
        self.gpu_layers = Numbers(names.MODEL_GPU_LAYERS, gpu)
        self.layers = Numbers(names.MODEL_LAYERS, gpu)
        for api in _APIS:
            for code in names.CODES:
                self.requests.add(0, api, code)
        for counter in (
            self.prompt_tokens, self.generated_tokens, self.prompt_seconds, self.generation_seconds, self.truncated,
            self.load_failures,
        ):  # fmt: skip
            counter.add(0)

    @property
    def tallies(self) -> tuple[Tally, ...]:
        return (
            self.gpu_layers, self.layers, self.load, self.load_failures,
            self.requests, self.duration, self.output_token, self.prompt_tokens, self.generated_tokens,
            self.prompt_seconds, self.generation_seconds, self.truncated,
        )  # fmt: skip

    def count(self, event: Event) -> None:
        match event:
            case Access():
                self._request(event)
            case Timing():
                self._timing(event)
            case ModelLoad():
                self.load.observe(event.seconds)
            case LoadFailed():
                self.load_failures.add(1)
            case Offload():
                self.gpu_layers.set(event.layers)
                self.layers.set(event.of)
            case Truncated():
                self.truncated.add(1)
            case _:
                pass

    def _request(self, line: Access) -> None:
        api = names.APIS.get(line.path)
        if api is None or not line.is_inference:
            return
        code = str(line.status)
        self.requests.add(1, api, code if code in _CODES else names.OTHER)
        if line.ok:
            self.duration.observe(line.duration_s)

    def _timing(self, timing: Timing) -> None:
        """The first token is ready when the prompt is: the time is that of all others."""
        self.prompt_tokens.add(timing.prompt_tokens)
        self.prompt_seconds.add(timing.prompt_s)
        self.generated_tokens.add(timing.answer_tokens)
        self.generation_seconds.add(timing.answer_s)
        self.generated = self.generated.plus(timing.answer_tokens, timing.answer_s)
        if timing.answer_tokens > 1:
            self.output_token.observe(timing.answer_s / (timing.answer_tokens - 1))


class Traffic(SlotTallies[_Slot]):
    def __init__(self) -> None:
        super().__init__(_Slot)
        self._lines = Numbers(names.LOG_LINES)
        for source in Source:
            for result in Result:
                self._lines.add(0, source.value, result.value)

    def event(self, slot: int, event: Event) -> None:
        self._count(slot, lambda counted: counted.count(event))

    def line(self, source: Source, result: Result) -> None:
        with self._lock:
            self._lines.add(1, source.value, result.value)
            self._texts = None

    def generated(self) -> dict[int, Generated]:
        """By slot."""
        with self._lock:
            return {index: slot.generated for index, slot in self._slots.items()}

    def _families(self) -> Iterator[tuple[Metric, tuple[Tally, ...]]]:
        yield from super()._families()
        yield names.LOG_LINES, (self._lines,)
