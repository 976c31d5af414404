"""`appliance build --push` and `--load` beside what a user would do instead, in one run, on the same bytes.

    .venv/bin/python bench/push.py [--gib 2]

Prints a table for the README. Needs root (a Docker Engine and registries of its own), docker.io, docker-registry and
skopeo; uses crane, too, where it is on PATH. Every registry is fresh, every figure is from this run; what is compared
is the ratio, because the machine is whatever it is.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

from engines import PrivateEngine, start_engine  # noqa: E402 - after the path is set
from ollamastore import Config, lay_model  # noqa: E402
from registries import Options, Registry, start_registry  # noqa: E402
from smallbase import assemble  # noqa: E402
from tinygguf import write_tiny_gguf  # noqa: E402

GIB = 1024**3
MODEL = "bench-r1:big"
THINKS = "bench-r1-think:big"
TEMPLATE = """\
{{- range $i, $_ := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if eq .Role "user" }}<|user|>{{ .Content }}
{{- else if eq .Role "assistant" }}<|assistant|>
{{- if and $.IsThinkSet (and $last .Thinking) }}<think>
{{ .Thinking }}
</think>
{{- end }}{{ .Content }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<|assistant|>
{{- end }}
{{- end }}"""
NOISE_FLOOR_BYTES = 64 * 1024 * 1024  # what is below this is no weights


@dataclass(frozen=True, slots=True)
class Taken:
    seconds: float
    peak_mb: float
    output: str


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    seconds: float | None
    note: str


def run(words: Sequence[str | Path], *, environment: dict[str, str] | None = None, stdin: Path | None = None) -> Taken:
    """Time and peak memory of a command, its own and its children's; the output only when it fails."""
    with tempfile.TemporaryFile("w+") as said, ExitStack() as stack:
        source = stack.enter_context(stdin.open("rb")) if stdin else subprocess.DEVNULL
        began_s = time.monotonic()
        process = subprocess.Popen(words, env=environment, stdin=source, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - began_s
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        output = said.read()
    if process.returncode:
        sys.exit(f"failed: {' '.join(map(str, words))}\n{output}")
    return Taken(seconds, usage.ru_maxrss / 1000, output)


class Bench:
    def __init__(self, work: Path, size: int, stack: ExitStack) -> None:
        self.work = work
        self.stack = stack
        self.size = size
        self.rows: list[Row] = []
        self.engine: PrivateEngine = stack.enter_context(closing(start_engine("classic")))
        self.store = work / "store"
        weights = work / "weights.gguf"
        write_tiny_gguf(weights, pad_bytes=size)
        lay_model(self.store, MODEL, {"model": weights, "template": TEMPLATE}, config=Config())
        weights.unlink()
        for version in ("0.32.14", "0.32.15"):
            assemble(work / version, version=version)

    def registry(self, name: str) -> Registry:
        directory = self.work / name
        directory.mkdir()
        return self.stack.enter_context(closing(start_registry(directory, Options())))

    def appliance(self, *words: str, cache: str) -> Taken:
        program = Path(sys.executable).parent / "appliance"
        environment = {**os.environ, "APPLIANCE_CACHE": str(self.work / cache), "DOCKER_HOST": self.engine.docker_host}
        return run([program, *words], environment=environment)

    def build(self, model: str, *words: str, version: str = "0.32.14", cache: str) -> Taken:
        base = ["--base", f"oci:{self.work / version}", "--ollama-version", version]
        return self.appliance("build", model, "--from-store", str(self.store), *base, *words, cache=cache)

    def add(self, what: str, seconds: float | None, note: str = "") -> None:
        self.rows.append(Row(what, seconds, note))
        print(f"{what}: {'' if seconds is None else f'{seconds:.1f} s'} {note}", flush=True)


def direct(registry: Registry) -> str:
    """The registry itself, without the proxy that counts requests and is slower than any registry."""
    return f"127.0.0.1:{registry.backend_port}"


def race(ways: Mapping[str, Callable[[], Taken]], rounds: int) -> dict[str, Taken]:
    """In turns, so that a slow spell of the machine does not fall on one of them; of each the fastest and the highest peak counts."""
    taken: dict[str, list[Taken]] = {what: [] for what in ways}
    for _ in range(rounds):
        for what, way in ways.items():
            os.sync()
            taken[what].append(way())
            print(f"  {what}: {taken[what][-1].seconds:.1f} s", flush=True)
    return {
        what: Taken(min(one.seconds for one in runs), max(one.peak_mb for one in runs), "")
        for what, runs in taken.items()
    }


def sha256_of(blob: Path) -> Taken:
    began_s = time.monotonic()
    with blob.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    return Taken(time.monotonic() - began_s, 0, "")


def write(bench: Bench, blob: Path) -> Taken:
    copy = bench.work / "copy"
    taken = run(["dd", f"if={blob}", f"of={copy}", "bs=1M", "conv=fsync", "status=none"])
    copy.unlink()
    return taken


def curl(registry: Registry, blob: Path) -> Taken:
    url = f"http://{direct(registry)}/v2/ceiling/blobs/uploads/"
    answer = run(["curl", "-s", "-S", "-f", "-o", "/dev/null", "-w", "%header{location}", "-X", "POST", url])
    digest = f"sha256:{blob.name.removeprefix('sha256-')}"
    put: list[str | Path] = ["curl", "-s", "-S", "-f", "-T", blob, "-H", "Content-Type: application/octet-stream"]
    return run([*put, f"{answer.output.strip()}&digest={digest}"])


def into_fresh(bench: Bench, way: Callable[[Registry], Taken]) -> Callable[[], Taken]:
    def once() -> Taken:
        registry = bench.registry("fresh")
        try:
            return way(registry)
        finally:
            registry.close()
            shutil.rmtree(bench.work / "fresh")

    return once


CURL, OURS = "`curl -T` of the blob into the registry", "`appliance build --push`"
FIRST = "the same, the first time of all"


def pushes(bench: Bench, rounds: int) -> None:
    """What the others push was put together and hashed before, so their fair peer is a push of a layer that is known; the
    first push of all hashes twice as much on its way."""
    blob = next(path for path in (bench.store / "blobs").iterdir() if path.stat().st_size > NOISE_FLOOR_BYTES)
    layout = bench.work / "ready"
    bench.build(MODEL, "-t", "bench:big", "--output", f"oci:{layout}", cache="cache")
    copy = ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{layout}"]

    def ours(registry: Registry, cache: str = "cache") -> Taken:
        return bench.build(MODEL, "-t", f"{direct(registry)}/ai/bench:big", "--push", cache=cache)

    def first(registry: Registry) -> Taken:
        shutil.rmtree(bench.work / "fresh-cache", ignore_errors=True)
        return ours(registry, "fresh-cache")

    def skopeo(registry: Registry) -> Taken:
        return run([*copy, f"docker://{direct(registry)}/ai/bench:big"])

    def crane(registry: Registry) -> Taken:
        return run(["crane", "push", "--insecure", layout, f"{direct(registry)}/ai/bench:big"])

    others = {"`skopeo copy` of a ready-made, uncompressed layout": skopeo}
    if shutil.which("crane"):
        others["`crane push` of the same layout"] = crane
    else:
        print("crane is not on PATH, so it is not compared: apt-get install crane, or build it with go install")
    fresh = {CURL: lambda registry: curl(registry, blob), OURS: ours, FIRST: first, **others}
    best = race(
        {
            "sha256 of the blob, one core": lambda: sha256_of(blob),
            "writing the blob to this disk": lambda: write(bench, blob),
            **{what: into_fresh(bench, way) for what, way in fresh.items()},
        },
        rounds,
    )
    shutil.rmtree(layout)
    ours_s = best[OURS].seconds
    ceiling_s = max(one.seconds for what, one in best.items() if what not in (OURS, FIRST, *others))
    for what, one in best.items():
        note = "the ceiling" if one.seconds == ceiling_s else ""
        if what in (OURS, FIRST):
            note = f"{ceiling_s / one.seconds:.0%} of the ceiling, peak memory {one.peak_mb:.0f} MB"
        if what in others:
            note = f"{one.seconds / ours_s:.2f} times as long, without hashing or packing"
        bench.add(what, one.seconds, note)
    pushed_again(bench)
    docker_s = docker_build_and_push(bench)
    bench.add("`docker build` + `docker push`", docker_s, f"{docker_s / ours_s:.1f} times as long")


def pushed_again(bench: Bench) -> None:
    registry = bench.registry("ours")
    bench.build(MODEL, "-t", f"{direct(registry)}/ai/bench:big", "--push", cache="cache")
    image = f"{registry.host}/ai/bench"  # the same registry through a proxy that counts
    for what, words, version in (
        ("the same again", [MODEL, "-t", f"{image}:big"], "0.32.14"),
        ("a think variant of it, in another repository", [THINKS, "-t", f"{image}-think:big"], "0.32.14"),
        ("the same on a new base", [MODEL, "-t", f"{image}:big"], "0.32.15"),
    ):
        registry.forget()
        taken = bench.build(*words, "--push", version=version, cache="cache")
        log = registry.requests()
        sent = sum(entry.request_bytes for entry in log)
        bench.add(what, taken.seconds, f"{len(log)} requests, {sent / 1e6:.1f} MB sent")
    registry.close()


def docker_build_and_push(bench: Bench) -> float:
    registry = bench.registry("theirs")
    bench.engine.expose(registry.backend_port)
    context = bench.work / "context"
    shutil.copytree(bench.store, context / "models", copy_function=os.link)
    (context / "Dockerfile").write_text("FROM scratch\nCOPY models /models\n")
    environment = {**bench.engine.environment, "DOCKER_BUILDKIT": "0"}
    name = f"{direct(registry)}/ai/docker:big"
    built = run(["docker", "build", "-q", "-t", name, context], environment=environment)
    pushed = run(["docker", "push", "-q", name], environment=environment)
    bench.engine.run_cli("rmi", "-f", name)
    registry.close()
    shutil.rmtree(bench.work / "theirs")
    return built.seconds + pushed.seconds


PIPE = "`cat` of a ready-made archive into `docker load`"


def loads(bench: Bench, rounds: int) -> None:
    """The archive's layers were hashed when it was made, so the fair peer is `--load` of a layer that is known; the
    first load of all hashes twice as much on its way."""
    archive = bench.work / "archive.tar"
    bench.build(MODEL, "-t", "bench:big", "--output", f"oci-archive:{archive}", cache="cache")
    environment = bench.engine.environment
    pipe: list[str | Path] = ["sh", "-c", 'cat "$0" | docker load -q', archive]

    def ours(cache: str) -> Callable[[], Taken]:
        return lambda: bench.build(MODEL, "-t", "bench:big", "--load", cache=cache)

    def first() -> Taken:
        shutil.rmtree(bench.work / "fresh-cache", ignore_errors=True)
        return ours("fresh-cache")()

    def emptied(way: Callable[[], Taken]) -> Callable[[], Taken]:
        def once() -> Taken:
            bench.engine.remove_everything()
            return way()

        return once

    own = {"`appliance build --load`": ours("cache"), "the same, the first time of all": first}
    theirs = {
        PIPE: lambda: run(pipe, environment=environment),
        "`docker load <` the archive": lambda: run(["docker", "load", "-q"], environment=environment, stdin=archive),
    }
    best = race({what: emptied(way) for what, way in {**theirs, **own}.items()}, rounds)
    for what, one in best.items():
        note = f"{one.seconds / best[PIPE].seconds:.2f} times as long"
        note += f", peak memory {one.peak_mb:.0f} MB; includes checking every byte" if what in own else ""
        bench.add(what, one.seconds, f"best of {rounds}" if what == PIPE else note)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2, help="size of the weights (default: 2)")
    parser.add_argument(
        "--work", type=Path, help="a directory with room for eight times that (default: a temporary one)"
    )
    parser.add_argument("--only", choices=["push", "load"], help="one half of it")
    parser.add_argument("--rounds", type=int, default=5, help="in turns; of each the fastest counts (default: 5)")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.work or "/var/tmp")))
        bench = Bench(work, int(arguments.gib * GIB), stack)
        if arguments.only != "load":
            pushes(bench, arguments.rounds)
        if arguments.only != "push":
            loads(bench, arguments.rounds)
    print(f"\n| {arguments.gib:g} GiB of weights | seconds | |\n|---|---:|---|")
    for row in bench.rows:
        print(f"| {row.what} | {'' if row.seconds is None else f'{row.seconds:.1f}'} | {row.note} |")


if __name__ == "__main__":
    main()
