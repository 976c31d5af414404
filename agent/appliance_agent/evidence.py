"""What is known of one running container, as values: facts with times, no judgement. All times are CLOCK_MONOTONIC."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from appliance_agent.gpus import GpuPids


class Outcome(Enum):
    """How a probe ended. Exported as a metric label."""

    OK = "ok"
    REFUSED = "refused"  # no connection, or closed before an answer
    TIMEOUT = "timeout"  # given up by the agent
    HTTP_ERROR = "http_error"  # a status that is not 200
    SERVER_BUSY = "server_busy"  # 503, the queue is full
    STREAM_ERROR = "stream_error"  # an error object, garbage, or an end without `done`
    NO_TOKENS = "no_tokens"  # a proper end, and nothing said


@dataclass(frozen=True, slots=True)
class Running:
    """The probe that is under way."""

    started_s: float
    first_token_s: float | None = None
    last_token_s: float | None = None
    pieces: int = 0


@dataclass(frozen=True, slots=True)
class Canary:
    """A streaming chat that has ended."""

    started_s: float
    ended_s: float
    outcome: Outcome
    detail: str = ""  # the error, in words
    first_token_s: float | None = None  # seconds from the request to the first piece, thinking counts
    tokens: int = 0  # eval_count
    tokens_per_s: float | None = None
    answer_s: float | None = None  # eval_duration; None: no end was heard. The log says the same of the same request
    prompt_s: float = 0.0  # prompt_eval_duration
    load_s: float = 0.0  # load_duration: over a second means that the canary had to load the model
    alone: bool = True  # nobody else was served meanwhile, so its speed is the slot's own


@dataclass(frozen=True, slots=True)
class Load:
    """A preload: POST /api/generate without a prompt. It has no deadline of its own."""

    started_s: float
    ended_s: float | None = None
    outcome: Outcome | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    container_id: str
    watched_since_s: float
    # the server
    answered_s: float | None = None  # last answer of GET /api/version or /api/ps
    refused_since_s: float | None = None  # since when connections fail, None while they do not
    silent_since_s: float | None = None  # since when connections are taken and not answered
    ollama_version: str = ""
    loaded: bool | None = None  # /api/ps lists the model; None: not asked yet
    model_bytes: int = 0  # `size` of /api/ps
    vram_bytes: int = 0  # `size_vram`, an estimate before Ollama 0.30
    context_tokens: int = 0  # `context_length`, not told before Ollama 0.10
    expires_wall_s: float | None = None  # None: the model stays
    others_bytes: int | None = None  # `size` of all other models that are listed; None: there are none
    others_vram_bytes: int = 0
    load: Load | None = None  # the preload that runs or was last
    loading_since_s: float | None = None  # the log says that a model is being loaded, for whomever
    loading_ended_s: float | None = None  # when it last said so until
    # our own requests
    canary: Running | None = None
    canaries: tuple[Canary, ...] = ()  # oldest first, at most the last 20
    # users' traffic, seen from outside
    answer_line_s: float | None = None  # an access or timing line of a finished inference request, ours left out
    running: int | None = None  # requests that are computed, our own too; None: not told, by Ollama before 0.30
    error_lines_in_a_row: int = 0  # 5xx access lines of inference requests since the last good one
    bytes_per_s: float | None = None  # that left the container over the last seconds, probes taken off
    flow_s: float | None = None  # when bytes last left it at the rate of tokens
    peers: int | None = None  # connections to the server's port besides ours, None: cannot be seen
    peers_s: float | None = None  # when there was last one
    # the machine
    hidden: bool = False  # the container's processes exist and cannot be seen
    compute_ratio: float | None = None  # GPU utilisation, or cores' use where there is no GPU; None: cannot be seen
    compute_s: float | None = None  # when it last computed
    on_gpu: bool | None = None  # a process of the container is on its GPUs; None: cannot be seen
    on_gpu_since_s: float | None = None  # since when that is the answer
    gpu_memory_bytes: int | None = None  # of those processes
    gpu_pids: GpuPids | None = None  # whose the processes on its GPUs are; None: cannot be seen
    progress_s: float | None = None  # when memory, disk reads, log lines or a load's processor time last moved

    @property
    def last_canary(self) -> Canary | None:
        return self.canaries[-1] if self.canaries else None
