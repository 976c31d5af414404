"""Writes the newest of what it is given, in a thread that there is only while there is something to write.

A disk that does not answer holds up that thread and nobody else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class Newest:
    def __init__(self, write: Callable[[bytes], None], *, name: str) -> None:
        self.error: OSError | None = None  # of the last one that was written; for who has waited for the end of it
        self._write = write
        self._name = name
        self._changed = threading.Condition()
        self._next: bytes | None = None
        self._busy = False

    def put(self, content: bytes) -> None:
        """In the place of what is not begun yet."""
        with self._changed:
            self._next = content
            if not self._busy:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
                self._busy = True

    def wait(self, seconds: float) -> bool:
        """Whether everything is written, or has failed."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, seconds)

    def _work(self) -> None:
        while (content := self._taken()) is not None:
            try:
                self._write(content)
            except OSError as error:
                self.error = error
            else:
                self.error = None

    def _taken(self) -> bytes | None:
        with self._changed:
            content, self._next = self._next, None
            if content is None:
                self._busy = False
                self._changed.notify_all()
            return content
