"""The canary: one streaming chat, reported as it grows. However it ends is an outcome, never an exception.

It has no deadline of its own: who started it sees how long it waits and may cancel the link. It sends nothing that makes
Ollama load the model anew, and no keep_alive, because that would stay in force after it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from appliance_agent.access_log import MARK
from appliance_agent.evidence import Canary, Outcome, Running
from appliance_agent.http import Answer, Broken, ExchangeError, Link
from appliance_image.chat import ChatError, Decoder, Done, Piece

_GATHER_S: Final = 0.1  # after some tokens, until the next are looked at: one wake for several

Progress = Callable[[Running], None]
_OUTCOMES: Final = {
    Broken.REFUSED: Outcome.REFUSED,
    Broken.TIMEOUT: Outcome.TIMEOUT,
    Broken.CANCELLED: Outcome.TIMEOUT,
    Broken.CUT: Outcome.STREAM_ERROR,
}


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    tokens: int
    context_tokens: int | None = None  # None: whatever the server gives


def ask(link: Link, question: Question, *, progress: Progress) -> Canary:
    talk = _Talk(time.monotonic(), progress)
    body = {
        "model": link.server.model,
        "messages": [{"role": "user", "content": question.prompt}],
        "options": _options(question),
        "stream": True,
    }
    try:
        with link.exchange(f"/api/chat?{MARK}", body, silence_s=None) as answer:
            if answer.status != 200:
                return talk.ended(*failure(answer))
            return talk.heard(answer)
    except ExchangeError as error:
        return talk.ended(outcome_of(error), str(error))
    except ChatError as error:
        return talk.ended(Outcome.STREAM_ERROR, error.message)
    except RecursionError:
        return talk.ended(Outcome.STREAM_ERROR, "not a line of a chat stream: it is nested without end")


def _options(question: Question) -> dict[str, int]:
    context = {"num_ctx": question.context_tokens} if question.context_tokens else {}
    return {"num_predict": question.tokens, **context}


def outcome_of(error: ExchangeError) -> Outcome:
    return _OUTCOMES[error.how]


def failure(answer: Answer) -> tuple[Outcome, str]:
    """Of a status that is not 200, with the server's own words."""
    text = answer.body(limit_bytes=64 * 1024).decode("utf-8", "replace").strip()
    try:
        words = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError, RecursionError):
        words = text
    outcome = Outcome.SERVER_BUSY if answer.status == 503 else Outcome.HTTP_ERROR
    return outcome, f"status {answer.status}: {words[:300]}"


class _Talk:
    """What has been heard so far."""

    def __init__(self, started_s: float, progress: Progress) -> None:
        self._running = Running(started_s)
        self._progress = progress
        progress(self._running)

    def heard(self, answer: Answer) -> Canary:
        """Raises ChatError and ExchangeError."""
        decoder = Decoder()
        done: Done | None = None
        for chunk in answer.chunks():
            pieces = 0
            for event in decoder.feed(chunk):
                if isinstance(event, Piece):
                    pieces += 1
                else:
                    done = event
            if pieces:
                self._spoken(pieces)
            if pieces and done is None:
                time.sleep(_GATHER_S)
        decoder.close()
        if done is None or (self._running.pieces == 0 and done.answer_tokens < 2):  # the end token counts as one
            return self.ended(Outcome.NO_TOKENS, "the answer is empty", done)
        if self._running.pieces == 0:
            self._spoken(1)  # tokens without a text of their own, such as tags
        return self.ended(Outcome.OK, "", done)

    def ended(self, outcome: Outcome, detail: str, done: Done | None = None) -> Canary:
        running = self._running
        first_s = running.first_token_s
        return Canary(
            started_s=running.started_s,
            ended_s=time.monotonic(),
            outcome=outcome,
            detail=detail,
            first_token_s=None if first_s is None else first_s - running.started_s,
            tokens=done.answer_tokens if done else 0,
            tokens_per_s=done.tokens_per_s if done else None,
            answer_s=done.answer_s if done else None,
            prompt_s=done.prompt_s if done else 0.0,
            load_s=done.load_s if done else 0.0,
        )

    def _spoken(self, pieces: int) -> None:
        before, now_s = self._running, time.monotonic()
        first_s = now_s if before.first_token_s is None else before.first_token_s
        self._running = Running(before.started_s, first_s, now_s, before.pieces + pieces)
        self._progress(self._running)
