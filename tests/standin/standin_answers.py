"""How an Ollama of one version words its answers: the JSON of each API, field by field, and the errors."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass

RUNNER_DIED = "an error was encountered while running the model: unexpected EOF"
QUEUE_FULL = "server busy, please try again.  maximum pending requests exceeded"


class BadRequestError(Exception):
    """A request that is answered with 400 and this text."""


@dataclass(frozen=True)
class Profile:
    """A version as far as answers go: 0.5.11 stands for all before 0.9, 0.33.0-rc2 for all from 0.30 on."""

    version: str
    go_template: bool = False

    @property
    def _number(self) -> tuple[int, ...]:
        return tuple(int(part) for part in re.findall(r"\d+", self.version)[:3])

    @property
    def old(self) -> bool:
        return self._number < (0, 9)

    @property
    def new(self) -> bool:
        return self._number >= (0, 30)

    def not_found(self, name: str, *, chat: bool) -> str:
        return f'model "{name}" not found, try pulling it first' if self.old and chat else f"model '{name}' not found"

    def think(self, value: object) -> bool | str | None:
        """The `think` of a request. Raises BadRequestError."""
        levels = ["high", "medium", "low", *(["max"] if self.new else [])]
        if self.old or value is None:
            return None
        if isinstance(value, bool) or (isinstance(value, str) and value in levels):
            return value
        allowed = ", ".join(f'"{level}"' for level in levels) + ", true, or false)"
        if isinstance(value, str):
            raise BadRequestError(f'invalid think value: "{value}" (must be {allowed}')
        raise BadRequestError(f"think must be a boolean or string ({allowed}")


def compact(value: object) -> str:
    """JSON as Go writes it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def rfc3339(ns: int) -> str:
    seconds, rest = divmod(ns, 1_000_000_000)
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


@dataclass(frozen=True)
class Stats:
    reason: str
    total_ns: int
    load_ns: int
    prompt_tokens: int
    prompt_ns: int
    tokens: int
    eval_ns: int

    def fields(self, profile: Profile) -> dict[str, object]:
        """A duration of zero is left out; 0.5.11 counts milliseconds there, and one token takes no time."""
        step = 1_000_000 if profile.old else 1
        eval_ns = 0 if self.tokens == 1 and not profile.new else self.eval_ns // step * step
        values: dict[str, object] = {"total_duration": self.total_ns, "load_duration": self.load_ns}
        values["prompt_eval_count"] = self.prompt_tokens
        values["prompt_eval_duration"] = self.prompt_ns // step * step
        values.update({"eval_count": self.tokens, "eval_duration": eval_ns})
        return {key: value for key, value in values.items() if value}


class Chat:
    """The answers of /api/chat. `now_ns` is the clock at the time of the line."""

    media_type = "application/x-ndjson"
    media_type_whole = "application/json; charset=utf-8"

    def __init__(self, profile: Profile, model: str) -> None:
        self.profile = profile
        self.model = model

    def piece(self, now_ns: int, thinking: str, content: str) -> str:
        """A line of the stream; empty where this API has nothing to say."""
        if not thinking and not content:
            return ""
        return compact({**self._head(now_ns), **self._said(thinking, content), "done": False}) + "\n"

    def last(self, now_ns: int, stats: Stats) -> str:
        return self.whole(now_ns, "", "", stats) + "\n"

    def whole(self, now_ns: int, thinking: str, content: str, stats: Stats) -> str:
        done = self._done(stats.reason)
        return compact({**self._head(now_ns), **self._said(thinking, content), **done, **stats.fields(self.profile)})

    def empty(self, now_ns: int, reason: str) -> str:
        """The answer to a request that only loads or unloads."""
        return compact({**self._head(now_ns), **self._said("", ""), **self._done(reason)})

    def broken(self, text: str) -> str:
        """The end of a stream whose runner died."""
        return compact({"error": text}) + "\n"

    def error(self, status: int, text: str) -> str:
        return compact({"error": text})

    def _head(self, now_ns: int) -> dict[str, object]:
        return {"model": self.model, "created_at": rfc3339(now_ns)}

    def _said(self, thinking: str, content: str) -> dict[str, object]:
        return {"message": {"role": "assistant", "content": content, **({"thinking": thinking} if thinking else {})}}

    def _done(self, reason: str) -> dict[str, object]:
        done: dict[str, object] = {"done": True, "done_reason": reason}
        return dict(reversed(list(done.items()))) if self.profile.old else done


class Generate(Chat):
    """/api/generate: every token makes a line, also where the parser keeps it."""

    context: tuple[int, ...] = ()

    def piece(self, now_ns: int, thinking: str, content: str) -> str:
        return compact({**self._head(now_ns), **self._said(thinking, content), "done": False}) + "\n"

    def whole(self, now_ns: int, thinking: str, content: str, stats: Stats) -> str:
        done = {**self._done(stats.reason), "context": list(self.context)}
        return compact({**self._head(now_ns), **self._said(thinking, content), **done, **stats.fields(self.profile)})

    def _said(self, thinking: str, content: str) -> dict[str, object]:
        return {"response": content, **({"thinking": thinking} if thinking else {})}

    def _done(self, reason: str) -> dict[str, object]:
        return {"done": True, "done_reason": reason}


class OpenAi(Chat):
    """/v1/chat/completions."""

    media_type = "text/event-stream"
    media_type_whole = "application/json"

    def __init__(self, profile: Profile, model: str, number: int, *, usage: bool) -> None:
        super().__init__(profile, model)
        self._id = f"chatcmpl-{number}"
        self._usage = usage
        self._first = True

    def piece(self, now_ns: int, thinking: str, content: str) -> str:
        if not thinking and not content:
            return ""
        return self._event(now_ns, self._choice(self._delta(thinking, content), None))

    def last(self, now_ns: int, stats: Stats) -> str:
        delta = {} if self.profile.new else self._delta("", "")
        text = self._event(now_ns, self._choice(delta, stats.reason))
        if self._usage:
            text += self._event(now_ns, [], {"usage": self._counts(stats)})
        return text + "data: [DONE]\n\n"

    def whole(self, now_ns: int, thinking: str, content: str, stats: Stats) -> str:
        message = {"role": "assistant", "content": content, **({"reasoning": thinking} if thinking else {})}
        choice = {"index": 0, "message": message, "finish_reason": stats.reason}
        body = self._body("chat.completion", now_ns, [choice], {"usage": self._counts(stats)})
        return compact(body) + "\n"

    def broken(self, text: str) -> str:
        """The text is lost on this way."""
        self.model = ""
        return self._event(0, self._choice(self._delta("", ""), None))

    def error(self, status: int, text: str) -> str:
        kinds = {400: "invalid_request_error", 404: "not_found_error" if self.profile.new else "api_error"}
        return v1_error(text, kinds.get(status, "api_error")) + "\n"

    def _delta(self, thinking: str, content: str) -> dict[str, object]:
        role = {} if self.profile.new and not self._first else {"role": "assistant"}
        self._first = False
        return {**role, "content": content, **({"reasoning": thinking} if thinking else {})}

    def _choice(self, delta: dict[str, object], reason: str | None) -> list[object]:
        return [{"index": 0, "delta": delta, "finish_reason": reason}]

    def _counts(self, stats: Stats) -> dict[str, object]:
        total = stats.prompt_tokens + stats.tokens
        return {"prompt_tokens": stats.prompt_tokens, "completion_tokens": stats.tokens, "total_tokens": total}

    def _event(self, now_ns: int, choices: list[object], more: dict[str, object] | None = None) -> str:
        return f"data: {compact(self._body('chat.completion.chunk', now_ns, choices, more or {}))}\n\n"

    def _body(self, kind: str, now_ns: int, choices: list[object], more: dict[str, object]) -> dict[str, object]:
        head = {"id": self._id, "object": kind, "created": now_ns // 1_000_000_000, "model": self.model}
        return {**head, "system_fingerprint": "fp_ollama", "choices": choices, **more}


def v1_error(text: str, kind: str) -> str:
    return compact({"error": {"message": text, "type": kind, "param": None, "code": None}})
