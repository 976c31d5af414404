"""Users of a host, who add up what the servers tell them, and the same sums as the agent's metrics have them."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import re
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from agenthost import METRICS_PORT, MODEL, AgentHost
from scraped import Series, series

_TIMING = re.compile(r"print_timing: .*\| (prompt )?\s*eval time = +([\d.]+) ms / +(\d+) tokens")
QUESTIONS = ("hi", "tell me a long story about nothing", "你好")


@dataclass
class Sums:
    """Of answers that came to their end. The lock makes it safe for many users."""

    requests: Counter[tuple[int, str, int]] = field(default_factory=Counter)  # slot, api, status
    answer_tokens: Counter[int] = field(default_factory=Counter)  # by slot
    prompt_tokens: Counter[int] = field(default_factory=Counter)  # with those from the cache
    broken: int = 0  # answers without a last line
    figures: list[tuple[int, float, float]] = field(
        default_factory=list
    )  # tokens, milliseconds of answer and of prompt
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, slot: int, api: str, status: int, last: dict[str, Any]) -> None:
        with self._lock:
            self.requests[slot, api, status] += 1
            self.answer_tokens[slot] += int(last.get("eval_count", 0))
            self.prompt_tokens[slot] += int(last.get("prompt_eval_count", 0))
            if "eval_count" in last:
                spent = [last.get(key, 0) / 1e6 for key in ("eval_duration", "prompt_eval_duration")]
                self.figures.append((int(last["eval_count"]), spent[0], spent[1]))

    def of_users(self, log: str) -> list[tuple[int, int]]:
        """Tokens of prompt and answer of those timings in a log that have the figures of an answer in here."""
        lines = [(*prompt, *answer) for prompt, answer in pairwise(_TIMING.findall(log)) if prompt[0] and not answer[0]]
        open_figures, found = list(self.figures), list[tuple[int, int]]()
        for _, prompt_ms, prompt_tokens, _, answer_ms, answer_tokens in lines:
            spent = (int(answer_tokens), float(answer_ms), float(prompt_ms))
            same = [each for each in open_figures if each[0] == spent[0] and _is_near(each, spent)]
            if same:
                open_figures.remove(same[0])
                found.append((int(prompt_tokens), int(answer_tokens)))
        return found

    def add_broken(self) -> None:
        with self._lock:
            self.broken += 1


def ask(host: AgentHost, slot: int, body: dict[str, Any], sums: Sums, *, api: str = "chat") -> bool:
    """One request, to its end; not counted if the connection broke off. Returns whether anybody answered."""
    connection = http.client.HTTPConnection("127.0.0.1", 8880 + slot)
    with contextlib.closing(connection):
        try:
            connection.sock = host.engine.connect(8880 + slot, timeout_s=120)
            connection.request("POST", f"/api/{api}", json.dumps({"model": MODEL, **body}))
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException):
            return False
        try:
            lines = answer.read().splitlines()
        except (OSError, http.client.HTTPException):
            sums.add_broken()
            return True
        last = json.loads(lines[-1]) if lines else {}
        sums.add(slot, f"ollama_{api}", answer.status, last)
        if answer.status == 200 and not last.get("done"):
            sums.add_broken()
        return True


@contextmanager
def users(host: AgentHost, sums: Sums, *, number: int, longest: int = 14) -> Iterator[list[Future[int]]]:
    """They chat until the block ends, most of them as briefly as a canary does, and finish what they have begun."""
    over = threading.Event()

    def talk(seed: int) -> int:
        chance, said = random.Random(seed), 0
        while not over.wait(chance.random() * 0.05):
            body: dict[str, Any] = {
                "messages": [{"role": "user", "content": chance.choice(QUESTIONS)}],
                "options": {"num_predict": chance.choice([1, 2, 7, 8, 8, 9, longest])},
                "stream": chance.random() < 0.7,
            }
            if chance.random() < 0.1:
                body["model"] = "nobody:1b"
            said += ask(host, seed % host.count, body, sums)
        return said

    with ThreadPoolExecutor(number) as pool:
        try:
            yield [pool.submit(talk, seed) for seed in range(number)]
        finally:
            over.set()


def scrape(host: AgentHost) -> Series:
    answer = host.engine.http_get(METRICS_PORT, "/metrics", timeout_s=10)
    assert answer.status == 200
    return series(answer.body.decode())


def by_slot(found: Series, name: str) -> Counter[int]:
    return Counter(
        {
            int(dict(labels)["gpu"]): int(value)
            for (known, labels), value in found.items()
            if known == f"appliance_{name}"
        }
    )


def requests_of(found: Series) -> Counter[tuple[int, str, int]]:
    rows = ((dict(labels), value) for (name, labels), value in found.items() if name == "appliance_requests_total")
    return +Counter({(int(of["gpu"]), of["api"], int(of["code"])): int(value) for of, value in rows})


def value_of(found: Series, name: str, **labels: str) -> float | None:
    return found.get((f"appliance_{name}", tuple(sorted(labels.items()))))


def lines_read(found: Series) -> dict[str, float]:
    rows = ((dict(labels), value) for (name, labels), value in found.items() if name == "appliance_log_lines_total")
    return {f"{of['source']} {of['result']}": value for of, value in rows}


def _is_near(one: tuple[int, float, float], other: tuple[int, float, float]) -> bool:
    return all(abs(ours - theirs) < 0.006 for ours, theirs in zip(one[1:], other[1:], strict=True))


def probes(host: AgentHost) -> int:
    return by_slot(scrape(host), "probe_attempts_total").total()
