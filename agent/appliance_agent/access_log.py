"""What an Ollama container's log says, sans I/O: bytes or lines in, events out. Knows no wording that it can do without.

Access lines come from gin (stdout, at the end of a request), timings from llama-server (stderr, Ollama 0.30 and newer),
loads and truncations from Ollama itself. A line that is none of these is ignored; one that begins like these and goes
on otherwise is malformed. No line raises anything, and no number in one is believed beyond what a server could mean.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

INFERENCE: Final = frozenset(
    {
        "/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/v1/chat/completions", "/v1/completions",
        "/v1/embeddings", "/v1/responses", "/v1/messages",
    }
)  # fmt: skip
MARK: Final = "by=ollama-agent"  # the query of our own requests: gin logs it, so they can be told from users'
_LINE_BYTES_MAX: Final = 64 * 1024
_TASKS_MAX: Final = 64
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ACCESS = re.compile(
    r"\[GIN\] \d{4}/\d\d/\d\d - \d\d:\d\d:\d\d \|\s*(\d{3})\s*\|\s*(\S+)\s*\|\s*(\S*)\s*\|\s*(\S+)\s+\"(.*)\"\s*"
)
_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?(?:([\d.]{1,20})(ns|µs|us|ms|s))?")
_UNITS: Final = {"ns": 1e-9, "µs": 1e-6, "us": 1e-6, "ms": 1e-3, "s": 1.0}
_TIMING = re.compile(r"(?:slot\s+print_timing: id\s+(-?\d+) \| task (-?\d+) \|)?\s*(prompt eval|eval) time =(.*)")
_FIGURES = re.compile(r"\s*([\d.]{1,20}) ms /\s*(\d{1,9}) (?:tokens|runs)\b")
_STARTED = re.compile(r'msg="(?:llama runner|llama-server) started in (\d{1,9}(?:\.\d{1,9})?) seconds"')
_STARTING = re.compile(r'msg="starting (?:runner|llama server|llama-server)".* --model ')
_FAILED = re.compile(
    r'msg="(?:NewLlamaServer failed|Load failed|error loading llama server|failed to load model metadata)".*?error=(?:"((?:[^"\\]|\\.)*)"|(\S+))'
)
_TRUNCATING = re.compile(r'msg="truncating input prompt" limit=(\d{1,9}) prompt=(\d{1,9})\b')
_TASK = re.compile(r"slot\s+(?:launch_slot_|release): id\s+\d+ \| task (\d{1,18}) \| (processing task|stop processing)")
_OFFLOADED = re.compile(r"offloaded (\d{1,6})/(\d{1,6}) layers to GPU")


class Source(Enum):
    """Who wrote a line. Exported as a metric label."""

    GIN = "gin"
    OLLAMA = "ollama"
    RUNNER = "runner"  # and whatever else


class Result(Enum):
    """What became of a line. Exported as a metric label."""

    MATCHED = "matched"
    IGNORED = "ignored"
    MALFORMED = "malformed"


@dataclass(frozen=True, slots=True)
class Access:
    """A request that has ended. A stream that its client broke off says 200, too, and so do some that never began."""

    status: int
    duration_s: float  # gin cuts what is longer than a minute to whole seconds
    client: str  # an address, or what X-Forwarded-For claimed
    method: str
    path: str
    query: str = ""

    @property
    def is_inference(self) -> bool:
        return self.method == "POST" and self.path in INFERENCE

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Timing:
    """What llama-server spent on one request that it finished. Cached tokens of the prompt are not in it."""

    prompt_tokens: int
    prompt_s: float
    answer_tokens: int
    answer_s: float


@dataclass(frozen=True, slots=True)
class LoadBegan:
    """A runner for a model was started."""


@dataclass(frozen=True, slots=True)
class ModelLoad:
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadFailed:
    error: str


@dataclass(frozen=True, slots=True)
class Offload:
    """How many layers went to the GPU."""

    layers: int
    of: int


@dataclass(frozen=True, slots=True)
class Truncated:
    """A prompt that was longer than the context; without numbers: an answer that was."""

    prompt_tokens: int | None = None
    limit_tokens: int | None = None


Event = Access | Timing | LoadBegan | ModelLoad | LoadFailed | Offload | Truncated


@dataclass(frozen=True, slots=True)
class Line:
    source: Source
    result: Result
    event: Event | None = None  # a line may be a part of one only


_LINES: Final = {(source, result): Line(source, result) for source in Source for result in Result}


@dataclass(slots=True)
class Parser:
    """Of one container. Streams that are read apart need a parser each, or are fed line by line."""

    _rest: bytes = b""
    _prompts: dict[tuple[str, str], tuple[int, float]] = field(default_factory=dict[tuple[str, str], tuple[int, float]])
    _load_told: bool = False
    _tasks: set[str] | None = None

    @property
    def computing(self) -> int | None:
        """Requests that llama-server is at; None where the log does not tell of them."""
        return None if self._tasks is None else len(self._tasks)

    def feed(self, chunk: bytes) -> Iterator[Line]:
        """Lines may be cut anywhere. What is too long for a line of these is dropped."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        self._rest = self._rest[:_LINE_BYTES_MAX]
        for line in lines:
            yield self.line(line)

    def line(self, line: bytes) -> Line:
        text = line.decode("utf-8", "replace").rstrip("\r\n")
        if "\x1b" in text:
            text = _ANSI.sub("", text)
        source = _source(text)
        found = self._found(source, text)
        return _LINES[source, found] if isinstance(found, Result) else Line(source, Result.MATCHED, found)

    def _found(self, source: Source, text: str) -> Event | Result:
        if source is Source.GIN:
            return (_access(text) or Result.MALFORMED) if text.startswith("[GIN]") else Result.IGNORED
        if source is Source.OLLAMA:
            return self._of_ollama(text)
        if "eval time =" in text:
            return self._timing(text) if "llama_perf" not in text else Result.IGNORED  # sums of a whole context
        found = self._task(text) if text.startswith(("slot ", "srv ")) else Result.IGNORED
        if "truncated = 1" in text:
            return Truncated()
        return _offload(text) or found

    def _task(self, text: str) -> Result:
        if "all slots are idle" in text:
            self._tasks = set()
            return Result.MATCHED
        match = _TASK.match(text)
        if match is None:
            return Result.IGNORED
        tasks = self._tasks = self._tasks or set()
        if match[2] == "stop processing":
            tasks.discard(match[1])
        elif len(tasks) < _TASKS_MAX:
            tasks.add(match[1])
        return Result.MATCHED

    def _timing(self, text: str) -> Timing | Result:
        match = _TIMING.search(text)
        figures = _FIGURES.match(match[4]) if match else None
        milliseconds = _number(figures[1]) if figures else None
        if match is None or figures is None or milliseconds is None:
            return Result.MALFORMED
        task, tokens, seconds = (match[1] or "", match[2] or ""), int(figures[2]), milliseconds / 1000
        if match[3] == "prompt eval":
            if len(self._prompts) >= _TASKS_MAX:
                self._prompts.clear()
            self._prompts[task] = (tokens, seconds)
            return Result.MATCHED
        prompt_tokens, prompt_s = self._prompts.pop(task, (0, 0.0))
        return Timing(prompt_tokens, prompt_s, tokens, seconds)

    def _of_ollama(self, text: str) -> Event | Result:
        if _STARTING.search(text):
            self._load_told = False
            self._tasks = None if self._tasks is None else set()  # what the runner before was at, it is no more
            return LoadBegan()
        if match := _STARTED.search(text):
            told, self._load_told = self._load_told, True  # some versions say it twice
            return Result.MATCHED if told else ModelLoad(float(match[1]))
        if match := _FAILED.search(text):
            return LoadFailed((match[1] or match[2] or "").replace('\\"', '"'))
        if match := _TRUNCATING.search(text):
            return Truncated(prompt_tokens=int(match[2]), limit_tokens=int(match[1]))
        return _offload(text) or Result.IGNORED


def _source(text: str) -> Source:
    if text.startswith("[GIN"):
        return Source.GIN
    return Source.OLLAMA if text.startswith("time=") else Source.RUNNER


def _offload(text: str) -> Offload | None:
    match = _OFFLOADED.search(text) if "offloaded " in text else None
    return Offload(int(match[1]), int(match[2])) if match else None


def parse_duration(text: str) -> float | None:
    """Seconds of a Go duration such as 7.12µs or 1m23s."""
    match = _DURATION.fullmatch(text)
    number = _number(match[3] or "0") if match and text else None
    if match is None or number is None:
        return None
    return int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + number * _UNITS.get(match[4] or "s", 1.0)


def _access(text: str) -> Access | None:
    match = _ACCESS.fullmatch(text)
    duration_s = parse_duration(match[2]) if match else None
    if match is None or duration_s is None:
        return None
    path, _, query = match[5].partition("?")
    return Access(int(match[1]), duration_s, match[3], match[4], path, query)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
