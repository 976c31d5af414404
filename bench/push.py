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
from collections.abc import Sequence
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


def ceilings(bench: Bench) -> float:
    """The slowest of sha256, disk and loopback into the same registry program: what no client can beat. Seconds."""
    source = next(path for path in (bench.store / "blobs").iterdir() if path.stat().st_size > NOISE_FLOOR_BYTES)
    began_s = time.monotonic()
    with source.open("rb") as file:
        hashlib.file_digest(file, "sha256")
    sha256_s = time.monotonic() - began_s
    disk = run(["dd", f"if={source}", f"of={bench.work / 'copy'}", "bs=1M", "conv=fsync", "status=none"])
    (bench.work / "copy").unlink()
    registry = bench.registry("ceiling")
    url = f"http://127.0.0.1:{registry.backend_port}/v2/ceiling/blobs/uploads/"
    answer = run(["curl", "-s", "-S", "-f", "-o", "/dev/null", "-w", "%header{location}", "-X", "POST", url])
    digest = f"sha256:{source.name.removeprefix('sha256-')}"
    put: list[str | Path] = ["curl", "-s", "-S", "-f", "-T", source, "-H", "Content-Type: application/octet-stream"]
    loopback = run([*put, f"{answer.output.strip()}&digest={digest}"])
    bench.add("sha256 of the blob, one core", sha256_s)
    bench.add("writing the blob to this disk", disk.seconds)
    bench.add("curl -T of the blob into the registry", loopback.seconds)
    registry.close()
    shutil.rmtree(bench.work / "ceiling")
    return max(sha256_s, disk.seconds, loopback.seconds)


def pushes(bench: Bench, ceiling_s: float) -> None:
    registry = bench.registry("ours")
    ours = bench.build(MODEL, "-t", f"{direct(registry)}/ai/bench:big", "--push", cache="cache")
    bench.add(
        "appliance build --push",
        ours.seconds,
        f"peak {ours.peak_mb:.0f} MB, {ceiling_s / ours.seconds:.0%} of the ceiling",
    )
    image = f"{registry.host}/ai/bench"  # the same registry through a proxy that counts
    for what, words, version in (
        ("the same again", [MODEL, "-t", f"{image}:big"], "0.32.14"),
        ("think variant of it", [THINKS, "-t", f"{image}-think:big"], "0.32.14"),
        ("the same on a new base", [MODEL, "-t", f"{image}:big"], "0.32.15"),
    ):
        registry.forget()
        taken = bench.build(*words, "--push", version=version, cache="cache")
        log = registry.requests()
        sent = sum(entry.request_bytes for entry in log)
        bench.add(what, taken.seconds, f"{len(log)} requests, {sent / 1e6:.1f} MB sent")
    registry.close()
    docker = docker_build_and_push(bench)
    bench.add("docker build + docker push", docker, f"{docker / ours.seconds:.1f} times as long")
    others(bench, ours.seconds)


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


def others(bench: Bench, ours_s: float) -> None:
    """A ready-made image with uncompressed layers: what the others push was put together and hashed before."""
    layout = bench.work / "ready"
    bench.build(MODEL, "-t", "bench:big", "--output", f"oci:{layout}", cache="cache")
    tools = {"skopeo copy": ["skopeo", "copy", "-q", "--preserve-digests", "--dest-tls-verify=false", f"oci:{layout}"]}
    if shutil.which("crane"):
        tools["crane push"] = ["crane", "push", "--insecure", str(layout)]
    for name, words in tools.items():
        registry = bench.registry(name.split()[0])
        target = f"{direct(registry)}/ai/other:big"
        taken = run([*words, f"docker://{target}" if name.startswith("skopeo") else target])
        bench.add(f"{name} of the ready-made layout", taken.seconds, f"{taken.seconds / ours_s:.2f} times as long")
        registry.close()
        shutil.rmtree(bench.work / name.split()[0])
    shutil.rmtree(layout)


def loads(bench: Bench) -> None:
    """In turns, so that a slow spell of the disk does not fall on one of them. The archive's layers were hashed when it
    was made, so the fair peer is `--load` of a layer that is known; the first load of all hashes on the way."""
    archive = bench.work / "archive.tar"
    bench.build(MODEL, "-t", "bench:big", "--output", f"oci-archive:{archive}", cache="cache")
    taken: dict[str, list[Taken]] = {"theirs": [], "known": [], "first": []}
    for _ in range(3):
        taken["theirs"].append(run(["docker", "load", "-q"], environment=bench.engine.environment, stdin=archive))
        bench.engine.remove_everything()
        taken["known"].append(bench.build(MODEL, "-t", "bench:big", "--load", cache="cache"))
        bench.engine.remove_everything()
        taken["first"].append(bench.build(MODEL, "-t", "bench:big", "--load", cache="fresh-cache"))
        bench.engine.remove_everything()
        shutil.rmtree(bench.work / "fresh-cache")
    best_s = {who: min(one.seconds for one in runs) for who, runs in taken.items()}
    bench.add("docker load < ready-made archive", best_s["theirs"], "best of 3")
    for who, what in (("known", "appliance build --load"), ("first", "the same, its layer not hashed before")):
        peak_mb = max(one.peak_mb for one in taken[who])
        bench.add(what, best_s[who], f"{best_s[who] / best_s['theirs']:.2f} times as long, peak {peak_mb:.0f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=2, help="size of the weights (default: 2)")
    parser.add_argument(
        "--work", type=Path, help="a directory with room for eight times that (default: a temporary one)"
    )
    parser.add_argument("--only", choices=["push", "load"], help="one half of it")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-", dir=arguments.work or "/var/tmp")))
        bench = Bench(work, int(arguments.gib * GIB), stack)
        if arguments.only != "load":
            pushes(bench, ceilings(bench))
        if arguments.only != "push":
            loads(bench)
    print(f"\n| {arguments.gib:g} GiB of weights | seconds | |\n|---|---:|---|")
    for row in bench.rows:
        print(f"| {row.what} | {'' if row.seconds is None else f'{row.seconds:.1f}'} | {row.note} |")


if __name__ == "__main__":
    main()
