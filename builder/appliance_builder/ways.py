"""How the bytes of one blob are sent: as the table says, until refusals or cuts say otherwise. Decides only."""

from __future__ import annotations

from typing import Final

from appliance_builder.quirks import Mode, Quirks

WRONG_WAY: Final = frozenset({201, 405, 411, 413, 416, 501})  # refuse the way of sending, not the sender
_SMALLER_REQUESTS: Final = 64 * 1024 * 1024
_DEFAULT_CHUNK: Final = 256 * 1024 * 1024
_CUTS: Final = 2  # of whole requests, that cost a session each, before smaller ones are tried


class Ways:
    def __init__(self, quirks: Quirks, *, size: int, digest_known: bool) -> None:
        self.mode = quirks.mode_for(digest_known=digest_known)
        self._size = size
        self._digest_known = digest_known
        self._tried = {self.mode}
        self._chunk_bytes = quirks.chunk_bytes or _DEFAULT_CHUNK
        self._cuts = 0

    def part_size(self, left: int, *, least: int, most: int | None) -> int:
        """Of what is left, with what the registry said of chunks."""
        if self.mode is not Mode.CHUNKED:
            return left
        return min(left, max(min(self._chunk_bytes, most or self._chunk_bytes), least))

    def refused(self, status: int) -> bool:
        """Take the next way that this refusal leaves open; False if there is none."""
        ways = [Mode.STREAM, Mode.UNSIZED, Mode.CHUNKED, *([Mode.WHOLE] if self._digest_known else [])]
        if status == 413:
            ways = [Mode.CHUNKED] if self._size > _SMALLER_REQUESTS else []
            self._chunk_bytes = _SMALLER_REQUESTS
        elif status == 411:
            ways = [Mode.STREAM, *ways[2:]]
        way = next((mode for mode in ways if mode not in self._tried), None)
        return way is not None and self._take(way)

    def cut(self) -> bool:
        """After a request that was cut and cost its session: whether smaller ones are sent from now on.

        Distribution 2.8 loses the session of a request that was cut, however many went well before. What ends every
        long request, as proxies do, is met by shorter ones.
        """
        self._cuts += 1
        if self.mode is not Mode.STREAM or self._cuts < _CUTS or Mode.CHUNKED in self._tried:
            return False
        if self._size <= _SMALLER_REQUESTS:
            return False
        self._chunk_bytes = _SMALLER_REQUESTS
        return self._take(Mode.CHUNKED)

    def _take(self, way: Mode) -> bool:
        self.mode = way
        self._tried.add(way)
        return True
