"""One container that is watched: its evidence, and the one request at a time that may be under way. Facts, no verdicts."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from typing import Final, Protocol

from appliance_agent import canary, preload
from appliance_agent.access_log import Access, Event, Parser, Result, Source, Timing
from appliance_agent.canary import Question
from appliance_agent.client_options import ClientOptions
from appliance_agent.config import HealthConfig
from appliance_agent.due import (
    AT_ONCE,
    LEEWAY_S,
    YOUNG_S,
    due_s,
    is_hopeless,
    is_left_out,
    is_questionable,
    is_quiet,
    leeway_s,
    was_alone,
)
from appliance_agent.evidence import Canary, Evidence, Load, Outcome, Running
from appliance_agent.gpus import GpuSnapshot
from appliance_agent.http import Broken, ExchangeError, Link, Meter, Server
from appliance_agent.loading import after_canary, after_line
from appliance_agent.log_tail import Sink
from appliance_agent.own_lines import OwnLines, Told
from appliance_agent.ports import Target, Wake
from appliance_agent.procfs import Processes
from appliance_agent.sight import Sight

ANSWER_S: Final = 2.0  # for /api/ps and /api/version, which take a millisecond
_CANARIES_MAX: Final = 20
_NEWS: Final = 5  # canaries of a container that may prove it
_MOVES_S: Final = 0.1  # lines that come closer together tell the same
_QUIET_LOOK_S: Final = 1.5  # every other of the looks at all
_SILENCE_S: Final = 1.0  # after so long a token is news
_LOG = logging.getLogger(__name__)


class Closeable(Protocol):
    def close(self) -> None: ...


class Asked(Protocol):
    def __call__(self, *, in_a_hurry: bool) -> None: ...


Follow = Callable[[str, Sink], Closeable]  # a container's log, line by line, from now on


@dataclass(frozen=True, slots=True)
class Around:
    """What all watched containers share."""

    follow: Follow
    processes: Processes
    server_port: int  # inside the containers
    wake: Wake  # the loop
    begin: Callable[[Callable[[], None]], Future[None]]  # in a thread of its own
    asked: Asked  # the thread that decides when to ask
    on_canary: Callable[[int, Canary], None]
    on_access: Callable[[int, Event], None]  # what the log says, without our own requests
    on_line: Callable[[Source, Result], None]


class Watched:
    def __init__(self, target: Target, around: Around, config: HealthConfig) -> None:
        self.target = target
        self.config = config
        self._around = around
        meter = Meter()
        self._server = Server(target.address, target.port, target.model, meter)
        self._sight = Sight(target, around.processes, meter, port=around.server_port)
        self._lock = threading.Lock()
        self._evidence = Evidence(target.container_id, watched_since_s=time.monotonic())
        self._parser = Parser()
        self._own = OwnLines()
        self._options = ClientOptions()
        self._tail: Closeable | None = None
        self._asking: Future[None] | None = None
        self._asking_since_s: float | None = None
        self._asked_s: float | None = None
        self._looked_s = float("-inf")
        self._questionable = False
        self._link = Link(self._server)
        self._closed = False

    @property
    def evidence(self) -> Evidence:
        return self._evidence

    def start(self) -> None:
        self._tail = self._around.follow(self.target.container_id, self._line)

    def stop(self) -> None:
        """Asks no more; does not wait."""
        self._closed = True
        self._link.cancel()

    def close(self) -> None:
        self.stop()
        if self._tail:
            self._tail.close()
        if self._asking:
            wait([self._asking], 10)
        self._count(self._own.overdue(float("inf")))

    # --- the deciding thread -----------------------------------------------------------------------------------------

    def look(self, snapshot: GpuSnapshot, now_s: float, *, closely: bool) -> None:
        before, rate = self._evidence, self.config.flow_bytes_per_s
        quiet = is_quiet(before, self.config, now_s) and not closely and not self._own.holds
        if quiet and now_s - self._looked_s < _QUIET_LOOK_S:
            return
        self._looked_s = now_s
        questionable = is_questionable(before, now_s)
        self._update(
            lambda before: self._sight.look(
                before, snapshot, flow_bytes_per_s=rate, count_peers=closely or questionable, now_s=now_s
            )
        )
        if (questionable and not self._questionable) or self._evidence.on_gpu is not before.on_gpu:
            self._around.wake()
        self._questionable = questionable
        if is_hopeless(self._evidence, self.config, now_s):
            self._link.cancel()
        if self._own.holds:
            with self._lock:
                free = self._own.overdue(now_s)
            self._count(free)

    def leeway_s(self) -> float:
        """By how much its turn may be earlier or later."""
        return leeway_s(self._evidence, self.config)

    def due_s(self, spread: float) -> float:
        return due_s(self._evidence, self.config, asked_s=self._asked_s, spread=spread)

    def may_ask(self, now_s: float) -> bool:
        return self._asking_since_s is None and not is_left_out(self._evidence, self.config, now_s)

    def young_until_s(self) -> float:
        """Until when a request of ours is young. A load may take its time."""
        since_s, load = self._asking_since_s, self._evidence.load
        loads = load is not None and load.ended_s is None
        return AT_ONCE if since_s is None or loads else since_s + YOUNG_S

    def ask(self, now_s: float) -> None:
        self._asking_since_s = now_s
        self._asking = self._around.begin(self._ask)

    # --- the asking thread -------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        try:
            if not self._closed:
                self._preload_or_canary()
        except Exception:  # noqa: BLE001 - it is asked again, and the journal must say so
            _LOG.exception("asking slot %d failed, please report it as a bug", self.target.slot)
        finally:
            self._asked_s = time.monotonic()
            self._asking_since_s = None
            self._around.asked(in_a_hurry=self.leeway_s() < LEEWAY_S)

    def _preload_or_canary(self) -> None:
        with Link(self._server) as link:
            self._link = link
            if self._closed:  # in between
                link.cancel()
            listed = self._is_loaded(link)
            there = listed is not False
            for_others = self._options.are_loading(self._evidence, self.config, time.monotonic(), listed=there)
            if listed or (listed is False and self._was_just_loaded()):
                self._canary(link)
            elif listed is False and not for_others:
                self._preload(link)

    def _was_just_loaded(self) -> bool:
        """A load that went well is believed even if the model is listed under another name."""
        load, last = self._evidence.load, self._evidence.last_canary
        if load is None or load.ended_s is None or load.outcome is not Outcome.OK:
            return False
        return last is None or last.started_s < load.ended_s

    def _is_loaded(self, link: Link) -> bool | None:
        """None: it cannot be told, and nothing is to be asked that could begin a load."""
        before = self._evidence
        try:
            if not before.ollama_version:
                found = preload.version(link, silence_s=ANSWER_S)
                self._answered(lambda evidence: replace(evidence, ollama_version=found))
            state = preload.loaded(link, silence_s=ANSWER_S)
        except preload.NoAnswerError:
            self._answered(lambda evidence: evidence)
            return bool(before.loaded)
        except ExchangeError as error:
            if error.how in (Broken.REFUSED, Broken.CUT):
                self._refused()
            elif error.how is Broken.TIMEOUT:
                self._silent()
            return True if error.how is Broken.TIMEOUT and before.loaded else None
        self._answered(
            lambda evidence: replace(
                evidence,
                loaded=state.loaded,
                model_bytes=state.model_bytes,
                vram_bytes=state.vram_bytes,
                context_tokens=state.context_tokens,
                expires_wall_s=state.expires_wall_s,
                others_bytes=state.others_bytes,
                others_vram_bytes=state.others_vram_bytes,
            )
        )
        return state.loaded

    def _preload(self, link: Link) -> None:
        load = Load(time.monotonic())
        self._update(lambda before: replace(before, load=load))
        self._around.wake()
        load = preload.preload(link, started_s=load.started_s)
        good = load.outcome is Outcome.OK
        if good:
            self._learn_default(link)
        self._update(lambda before: replace(before, load=load, loaded=good or before.loaded))
        self._around.wake()

    def _learn_default(self, link: Link) -> None:
        if not self._options.is_default_known:
            with contextlib.suppress(ExchangeError, preload.NoAnswerError):  # the next time, then
                self._options.learn_default(preload.loaded(link, silence_s=ANSWER_S).context_tokens)

    def _canary(self, link: Link) -> None:
        config = self.config
        with self._lock:
            self._own.began(time.monotonic(), config.canary_tokens)
        context_tokens = self._options.context_tokens(self._evidence.context_tokens)
        question = Question(config.canary_prompt, config.canary_tokens, context_tokens)
        ended = canary.ask(link, question, progress=self._heard)
        with self._lock:
            users = self._own.ended(ended)
        self._count(users)
        self._update(lambda before: _with(before, replace(ended, alone=was_alone(before, ended))))
        if ended.outcome is Outcome.OK and context_tokens is None:
            self._learn_default(link)
        if not self._closed:
            self._around.on_canary(self.target.slot, ended)
        if ended.outcome is not Outcome.OK or len(self._evidence.canaries) <= _NEWS:
            self._around.wake()  # one more good one can wait for the next tick

    def _heard(self, running: Running) -> None:
        before = self._evidence.canary
        self._update(lambda evidence: replace(evidence, canary=running))
        if before and running.last_token_s is not None:
            quiet_since_s = before.started_s if before.last_token_s is None else before.last_token_s
            if running.last_token_s - quiet_since_s > _SILENCE_S:
                self._around.wake()

    def _answered(self, change: Callable[[Evidence], Evidence]) -> None:
        now_s = time.monotonic()
        self._update(
            lambda before: replace(change(before), answered_s=now_s, refused_since_s=None, silent_since_s=None)
        )

    def _silent(self) -> None:
        now_s = time.monotonic()
        self._update(lambda before: replace(before, silent_since_s=before.silent_since_s or now_s))

    def _refused(self) -> None:
        now_s = time.monotonic()
        news = self._evidence.refused_since_s is None
        self._update(
            lambda before: replace(
                before, refused_since_s=now_s if news else before.refused_since_s, silent_since_s=None
            ),
        )
        if news:
            self._around.wake()

    # --- the log's thread --------------------------------------------------------------------------------------------

    def _line(self, text: bytes) -> None:
        now_s = time.monotonic()
        line = self._parser.line(text)
        self._around.on_line(line.source, line.result)
        running, before = self._parser.computing, self._evidence
        moved_s = before.progress_s if isinstance(line.event, Access) else now_s
        if running != before.running or (moved_s or 0.0) - (before.progress_s or 0.0) > _MOVES_S:
            self._update(lambda evidence: replace(evidence, progress_s=moved_s, running=running))
        if line.event is not None:
            event = line.event
            self._update(lambda before: after_line(before, event, now_s))
            with self._lock:
                is_users = self._own.is_users(line.event, now_s)
            self._count([(now_s, line.event)] if is_users else [])

    def _count(self, users: Sequence[Told]) -> None:
        """A canary that ends may say of lines that came a moment ago that they are users'."""
        for at_s, event in users:
            with self._lock:
                self._evidence = self._with_event(self._evidence, event, at_s)
            self._around.on_access(self.target.slot, event)

    def _with_event(self, before: Evidence, event: Event, now_s: float) -> Evidence:
        if isinstance(event, Timing):
            newest_s = max(now_s, before.answer_line_s or now_s)
            return replace(before, answer_line_s=newest_s) if event.answer_tokens else before
        if not isinstance(event, Access):
            return before
        self._sight.leave_out(event)
        if not event.is_inference:
            return before
        if event.status >= 500:
            return replace(before, error_lines_in_a_row=before.error_lines_in_a_row + 1)
        if event.ok and self._sight.is_answer(now_s):
            return replace(before, answer_line_s=now_s, error_lines_in_a_row=0)
        return before

    def _update(self, change: Callable[[Evidence], Evidence]) -> None:
        with self._lock:
            self._evidence = change(self._evidence)


def _with(before: Evidence, ended: Canary) -> Evidence:
    good = ended.outcome is Outcome.OK
    refused_s = ended.ended_s if before.refused_since_s is None else before.refused_since_s
    return replace(
        after_canary(before, ended),
        canary=None,
        canaries=(*before.canaries, ended)[-_CANARIES_MAX:],
        loaded=good or before.loaded,
        refused_since_s=refused_s if ended.outcome is Outcome.REFUSED else None if good else before.refused_since_s,
    )
