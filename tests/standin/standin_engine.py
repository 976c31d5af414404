"""Who may speak when: the loaded runners and the queues before them, as the scheduler of the server has them."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from standin_answers import Profile, compact
from standin_gguf import GgufError
from standin_settings import Fault, Faults, Settings
from standin_store import Model, go_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

POLL_S = 0.05


class LoadError(Exception):
    """The model cannot be loaded; the text goes to the client with a 500."""


class QueueFullError(Exception):
    """More requests wait for a load than OLLAMA_MAX_QUEUE allows."""


@dataclass
class Wanted:
    """What one request asks of the scheduler."""

    model: Model
    num_ctx: int
    keep_alive_ns: int | None
    ping_since_s: float | None = None

    @property
    def key(self) -> str:
        return str(self.model.weights.path) if self.model.weights else ""


@dataclass
class Runner:
    serial: int
    model: Model
    num_ctx: int
    size: int
    keep_alive_ns: int
    loading: bool = True
    fresh: bool = True  # nobody has used it yet
    dead: bool = False  # killed; nobody noticed yet
    references: int = 1
    expires_ns: int | None = None
    ping_since_s: float | None = None
    busy: int = 0
    queue: deque[object] = field(default_factory=deque)

    def expiry_ns(self, now_ns: int) -> int:
        return now_ns + self.keep_alive_ns if self.expires_ns is None else self.expires_ns


def load_problem(profile: Profile, model: Model) -> str:
    """Why a model file cannot be loaded, in the words of the version; empty if it can."""
    path = model.weights.path if model.weights else ""
    try:
        gguf = model.gguf()
    except GgufError as error:
        return "unsupported model format" if "magic" in str(error) else str(error)
    except OSError as error:
        return go_error("open", error)
    tensor = gguf.cut_off_tensor
    if tensor is None:
        return ""
    if profile.old:
        start = "llama runner process has terminated: error loading model: tensor"
        return f"{start} '{tensor.name}' data is not within the file bounds, model is corrupted or incomplete"
    if profile.new:
        return f'tensor "{tensor.name}" offset+size ({tensor.end}) exceeds file size ({gguf.file_bytes})'
    return f"unable to load model: {path}"


class Engine:
    def __init__(self, settings: Settings, log: Callable[..., None]) -> None:
        self.settings = settings
        self.faults = Faults(settings.fault, settings.fault_file)
        self.counts: Counter[str] = Counter()
        self._log = log
        self._runners: dict[str, Runner] = {}
        self._pending = 0
        self._loads = 0
        self._frozen_by: Fault | None = None
        self._frozen_up_to = 0
        self._changed = threading.Condition()

    def running(self) -> list[Runner]:
        with self._changed:
            self._drop_expired()
            return [runner for runner in self._runners.values() if not runner.loading]

    def video_bytes(self, runner: Runner) -> int:
        return runner.size if self.settings.gpu and self.faults.current().name != "cpu_fallback" else 0

    def unload(self, key: str) -> None:
        with self._changed:
            runner = self._runners.get(key)
            if runner:
                runner.keep_alive_ns = 0
                runner.expires_ns = time.time_ns()

    @contextlib.contextmanager
    def using(self, wanted: Wanted, watch: Callable[[], None]) -> Iterator[Runner]:
        """A loaded runner for the model. Raises QueueFullError, LoadError, and what `watch` raises."""
        runner = self._acquire(wanted, watch)
        try:
            yield runner
        finally:
            with self._changed:
                runner.references -= 1
                runner.expires_ns = None
                if not runner.references:
                    runner.expires_ns = runner.expiry_ns(time.time_ns())
                self._changed.notify_all()

    @contextlib.contextmanager
    def speaking(self, runner: Runner, watch: Callable[[], None]) -> Iterator[None]:
        """One of the runner's OLLAMA_NUM_PARALLEL places, first come first served."""
        ticket = object()
        with self._changed:
            runner.queue.append(ticket)
        try:
            self._wait(watch, lambda: runner.queue[0] is ticket and runner.busy < self.settings.parallel)
        except BaseException:
            with self._changed:
                runner.queue.remove(ticket)
            raise
        with self._changed:
            runner.queue.popleft()
            runner.busy += 1
            self._changed.notify_all()  # the next in the queue may have a place too
        try:
            yield
        finally:
            with self._changed:
                runner.busy -= 1
                self._changed.notify_all()

    def is_frozen(self, runner: Runner) -> bool:
        """A fault `frozen` stops the runners there are (or the first to come), not the ones started after them."""
        fault = self.faults.current()
        if fault.name != "frozen":
            return False
        if fault is not self._frozen_by:
            self._frozen_by, self._frozen_up_to = fault, max(self._loads, 1)
        return runner.serial <= self._frozen_up_to

    def state(self) -> str:
        with self._changed:
            names = [runner.model.name.short for runner in self._runners.values() if not runner.loading]
            busy = sum(runner.busy for runner in self._runners.values())
            waiting = self._pending + sum(len(runner.queue) for runner in self._runners.values())
        now = {"fault": self.faults.current().name, "loaded": names, "speaking": busy, "waiting": waiting}
        return compact({**now, "counts": dict(sorted(self.counts.items()))})

    def _wait(self, watch: Callable[[], None], ready: Callable[[], bool]) -> None:
        while True:
            with self._changed:
                if ready() or (self._changed.wait(POLL_S) and ready()):
                    return
            watch()

    def _acquire(self, wanted: Wanted, watch: Callable[[], None]) -> Runner:
        got: list[Runner] = []

        def claim() -> bool:
            runner = self._claim(wanted)
            got.extend([runner] if runner else [])
            return bool(got)

        with self._changed:
            if not claim():
                if self._pending > self.settings.max_queue:  # one is in the scheduler's hands, the others queue
                    self.counts["queue_full"] += 1
                    raise QueueFullError
                self._pending += 1
        if not got:
            try:
                self._wait(watch, claim)
            finally:
                with self._changed:
                    self._pending -= 1
        if got[0].loading:
            self._load(got[0], wanted, watch)
        return got[0]

    def _claim(self, wanted: Wanted) -> Runner | None:
        """A runner to use, a new one to load, or nothing yet. Called with the lock held."""
        self._drop_expired()
        runner = self._runners.get(wanted.key)
        if runner:
            frozen = not runner.dead and not runner.loading and self.is_frozen(runner)
            if runner.loading or (frozen and not self._gave_up(runner, wanted)):
                return None
            if not runner.dead and not frozen and runner.num_ctx == wanted.num_ctx:
                runner.references += 1
                runner.keep_alive_ns = runner.keep_alive_ns if wanted.keep_alive_ns is None else wanted.keep_alive_ns
                return runner
            if runner.references:
                return None
            del self._runners[wanted.key]
        if len(self._runners) >= self.settings.max_loaded:
            idle = next((key for key, other in self._runners.items() if not other.references), None)
            if idle is None:
                return None
            del self._runners[idle]
        self._loads += 1
        keep_alive = self.settings.keep_alive_ns if wanted.keep_alive_ns is None else wanted.keep_alive_ns
        size = (
            wanted.model.weights.size if wanted.model.weights else 0
        ) + 512 * wanted.num_ctx * self.settings.parallel
        new = Runner(self._loads, wanted.model, wanted.num_ctx, size, keep_alive)
        self._runners[wanted.key] = new
        return new

    def _gave_up(self, runner: Runner, wanted: Wanted) -> bool:
        """Whether the frozen runner was waited for long enough; 0.5.11 waits once, and remembers since when."""
        now_s = time.monotonic()
        if self.settings.profile.old:
            runner.ping_since_s = now_s if runner.ping_since_s is None else runner.ping_since_s
            return now_s - runner.ping_since_s >= self.settings.ping_s
        wanted.ping_since_s = now_s if wanted.ping_since_s is None else wanted.ping_since_s
        return now_s - wanted.ping_since_s >= 2 * self.settings.ping_s

    def _drop_expired(self) -> None:
        grace_ns = 0 if self.settings.profile.new else 20_000_000  # how long a runner takes to go
        now_ns = time.time_ns()
        for key, runner in list(self._runners.items()):
            if not runner.references and runner.expires_ns is not None and runner.expires_ns + grace_ns <= now_ns:
                del self._runners[key]

    def _load(self, runner: Runner, wanted: Wanted, watch: Callable[[], None]) -> None:
        self._log("INFO", "server.go:429", "starting runner", cmd=f"/usr/bin/ollama runner --model {wanted.key}")
        self.counts["loads"] += 1
        try:
            self._load_or_fail(wanted, watch)
        except BaseException as error:
            self.counts["loads_failed"] += 1
            self._log("INFO", "sched.go:425", "NewLlamaServer failed", model=wanted.key, error=str(error))
            with self._changed:
                del self._runners[wanted.key]
                self._changed.notify_all()
            raise
        with self._changed:
            runner.loading = False
            self._changed.notify_all()
        self._log("INFO", "server.go:1376", f"llama runner started in {self.settings.load_s:.2f} seconds")

    def _load_or_fail(self, wanted: Wanted, watch: Callable[[], None]) -> None:
        problem = load_problem(self.settings.profile, wanted.model)
        if self.faults.current().name == "out_of_memory":
            text = "llama runner process has terminated: cudaMalloc failed: out of memory"
            problem = self.faults.current().message or text
        if problem:
            raise LoadError(problem)
        done_s = time.monotonic() + self.settings.load_s
        while time.monotonic() < done_s or self.faults.current().name == "never_load":
            watch()
            time.sleep(POLL_S / 5)


# --- log lines -------------------------------------------------------------------------------------------------------


def slog(level: str, source: str, text: str, **fields: object) -> None:
    """A line on stderr in the form of Go's slog."""
    seconds, rest_ns = divmod(time.time_ns(), 1_000_000_000)
    stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(seconds))}.{rest_ns // 1_000_000:03d}Z"
    pairs = "".join(f" {key}={_quoted(str(value))}" for key, value in fields.items())
    sys.stderr.write(f"time={stamp} level={level} source={source} msg={_quoted(text)}{pairs}\n")
    sys.stderr.flush()


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if not text or re.search(r'[\s="]', text) else text
