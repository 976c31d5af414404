"""What the tests of the registry client share: time that passes when somebody waits, a payload, a bar, an open repository."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from authority import Authority
from registries import PASSWORD, USER, Registry

from appliance_builder.credentials import Credentials
from appliance_builder.http import Http
from appliance_builder.network import Network
from appliance_builder.quirks import quirks_for
from appliance_builder.registry import Repository
from appliance_builder.transport import Transport
from appliance_builder.upload import upload
from appliance_builder.waiting import Waiting
from appliance_image.digest import Digest
from appliance_image.oci import LAYER_TAR, Descriptor

MIB = 1024 * 1024
BLOBS = r"/blobs/sha256:"


class Time:
    """A clock that goes on only when somebody sleeps, or is told to."""

    def __init__(self, before_sleep: Callable[[], None] | None = None) -> None:
        self.now_s = 1000.0
        self.slept: list[float] = []
        self._before_sleep = before_sleep

    def clock(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        if self._before_sleep:
            self._before_sleep()
        self.slept.append(seconds)
        self.now_s += seconds

    def waiting(self, patience_s: float = 120.0, answer_s: float = 0.0) -> Waiting:
        return Waiting(patience_s, answer_s, clock=self.clock, sleep=self.sleep, random=lambda: 1.0, now=self.clock)


def pattern(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two stretches are alike."""
    block = b"".join(hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in range(2048))
    repeats = -(-size // len(block))
    return b"".join(i.to_bytes(4, "big") + block[4:] for i in range(repeats))[:size]


class Bytes:
    """Content and Payload over bytes; `hook` is called with each offset before its chunk is handed out."""

    def __init__(
        self, body: bytes, *, known: bool = False, chunk: int = 256 * 1024, hook: Callable[[int], None] | None = None
    ) -> None:
        self.body = body
        self.size = len(body)
        self.digest = Digest.of(body)
        self.known_digest = self.digest if known else None
        self.identity = str(self.digest)
        self.reads: list[int] = []
        self.verdict: BaseException | None = None
        self._chunk = chunk
        self._hook = hook

    def read(self, offset: int = 0) -> Iterator[bytes]:
        return self._read(offset)

    def _read(self, offset: int) -> Iterator[bytes]:
        self.reads.append(offset)
        while offset < len(self.body):
            if self._hook:
                self._hook(offset)
            chunk = self.body[offset : offset + self._chunk]
            offset += len(chunk)
            yield chunk

    def earned_digest(self) -> Digest:
        if self.verdict:
            raise self.verdict
        return self.digest


@dataclass(slots=True)
class Bar:
    done: int = 0
    restarts: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def advance(self, size: int) -> None:
        self.done += size

    def restart(self, done: int) -> None:
        self.done = done
        self.restarts.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)


_opened: list[Http] = []


def close_connections() -> None:
    """Of all that `open_repository` opened; after each test."""
    while _opened:
        _opened.pop().close()


def nobody(host: str) -> Credentials | None:
    del host
    return None


def builder(host: str) -> Credentials | None:
    del host
    return Credentials(USER, PASSWORD)


def open_repository(
    host: str,
    name: str = "ai/model",
    *,
    push: bool = True,
    time: Time | None = None,
    http: Http | None = None,
    credentials: Callable[[str], Credentials | None] = nobody,
    patience_s: float = 120.0,
    answer_s: float = 0.0,
) -> Repository:
    if http is None:
        http = Http(Network(), environ={})
        _opened.append(http)
    waiting = (time or Time()).waiting(patience_s, answer_s)
    return Repository(Transport(host, http, credentials=credentials, waiting=waiting), name, push=push)


BODY = pattern(5 * MIB + 4321)
BLOB = Descriptor(LAYER_TAR, Digest.of(BODY), len(BODY))


def store(registry: Registry, body: bytes = BODY, name: str = "ai/model") -> Repository:
    repository = open_repository(registry.host, name)
    upload(repository, Bytes(body), Bar(), quirks=quirks_for(registry.host))
    return repository


def trusting(registry: Registry, authority: Authority) -> Http:
    return Http(Network(ca={registry.host: authority.certificate}), environ={})
