"""The metrics of slots: their containers, their models, our probes, and users' traffic as the container's log tells it.

`gpu` is the slot's index. `model` is the model that the image or the configuration names; what else /api/ps lists is
`other`, never a name from a request.

Not here: requests that wait (the kernel's list of a container's connections takes milliseconds, because it walks
through those of the whole host, and a look every ten seconds at eight slots would be 0.6 % of a core) and bytes of
answers (what the kernel counts has everything else in it). Both are for a gateway to tell.
"""

from __future__ import annotations

from typing import Final

from appliance_agent.metric import SLOT, counter, gauge, histogram

# MLPerf's limits of conversational and interactive use are among the bounds
FIRST_TOKEN_BUCKETS: Final = (
    0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
OUTPUT_TOKEN_BUCKETS: Final = (
    0.005, 0.01, 0.015, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5,
)  # fmt: skip
DURATION_BUCKETS: Final = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
)  # fmt: skip
LOAD_BUCKETS: Final = (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)

APIS: Final = {  # by path
    "/api/chat": "ollama_chat",
    "/api/generate": "ollama_generate",
    "/api/embed": "ollama_embed",
    "/api/embeddings": "ollama_embed",
    "/v1/chat/completions": "openai_chat",
    "/v1/completions": "openai_completions",
    "/v1/embeddings": "openai_embeddings",
    "/v1/responses": "openai_responses",
    "/v1/messages": "anthropic_messages",
}
CODES: Final = ("200", "500", "503")  # of each API from the first scrape on
CODES_SEEN: Final = ("400", "401", "403", "404", "408", "413", "429", "499", "502", "504")  # once there was one
OTHER: Final = "other"  # any other status, any other model
LOG_SOURCES: Final = ("gin", "ollama", "runner")
LOG_RESULTS: Final = ("matched", "ignored", "malformed")

INFO = gauge(
    "backend_info", "What the slot's container runs, constant 1.", "Docker, /api/version",
    *SLOT, "container", "image", "image_id", "model", "ollama_version",
)  # fmt: skip
STATE = gauge(
    "backend_state", "Whether the slot is in this state; one of its states is 1.", "the agent", *SLOT, "state"
)
START = gauge("backend_start_time_seconds", "When the slot's container was started, since the epoch.", "Docker", *SLOT)
RESTARTS = counter(
    "backend_restarts_total",
    "Containers made for the slot, by what ended the one before; start: there was none.",
    "the agent", *SLOT, "reason",
)  # fmt: skip

MODEL_SIZE = gauge("model_size_bytes", "Memory of a loaded model, on all devices.", "/api/ps", *SLOT, "model")
MODEL_VRAM = gauge("model_vram_bytes", "Memory of a loaded model on GPUs.", "/api/ps", *SLOT, "model")
MODEL_CONTEXT = gauge(
    "model_context_tokens", "Context that a loaded model was started with.", "/api/ps", *SLOT, "model"
)
MODEL_EXPIRY = gauge(
    "model_expiry_timestamp_seconds", "When a loaded model will be unloaded; absent for one that stays.",
    "/api/ps", *SLOT, "model",
)  # fmt: skip
MODEL_GPU_LAYERS = gauge(
    "model_gpu_layers", "Layers on GPUs of the model that was loaded last.", "log, where Ollama knows a GPU", *SLOT
)
MODEL_LAYERS = gauge(
    "model_layers", "Layers of the model that was loaded last.", "log, where Ollama knows a GPU", *SLOT
)  # fmt: skip
MODEL_LOAD = histogram("model_load_seconds", "How long loads of a model took.", "log", LOAD_BUCKETS, *SLOT)
MODEL_LOAD_FAILURES = counter("model_load_failures_total", "Loads of a model that failed.", "log", *SLOT)

PROBE_ATTEMPTS = counter("probe_attempts_total", "Probes that have ended.", "probe", *SLOT)
PROBE_FAILURES = counter("probe_failures_total", "Probes that gave no complete answer.", "probe", *SLOT, "reason")
PROBE_SUCCESS = gauge("probe_success", "Whether the last probe gave a complete answer.", "probe", *SLOT)
PROBE_LAST_SUCCESS = gauge(
    "probe_last_success_timestamp_seconds", "When the last complete answer of a probe ended.", "probe", *SLOT
)
PROBE_FIRST_TOKEN = histogram(
    "probe_time_to_first_token_seconds",
    "From the request of a probe to the first piece of its answer, thinking included.",
    "probe", FIRST_TOKEN_BUCKETS, *SLOT,
)  # fmt: skip
PROBE_OUTPUT_TOKEN = histogram(
    "probe_time_per_output_token_seconds", "Mean time for a token of a probe's answer.",
    "probe", OUTPUT_TOKEN_BUCKETS, *SLOT,
)  # fmt: skip
PROBE_TOKENS = counter("probe_generated_tokens_total", "Tokens that probes made the slot generate.", "probe", *SLOT)

REQUESTS = counter(
    "requests_total",
    "Users' inference requests that have ended, by API and status.",
    "access log",
    *SLOT,
    "api",
    "code",
)
REQUEST_DURATION = histogram(
    "request_duration_seconds", "From the head of a user's request to the end of an answer with a status of 2xx.",
    "access log", DURATION_BUCKETS, *SLOT,
)  # fmt: skip
OUTPUT_TOKEN = histogram(
    "time_per_output_token_seconds", "Mean time for a token of a user's answer, from the second one on.",
    "log, Ollama 0.30 and newer", OUTPUT_TOKEN_BUCKETS, *SLOT,
)  # fmt: skip
RUNNING = gauge(
    "requests_running", "Users' requests that are computed now; those that wait for their turn are not seen.",
    "log, Ollama 0.30 and newer", *SLOT,
)  # fmt: skip
PROMPT_TOKENS = counter(
    "prompt_tokens_total", "Tokens of users' prompts that were processed, without those from the cache.",
    "log, Ollama 0.30 and newer", *SLOT,
)  # fmt: skip
GENERATED_TOKENS = counter("generated_tokens_total", "Tokens of users' answers.", "log, Ollama 0.30 and newer", *SLOT)
PROMPT_SECONDS = counter(
    "prompt_processing_seconds_total", "Time spent on users' prompts.", "log, Ollama 0.30 and newer", *SLOT
)
GENERATION_SECONDS = counter(
    "generation_seconds_total", "Time spent on users' answers.", "log, Ollama 0.30 and newer", *SLOT
)
TRUNCATED = counter("prompts_truncated_total", "Prompts and answers that were cut to the context length.", "log", *SLOT)
LOG_LINES = counter(
    "log_lines_total", "Lines of the containers' logs, by who wrote them and what became of them.",
    "log", "source", "result",
)  # fmt: skip

SLOT_METRICS: Final = (
    INFO, STATE, START, RESTARTS,
    MODEL_SIZE, MODEL_VRAM, MODEL_CONTEXT, MODEL_EXPIRY, MODEL_GPU_LAYERS, MODEL_LAYERS, MODEL_LOAD, MODEL_LOAD_FAILURES,
    PROBE_ATTEMPTS, PROBE_FAILURES, PROBE_SUCCESS, PROBE_LAST_SUCCESS, PROBE_FIRST_TOKEN, PROBE_OUTPUT_TOKEN, PROBE_TOKENS,
    REQUESTS, REQUEST_DURATION, OUTPUT_TOKEN, RUNNING, PROMPT_TOKENS, GENERATED_TOKENS, PROMPT_SECONDS,
    GENERATION_SECONDS, TRUNCATED, LOG_LINES,
)  # fmt: skip
