"""A blob of a registry as Content: read from any place, and on from where the connection broke."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from appliance_builder.network_errors import NetworkError
from appliance_builder.registry_errors import RegistryError
from appliance_builder.transport import Transport

if TYPE_CHECKING:
    from appliance_builder.http import Answer

_SKIP_BYTES: Final = 64 * 1024 * 1024  # what is read and thrown away where a server cannot start in the middle
_ODD_ANSWERS: Final = 3  # in a row: asked again from the start of the redirect, they may be right
_CONTENT_RANGE: Final = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+|\*)")


@dataclass(frozen=True, slots=True)
class RegistryBlob:
    """Not verified by digest: whoever reads all of it does that."""

    transport: Transport
    url: str
    scopes: tuple[str, ...]
    size: int
    doing: str

    def read(self, offset: int = 0) -> Iterator[bytes]:
        patience = self.transport.patience()
        position = offset
        odd = 0
        while position < self.size:
            try:
                with self._open(position) as answer:
                    for chunk in self._from(answer, position):
                        position += len(chunk)
                        odd = 0
                        patience.progressed()
                        yield chunk
            except (NetworkError, RegistryError) as error:
                if self._odd(error) and odd < _ODD_ANSWERS:
                    odd += 1
                elif not self.transport.retry(error, patience):
                    raise

    @contextmanager
    def _open(self, position: int) -> Generator[Answer]:
        headers = {"Range": f"bytes={position}-"} if position else {}
        with self.transport.open("GET", self.url, doing=self.doing, scopes=self.scopes, headers=headers) as answer:
            if answer.status not in (200, 206):
                raise self.transport.refusal(answer, self.doing)
            yield answer

    def _from(self, answer: Answer, position: int) -> Iterator[bytes]:
        skip = position - self._start(answer, position)
        if skip > _SKIP_BYTES:
            raise RegistryError(
                f"{self.doing}: {self.transport.place} cannot go on in the middle of a blob, at {position} bytes",
                hint="it, or a proxy before it, must support range requests",
                host=self.transport.place,
                status=answer.status,
            )
        left = self.size - position
        for chunk in answer.chunks():
            rest = chunk
            if skip:
                rest, skip = chunk[skip:], max(0, skip - len(chunk))
            if len(rest) > left:
                raise self._odd_answer(f"sent more than the {self.size} bytes that the manifest names")
            left -= len(rest)
            if rest:
                yield rest
        if left:
            raise self._odd_answer(f"ended after {self.size - left} of {self.size} bytes")

    def _start(self, answer: Answer, position: int) -> int:
        """Where the answer's bytes begin; whatever does not fit to what was asked is not read at all."""
        if answer.status == 206:
            match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
            if not match or int(match[1]) != position or match[3] not in ("*", str(self.size)):
                raise self._odd_answer("answered with another range than it was asked for")
            return position
        length = answer.headers.get("content-length")
        if length is not None and length != str(self.size):
            page = "text/html" in answer.headers.get("content-type", "")
            raise self._odd_answer(f"answered with {'a web page' if page else f'{length} bytes, not {self.size}'}")
        return 0

    def _odd(self, error: NetworkError | RegistryError) -> bool:
        """Also where the storage that a registry redirects to no longer takes the link: the registry gives a new one."""
        expired = isinstance(error, RegistryError) and error.status in (400, 401, 403, 410)
        return isinstance(error, _OddAnswerError) or (expired and error.host != self.transport.place)

    def _odd_answer(self, what: str) -> RegistryError:
        hint = "run the command again; if it stays so, the registry or a proxy before it is damaged"
        message = f"{self.doing}: {self.transport.place} {what}"
        return _OddAnswerError(message, hint=hint, host=self.transport.place, status=200)


class _OddAnswerError(RegistryError):
    """Not what was asked for, though the status says so."""
