"""What the demo prints: steps with the time they took, commands that could be typed, changes as they come, a chat."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import sys
import textwrap
import time
from collections.abc import Generator, Iterable, Sequence

from demo_agent import Change, is_ready

from appliance_image.chat import Done, Event

_WIDEST = 100


class Steps:
    """Prints what happens and remembers how long it took."""

    def __init__(self) -> None:
        self._taken: list[tuple[str, float]] = []

    @contextlib.contextmanager
    def step(self, what: str) -> Generator[None, None, None]:
        say(f"\n{styled(f'── {what}', '1')}")
        began_s = time.monotonic()
        yield
        self._taken.append((what, time.monotonic() - began_s))

    def table(self) -> str:
        rows = [*self._taken, ("all of it", sum(seconds for _, seconds in self._taken))]
        width = max(len(what) for what, _ in rows)
        return "\n".join(f"  {what.ljust(width)}  {seconds:6.1f} s" for what, seconds in rows)


def say(text: str, *, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def styled(text: str, code: str) -> str:
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return f"\x1b[{code}m{text}\x1b[0m" if wanted else text


def columns() -> int:
    return min(shutil.get_terminal_size((_WIDEST, 24)).columns, _WIDEST)


def tell_facts(real: Sequence[str], simulated: Sequence[str], advice: str) -> None:
    for label, things in (("real", "; ".join(real)), ("simulated", "; ".join(simulated)), ("note", advice)):
        if things:
            indent = f"{label:>11}: "
            say(textwrap.fill(things, columns(), initial_indent=indent, subsequent_indent=" " * len(indent)))


def tell_command(words: Sequence[str]) -> None:
    """In lines that fit and can be pasted."""
    lines = ["$"]
    for word in map(shlex.quote, words):
        if len(lines[-1]) + len(word) + 3 > columns() and lines[-1].strip():
            lines[-1] += " \\"
            lines.append("   ")
        lines[-1] += f" {word}"
    say(styled("\n".join(lines), "36"))


def tell_changes(changes: Iterable[Change]) -> None:
    for change in changes:
        state, because = change.slot.state, change.slot.because or ""
        line = f"  {change.after_s:4.1f} s  slot {change.slot.slot}  {state:<9}  "
        room = columns() - len(line)
        told = because if len(because) <= room else because[: room - 2].rstrip() + ".."
        say(line.replace(state, styled(state, "32" if is_ready(change.slot) else "33"), 1) + told)


def tell_chat(events: Iterable[Event]) -> None:
    """Word by word, thinking and answer apart."""
    asked_s, first_s, part = time.monotonic(), 0.0, ""
    for event in events:
        first_s = first_s or time.monotonic()
        if isinstance(event, Done):
            _tell_end(event, first_s - asked_s)
            continue
        for name, text in (("thinking", event.thinking), ("answer", event.content)):
            if text:
                # The thinking begins with the end of the line of its tag.
                new = "" if part == name else f"{chr(10) if part else ''}{name:>8}: "
                say(new + (text.lstrip() if new else text), end="")
                part = name


def _tell_end(done: Done, first_token_s: float) -> None:
    rate = f", {done.tokens_per_s:.0f} tokens/s" if done.tokens_per_s else ""
    say(f"\n{'':8}  first token after {first_token_s:.2f} s, {done.answer_tokens} tokens{rate}, ended by {done.reason}")
