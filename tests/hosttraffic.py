"""Users of a host, who add up what the servers tell them, and the same sums as the agent's metrics have them."""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from agenthost import METRICS_PORT, MODEL, AgentHost
from scraped import Series, series

QUESTIONS = ("hi", "tell me a long story about nothing", "你好")


@dataclass
class Sums:
    """Of answers that came to their end. The lock makes it safe for many users."""

    requests: Counter[tuple[int, str, int]] = field(default_factory=Counter)  # slot, api, status
    answer_tokens: Counter[int] = field(default_factory=Counter)  # by slot
    prompt_tokens: Counter[int] = field(default_factory=Counter)  # with those from the cache
    broken: int = 0  # answers that never ended
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, slot: int, api: str, status: int, last: dict[str, Any]) -> None:
        with self._lock:
            self.requests[slot, api, status] += 1
            self.answer_tokens[slot] += int(last.get("eval_count", 0))
            self.prompt_tokens[slot] += int(last.get("prompt_eval_count", 0))

    def add_broken(self) -> None:
        with self._lock:
            self.broken += 1


def ask(host: AgentHost, slot: int, body: dict[str, Any], sums: Sums, *, api: str = "chat") -> bool:
    """One request, to its end; counted unless it broke off. Returns whether anybody answered."""
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
        if answer.status == 200 and not last.get("done"):
            sums.add_broken()
        else:
            sums.add(slot, f"ollama_{api}", answer.status, last)
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


def probes(host: AgentHost) -> int:
    return by_slot(scrape(host), "probe_attempts_total").total()
