"""A payload as an upload reads it: part by part, on from where it is or again from elsewhere. Knows no registry."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from appliance_builder.ports import Payload, Transfer
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError


class UploadSource:
    def __init__(self, payload: Payload, transfer: Transfer) -> None:
        self._payload = payload
        self._transfer = transfer
        self._chunks: Iterator[bytes] | None = None
        self._rest = b""
        self._position = 0  # handed out
        self.sent = 0  # taken by the connection
        self.error: BaseException | None = None  # what the payload raised, to be told from what the registry did

    @property
    def size(self) -> int:
        return self._payload.size

    def earned_digest(self) -> Digest:
        try:
            return self._payload.earned_digest()
        except BaseException as error:
            self.error = error
            raise

    def part(
        self, offset: int, size: int, *, progressed: Callable[[int], None], earn_first: bool = False
    ) -> Iterator[bytes]:
        """Exactly these bytes; with `earn_first` the last of them leave after the digest was earned."""
        try:
            self._seek(offset)
            left = size
            while left:
                chunk = self._next(left)
                left -= len(chunk)
                if not left and earn_first:
                    self._payload.earned_digest()
                self._position += len(chunk)
                yield chunk
                self.sent = self._position
                self._transfer.advance(len(chunk))
                progressed(self.sent)
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise

    def leave(self) -> None:
        """Give up the live feed while waiting, so that nobody waits for us: to read anew from anywhere does that."""
        self._chunks = None
        self._payload.read(self.size)

    def _seek(self, offset: int) -> None:
        if self._chunks is None or offset != self._position:
            again = self._chunks is not None or self._position
            self._chunks, self._rest = iter(self._payload.read(offset)), b""
            if again or offset:
                self._transfer.restart(offset)
            self._position = self.sent = offset

    def _next(self, most: int) -> bytes:
        chunk = self._rest or self._longer()
        if len(chunk) > most:
            chunk, self._rest = chunk[:most], chunk[most:]
        else:
            self._rest = b""
        return chunk

    def _longer(self) -> bytes:
        for chunk in self._chunks or ():
            if chunk:
                return chunk
        raise ApplianceError(
            f"source ended after {self._position} of {self.size} bytes",
            hint="the file may have changed while it was read; run the command again",
        )
