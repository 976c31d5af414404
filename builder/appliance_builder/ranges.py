"""Parts of a registry's blob over HTTP: each answer is compared with what was asked for before a byte of it is passed on.

A registry may send the bytes itself or a link to its storage. The link is kept and shared by all connections until the
storage refuses it; it never gets the registry's credentials.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from appliance_builder.network_errors import Fault, NetworkError
from appliance_builder.registry import Repository
from appliance_builder.registry_errors import RegistryError
from appliance_builder.transport import Transport
from appliance_image.oci import Descriptor

if TYPE_CHECKING:
    from appliance_builder.http import Answer

STALL_S: Final = 30.0  # without a byte: as long as Ollama itself waits
_LINK_REFUSED: Final = frozenset({400, 401, 403, 404, 410})
_CONTENT_RANGE: Final = re.compile(r"bytes\s+(\d+)-(\d+)/(\d+|\*)")


class RangeIgnoredError(Exception):
    """The server answers with the whole blob, whatever part is asked for."""


class DoubtfulError(RegistryError):
    """An answer that cannot be right. Worth another try, but not many: it is seldom the network."""

    at_once = False  # whether the next try can do without a pause

    @property
    def transient(self) -> bool:
        return True


class LinkRefusedError(DoubtfulError):
    """The storage behind a registry no longer takes the link; the registry is asked for a new one."""


class RangeFetcher(Protocol):
    @property
    def size(self) -> int: ...

    def fetch(self, start: int, end: int) -> Generator[bytes]:
        """Bytes from `start`, up to `end` or less: at least one, never one that was not asked for.

        Raises RangeIgnoredError, DoubtfulError, NetworkError or RegistryError. What came before a NetworkError is good.
        """
        ...

    def fetch_whole(self) -> Generator[bytes]:
        """All bytes from the first one, for servers that ignore ranges."""
        ...


class RegistryRanges:
    def __init__(
        self,
        transport: Transport,
        repository: str,
        descriptor: Descriptor,
        *,
        scopes: tuple[str, ...],
        stall_s: float = STALL_S,
    ) -> None:
        self.size = descriptor.size
        self._transport = transport
        self._url = transport.url(f"{repository}/blobs/{descriptor.digest}")
        self._scopes = scopes
        self._stall_s = stall_s
        self._doing = f"downloading {descriptor.digest.short}"
        self._link: str | None = None
        self._lock = threading.Lock()

    def fetch(self, start: int, end: int) -> Generator[bytes]:
        with self._open({"Range": f"bytes={start}-{end - 1}"}) as answer:
            if answer.status == 206:
                size = self._ranged(answer, start, end)
            else:
                self._check_whole(answer)
                if (start, end) != (0, self.size):
                    raise RangeIgnoredError
                size = self.size
            yield from self._exactly(answer, size)

    def fetch_whole(self) -> Generator[bytes]:
        with self._open({}) as answer:
            self._check_whole(answer)
            yield from self._exactly(answer, self.size)

    @contextmanager
    def _open(self, headers: dict[str, str]) -> Generator[Answer]:
        with self._lock:
            link = self._link
        with self._transport.open(
            "GET", link or self._url, doing=self._doing, scopes=self._scopes, headers=headers, read_s=self._stall_s
        ) as answer:
            if answer.status in (200, 206):
                self._keep(answer.url)
                yield answer
            elif answer.status == 416:
                raise self._other_size(answer)
            elif answer.url != self._url and answer.status in _LINK_REFUSED:
                raise self._forget(answer, link)
            else:
                raise self._transport.refusal(answer, self._doing)

    def _keep(self, url: str) -> None:
        if url != self._url:
            with self._lock:
                self._link = url

    def _forget(self, answer: Answer, link: str | None) -> LinkRefusedError:
        with self._lock:
            if self._link == link:
                self._link = None
        refusal = self._transport.refusal(answer, self._doing)
        refused = LinkRefusedError(
            refusal.message,
            hint=f"{self._transport.place} gave a link to its storage, which refuses it: check this machine's clock "
            "and the proxy between",
            host=refusal.host,
            status=answer.status,
        )
        refused.at_once = link is not None  # an old link; a new one that is refused at once may need time
        return refused

    def _ranged(self, answer: Answer, start: int, end: int) -> int:
        """How many bytes the answer says it has."""
        self._check_page(answer)
        match = _CONTENT_RANGE.fullmatch(answer.headers.get("content-range", "").strip())
        if not match or int(match[1]) != start or not start <= int(match[2]) < end:
            raise self._doubtful(answer, "another range than it was asked for")
        if match[3] not in ("*", str(self.size)):
            raise self._doubtful(answer, f"a part of {match[3]} bytes, the manifest says {self.size}")
        return int(match[2]) + 1 - start

    def _check_whole(self, answer: Answer) -> None:
        self._check_page(answer)
        length = answer.headers.get("content-length", str(self.size))
        if length != str(self.size):
            raise self._doubtful(answer, f"{length} bytes, the manifest says {self.size}")

    def _check_page(self, answer: Answer) -> None:
        if answer.headers.get("content-type", "").startswith("text/html"):
            raise self._doubtful(answer, "a web page")
        encoding = answer.headers.get("content-encoding", "identity")
        if encoding != "identity":
            raise self._doubtful(answer, f"bytes encoded as {encoding}")

    def _exactly(self, answer: Answer, size: int) -> Iterator[bytes]:
        left = size
        for chunk in answer.chunks():
            left -= len(chunk)
            if left < 0:
                raise self._doubtful(answer, "more bytes than it announced")
            yield chunk
        if left:
            raise NetworkError(
                f"{self._doing}: {self._place(answer)} ended {left} bytes early",
                hint="run the command again, it goes on from there",
                host=self._transport.place,
                fault=Fault.BROKEN,
            )

    def _other_size(self, answer: Answer) -> RegistryError:
        told = answer.headers.get("content-range", "").rpartition("/")[2] or "other"
        return RegistryError(
            f"{self._doing}: {self._place(answer)} has {told} bytes, the manifest says {self.size}",
            hint="the blob is damaged there; take another source",
            host=self._transport.place,
            status=answer.status,
        )

    def _doubtful(self, answer: Answer, what: str) -> DoubtfulError:
        return DoubtfulError(
            f"{self._doing}: {self._place(answer)} answered with {what}",
            hint="a proxy between may be at fault; run the command again, it goes on from what was right",
            host=self._transport.place,
            status=answer.status,
        )

    def _place(self, answer: Answer) -> str:
        return self._transport.place if answer.url == self._url else f"the storage of {self._transport.place}"


def fetcher_for_oci(repository: Repository, descriptor: Descriptor) -> RangeFetcher:
    return RegistryRanges(repository.transport, repository.name, descriptor, scopes=repository.scopes)
