"""One image on its way into an engine: bytes go in at one end, the engine takes them at its own pace at the other.

A thread carries them. Nothing here waits longer than the engine is alive: where nothing moves, the engine is asked
whether it is still there, so that a frozen one is an error and a busy one is not.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from appliance_builder.engine import Engine, EngineError, Said, Unpacking

_QUEUE_CHUNKS: Final = 8  # of 1 MiB at most
_ABORT_S: Final = 2


@dataclass(frozen=True, slots=True)
class Silence:
    """How long nothing may move before the engine is asked, and how often in a row it may fail to answer."""

    ask_after_s: float = 15
    answer_within_s: float = 15
    unanswered_max: int = 4


class EngineLoad:
    def __init__(self, engine: Engine, *, silence: Silence) -> None:
        self._engine = engine
        self._silence = silence
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._moved = 0  # grows with everything that the engine takes or says
        self._complete = self._aborted = self._ended = False
        self._error: BaseException | None = None
        self._said: list[str] = []
        self._unpacking: Callable[[Unpacking], None] | None = None
        self._thread = threading.Thread(target=self._run, name="engine-load", daemon=True)
        self._thread.start()

    def put(self, chunk: bytes, *, note: Callable[[str], None]) -> None:
        """Waits while the engine takes nothing; `note` is told why."""
        self._wait(lambda: len(self._chunks) < _QUEUE_CHUNKS, note)
        with self._changed:
            self._raise_if_over()
            self._chunks.append(chunk)
            self._changed.notify_all()

    def finish(self, *, note: Callable[[str], None], unpacking: Callable[[Unpacking], None]) -> list[str]:
        """Returns what the engine said, once it has said everything."""
        with self._changed:
            self._unpacking = unpacking
            self._complete = True
            self._changed.notify_all()
        self._wait(lambda: False, note)
        if self._error:
            raise self._error
        return self._said

    def abort(self) -> None:
        """Break the stream: an archive without its end is no image to any engine."""
        with self._changed:
            self._aborted = True
            self._chunks.clear()
            self._changed.notify_all()
        self._thread.join(_ABORT_S)  # a frozen engine holds it longer; then it ends with the engine or with us

    def _wait(self, done: Callable[[], bool], note: Callable[[str], None]) -> None:
        """Until `done`, or until the load is over."""
        unanswered, noted = 0, False
        while True:
            with self._changed:
                before = self._moved
                self._changed.wait_for(lambda: done() or self._ended or self._aborted, self._silence.ask_after_s)
                if done() or self._ended or self._aborted:
                    break
                moved = self._moved != before
            noted = not moved
            if moved or self._engine.answers(timeout_s=self._silence.answer_within_s):
                unanswered = 0
                note("" if moved else "the engine is busy")
                continue
            unanswered += 1
            note("the engine does not answer")
            if unanswered >= self._silence.unanswered_max:
                raise EngineError(
                    "the Docker Engine stopped answering while the image was loaded",
                    hint="see `systemctl status docker` and `journalctl -u docker`, then run the command again",
                )
        if noted:
            note("")

    def _raise_if_over(self) -> None:
        if self._error:
            raise self._error
        if self._ended or self._aborted:
            raise EngineError("the Docker Engine ended the load before it had the whole image")

    def _run(self) -> None:
        error: BaseException | None = None
        try:
            for event in self._engine.load(self._body()):
                self._heard(event)
        except _AbortedError:
            pass
        except BaseException as failure:  # noqa: BLE001 - raised again where it is waited for
            error = failure
        with self._changed:
            self._error, self._ended = error, True
            self._changed.notify_all()

    def _heard(self, event: Unpacking | Said) -> None:
        with self._changed:
            self._moved += 1
            unpacking = self._unpacking
        if isinstance(event, Said):
            self._said.append(event.text)
        elif unpacking:
            unpacking(event)

    def _body(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._chunks or self._complete or self._aborted)
                if self._aborted:
                    raise _AbortedError
                if not self._chunks:
                    return
                chunk = self._chunks.popleft()
                self._moved += 1
                self._changed.notify_all()
            yield chunk


class _AbortedError(Exception):
    """Breaks off the request's body; never leaves this module."""
