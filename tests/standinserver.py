"""Starts the stand-in for Ollama, or a real one, on a port of its own, and talks to it byte by byte."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from freeport import free_port

PROGRAM = Path(__file__).parent / "standin" / "ollama_standin.py"
START_S = 20.0


class StartError(Exception):
    """The server ended before it listened."""


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: Mapping[str, str]  # names in lower case
    framing: str  # "content-length", "chunked" or "no body"
    chunks: tuple[str, ...]  # one entry for a body that is not chunked
    arrived_s: tuple[float, ...]  # when each chunk came, from the start of the request
    headers_s: float
    complete: bool  # the body has its end
    started_s: float  # of time.monotonic

    @property
    def text(self) -> str:
        return "".join(self.chunks)


@dataclass
class OllamaServer:
    """`ollama serve` as a child process. Its port is free to choose; what it logs is collected."""

    store: Path
    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    command: Sequence[str] = (sys.executable, str(PROGRAM))
    port: int = 0
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)

    def __enter__(self) -> Self:
        self.home.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.process = subprocess.Popen(
            [*self.command, "serve"], env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        listening = threading.Event()
        self._readers = [
            threading.Thread(target=self._collect, args=(pipe, lines, listening), daemon=True)
            for pipe, lines in ((self.process.stdout, self.stdout), (self.process.stderr, self.stderr))
        ]
        for reader in self._readers:
            reader.start()
        if not listening.wait(START_S) or not any("Listening on" in line for line in self.stderr):
            self.__exit__(None, None, None)
            raise StartError("".join(self.stderr))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)
        for reader in self._readers:
            reader.join(5)
        for pipe in (self.process.stdout, self.process.stderr):
            if pipe:
                pipe.close()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A client command of the same program."""
        return subprocess.run(
            [*self.command, *words], env=self._environment(), capture_output=True, text=True, check=False, timeout=30
        )

    def ask(
        self, method: str, path: str, body: object = None, *, host: str = "", give_up_s: float | None = None
    ) -> Answer:
        """The whole answer; what came until then, if nothing more comes for `give_up_s`. Raises TimeoutError without
        headers by then. A body that is no text is sent as JSON."""
        with self.connection(method, path, body, host=host, give_up_s=give_up_s) as (stream, started_s):
            return read_answer(stream, method, started_s)

    @contextmanager
    def connection(
        self, method: str, path: str, body: object = None, *, host: str = "", give_up_s: float | None = None
    ) -> Iterator[tuple[BinaryIO, float]]:
        """A connection on which the request is sent; leaving it closes it."""
        started_s = time.monotonic()
        data = body.encode() if isinstance(body, str) else b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nHost: {host or f'127.0.0.1:{self.port}'}\r\nConnection: close\r\n"
        head += "" if body is None else f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
        with socket.create_connection(("127.0.0.1", self.port), 30) as link, link.makefile("rb") as stream:
            link.sendall(head.encode() + b"\r\n" + data)
            link.settimeout(give_up_s or 60)
            yield stream, started_s

    def state(self) -> dict[str, object]:
        document: dict[str, object] = json.loads(self.ask("GET", "/standin/state").text)
        return document

    def counts(self) -> dict[str, int]:
        counts = self.state()["counts"]
        return counts if isinstance(counts, dict) else {}

    def misbehave(self, fault: str, **fields: object) -> None:
        """Needs STANDIN_CONTROL=1; an empty name makes it behave again."""
        answer = self.ask("POST", "/standin/fault", {"fault": fault, **fields})
        if answer.status != 200:
            raise ValueError(answer.text)

    def _environment(self) -> dict[str, str]:
        inherited = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH") if key in os.environ}
        own = {"OLLAMA_HOST": f"127.0.0.1:{self.port}", "OLLAMA_MODELS": str(self.store), "HOME": str(self.home)}
        return {**inherited, **own, **self.environment}

    def _collect(self, pipe: Iterator[str], lines: list[str], listening: threading.Event) -> None:
        for line in pipe:
            lines.append(line)
            if "Listening on" in line:
                listening.set()
        listening.set()


def chat(
    server: OllamaServer, model: str = "deepseek-r1:32b", *, give_up_s: float | None = None, **more: object
) -> Answer:
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}
    return server.ask("POST", "/api/chat", body, give_up_s=give_up_s)


@contextmanager
def endless_stream(server: OllamaServer) -> Iterator[BinaryIO]:
    """A chat with `tiny:latest` that has said three tokens and will not end by itself."""
    body = {"model": "tiny:latest", "messages": [{"role": "user", "content": "hi"}]}
    with server.connection("POST", "/api/chat", body) as (stream, _):
        status, _ = read_head(stream)
        chunks = read_chunks(stream)
        assert (status, len([next(chunks) for _ in range(3)])) == (200, 3)
        yield stream


def wait_for(condition: Callable[[], bool], *, within_s: float = 10.0) -> None:
    end_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.01)


def read_answer(stream: BinaryIO, method: str, started_s: float) -> Answer:
    status, headers = read_head(stream)
    headers_s = time.monotonic() - started_s
    if headers.get("transfer-encoding") == "chunked":
        chunks: list[str] = []
        arrived_s: list[float] = []
        complete = False
        try:
            for chunk in read_chunks(stream):
                complete = not chunk
                chunks += [chunk] if chunk else []
                arrived_s += [time.monotonic() - started_s] if chunk else []
        except TimeoutError:
            complete = False
        return Answer(status, headers, "chunked", tuple(chunks), tuple(arrived_s), headers_s, complete, started_s)
    size = int(headers.get("content-length", "0"))
    if method == "HEAD":
        return Answer(status, headers, "no body", (), (), headers_s, complete=True, started_s=started_s)
    text = stream.read(size).decode()
    arrived = (time.monotonic() - started_s,)
    return Answer(status, headers, "content-length", (text,), arrived, headers_s, complete=True, started_s=started_s)


def read_head(stream: BinaryIO) -> tuple[int, dict[str, str]]:
    """Raises ConnectionError if the server says nothing."""
    first = stream.readline().decode()
    if not first:
        raise ConnectionError("closed without an answer")
    headers: dict[str, str] = {}
    while line := stream.readline().decode().rstrip("\r\n"):
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip()
    return int(first.split()[1]), headers


def read_chunks(stream: BinaryIO) -> Iterator[str]:
    """Chunk by chunk, with an empty one at the end; a broken-off body has no such end."""
    while line := stream.readline():
        size = int(line, 16)
        chunk = stream.read(size).decode()
        stream.readline()
        yield chunk
        if not size:
            return


def lines_with(lines: Sequence[str], pattern: str) -> list[str]:
    return [line for line in lines if re.search(pattern, line)]
