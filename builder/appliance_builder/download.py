"""Downloads: a blob is fetched over many connections into one file while its readers follow from the front.

Segments are taken in the order of their position, each by one connection, and named in the journal once they are
flushed; readers get a segment as soon as it is named. Killed at any point, a run loses at most the segment that each
connection was at. A server that ignores ranges is read in one go from the first byte.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from appliance_builder.blobcache import BlobCache
from appliance_builder.filling import CancelledError, Filling, Progress
from appliance_builder.pace import Pace
from appliance_builder.partial import CacheError, PartialBlob
from appliance_builder.ports import CHUNK_BYTES, Content, Reporter, Transfer
from appliance_builder.ranges import RangeFetcher
from appliance_image.digest import Digest
from appliance_image.oci import Descriptor

CONNECTIONS = 8
_POLL_S = 0.2  # how often is looked at another process that downloads the same blob
_LEAVE_S = 1.0  # a connection that is silent at the end is left to itself; it writes nothing any more


class Downloads:
    """All downloads of one command. Leaving it stops what still runs; journals and partial blobs stay."""

    def __init__(
        self, cache: BlobCache, reporter: Reporter, *, connections: int = CONNECTIONS, pace: Pace | None = None
    ) -> None:
        self._cache = cache
        self._reporter = reporter
        self._connections = connections
        self._pace = pace or Pace()
        self._downloads: dict[Digest, _Download] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def content(self, fetcher: RangeFetcher, descriptor: Descriptor) -> Content:
        """Nothing happens before the first read; all readers of a blob share one download."""
        with self._lock:
            if descriptor.digest not in self._downloads:
                self._downloads[descriptor.digest] = _Download(
                    descriptor,
                    fetcher,
                    self._cache,
                    self._reporter,
                    connections=self._connections,
                    pace=self._pace,
                )
            return self._downloads[descriptor.digest]

    def settle(self, digest: Digest, *, good: bool) -> None:
        """The whole blob was read and compared with its digest: keep it as complete, or drop what is damaged."""
        with self._lock:
            download = self._downloads.get(digest)
            if download is None or not download.started:
                return
            if not good:
                del self._downloads[digest]
        download.join()
        if good:
            self._cache.confirm(digest)
        else:
            self._cache.reject(digest)

    def cancel(self) -> None:
        """From any thread; readers raise."""
        with self._lock:
            downloads = list(self._downloads.values())
        for download in downloads:
            download.cancel()

    def close(self) -> None:
        self.cancel()
        with self._lock:
            downloads = list(self._downloads.values())
        for download in downloads:
            download.join(timeout_s=_LEAVE_S)


class _Download:
    """One blob: a thread of its own waits for the right to write it, then lets connections fill it."""

    def __init__(
        self,
        descriptor: Descriptor,
        fetcher: RangeFetcher,
        cache: BlobCache,
        reporter: Reporter,
        *,
        connections: int,
        pace: Pace,
    ) -> None:
        self.size = descriptor.size
        self._digest = descriptor.digest
        self._fetcher = fetcher
        self._cache = cache
        self._reporter = reporter
        self._connections = connections
        self._progress = Progress(pace)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def started(self) -> bool:
        return self._thread is not None

    def read(self, offset: int = 0) -> Iterator[bytes]:
        if offset >= self.size:
            return
        self._start()
        segments = self._progress.wait_segments()
        file = self._cache.open(self._digest)
        try:
            position = offset
            while position < self.size:
                index = segments.at(position)
                self._progress.wait_segment(index)
                for chunk in _span(file, position, segments.span(index)[1]):
                    yield chunk
                    position += len(chunk)
        finally:
            os.close(file)

    def cancel(self) -> None:
        self._progress.fail(CancelledError())

    def join(self, *, timeout_s: float | None = None) -> None:
        if self._thread:
            self._thread.join(timeout_s)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, daemon=True, name=f"download {self._digest.short}")
                self._thread.start()

    def _run(self) -> None:
        try:
            claimed = self._cache.claim(self._digest, self.size)
            if isinstance(claimed, Path):
                self._all_there()
                return
            with self._reporter.transfer(f"download {self._digest.short}", size=self.size) as transfer:
                self._fill(claimed or self._wait_for_other(transfer), transfer)
        except BaseException as error:  # noqa: BLE001 - handed to the readers, who raise it
            self._progress.fail(error)

    def _fill(self, claimed: Path | PartialBlob, transfer: Transfer) -> None:
        if isinstance(claimed, Path):
            self._all_there(transfer)
            return
        with claimed as blob:
            self._cache.require_space([(self._digest, self.size)])
            self._progress.begin(blob.segments, blob.journal.present, transfer)
            Filling(blob, self._fetcher, self._progress).run(self._connections)

    def _all_there(self, transfer: Transfer | None = None) -> None:
        segments = self._cache.segments(self.size)
        self._progress.begin(segments, range(segments.count), transfer)

    def _wait_for_other(self, transfer: Transfer) -> Path | PartialBlob:
        """Another process downloads this blob: show how far it is, take over if it dies."""
        transfer.note("another build downloads it, waiting for that")
        while True:
            transfer.restart(self._cache.journal_bytes(self._digest))
            self._progress.pause(_POLL_S)
            if claimed := self._cache.claim(self._digest, self.size):
                transfer.note("")
                return claimed


def _span(file: int, start: int, end: int) -> Iterator[bytes]:
    while start < end:
        chunk = os.pread(file, min(CHUNK_BYTES, end - start), start)
        if not chunk:
            raise CacheError("a downloaded blob was cut short on disk", hint="run the command again")
        yield chunk
        start += len(chunk)
