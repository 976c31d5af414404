"""Downloads over real sockets: a registry that links to a storage, and everything that storages and networks do."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from blobsources import StoreSource
from faults import Answer, Corrupt, Cut, Headers, IgnoreRange, Shorten, Stall
from ollamafront import Manners, OllamaFront, start_front
from registries import Registry

from appliance_builder.blobcache import BlobCache, Cleared
from appliance_builder.download import Downloads
from appliance_builder.filling import CancelledError, DownloadError, Progress
from appliance_builder.http import Http
from appliance_builder.journal import Segments
from appliance_builder.network import Network
from appliance_builder.pace import Budget, Pace
from appliance_builder.partial import CacheError, PartialBlob
from appliance_builder.ports import Content, Transfer
from appliance_builder.ranges import DoubtfulError, LinkRefusedError, RegistryRanges, fetcher_for_oci
from appliance_builder.registry import Repository
from appliance_builder.registry_errors import RegistryError
from appliance_builder.transport import Transport
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.oci import LAYER_GZIP, Descriptor

KIB = 1024
SEGMENT = 64 * KIB
SIZE = 10 * SEGMENT + 1234  # eleven segments
QUICK = Pace(patience_s=20, doubt_s=10, first_s=0.01, longest_s=0.05)
IMPATIENT = Pace(patience_s=0.3, doubt_s=0.1, first_s=0.01, longest_s=0.05)
NAME = "library/model"


@dataclass
class Bar:
    size: int
    done: int = 0
    notes: list[str] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def advance(self, size: int) -> None:
        with self.changed:
            self.done += size

    def restart(self, done: int) -> None:
        with self.changed:
            self.done = done

    def note(self, text: str) -> None:
        with self.changed:
            self.notes.append(text)
            self.changed.notify_all()


@dataclass
class Screen:
    """What a person would see."""

    bars: list[Bar] = field(default_factory=list)

    def step(self, message: str) -> None:
        raise AssertionError(message)

    def warning(self, message: str, *, hint: str) -> None:
        raise AssertionError(message)

    @contextmanager
    def transfer(self, name: str, *, size: int) -> Generator[Transfer, None, None]:
        self.bars.append(Bar(size))
        yield self.bars[-1]


class Yard:
    """A blob at a registry, and a cache to download it into."""

    def __init__(self, directory: Path, blob: bytes, front: OllamaFront) -> None:
        self.blob = blob
        digest = Digest.of(blob)
        self.descriptor = Descriptor("application/vnd.ollama.image.model", digest, len(blob))
        self.front = front
        assert isinstance(front.source, StoreSource)
        self.stored = front.source.store / "blobs" / digest.file_name
        self.stored.write_bytes(blob)
        self.cache = BlobCache(directory / "cache", segment_bytes=SEGMENT)
        self.file = self.cache.directory / digest.file_name
        self.partial = self.file.with_name(self.file.name + ".partial")
        self.journal = self.file.with_name(self.file.name + ".journal")
        self.screen = Screen()
        self.http = Http(Network(), environ={})

    def close(self) -> None:
        self.http.close()

    def downloads(self, *, pace: Pace = QUICK, connections: int = 4) -> Downloads:
        return Downloads(self.cache, self.screen, connections=connections, pace=pace)

    def content(self, downloads: Downloads, *, stall_s: float = 30) -> Content:
        transport = Transport(self.front.host, self.http, credentials=lambda _: None)
        fetcher = RegistryRanges(
            transport, NAME, self.descriptor, scopes=("repository:library/model:pull",), stall_s=stall_s
        )
        return downloads.content(fetcher, self.descriptor)

    def fetch(self, *, pace: Pace = QUICK, connections: int = 4, stall_s: float = 30) -> bytes:
        """A whole build's worth: read, compare, settle."""
        with self.downloads(pace=pace, connections=connections) as downloads:
            body = b"".join(self.content(downloads, stall_s=stall_s).read())
            downloads.settle(self.descriptor.digest, good=Digest.of(body) == self.descriptor.digest)
        return body

    @property
    def sent_bytes(self) -> int:
        """What left the storage as parts of the blob, also what was lost on the way; nothing may be on it any more."""
        self.front.blob_proxy.wait_for(lambda log: all(exchange.finished for exchange in log))
        return sum(exchange.response_bytes for exchange in self.front.blob_requests() if exchange.status in (200, 206))


def make_front(directory: Path) -> OllamaFront:
    (directory / "blobs").mkdir()
    return start_front(StoreSource(directory))


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaFront]:
    made = make_front(tmp_path_factory.mktemp("store"))
    yield made
    made.close()
    assert made.violations == []


@pytest.fixture
def mortal_front(tmp_path: Path) -> Iterator[OllamaFront]:
    """For a test that closes it."""
    (tmp_path / "store").mkdir()
    made = make_front(tmp_path / "store")
    yield made
    made.close()


@pytest.fixture
def yard(tmp_path: Path, front: OllamaFront) -> Iterator[Yard]:
    made = Yard(tmp_path, random.Random(7).randbytes(SIZE), front)
    yield made
    made.close()
    front.manners = Manners()
    for proxy in (front.proxy, front.blob_proxy):
        proxy.clear()
        proxy.forget()


def test_a_blob_arrives_byte_for_byte_and_is_kept_once_confirmed(yard: Yard) -> None:
    body = yard.fetch()

    assert body == yard.blob
    assert yard.file.read_bytes() == yard.blob
    assert not yard.partial.exists()
    assert yard.sent_bytes == SIZE
    assert yard.screen.bars[0].done == SIZE


def test_a_kept_blob_is_read_without_the_network(yard: Yard, mortal_front: OllamaFront) -> None:
    yard.fetch()
    yard.front = mortal_front
    mortal_front.close()

    assert yard.fetch() == yard.blob


def test_a_registry_is_asked_for_a_link_once_and_not_for_each_part(yard: Yard) -> None:
    yard.fetch(connections=1)

    assert len(yard.front.requests()) == 1
    assert len(yard.front.blob_requests()) == 11


def test_a_blob_of_a_plain_registry_arrives_without_links(registry: Registry, tmp_path: Path) -> None:
    blob = random.Random(8).randbytes(SIZE)

    with (
        Http(Network(), environ={}) as http,
        Downloads(BlobCache(tmp_path, segment_bytes=SEGMENT), Screen()) as downloads,
    ):
        repository = Repository(Transport(registry.host, http), "base", push=True)
        descriptor = Descriptor(LAYER_GZIP, repository.put_small_blob(blob), SIZE)
        body = b"".join(downloads.content(fetcher_for_oci(repository, descriptor), descriptor).read())

    assert body == blob


@pytest.mark.parametrize("size", [0, 1, SEGMENT - 1, SEGMENT, SEGMENT + 1, 2 * SEGMENT])
def test_blobs_of_every_size_around_a_segment_arrive(tmp_path: Path, front: OllamaFront, size: int) -> None:
    yard = Yard(tmp_path, b"x" * size, front)

    body = yard.fetch()
    yard.close()

    assert body == yard.blob


@pytest.mark.parametrize("offset", [0, 1, SEGMENT - 1, SEGMENT, 5 * SEGMENT + 77, SIZE - 1, SIZE])
def test_content_can_be_read_from_any_place(yard: Yard, offset: int) -> None:
    with yard.downloads() as downloads:
        assert b"".join(yard.content(downloads).read(offset)) == yard.blob[offset:]


def test_readers_get_the_front_while_the_rest_is_still_on_its_way(yard: Yard) -> None:
    stall = Stall()
    yard.front.blob_proxy.add(stall, nth=3)

    with yard.downloads(connections=2) as downloads:
        reading = yard.content(downloads).read()
        front = next(reading) + next(reading)
        stall.reached.wait()
        assert len(front) == 2 * SEGMENT
        assert not yard.file.exists()
        stall.release()
        rest = b"".join(reading)

    assert front + rest == yard.blob


def test_many_readers_share_one_download(yard: Yard) -> None:
    bodies: list[bytes] = []

    with yard.downloads() as downloads:
        content = yard.content(downloads)
        readers = [threading.Thread(target=lambda: bodies.append(b"".join(content.read()))) for _ in range(5)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join()

    assert bodies == [yard.blob] * 5
    assert yard.sent_bytes == SIZE


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest.mark.parametrize("after", [0, 1, 511, 512, SEGMENT // 2, SEGMENT - 1])
def test_a_connection_cut_at_any_byte_goes_on_from_there(yard: Yard, after: int, how: str) -> None:
    yard.front.blob_proxy.add(Cut(after, how="fin" if how == "fin" else "rst"), times=20)

    body = yard.fetch()

    assert body == yard.blob
    if how == "fin":  # a reset also loses what was under way
        assert yard.sent_bytes == SIZE


def test_a_note_goes_away_although_another_connection_goes_on_while_it_is_written() -> None:
    progress = Progress(QUICK)

    class Slow(Bar):
        def note(self, text: str) -> None:
            if text:
                progress.received(1, new=True)
            super().note(text)

    bar = Slow(SEGMENT)
    progress.begin(Segments(SEGMENT), [], bar)

    progress.retry(_refused(503), tries=0)
    progress.received(1, new=True)

    assert bar.notes[-1] == ""


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_server_in_trouble_is_asked_again(yard: Yard, status: int) -> None:
    yard.front.blob_proxy.add(Answer(status, b"later"), times=5)

    assert yard.fetch() == yard.blob
    assert any(f"answered {status}" in note for note in yard.screen.bars[0].notes)
    assert yard.screen.bars[0].notes[-1] == ""


def test_all_connections_wait_as_long_as_one_of_them_was_told(yard: Yard) -> None:
    yard.front.blob_proxy.add(Answer(429, headers={"Retry-After": "1"}), nth=1)
    began = time.monotonic()

    body = yard.fetch(connections=1)

    assert body == yard.blob
    assert time.monotonic() - began >= 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410])
def test_a_link_that_the_storage_refuses_is_asked_for_anew(yard: Yard, status: int) -> None:
    yard.front.blob_proxy.add(Answer(status), nth=4)

    body = yard.fetch(connections=1)

    assert body == yard.blob
    assert len(yard.front.requests()) == 2


def test_links_that_serve_one_request_each_are_enough(yard: Yard) -> None:
    yard.front.manners = Manners(link_uses=1)

    body = yard.fetch()

    assert body == yard.blob


def test_a_storage_that_refuses_every_link_ends_the_download_with_its_words(yard: Yard) -> None:
    yard.front.blob_proxy.add(Answer(403))

    with pytest.raises(DownloadError, match="answered 403") as caught:
        yard.fetch(pace=IMPATIENT)

    assert "clock" in caught.value.hint


def test_a_blob_that_the_registry_does_not_have_ends_the_download_at_once(yard: Yard) -> None:
    yard.stored.unlink()

    with pytest.raises(RegistryError, match="404 BLOB_UNKNOWN"):
        yard.fetch()

    assert len(yard.front.requests()) <= 4


@pytest.mark.parametrize("cut", [None, 1, SEGMENT, 7 * SEGMENT + 99])
def test_a_server_that_ignores_ranges_is_read_in_one_go(yard: Yard, cut: int | None) -> None:
    yard.front.blob_proxy.add(IgnoreRange())
    if cut is not None:
        yard.front.blob_proxy.add(Cut(cut), nth=5)

    body = yard.fetch()

    assert body == yard.blob
    assert yard.file.read_bytes() == yard.blob


def test_what_is_there_is_kept_when_a_server_begins_to_ignore_ranges(yard: Yard) -> None:
    with yard.downloads(connections=1) as downloads:
        reading = yard.content(downloads).read()
        for _ in range(3):
            next(reading)
    kept = yard.cache.missing_bytes(yard.descriptor.digest, SIZE)
    yard.front.blob_proxy.add(IgnoreRange())

    body = yard.fetch()

    assert kept < SIZE
    assert body == yard.blob


@pytest.mark.parametrize(
    "lie",
    [
        Headers({"Content-Range": f"bytes 0-{SEGMENT - 1}/{SIZE}"}),
        Headers({"Content-Range": f"bytes {SEGMENT}-{2 * SEGMENT - 1}/{SIZE + 1}"}),
        Headers({"Content-Range": "bytes */*"}),
        Headers({"Content-Range": None}),
        Headers({"Content-Range": f"bytes {SEGMENT}-{SEGMENT + 9}/{SIZE}"}),
        Headers({"Content-Encoding": "gzip"}),
        Headers({"Content-Type": "text/html; charset=utf-8"}),
        Answer(200, b"<html>please log in</html>", {"Content-Type": "text/html"}),
        Answer(200, b"something short", {"Content-Type": "application/octet-stream"}),
        Answer(206, b"x" * SEGMENT, {"Content-Range": f"bytes {2 * SEGMENT}-{3 * SEGMENT - 1}/{SIZE}"}),
        Shorten(1000),
        Shorten(0),
    ],
    ids=lambda lie: str(lie)[:60],
)
def test_an_answer_that_is_not_what_was_asked_for_is_never_written(yard: Yard, lie: Headers | Answer | Shorten) -> None:
    yard.front.blob_proxy.add(lie, nth=2)

    body = yard.fetch(connections=1)

    assert body == yard.blob


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (Answer(200, b"<html>please log in</html>", {"Content-Type": "text/html"}), "a web page"),
        (Answer(200, b"something short"), "15 bytes, the manifest says"),
        (Headers({"Content-Range": f"bytes 0-{SEGMENT - 1}/*", "X": "1"}), "another range"),
        (Headers({"Content-Range": f"bytes 0-9/{SIZE}"}), "answered with"),
    ],
)
def test_a_server_that_keeps_lying_is_named(yard: Yard, lie: Answer | Headers, words: str) -> None:
    yard.front.blob_proxy.add(lie)

    with pytest.raises(DownloadError, match=words) as caught:
        yard.fetch(pace=IMPATIENT, connections=2)

    assert "proxy" in caught.value.hint


def test_a_blob_larger_than_the_manifest_says_is_refused(yard: Yard) -> None:
    yard.stored.write_bytes(yard.blob + b"more")

    with pytest.raises(DownloadError, match=f"a part of {SIZE + 4} bytes, the manifest says {SIZE}"):
        yard.fetch(pace=IMPATIENT)


def test_a_blob_smaller_than_the_manifest_says_is_refused(yard: Yard) -> None:
    yard.stored.write_bytes(yard.blob[: 3 * SEGMENT])

    with pytest.raises(ApplianceError, match=f"{3 * SEGMENT} bytes, the manifest says {SIZE}"):
        yard.fetch(pace=IMPATIENT)


def test_a_silent_connection_is_replaced(yard: Yard) -> None:
    stall = Stall(after=1000)
    yard.front.blob_proxy.add(stall, nth=2)

    body = yard.fetch(stall_s=0.2)

    assert body == yard.blob
    assert stall.reached.is_set()
    assert any("silent" in note for note in yard.screen.bars[0].notes)


def test_a_download_gives_up_after_time_without_progress_and_the_next_run_goes_on(yard: Yard) -> None:
    rule = yard.front.blob_proxy.add(Answer(503))

    with pytest.raises(DownloadError, match=r"gave up after 2.0 s without a byte") as caught:
        yard.fetch(pace=replace(IMPATIENT, patience_s=2))
    yard.front.blob_proxy.clear()

    assert "stays" in caught.value.hint
    assert rule.hits > 1
    assert yard.fetch() == yard.blob


def test_a_host_that_was_never_reached_gets_little_patience(yard: Yard, mortal_front: OllamaFront) -> None:
    yard.front = mortal_front
    mortal_front.close()

    with pytest.raises(ApplianceError, match="refuses connections"):
        yard.fetch(pace=Pace(patience_s=600, doubt_s=0.1, first_s=0.01))


def test_cancelling_wakes_readers_and_ends_connections_and_the_next_run_goes_on(yard: Yard) -> None:
    yard.front.blob_proxy.add(Stall(after=10), nth=6)
    failures: list[BaseException] = []

    def read(content: Content) -> None:
        try:
            for _ in content.read():
                pass
        except ApplianceError as error:
            failures.append(error)

    with yard.downloads() as downloads:
        reader = threading.Thread(target=read, args=(yard.content(downloads),))
        reader.start()
        yard.front.blob_proxy.wait_for(lambda log: sum(exchange.finished for exchange in log) >= 10)
        downloads.cancel()
        reader.join()
    yard.front.blob_proxy.clear()
    before = yard.sent_bytes
    body = yard.fetch()

    assert [type(failure) for failure in failures] == [CancelledError]
    assert body == yard.blob
    assert yard.sent_bytes - before <= 4 * SEGMENT


CHILD = """
import sys
from pathlib import Path
from appliance_builder.blobcache import BlobCache
from appliance_builder.download import Downloads
from appliance_builder.http import Http
from appliance_builder.network import Network
from appliance_builder.pace import Pace
from appliance_builder.progress import JsonReporter
from appliance_builder.ranges import RegistryRanges
from appliance_builder.transport import Transport
from appliance_image.digest import Digest
from appliance_image.oci import Descriptor

host, directory, digest, size, segment = sys.argv[1:]
descriptor = Descriptor("application/octet-stream", Digest.parse(digest), int(size))
cache = BlobCache(Path(directory), segment_bytes=int(segment))
fetcher = RegistryRanges(Transport(host, Http(Network(), environ={})), "library/model", descriptor, scopes=())
with Downloads(cache, JsonReporter(sys.stdout), connections=4, pace=Pace(first_s=0.01)) as downloads:
    body = b"".join(downloads.content(fetcher, descriptor).read())
    downloads.settle(descriptor.digest, good=Digest.of(body) == descriptor.digest)
print("done", Digest.of(body), flush=True)
"""


def start_child(yard: Yard) -> "subprocess.Popen[str]":
    words = [yard.front.host, str(yard.cache.directory), str(yard.descriptor.digest), str(SIZE), str(SEGMENT)]
    return subprocess.Popen([sys.executable, "-c", CHILD, *words], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("pieces", [1, 3, 7, 20, 35])
def test_killed_at_any_point_a_run_loses_no_more_than_one_segment_of_each_connection(yard: Yard, pieces: int) -> None:
    stall = Stall(after=5000)
    yard.front.blob_proxy.add(stall, nth=1)  # so that it cannot finish before it is killed

    child = start_child(yard)
    yard.front.blob_proxy.wait_for(
        lambda log: sum(exchange.response_bytes for exchange in log) >= pieces * SEGMENT // 4
    )
    child.kill()
    child.communicate()
    yard.front.blob_proxy.clear()
    body = yard.fetch()

    assert child.returncode == -signal.SIGKILL
    assert body == yard.blob
    assert yard.sent_bytes <= SIZE + 4 * SEGMENT


def test_two_processes_share_one_download(yard: Yard) -> None:
    stall = Stall(after=100)
    yard.front.blob_proxy.add(stall, nth=1)

    first = start_child(yard)
    stall.reached.wait()
    second = start_child(yard)
    assert second.stdout is not None
    lines = iter(second.stdout)
    waited = next(line for line in lines if '"note"' in line)
    stall.release()
    first_said, second_said = first.communicate()[0], "".join(lines)
    second.communicate()

    assert "another build downloads it" in waited
    for said in (first_said, second_said):
        assert said.endswith(f"done {yard.descriptor.digest}\n")
    assert yard.sent_bytes == SIZE
    assert yard.file.exists()


def test_a_process_that_waits_takes_over_when_the_other_is_killed(yard: Yard) -> None:
    stall = Stall(after=100)
    yard.front.blob_proxy.add(stall, nth=1)

    first = start_child(yard)
    stall.reached.wait()
    second = start_child(yard)
    assert second.stdout is not None
    lines = iter(second.stdout)
    next(line for line in lines if '"note"' in line)
    first.kill()
    first.communicate()
    yard.front.blob_proxy.clear()
    said = "".join(lines)
    second.communicate()

    assert said.endswith(f"done {yard.descriptor.digest}\n")
    assert yard.sent_bytes <= SIZE + 4 * SEGMENT


def test_a_byte_that_changed_on_the_way_costs_the_whole_blob_and_never_gets_a_name(yard: Yard) -> None:
    yard.front.blob_proxy.add(Corrupt(77), nth=5)

    wrong = yard.fetch()
    missing = yard.cache.missing_bytes(yard.descriptor.digest, SIZE)
    right = yard.fetch()

    assert wrong != yard.blob
    assert missing == SIZE
    assert right == yard.blob


@pytest.mark.parametrize("kept_as", ["partial", "complete"])
def test_a_byte_that_changed_on_disk_costs_one_segment(yard: Yard, kept_as: str) -> None:
    if kept_as == "complete":
        yard.fetch()
    else:
        with yard.downloads() as downloads:
            b"".join(yard.content(downloads).read())
    file = yard.file if kept_as == "complete" else yard.partial
    with file.open("r+b") as damaged:
        damaged.seek(3 * SEGMENT + 5)
        damaged.write(b"\0\0")
    before = yard.sent_bytes

    wrong = yard.fetch()
    missing = yard.cache.missing_bytes(yard.descriptor.digest, SIZE)
    right = yard.fetch()

    assert wrong != yard.blob
    assert missing == SEGMENT
    assert right == yard.blob
    assert yard.sent_bytes - before == SEGMENT


def test_a_good_blob_survives_being_called_bad(yard: Yard) -> None:
    yard.fetch()

    yard.cache.reject(yard.descriptor.digest)

    assert yard.file.read_bytes() == yard.blob


def test_a_journal_torn_at_any_byte_costs_segments_and_nothing_else(yard: Yard) -> None:
    with yard.downloads() as downloads:
        b"".join(yard.content(downloads).read())
    text = yard.journal.read_bytes()

    for cut in range(0, len(text) + 1, 31):
        yard.journal.write_bytes(text[:cut] + b"\0\0\0")
        with yard.downloads() as downloads:
            assert b"".join(yard.content(downloads).read()) == yard.blob


def test_an_incomplete_blob_is_never_confirmed(yard: Yard) -> None:
    claimed = yard.cache.claim(yard.descriptor.digest, SIZE)
    assert isinstance(claimed, PartialBlob)
    with claimed as blob:
        blob.write(0, yard.blob[:SEGMENT])
        blob.record(0, Digest.of(yard.blob[:SEGMENT]))

    assert yard.cache.confirm(yard.descriptor.digest) is False
    assert not yard.file.exists()


def test_a_blob_is_claimed_by_one_at_a_time(yard: Yard) -> None:
    digest = yard.descriptor.digest
    first = yard.cache.claim(digest, SIZE)
    assert isinstance(first, PartialBlob)

    assert yard.cache.claim(digest, SIZE) is None
    assert [blob.in_use for blob in yard.cache.kept()] == [True]
    assert yard.cache.clear() == Cleared(blobs=0, bytes=0, in_use=1)

    first.close()
    second = yard.cache.claim(digest, SIZE)
    assert isinstance(second, PartialBlob)
    second.close()


def test_what_is_kept_can_be_listed_and_cleared(yard: Yard) -> None:
    yard.fetch()
    other = Digest.of(b"other")
    claimed = yard.cache.claim(other, 4 * SEGMENT)
    assert isinstance(claimed, PartialBlob)
    with claimed as blob:
        blob.write(SEGMENT, bytes([1]) * SEGMENT)
        blob.record(1, Digest.of(bytes([1]) * SEGMENT))
    kept = {blob.digest: blob for blob in yard.cache.kept()}

    cleared = yard.cache.clear()

    assert (kept[yard.descriptor.digest].complete, kept[yard.descriptor.digest].size) == (True, SIZE)
    assert (kept[other].complete, kept[other].size, kept[other].kept_bytes) == (False, 4 * SEGMENT, SEGMENT)
    assert cleared == Cleared(blobs=2, bytes=SIZE + SEGMENT, in_use=0)
    assert list(yard.cache.directory.iterdir()) == []


def test_clearing_can_spare_what_is_young(yard: Yard) -> None:
    yard.fetch()
    now_s = yard.file.stat().st_mtime + 100

    assert yard.cache.clear(older_than_s=101, now_s=now_s).blobs == 0
    assert yard.cache.clear(older_than_s=99, now_s=now_s).blobs == 1


def test_a_listing_writes_nothing(yard: Yard) -> None:
    assert yard.cache.kept() == []
    assert not yard.cache.directory.exists()


@contextmanager
def small_disk(directory: Path, size: int) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("a small disk needs root")
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", directory], check=True)
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def test_a_disk_that_is_too_small_is_told_before_the_first_byte(yard: Yard, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 5 * SEGMENT) as disk:
        yard.cache = BlobCache(disk, segment_bytes=SEGMENT)

        with pytest.raises(CacheError, match=r"not enough room in .*small") as caught:
            yard.fetch()

    assert "--cache DIR" in caught.value.hint
    assert yard.front.requests() == []


def test_a_disk_that_fills_up_keeps_what_came_and_the_next_run_goes_on(yard: Yard, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", SIZE + 3 * SEGMENT) as disk:
        yard.cache = BlobCache(disk, segment_bytes=SEGMENT)
        stall = Stall()
        yard.front.blob_proxy.add(stall, nth=2)
        with yard.downloads(connections=1) as downloads:
            reading = yard.content(downloads).read()
            next(reading)
            stall.reached.wait()
            (disk / "other").write_bytes(b"x" * (6 * SEGMENT))
            stall.release()
            with pytest.raises(CacheError, match=r"the disk of .*small is full") as caught:
                list(reading)
        missing = yard.cache.missing_bytes(yard.descriptor.digest, SIZE)
        before = yard.sent_bytes
        (disk / "other").unlink()
        body = yard.fetch()

    assert "kB are still to come" in caught.value.hint
    assert "appliance cache clear" in caught.value.hint
    assert 0 < missing < SIZE
    assert body == yard.blob
    assert yard.sent_bytes - before == missing


def test_a_directory_that_cannot_be_written_is_named(yard: Yard, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    yard.cache = BlobCache(tmp_path / "file" / "cache")

    with pytest.raises(CacheError, match=r"cannot write to .*file/cache: not a directory"):
        yard.fetch()


def test_a_confirmed_blob_of_another_size_than_the_manifest_says_is_told(yard: Yard) -> None:
    yard.fetch()

    with pytest.raises(CacheError, match=f"has {SIZE} bytes, not {SIZE + 1}"):
        yard.cache.claim(yard.descriptor.digest, SIZE + 1)


def _refused(status: int, retry_after_s: float | None = None) -> RegistryError:
    return RegistryError("x", hint="y", host="h", status=status, retry_after_s=retry_after_s)


def test_patience_is_time_without_progress_and_not_a_number_of_tries() -> None:
    budget = Budget(Pace(patience_s=100), now_s=0)

    assert all(budget.pause_s(_refused(503), tries, now_s=tries, random=0.5) for tries in range(100))
    assert budget.pause_s(_refused(503), 0, now_s=100, random=0.5) is None
    budget.progressed(100)
    assert budget.pause_s(_refused(503), 0, now_s=199, random=0.5) is not None


def test_time_that_a_server_asks_for_is_granted_once_for_all_connections() -> None:
    budget = Budget(Pace(patience_s=10, grant_s=100), now_s=0)

    for _ in range(8):
        assert budget.pause_s(_refused(429, 60), 0, now_s=0, random=0) == 60
    assert budget.not_before_s == 60
    assert budget.pause_s(_refused(429, 60), 0, now_s=60, random=0) is None


def test_a_server_that_asks_for_no_wait_at_all_does_not_get_endless_tries() -> None:
    budget = Budget(Pace(patience_s=10), now_s=0)

    assert budget.pause_s(_refused(429, 0), 3, now_s=10, random=1) is None


def test_a_refusal_that_will_not_pass_ends_the_download() -> None:
    assert Budget(Pace(), now_s=0).pause_s(_refused(401), 0, now_s=0, random=1) is None


def test_doubt_runs_from_the_first_doubtful_answer_and_ends_with_a_good_byte() -> None:
    budget = Budget(Pace(patience_s=1000, doubt_s=30), now_s=0)
    doubtful = DoubtfulError("x", hint="y", host="h", status=200)

    assert budget.pause_s(doubtful, 1, now_s=500, random=1) is not None
    assert budget.pause_s(doubtful, 2, now_s=529, random=1) is not None
    budget.progressed(529)
    assert budget.pause_s(doubtful, 3, now_s=531, random=1) is not None
    assert budget.pause_s(doubtful, 3, now_s=561, random=1) is None


def test_an_old_link_is_replaced_without_a_pause() -> None:
    refused = LinkRefusedError("x", hint="y", host="h", status=403)
    refused.at_once = True

    assert Budget(Pace(), now_s=0).pause_s(refused, 0, now_s=0, random=1) == 0
