"""What a slot has generated for users since the agent started, as its log tells when an answer ends. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Generated:
    answers: int = 0
    tokens: int = 0
    seconds: float = 0.0  # of all answers together, from the first token on

    def plus(self, tokens: int, seconds: float) -> Generated:
        return Generated(self.answers + 1, self.tokens + tokens, self.seconds + seconds)

    def since(self, before: Generated) -> Generated | None:
        """None if it was counted anew meanwhile."""
        if self.answers < before.answers or self.tokens < before.tokens:
            return None
        return Generated(self.answers - before.answers, self.tokens - before.tokens, self.seconds - before.seconds)


def tells_tokens(ollama_version: str) -> bool:
    """Older ones write no line about what an answer took."""
    parts = ollama_version.split(".")
    numbers = [int(part) for part in parts[:2] if part.isdecimal()]
    return len(numbers) == 2 and tuple(numbers) >= (0, 30)
