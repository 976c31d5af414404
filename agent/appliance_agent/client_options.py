"""What clients' options do to the loaded model, so that no request of ours undoes it. Pure.

Ollama loads a model anew for a request whose runner options differ from those it was loaded with, and one that names no
context asks for the default. So once a client's `num_ctx` has made it load another context, a plain canary would load
the model back, and the client's next question once more. `/api/ps` tells the context since Ollama 0.10, and nothing of
the other options. It is named only where it is not the default: of a context longer than the model's own, versions 0.15
to 0.31 tell another number than they compare. During a load `/api/ps` does not list the model at all.
"""

from __future__ import annotations

from typing import Final

from appliance_agent.config import HealthConfig
from appliance_agent.evidence import Evidence

_BETWEEN_S: Final = 6.0  # Ollama waits up to five for the GPU's memory between two runners


class ClientOptions:
    def __init__(self) -> None:
        self._default: int | None = None  # tokens of context; 0: the server does not tell
        self._unlisted_s: float | None = None

    @property
    def is_default_known(self) -> bool:
        return self._default is not None

    def learn_default(self, listed: int) -> None:
        """What is listed right after a request of ours that named no context."""
        self._default = listed

    def context_tokens(self, listed: int) -> int | None:
        """To ask for when the model is listed with so many, 0 for not told. None: name none."""
        return listed if listed and self._default and listed != self._default else None

    def are_loading(self, evidence: Evidence, config: HealthConfig, now_s: float, *, listed: bool) -> bool:
        """Whether the model is not there because it is being loaded for somebody else: a preload would load it again."""
        self._unlisted_s = None if listed else self._unlisted_s or now_s
        if self._unlisted_s is None or not evidence.canaries:
            return False
        if evidence.loading_since_s is not None:
            return now_s - max(evidence.loading_since_s, evidence.progress_s or 0.0) < config.load_s
        return now_s - self._unlisted_s < min(_BETWEEN_S, config.canary_interval_s)
