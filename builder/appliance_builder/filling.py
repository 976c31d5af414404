"""Connections that fill one partial blob: who fetches which segment, and what happens when one of them breaks."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections import deque
from collections.abc import Iterable
from contextlib import closing
from typing import Never

from appliance_builder.journal import Segments
from appliance_builder.network_errors import NetworkError
from appliance_builder.pace import Budget, Pace
from appliance_builder.partial import PartialBlob
from appliance_builder.ports import Transfer
from appliance_builder.progress import render_duration
from appliance_builder.ranges import DoubtfulError, RangeFetcher, RangeIgnoredError
from appliance_builder.registry_errors import RegistryError
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError


class DownloadError(ApplianceError):
    pass


class CancelledError(DownloadError):
    def __init__(self) -> None:
        super().__init__("the download was stopped", hint="run the command again, it goes on from there")


class Progress:
    """What is there of one blob and whether it goes on. Safe to use from any thread."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._budget = Budget(pace, now_s=time.monotonic())
        self._changed = threading.Condition()
        self._segments: Segments | None = None
        self._present: set[int] = set()
        self._error: BaseException | None = None
        self._transfer: Transfer | None = None
        self._bytes = 0
        self._noted = False

    @property
    def failed(self) -> bool:
        with self._changed:
            return self._error is not None

    def begin(self, segments: Segments, present: Iterable[int], transfer: Transfer | None = None) -> None:
        with self._changed:
            self._segments = segments
            self._present.update(present)
            spans = [segments.span(index) for index in self._present]
            self._bytes = sum(end - start for start, end in spans)
            self._transfer = transfer
            self._changed.notify_all()
        if transfer:
            transfer.restart(self._bytes)

    def wait_segments(self) -> Segments:
        with self._changed:
            while self._segments is None:
                self._check()
                self._changed.wait()
            return self._segments

    def wait_segment(self, index: int) -> None:
        with self._changed:
            while index not in self._present:
                self._check()
                self._changed.wait()

    def pause(self, seconds: float = 0) -> None:
        """Wait, and longer where a server asked for it; raises as soon as the download has ended."""
        until_s = time.monotonic() + seconds
        with self._changed:
            while True:
                self._check()
                left_s = max(until_s, self._budget.not_before_s) - time.monotonic()
                if left_s <= 0:
                    return
                self._changed.wait(left_s)

    def received(self, size: int, *, new: bool) -> None:
        """`new`: these bytes were not had before, so the download is alive."""
        with self._changed:
            self._check()
            self._bytes += size
            if new:
                self._budget.progressed(time.monotonic())
            noted, self._noted = self._noted and new, self._noted and not new
        if self._transfer:
            self._transfer.advance(size)
            if noted:
                self._transfer.note("")

    def taken_back(self, size: int) -> None:
        with self._changed:
            self._bytes -= size
            done = self._bytes
        if self._transfer and size:
            self._transfer.restart(done)

    def recorded(self, index: int) -> None:
        with self._changed:
            self._present.add(index)
            self._changed.notify_all()

    def retry(self, error: NetworkError | RegistryError, tries: int) -> None:
        """Wait before the next try, or raise where there shall be none."""
        with self._changed:
            self._check()
            chance = random.random()  # noqa: S311 - spreads retries, no secret
            pause_s = self._budget.pause_s(error, tries, now_s=time.monotonic(), random=chance)
        if pause_s is None:
            self._give_up(error)
        if self._transfer:
            self._transfer.note(f"waiting {render_duration(pause_s)}: {error.message}")
        with self._changed:
            self._noted = True  # after the note, or another connection takes it away before it is there
        self.pause(pause_s)

    def fail(self, error: BaseException) -> None:
        """The first failure is the one that is told."""
        with self._changed:
            if self._error is None:
                self._error = error
            self._changed.notify_all()

    def _check(self) -> None:
        if self._error:
            raise self._error

    def _give_up(self, error: NetworkError | RegistryError) -> Never:
        if not error.transient:
            raise error
        raise DownloadError(
            f"{error.message}; gave up after {render_duration(self._pace.patience_s)} without a byte",
            hint=f"{error.hint}; what is downloaded stays",
        ) from error


class _Part:
    """A segment on its way from one connection into the file."""

    def __init__(self, blob: PartialBlob, index: int) -> None:
        self._blob = blob
        self._index = index
        self._start, self.end = blob.segments.span(index)
        self.position = self._start
        self._reached = self._start
        self._hash = hashlib.sha256()

    def feed(self, chunk: bytes | memoryview) -> bool:
        """Whether the bytes are new, and not fetched again."""
        self._blob.write(self.position, chunk)
        self._hash.update(chunk)
        self.position += len(chunk)
        new = self.position > self._reached
        self._reached = max(self._reached, self.position)
        return new

    def restart(self) -> int:
        """Throw away what came; returns how much that was."""
        size, self.position = self.position - self._start, self._start
        self._hash = hashlib.sha256()
        return size

    @property
    def whole(self) -> bool:
        return self.position == self.end

    def record(self) -> None:
        self._blob.record(self._index, Digest(self._hash.hexdigest()))


class Filling:
    """Fills one blob. `run` leaves nothing behind that writes, however it ends."""

    def __init__(self, blob: PartialBlob, fetcher: RangeFetcher, progress: Progress) -> None:
        self._blob = blob
        self._fetcher = fetcher
        self._progress = progress
        self._lock = threading.Lock()
        present = blob.journal.present
        self._free = deque(index for index in range(blob.segments.count) if index not in present)
        self._ranges_ignored = False

    def run(self, connections: int) -> None:
        threads = [
            threading.Thread(target=self._work, daemon=True, name=f"connection {number}")
            for number in range(min(connections, len(self._free)))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._ranges_ignored and not self._progress.failed:
            self._run_in_one_go()

    def _work(self) -> None:
        try:
            while (index := self._take()) is not None:
                self._fetch(index)
        except RangeIgnoredError:
            self._ranges_ignored = True
        except BaseException as error:  # noqa: BLE001 - handed to the readers, who raise it
            self._progress.fail(error)

    def _take(self) -> int | None:
        """The first segment that nobody has: the front is what readers wait for."""
        with self._lock:
            return self._free.popleft() if self._free and not self._ranges_ignored else None

    def _fetch(self, index: int) -> None:
        part = _Part(self._blob, index)
        tries = 0
        while not part.whole:
            self._progress.pause()
            try:
                with closing(self._fetcher.fetch(part.position, part.end)) as chunks:
                    for chunk in chunks:
                        new = part.feed(chunk)
                        self._progress.received(len(chunk), new=new)
                        tries = 0 if new else tries
            except (NetworkError, RegistryError) as error:
                if isinstance(error, DoubtfulError):
                    self._progress.taken_back(part.restart())
                self._progress.retry(error, tries)
                tries += 1
        part.record()
        self._progress.recorded(index)

    def _run_in_one_go(self) -> None:
        """The server knows no ranges: from the first byte, over and over, what is there already is passed over."""
        missing = {index: _Part(self._blob, index) for index in range(self._blob.segments.count)}
        for index in self._blob.journal.present:
            del missing[index]
        tries = 0
        while missing:
            self._progress.pause()
            before = len(missing)
            try:
                with closing(self._fetcher.fetch_whole()) as chunks:
                    position = 0
                    for chunk in chunks:
                        self._spread(chunk, position, missing)
                        position += len(chunk)
            except (NetworkError, RegistryError) as error:
                self._progress.taken_back(sum(part.restart() for part in missing.values()))
                tries = tries + 1 if len(missing) == before else 0
                self._progress.retry(error, tries)

    def _spread(self, chunk: bytes, position: int, missing: dict[int, _Part]) -> None:
        view = memoryview(chunk)
        while view:
            index = self._blob.segments.at(position)
            size = min(len(view), self._blob.segments.span(index)[1] - position)
            if part := missing.get(index):
                self._progress.received(size, new=part.feed(view[:size]))
                if part.whole:
                    del missing[index]
                    part.record()
                    self._progress.recorded(index)
            else:
                self._progress.received(0, new=False)
            view, position = view[size:], position + size
