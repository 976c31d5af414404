"""What is counted of users' traffic, in how many series, and that no line of a log can change that."""

from __future__ import annotations

import random
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from scraped import series

from appliance_agent import access_log, catalogue_slots
from appliance_agent.access_log import (
    Access,
    Event,
    LoadFailed,
    ModelLoad,
    Offload,
    Parser,
    Result,
    Source,
    Timing,
    Truncated,
)
from appliance_agent.catalogue_slots import APIS, CODES, CODES_SEEN
from appliance_agent.traffic import Traffic

RECORDED = Path(__file__).parent / "recordings" / "logs"
API_COUNT = len(set(APIS.values()))


def value(traffic: Traffic, name: str, **labels: str) -> float | None:
    text = "".join(samples for _, samples in traffic.texts())
    return series(text).get((f"appliance_{name}", tuple(sorted(labels.items()))))


def lines(traffic: Traffic) -> list[str]:
    return [line for _, samples in traffic.texts() for line in samples.splitlines()]


def counted(*events: Event) -> Traffic:
    traffic = Traffic()
    traffic.keep([0])
    for event in events:
        traffic.event(0, event)
    return traffic


def request(status: int = 200, path: str = "/api/chat", method: str = "POST", seconds: float = 1.0) -> Access:
    return Access(status, seconds, "10.0.0.7", method, path)


def test_the_paths_are_those_of_inference() -> None:
    assert APIS.keys() == access_log.INFERENCE


@pytest.mark.parametrize(("path", "api"), APIS.items())
def test_a_request_is_counted_by_api_and_status(path: str, api: str) -> None:
    traffic = counted(
        request(200, path), request(200, path), request(503, path), request(404, path), request(418, path)
    )
    found = {
        code: value(traffic, "requests_total", gpu="0", api=api, code=code) for code in ("200", "503", "404", "other")
    }

    assert found == {"200": 2, "503": 1, "404": 1, "other": 1}
    assert value(traffic, "requests_total", gpu="0", api=api, code="500") == 0
    assert value(traffic, "requests_total", gpu="0", api=api, code="418") is None


@pytest.mark.parametrize(
    "event", [request(path="/api/tags"), request(method="GET"), request(405, method="PUT"), request(path="/")]
)
def test_what_is_no_inference_is_not_counted(event: Event) -> None:
    assert lines(counted(event)) == lines(counted())


def test_the_time_of_a_request_is_that_of_a_good_answer() -> None:
    traffic = counted(request(seconds=3.5), request(503, seconds=0.001), request(499, seconds=100.0))

    assert value(traffic, "request_duration_seconds_count", gpu="0") == 1
    assert value(traffic, "request_duration_seconds_sum", gpu="0") == 3.5
    assert value(traffic, "request_duration_seconds_bucket", gpu="0", le="2.5") == 0
    assert value(traffic, "request_duration_seconds_bucket", gpu="0", le="5.0") == 1


def test_the_first_token_comes_with_the_prompt_and_the_others_share_the_time() -> None:
    """As llama-server's own line says: 8000 tokens in 1486.17 ms are 5382.28 a second, which is 7999 of them."""
    traffic = counted(Timing(1, 0.00027, 8000, 1.48617), Timing(7, 0.5, 1, 0.0))

    assert value(traffic, "time_per_output_token_seconds_count", gpu="0") == 1
    assert value(traffic, "time_per_output_token_seconds_sum", gpu="0") == pytest.approx(1 / 5382.28, rel=1e-5)
    assert value(traffic, "generated_tokens_total", gpu="0") == 8001
    assert value(traffic, "generation_seconds_total", gpu="0") == 1.48617
    assert value(traffic, "prompt_tokens_total", gpu="0") == 8
    assert value(traffic, "prompt_processing_seconds_total", gpu="0") == 0.50027


def test_loads_and_truncations_are_counted() -> None:
    traffic = counted(
        ModelLoad(7.25), LoadFailed("x"), Truncated(5000, 4096), Truncated(), Offload(33, 65), Offload(64, 65)
    )

    assert value(traffic, "model_load_seconds_sum", gpu="0") == 7.25
    assert value(traffic, "model_load_failures_total", gpu="0") == 1
    assert value(traffic, "prompts_truncated_total", gpu="0") == 2
    assert (value(traffic, "model_gpu_layers", gpu="0"), value(traffic, "model_layers", gpu="0")) == (64, 65)


def test_a_bound_belongs_to_its_bucket() -> None:
    assert value(counted(request(seconds=0.3)), "request_duration_seconds_bucket", gpu="0", le="0.3") == 1


def test_series_are_there_from_the_first_moment_and_go_with_the_slot() -> None:
    traffic = Traffic()
    before = lines(traffic)
    traffic.keep([0, 3])
    both = lines(traffic)
    traffic.event(3, request())
    traffic.keep([0])
    one = lines(traffic)
    traffic.keep([0, 3])

    assert len(before) == len(Source) * len(Result)
    assert {match[1] for line in both if (match := re.search(r'gpu="(\d)"', line))} == {"0", "3"}
    assert not any('gpu="3"' in line for line in one)
    assert value(traffic, "requests_total", gpu="3", api="ollama_chat", code="200") == 0
    assert sum('api="' in line for line in one) == API_COUNT * len(CODES)


def test_nothing_is_rendered_anew_before_something_changed() -> None:
    traffic = counted(request())
    first = traffic.texts()

    assert traffic.texts() is first
    traffic.line(Source.GIN, Result.MATCHED)
    assert traffic.texts() is not first


def test_what_prometheus_client_renders_is_the_same() -> None:
    traffic = counted(request(), request(404), Timing(7, 0.5, 40, 1.0), ModelLoad(2.0), Offload(1, 2))
    registry = CollectorRegistry()
    registry.register(traffic)

    assert series(generate_latest(registry).decode()) == series("".join(text for _, text in traffic.texts()))


def test_many_threads_lose_nothing() -> None:
    traffic = Traffic()
    stop = threading.Event()

    def tell(slot: int) -> None:
        for _ in range(500):
            traffic.event(slot, Timing(1, 0.0, 3, 0.1))
            traffic.line(Source.RUNNER, Result.MATCHED)

    def scrape() -> None:
        while not stop.is_set():
            lines(traffic)

    with ThreadPoolExecutor(5) as pool:
        scraper = pool.submit(scrape)
        for told in [pool.submit(tell, slot) for slot in (0, 0, 1, 1)]:
            told.result()
        stop.set()
        scraper.result()

    assert [value(traffic, "generated_tokens_total", gpu=slot) for slot in "01"] == [3000, 3000]
    assert value(traffic, "log_lines_total", source="runner", result="matched") == 2000


@pytest.mark.parametrize("path", sorted(RECORDED.glob("*.log")), ids=lambda path: str(path.stem))
def test_recorded_logs_are_counted_as_a_reader_would(path: Path) -> None:
    """Against the text itself, line by line, with other eyes than the parser's."""
    text, traffic = path.read_text(), Traffic()
    traffic.keep([0])
    read(traffic, text.encode().splitlines())
    gin = re.findall(
        r'^\[GIN\] .*? \| (\d+) \|.*\| POST +"(/api/chat|/api/generate|/v1/chat/completions)"$', text, re.MULTILINE
    )
    tokens = re.findall(r" (prompt eval|     eval) time = .*? / +(\d+) tokens", text)

    for (code, where), times in Counter(gin).items():
        shown = code if code in (*CODES, *CODES_SEEN) else "other"
        assert value(traffic, "requests_total", gpu="0", api=APIS[where], code=shown) == times
    assert value(traffic, "generated_tokens_total", gpu="0") == sum(
        int(n) for kind, n in tokens if "prompt" not in kind
    )
    assert value(traffic, "prompt_tokens_total", gpu="0") == sum(int(n) for kind, n in tokens if "prompt" in kind)
    assert sum(
        value(traffic, "log_lines_total", source=source.value, result=result.value) or 0
        for source in Source
        for result in Result
    ) == len(text.splitlines())


def read(traffic: Traffic, raw: list[bytes], slot: int = 0, parser: Parser | None = None) -> None:
    parser = parser or Parser()
    for line in raw:
        found = parser.line(line)
        traffic.line(found.source, found.result)
        if found.event:
            traffic.event(slot, found.event)


# --- whatever a log says ---------------------------------------------------------------------------------------------

PATHS = [
    *APIS,
    "/api/tags",
    "/api/chat/",
    "/v1/models",
    '/"quoted"',
    "/\\n\\x00",
    "/api/chat?model=a",
    "/" + "x" * 5000,
]
WORDS = [
    "deepseek-r1:32b",
    'evil"} 1\nx 2',
    "模型",
    "",
    "\u2028",
    "a" * 300,
    "$(reboot)",
    "-1",
    "9" * 400,
    "NaN",
    "1e999",
    "0x1p3",
]


def random_line(chance: random.Random) -> bytes:
    number = chance.choice(["0", "7", "9" * 9, "9" * 30, "9" * 5000, "-3", "1.5", "1.2.3", "x", ""])
    word, path = chance.choice(WORDS), chance.choice([*PATHS, f"/{chance.choice(WORDS)}"])
    took = chance.choice([f"{number}ms", f"{number}s", "1m2s", "12.5µs", f"{number}h", word])
    text = chance.choice(
        [
            f'[GIN] 2026/11/23 - 17:09:09 | {chance.randrange(-5, 1200)} | {took} | {word} | {chance.choice(["POST", "GET", "post", word])} "{path}"',
            f"[GIN] {word} | {number}",
            f"slot print_timing: id  {number} | task {number} | prompt eval time = {number} ms / {number} tokens (x)",
            f"slot print_timing: id  0 | task {number} |        eval time = {number} ms / {number} tokens (x)",
            f'time=T level=INFO msg="llama-server started in {number} seconds" model={word}',
            f'time=T level=INFO msg="Load failed" model={word} error="{word}"',
            f'time=T level=WARN msg="truncating input prompt" limit={number} prompt={number}',
            f"load_tensors: offloaded {number}/{number} layers to GPU",
            f"slot release: id 0 | {word} truncated = 1",
            word,
        ]
    )  # fmt: skip
    raw = text.encode("utf-8", "surrogatepass")
    return (
        bytes(chance.randrange(256) if chance.random() < 0.02 else byte for byte in raw)
        if chance.random() < 0.3
        else raw
    )


@pytest.mark.parametrize("seed", range(4))
def test_no_line_raises_or_makes_a_series_that_was_not_foreseen(seed: int) -> None:
    chance = random.Random(seed)
    traffic, parser, most = Traffic(), Parser(), 25_000
    traffic.keep([0])
    for api_path in APIS:
        for code in (*CODES, *CODES_SEEN, "418"):
            traffic.event(0, request(int(code), api_path))
    traffic.event(0, Offload(1, 2))
    before = [line.rpartition(" ")[0] for line in lines(traffic)]
    read(traffic, [random_line(chance) for _ in range(most)], parser=parser)
    after = lines(traffic)
    told = [value(traffic, "log_lines_total", source=each.value, result="malformed") or 0 for each in Source]

    assert [line.rpartition(" ")[0] for line in after] == before
    assert sum('api="' in line for line in after) == API_COUNT * (len(CODES) + len(CODES_SEEN) + 1)
    assert all(re.fullmatch(r"\d+(\.\d+)?(e[+-]\d+)?", line.rpartition(" ")[2]) for line in after)
    assert min(told[0], told[2]) > 100
    assert (
        sum(value(traffic, "log_lines_total", source=s.value, result=r.value) or 0 for s in Source for r in Result)
        == most
    )


def test_every_metric_of_slots_that_a_log_tells_is_among_them() -> None:
    named = {metric.name for metric, _ in counted(Offload(1, 2)).texts()}
    of_the_log = {metric.name for metric in catalogue_slots.SLOT_METRICS if "log" in metric.source}

    assert named == of_the_log - {catalogue_slots.RUNNING.name}  # which is a state, and in the snapshot
