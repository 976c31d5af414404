"""The one pass: everyone gets every byte once, wrong bytes never earn a digest, one failure ends all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from appliance_builder.layer_bytes import CorruptBlobError, LayerContent
from appliance_builder.ports import Payload
from appliance_builder.stream import run_pass
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.layer import Blob, weights_layer


class Text:
    """Content in memory that counts how often it was read from where."""

    def __init__(self, content: bytes, *, chunk: int = 1000, size: int | None = None) -> None:
        self.size = len(content) if size is None else size
        self.reads: list[int] = []
        self._content, self._chunk = content, chunk

    def read(self, offset: int = 0) -> Iterator[bytes]:
        self.reads.append(offset)
        for start in range(offset, len(self._content), self._chunk):
            yield self._content[start : start + self._chunk]


CONTENT = bytes(range(256)) * 4096


def taker(taken: list[bytes]) -> Callable[[Payload], None]:
    def take(payload: Payload) -> None:
        taken.extend(payload.read())

    return take


def test_every_consumer_gets_every_byte_and_the_source_is_read_once() -> None:
    source = Text(CONTENT)
    first: list[bytes] = []
    second: list[bytes] = []

    digest = run_pass(source, consumers=[taker(first), taker(second)])

    assert b"".join(first) == b"".join(second) == CONTENT
    assert digest == Digest.of(CONTENT)
    assert source.reads == [0]


@pytest.mark.parametrize("offset", [0, 1, 4096, len(CONTENT) - 1])
def test_a_consumer_that_goes_back_reads_on_its_own_while_the_others_stay_live(offset: int) -> None:
    source = Text(CONTENT)
    live: list[bytes] = []
    again: list[bytes] = []

    def goes_back(payload: Payload) -> None:
        for _, _ in zip(range(3), payload.read(), strict=False):
            pass
        again.extend(payload.read(offset))

    run_pass(source, consumers=[goes_back, taker(live)])

    assert b"".join(live) == CONTENT
    assert b"".join(again) == CONTENT[offset:]
    assert source.reads == [0, offset]


def test_a_consumer_that_takes_nothing_does_not_stop_the_others() -> None:
    taken: list[bytes] = []

    digest = run_pass(Text(CONTENT), consumers=[lambda payload: None, taker(taken)])

    assert (digest, b"".join(taken)) == (Digest.of(CONTENT), CONTENT)


def test_the_digest_is_earned_only_after_the_last_byte() -> None:
    released = threading.Event()
    earned: list[bool] = []

    class Waits(Text):
        def read(self, offset: int = 0) -> Iterator[bytes]:
            yield from super().read(offset)
            released.set()

    def asks_at_once(payload: Payload) -> None:
        assert payload.earned_digest() == Digest.of(CONTENT)
        earned.append(released.is_set())

    run_pass(Waits(CONTENT), consumers=[asks_at_once])

    assert earned == [True]


def layer(promised: bytes, found: bytes) -> tuple[LayerContent, Blob]:
    blob = Blob(Digest.of(promised), len(promised))
    return LayerContent(weights_layer([blob]), {blob.digest: Text(found)}), blob


@pytest.mark.parametrize("place", [0, 511, 512, len(CONTENT) - 1])
def test_one_wrong_byte_in_a_blob_fails_every_consumer_that_waits_for_the_digest(place: int) -> None:
    damaged = CONTENT[:place] + bytes([CONTENT[place] ^ 1]) + CONTENT[place + 1 :]
    content, blob = layer(CONTENT, damaged)
    told: list[Exception] = []

    def commits(payload: Payload) -> None:
        for _ in payload.read():
            pass
        try:
            payload.earned_digest()
        except CorruptBlobError as error:
            told.append(error)
            raise

    with pytest.raises(CorruptBlobError) as caught:
        run_pass(content, consumers=[commits, commits], plan=weights_layer([blob]))

    assert caught.value.digest == blob.digest
    assert len(told) == 2


def test_a_known_layer_is_checked_against_its_digest() -> None:
    with pytest.raises(CorruptBlobError):
        run_pass(Text(CONTENT), consumers=[], known=Digest.of(b"something else"))


def test_a_source_that_ends_early_fails_all() -> None:
    taken: list[bytes] = []

    with pytest.raises(ApplianceError, match="ended after 1048576 of 1048577 bytes"):
        run_pass(Text(CONTENT, size=len(CONTENT) + 1), consumers=[taker(taken)])


def test_the_failure_of_one_consumer_reaches_the_others_and_the_caller() -> None:
    told: list[BaseException] = []

    def breaks(payload: Payload) -> None:
        next(iter(payload.read()))
        raise ApplianceError("the disk is full", hint="free some")

    def waits(payload: Payload) -> None:
        try:
            for _ in payload.read():
                pass
            payload.earned_digest()
        except ApplianceError as error:
            told.append(error)
            raise

    with pytest.raises(ApplianceError, match="the disk is full"):
        run_pass(Text(CONTENT, chunk=100), consumers=[breaks, waits])

    assert [str(error) for error in told] == ["the disk is full"]


@pytest.mark.parametrize("offset", range(0, 4096, 97))
def test_a_layer_can_be_read_from_any_place(offset: int) -> None:
    content, _ = layer(b"x" * 1000, b"x" * 1000)
    whole = b"".join(content.read())

    assert b"".join(content.read(offset)) == whole[offset:]
    assert len(whole) == content.size


def test_a_consumer_that_reads_on_its_own_stops_when_the_pass_has_failed() -> None:
    away = threading.Event()
    limit_s = time.monotonic() + 10
    reached: list[float] = []

    class Interrupted(Text):
        def read(self, offset: int = 0) -> Iterator[bytes]:
            if offset == 0:
                yield CONTENT[:1000]
                away.wait()
                raise KeyboardInterrupt
            away.set()
            while time.monotonic() < limit_s:
                yield b"x"

    def goes_back(payload: Payload) -> None:
        next(iter(payload.read()))
        for _ in payload.read(1000):
            pass
        reached.append(time.monotonic())

    with pytest.raises(KeyboardInterrupt):
        run_pass(Interrupted(CONTENT), consumers=[goes_back])

    assert reached == []


def test_a_source_that_delivers_too_much_is_told_in_words() -> None:
    content, blob = layer(CONTENT, CONTENT + b"more" * 10_000)

    with pytest.raises(ApplianceError, match=r"more bytes than|ended after"):
        run_pass(content, consumers=[], plan=weights_layer([blob]))
