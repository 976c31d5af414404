"""The one pass: a layer is read once, hashed, checked against its blobs, and handed to every sink at the same time.

One thread reads; each hash and each sink has a thread and a short queue of its own. Memory is bounded by the
queues, whatever the size of the layer. A sink that has to go back (a lost connection) leaves the live feed and reads
its own way to the end, so one sink's trouble never makes another one wait or send twice.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from appliance_builder.layer_bytes import BlobCheck, Check, CorruptBlobError, LayerCheck
from appliance_builder.ports import Content, Payload
from appliance_image.contract import LAYOUT
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.layer import LayerPlan

_QUEUE_CHUNKS = 12  # of 1 MiB at most, for each consumer
_LEAVE_S = 2.0  # a sink that hears nothing from its other end is left to itself when the user interrupts


class _Feed:
    """A bounded queue of chunks that either side can leave."""

    def __init__(self) -> None:
        self._chunks: deque[bytes] = deque()
        self._changed = threading.Condition()
        self._ended = False
        self._left = False
        self._error: BaseException | None = None

    def put(self, chunk: bytes) -> None:
        with self._changed:
            while len(self._chunks) >= _QUEUE_CHUNKS and not self._left:
                self._changed.wait()
            if not self._left:
                self._chunks.append(chunk)
                self._changed.notify_all()

    def end(self, error: BaseException | None = None) -> None:
        with self._changed:
            self._ended, self._error = True, error
            self._changed.notify_all()

    def leave(self) -> None:
        with self._changed:
            self._left = True
            self._chunks.clear()
            self._changed.notify_all()

    def __iter__(self) -> Iterator[bytes]:
        while True:
            with self._changed:
                while not (self._chunks or self._ended or self._left):
                    self._changed.wait()
                if self._error or self._left or not self._chunks:
                    if self._error:
                        raise self._error
                    return
                chunk = self._chunks.popleft()
                self._changed.notify_all()
            yield chunk


class _Verdict:
    """The earned digest, or why there is none; set once, awaited by many."""

    def __init__(self) -> None:
        self._known = threading.Event()
        self._digest: Digest | None = None
        self._error: BaseException | None = None

    def set(self, digest: Digest) -> None:
        self._digest = digest
        self._known.set()

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._known.set()

    def raise_if_failed(self) -> None:
        if self._error:
            raise self._error

    def wait(self) -> Digest:
        self._known.wait()
        if self._digest is None:
            raise self._error or AssertionError("a verdict without digest and error")
        return self._digest


class _LivePayload:
    def __init__(self, content: Content, known: Digest | None, identity: str | None, verdict: _Verdict) -> None:
        self.size = content.size
        self.known_digest = known
        self.identity = identity
        self.feed = _Feed()
        self._content = content
        self._verdict = verdict
        self._live = True

    def read(self, offset: int = 0) -> Iterator[bytes]:
        if self._live and offset == 0:
            self._live = False
            return iter(self.feed)
        self.feed.leave()
        return self._again(offset)

    def _again(self, offset: int) -> Iterator[bytes]:
        """Away from the live feed, yet not from its end: nobody sends on what was interrupted or proved wrong."""
        for chunk in self._content.read(offset):
            self._verdict.raise_if_failed()
            yield chunk

    def earned_digest(self) -> Digest:
        self.feed.leave()
        return self._verdict.wait()


class _Consumer:
    """A thread that works off one feed and remembers how it ended."""

    def __init__(self, feed: _Feed, work: Callable[[], None], *, failed: Callable[[BaseException], None]) -> None:
        self._feed = feed
        self._work = work
        self._failed = failed
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._work()
        except BaseException as error:  # noqa: BLE001 - handed to the reading thread, which raises it
            self.error = error
            self._failed(error)
        finally:
            self._feed.leave()

    def join(self, timeout_s: float | None = None) -> None:
        self._thread.join(timeout_s)


class _Pass:
    def __init__(self, content: Content, *, known: Digest | None, plan: LayerPlan | None) -> None:
        self._content = content
        self._known = known
        self._plan = plan
        self._verdict = _Verdict()
        self._layer_check = LayerCheck()
        self._failure: BaseException | None = None

    def run(self, consumers: Sequence[Callable[[Payload], None]]) -> Digest:
        checks: list[Check] = [self._layer_check]
        if self._plan and not self._known:  # a known layer digest was earned with every blob in it checked
            checks.append(BlobCheck(self._plan))
        hashing = [self._start_check(check) for check in checks]
        identity = _identity(self._known, self._plan)
        payloads = [_LivePayload(self._content, self._known, identity, self._verdict) for _ in consumers]
        sending = [
            _Consumer(payload.feed, partial(work, payload), failed=self._fail)
            for work, payload in zip(consumers, payloads, strict=True)
        ]
        try:
            self._read([feed for feed, _ in hashing] + [payload.feed for payload in payloads])
            for _, consumer in hashing:
                consumer.join()
            self._judge()
        except BaseException as error:  # noqa: BLE001 - those who wait must hear of it, whatever it is
            self._fail(error)
        self._wait_for(sending)
        if self._failure:
            raise self._failure
        return self._verdict.wait()

    def _wait_for(self, sending: Sequence[_Consumer]) -> None:
        """An interruption, before or while we wait, is not held up by a sink whose other end is silent."""
        interrupted = self._failure is not None and not isinstance(self._failure, Exception)
        try:
            for consumer in sending:
                consumer.join(_LEAVE_S if interrupted else None)
        except KeyboardInterrupt as error:
            self._fail(error)
            for consumer in sending:
                consumer.join(_LEAVE_S)
            raise

    def _start_check(self, check: Check) -> tuple[_Feed, _Consumer]:
        feed = _Feed()

        def work() -> None:
            for chunk in feed:
                check.feed(chunk)

        return feed, _Consumer(feed, work, failed=self._fail)

    def _read(self, feeds: Sequence[_Feed]) -> None:
        try:
            for chunk in self._whole():
                for feed in feeds:
                    feed.put(chunk)
        except BaseException as error:
            for feed in feeds:
                feed.end(error)
            raise
        for feed in feeds:
            feed.end()

    def _whole(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._content.read():
            if self._failure:
                raise self._failure
            size += len(chunk)
            yield chunk
        if size != self._content.size:
            raise ApplianceError(
                f"source ended after {size} of {self._content.size} bytes",
                hint="the file may have changed while it was read; run the command again",
            )

    def _judge(self) -> None:
        if self._failure:
            raise self._failure
        digest = self._layer_check.digest()
        if self._known and digest != self._known:
            raise CorruptBlobError(self._known, digest, "a layer")
        self._verdict.set(digest)

    def _fail(self, error: BaseException) -> None:
        """The first failure is the one that is told; everybody who waits hears of it."""
        if self._failure is None:
            self._failure = error
        self._verdict.fail(self._failure)


def _identity(known: Digest | None, plan: LayerPlan | None) -> str | None:
    if plan and plan.blobs:
        return f"layout {LAYOUT} of {' '.join(str(blob.digest) for blob in plan.blobs)}"
    return str(known) if known else None


def run_pass(
    content: Content,
    *,
    consumers: Sequence[Callable[[Payload], None]],
    known: Digest | None = None,
    plan: LayerPlan | None = None,
) -> Digest:
    """Read `content` once for all consumers and return its digest.

    With `plan`, the digest of every blob in the layer is checked on the way; with `known`, that of the layer.
    No payload's `earned_digest` returns before these checks passed. The first error of anyone ends the pass.
    """
    return _Pass(content, known=known, plan=plan).run(consumers)
