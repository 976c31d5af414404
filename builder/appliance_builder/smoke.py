"""The smoke test: the image started for real, read-only and without rights, and a chat streamed out of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass

from appliance_builder.http import Http
from appliance_builder.network_errors import NetworkError
from appliance_image.chat import Decoder, Done
from appliance_image.errors import ApplianceError

_LOAD_S = 600.0  # the headers come with the first token
_DISK_BYTES_PER_S = 100e6  # a slow one, from which a large model takes longer
_START_S = 60.0
_POLL_S = 0.2


class SmokeError(ApplianceError):
    pass


@dataclass(frozen=True, slots=True)
class Spoken:
    """What the model said to one question."""

    thinking: str
    content: str
    done: Done
    first_token_s: float


def wait_until_up(http: Http, url: str, *, alive: Callable[[], bool]) -> None:
    """Until the server answers; gives up when its container ends."""
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s:
        try:
            with http.exchange("GET", f"{url}/api/version", doing="waiting for the server", read_s=5) as answer:
                if answer.status == 200:
                    return
        except NetworkError:
            if not alive():
                raise SmokeError("the container ended at once", hint="see what it said above") from None
        time.sleep(_POLL_S)
    raise SmokeError(f"the server did not answer within {_START_S:.0f} s", hint="see what it said above")


def load_s(weights_bytes: int) -> float:
    """How long a model may take to its first token."""
    return max(_LOAD_S, weights_bytes / _DISK_BYTES_PER_S)


def ask(
    http: Http, url: str, *, model: str, question: str, told: Callable[[str, str], None], silent_s: float
) -> Spoken:
    """Stream one chat with `think` unset; `told` gets every piece as (thinking, content) as it comes."""
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": question}]}).encode()
    asked_s = time.monotonic()
    first_s: float | None = None
    thinking, content, done = "", "", None
    decoder = Decoder()
    headers = {"content-type": "application/json"}
    with http.exchange(
        "POST", f"{url}/api/chat", doing="streaming a chat", headers=headers, body=body, read_s=silent_s
    ) as answer:
        if answer.status != 200:
            said = answer.body(limit_bytes=65536).decode(errors="replace").strip()
            raise SmokeError(
                f"the chat was answered with {answer.status}: {said}", hint="see `docker logs` of the container"
            )
        for chunk in answer.chunks():
            first_s = first_s or time.monotonic()
            for event in decoder.feed(chunk):
                if isinstance(event, Done):
                    done = event
                    continue
                thinking, content = thinking + event.thinking, content + event.content
                told(event.thinking, event.content)
    decoder.close()
    if done is None or first_s is None:
        raise SmokeError("the answer was empty", hint="see `docker logs` of the container")
    return Spoken(thinking, content, done, first_s - asked_s)


def judge(spoken: Spoken, *, must_think: bool) -> None:
    if must_think and not spoken.thinking:
        raise SmokeError(
            "the model answered without thinking, though its template is patched",
            hint="the base may be older than Ollama 0.12.4, or the model ignores the tag; `appliance inspect IMAGE`",
        )
    if "<think>" in spoken.content or "</think>" in spoken.content:
        raise SmokeError(
            "the server does not split the thinking from the answer",
            hint="the base may be older than Ollama 0.12.4; rebase onto a newer one: `appliance rebase IMAGE --base …`",
        )
