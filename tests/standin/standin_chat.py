"""A chat from the request to its last byte: load, wait for a place, speak the script, misbehave where told to."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import standin_show
from standin_answers import QUEUE_FULL, RUNNER_DIED, BadRequestError, Chat, Generate, Profile, Stats
from standin_engine import POLL_S, Engine, LoadError, QueueFullError, Runner, Wanted
from standin_settings import exit_now, parse_duration
from standin_speech import Plan, Splitter, Turn, Voice, pieces_of, plan
from standin_store import ManifestError, Model, Store, as_list, as_object

if TYPE_CHECKING:
    from collections.abc import Iterator

JSON = "application/json; charset=utf-8"


class AnswerError(Exception):
    """A request that ends with this status and text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class RunnerDiedError(Exception):
    """The runner is gone in mid-stream."""


class StreamCutError(Exception):
    """The stream ends, as if all were said, before its last line."""


class Wire(Protocol):
    """What a chat needs of the connection to its client."""

    started_ns: int

    def watch(self) -> None:
        """Raises when the client has left."""

    def whole(self, status: int, media_type: str, text: str) -> None: ...

    def chunk(self, media_type: str, text: str, *, ends: bool = False) -> None:
        """A piece of a stream; the headers go out with the first one."""

    @property
    def is_streaming(self) -> bool: ...


class Said:
    """What of an answer is said so far."""

    def __init__(self, dialect: Chat, *, stream: bool) -> None:
        self.dialect = dialect
        self.stream = stream
        self.thinking = ""
        self.content = ""

    def add(self, thinking: str, content: str) -> str:
        self.thinking += thinking
        self.content += content
        return self.dialect.piece(time.time_ns(), thinking, content)


@dataclass(frozen=True)
class Request:
    """A chat request, whatever API it came by."""

    dialect: Chat
    turns: tuple[Turn, ...]
    think: bool | str | None
    keep_alive_ns: int | None
    num_predict: int
    num_ctx: int
    stream: bool
    render_only: bool
    chat: bool  # and not generate

    @classmethod
    def parse(cls, dialect: Chat, body: dict[str, object], turns: list[Turn], *, chat: bool, num_ctx: int) -> Request:
        """Raises AnswerError."""
        keep_alive, options = body.get("keep_alive"), as_object(body.get("options"))
        try:
            return cls(
                dialect,
                tuple(turns),
                dialect.profile.think(body.get("think")),
                None if keep_alive is None else parse_duration(keep_alive),
                int(str(options.get("num_predict", -1))),
                int(str(options.get("num_ctx", num_ctx))),
                body.get("stream") is not False,
                bool(body.get("_debug_render_only")) and not dialect.profile.old,
                chat,
            )
        except (BadRequestError, ValueError) as error:
            raise AnswerError(400, str(error)) from error


def find(store: Store, profile: Profile, name: str, *, chat: bool) -> Model:
    """Raises AnswerError."""
    try:
        model = store.find(name)
    except ManifestError as error:
        raise AnswerError(500, str(error)) from error
    if model is None:
        raise AnswerError(404, profile.not_found(name, chat=chat))
    return model


def turns_of(messages: object) -> list[Turn]:
    turns = (as_object(message) for message in as_list(messages))
    return [Turn(str(turn.get("role", "user")), str(turn.get("content") or "")) for turn in turns]


class Conversation:
    def __init__(self, store: Store, engine: Engine, wire: Wire) -> None:
        self._store = store
        self._engine = engine
        self._wire = wire
        self._profile = engine.settings.profile

    def answer(self, request: Request) -> None:
        """Raises AnswerError as long as no header is sent, and what `watch` raises."""
        engine, name = self._engine, request.dialect.model
        engine.counts["requests"] += 1
        model = find(self._store, self._profile, name, chat=request.chat)
        voice = standin_show.voice(model, name)
        self._check_abilities(voice, model, request)
        wanted = Wanted(model, request.num_ctx, request.keep_alive_ns)
        if not request.turns and request.keep_alive_ns == 0:
            engine.unload(wanted.key)
            self._wire.whole(200, JSON, request.dialect.empty(time.time_ns(), "unload"))
        elif request.turns and engine.faults.current().name == "error_500":
            raise AnswerError(500, engine.faults.current().message or RUNNER_DIED)
        elif request.render_only:
            speech = plan(voice, self._profile, list(request.turns), request.think)
            self._wire.whole(200, JSON, standin_show.rendered(name, speech, time.time_ns()))
        else:
            self._load_and_speak(request, wanted, voice)

    def _check_abilities(self, voice: Voice, model: Model, request: Request) -> None:
        if self._profile.old:
            if model.weights is None or not model.weights.path.exists():
                raise AnswerError(404, self._profile.not_found(voice.name, chat=request.chat))
            return
        if not standin_show.is_readable(model):
            raise AnswerError(400, f'"{voice.name}" does not support {"chat" if request.chat else "generate"}')
        if request.think and "thinking" not in voice.capabilities(self._profile):
            raise AnswerError(400, f'"{voice.name}" does not support thinking')

    def _load_and_speak(self, request: Request, wanted: Wanted, voice: Voice) -> None:
        try:
            with self._engine.using(wanted, self._wire.watch) as runner:
                if runner.fresh and self._profile.new:
                    standin_show.log_template(voice, self._profile, wanted.model.name.full)
                runner.fresh = False
                load_ns = time.monotonic_ns() - self._wire.started_ns
                if isinstance(request.think, str) and not self._profile.new:
                    raise AnswerError(400, f'think value "{request.think}" is not supported for this model')
                if not request.turns:
                    self._wire.whole(200, JSON, request.dialect.empty(time.time_ns(), "load"))
                    return
                with self._engine.speaking(runner, self._wire.watch):
                    self._speak(request, runner, voice, load_ns)
        except QueueFullError as error:
            raise AnswerError(503, QUEUE_FULL) from error
        except LoadError as error:
            raise AnswerError(500, str(error)) from error

    def _speak(self, request: Request, runner: Runner, voice: Voice, load_ns: int) -> None:
        self._engine.counts["chats"] += 1
        task = self._engine.counts["chats"]
        if self._profile.new:
            standin_show.log_launch(task)
        try:
            self._say(request, runner, voice, load_ns, task)
        finally:
            if self._profile.new:
                standin_show.log_release(task)

    def _say(self, request: Request, runner: Runner, voice: Voice, load_ns: int, task: int) -> None:
        speech = plan(voice, self._profile, list(request.turns), request.think)
        said = Said(request.dialect, stream=request.stream)
        begun_ns = time.monotonic_ns()
        try:
            tokens, first_ns = self._say_pieces(request, runner, speech, said, voice)
        except RunnerDiedError:
            runner.dead = True
            self._end_broken(said)
            return
        except StreamCutError:
            self._wire.chunk(said.dialect.media_type, "", ends=True)
            return
        now_ns = time.monotonic_ns()
        reason = "length" if 0 < request.num_predict <= tokens else "stop"
        stats = Stats(
            reason,
            now_ns - self._wire.started_ns,
            load_ns,
            speech.prompt_tokens,
            first_ns - begun_ns,
            tokens + (reason == "stop"),  # the end token counts
            now_ns - first_ns,
        )
        self._finish(said, speech, stats, task)

    def _say_pieces(self, request: Request, runner: Runner, speech: Plan, said: Said, voice: Voice) -> tuple[int, int]:
        """How many tokens were said, and when the first one was."""
        splitter = Splitter(speech.splits, trims=speech.trims)
        tokens, first_ns = 0, time.monotonic_ns()
        for piece in _without_end(speech, voice) if voice.endless else iter(speech.pieces):
            if 0 < request.num_predict <= tokens:
                break
            self._next_token(runner, tokens)
            first_ns = first_ns if tokens else time.monotonic_ns()
            text = said.add(*splitter.feed(piece))
            if self._engine.faults.current().hits("garbage", tokens):
                text = "\x00 no JSON at all\n"
            tokens += 1
            self._engine.counts["tokens"] += 1
            if said.stream and text:
                self._wire.chunk(said.dialect.media_type, text)
        return tokens, first_ns

    def _next_token(self, runner: Runner, index: int) -> None:
        """Wait as long as a token takes, and longer, or for ever, where a fault says so."""
        engine = self._engine
        fault = engine.faults.current()
        slow = fault.factor if fault.name in {"slow", "cpu_fallback"} else 1.0
        due_s = time.monotonic() + engine.settings.token_s * slow
        while True:
            self._wire.watch()
            fault = engine.faults.current()
            left_s = due_s - time.monotonic()
            stuck = engine.is_frozen(runner) or fault.hits("stall_mid_stream", index)
            stuck = stuck or (fault.name == "hang_before_first_token" and not index)
            if fault.name == "spin" and index >= (fault.after or 0):
                spin(POLL_S)
                continue
            if left_s <= 0 and not stuck:
                break
            time.sleep(min(POLL_S, left_s) if left_s > 0 else POLL_S)
        if fault.hits("die", index):
            exit_now(fault.code)
        if fault.hits("error_mid_stream", index):
            raise RunnerDiedError
        if fault.hits("eof_without_done", index):
            raise StreamCutError

    def _finish(self, said: Said, speech: Plan, stats: Stats, task: int) -> None:
        dialect, now_ns = said.dialect, time.time_ns()
        self._engine.counts["chats_done"] += 1
        if isinstance(dialect, Generate):
            dialect.context = tuple((speech.prompt + said.content).encode())
        if said.stream:
            self._wire.chunk(dialect.media_type, dialect.last(now_ns, stats), ends=True)
        else:
            text = dialect.whole(now_ns, said.thinking, said.content, stats)
            self._wire.whole(200, dialect.media_type_whole, text)
        if self._profile.new:
            standin_show.log_timing(stats, task)

    def _end_broken(self, said: Said) -> None:
        text = self._engine.faults.current().message or RUNNER_DIED
        if not self._wire.is_streaming:
            raise AnswerError(500, text)
        self._wire.chunk(said.dialect.media_type, said.dialect.broken(text), ends=True)


def spin(duration_s: float) -> None:
    """Keep a processor busy, as a server that computes in vain does."""
    end_s = time.monotonic() + duration_s
    while time.monotonic() < end_s:
        pass


def _without_end(speech: Plan, voice: Voice) -> Iterator[str]:
    yield from speech.pieces
    while True:
        yield from pieces_of(voice.script)
