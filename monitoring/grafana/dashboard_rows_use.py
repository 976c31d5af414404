"""Rows of the overview about use: users' traffic, tokens and models, and our own probes. Data only."""

from __future__ import annotations

from typing import Final

from dashboard_queries import (
    LEGEND,
    QUANTILES,
    SLOT,
    increase,
    mean,
    quantile,
    rate,
    series,
    steps,
    total,
)
from dashboard_values import Colour, Look, Panel, Query, Row

_STATUS_COLOURS: Final = (
    ("2..", Colour.GOOD), ("4..", Colour.NOTICE), ("5..", Colour.BAD), ("other", Colour.AWAY),
)  # fmt: skip


def _quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(share, metric), name) for share, name in QUANTILES)


TRAFFIC: Final = Row(
    "User traffic",
    (
        Panel(
            title="Requests by status", unit="reqps", stacked=True, colours=_STATUS_COLOURS,
            text="Users' requests that ended, each second; red means failed answers: look below for the slot, then at its log.",
            queries=(Query(total(rate("requests_total"), "code") + " > 0", "{{code}}"),),
            runbooks=("ErrorBudgetBurn",),
        ),
        Panel(
            title="Length of requests", unit="s",
            text="From the head of a user's request to the end of its answer; when it grows without longer answers, add GPUs.",
            queries=_quantiles("request_duration_seconds"),
        ),
        Panel(
            title="Requests by API", unit="reqps", stacked=True,
            text="Which programming interface users' programs speak; says whom an upgrade of Ollama concerns.",
            queries=(Query(f"{total(rate('requests_total'), 'api')} > 0", "{{api}}"),),
        ),
        Panel(
            title="Length of requests, all of them", unit="s", look=Look.HEAT,
            text="How many requests took how long; a second band above the first is a slow GPU or a second kind of user.",
            queries=(Query(total(increase("request_duration_seconds_bucket"), "le"), "{{le}}"),),
        ),
        Panel(
            title="Requests at work", by_gpu=True, decimals=0,
            text="Users' requests that each GPU computes now (Ollama 0.30 and newer); one that computes and stays idle below is stuck.",
            queries=(Query(total(series("requests_running"), SLOT), LEGEND),),
            runbooks=("RequestsStuck",),
        ),
        Panel(
            title="Time for a token", unit="s",
            text="Mean time for a token in each answer (Ollama 0.30 and newer); above 0.1 s people read faster than it writes.",
            queries=_quantiles("time_per_output_token_seconds"),
        ),
    ),
)  # fmt: skip

TOKENS: Final = Row(
    "Tokens and models",
    (
        Panel(
            title="Tokens by GPU", unit="suffix:tokens/s", stacked=True, by_gpu=True,
            text="Tokens written for users each second (Ollama 0.30 and newer); a GPU far below its equals gets no work or is slow.",
            queries=(Query(total(rate("generated_tokens_total"), SLOT), LEGEND),),
            runbooks=("SlowGpu",),
        ),
        Panel(
            title="Speed of an answer", unit="suffix:tokens/s", by_gpu=True,
            text="Tokens each second while an answer is written, which is what one user sees; one line below the others is a slow GPU.",
            queries=(
                Query(
                    f"{total(rate('generated_tokens_total'), SLOT)} / {total(rate('generation_seconds_total'), SLOT)}",
                    LEGEND,
                ),
            ),
            runbooks=("SlowGpu",),
        ),
        Panel(
            title="Speed of reading", unit="suffix:tokens/s", by_gpu=True,
            text="Tokens of prompts processed each second of work on prompts; low values make users wait for the first token.",
            queries=(
                Query(
                    f"{total(rate('prompt_tokens_total'), SLOT)} / {total(rate('prompt_processing_seconds_total'), SLOT)}",
                    LEGEND,
                ),
            ),
        ),
        Panel(
            title="Model on the GPU", unit="percentunit", most=1, by_gpu=True,
            text="Share of the loaded model that is in GPU memory; below 100 % it computes on the CPU: free memory or take a smaller model.",
            queries=(Query(f"{series('model_vram_bytes')} / {series('model_size_bytes')}", f"{LEGEND} {{{{model}}}}"),),
            steps=steps(Colour.BAD, (0.99, Colour.GOOD)),
            runbooks=("ModelOnCpu",),
        ),
        Panel(
            title="Loads of a model", unit="s", points=True, by_gpu=True,
            text="How long each load took; slow ones read from a slow disk, frequent ones mean that something unloads the model.",
            queries=(Query(f"({mean('model_load_seconds')}) > 0", LEGEND),),
        ),
        Panel(
            title="Texts cut to the context", bars=True, by_gpu=True,
            text="Prompts and answers that lost their beginning or end, unseen by the user; raise the context length of the image.",
            queries=(Query(total(increase("prompts_truncated_total"), SLOT), LEGEND),),
            runbooks=("PromptsTruncated",),
        ),
    ),
)  # fmt: skip

PROBES: Final = Row(
    "Probes",
    (
        Panel(
            title="First token of probes (10 m)", unit="s", by_gpu=True,
            text="Time to the first token of our own questions, which is what a user waits who comes now; compare the GPUs.",
            queries=(Query(mean("probe_time_to_first_token_seconds", window="10m"), LEGEND),),
            steps=steps(Colour.GOOD, (2, Colour.WARNING), (5, Colour.BAD)),
            runbooks=("ProbeSlow",),
        ),
        Panel(
            title="Time for a token of probes (10 m)", unit="s", by_gpu=True,
            text="The same question to every GPU: equal cards should be equally fast, so a line above the others is a slow one.",
            queries=(Query(mean("probe_time_per_output_token_seconds", window="10m"), LEGEND),),
            runbooks=("SlowGpu",),
        ),
        Panel(
            title="Failed probes", bars=True,
            text="Questions of our own that got no complete answer, by what went wrong; the agent acts on them, see below.",
            queries=(Query(total(increase("probe_failures_total"), f"{SLOT}, reason") + " > 0", f"{LEGEND} {{{{reason}}}}"),),
            runbooks=("ProbeFailing",),
        ),
    ),
)  # fmt: skip
