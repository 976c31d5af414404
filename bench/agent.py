"""How soon the agent finds and mends what, what it costs, and how often it is wrong; beside what a user would use instead.

    .venv/bin/python bench/agent.py                      as root; all parts, about 25 minutes
    .venv/bin/python bench/agent.py crash wedge          some of them: crash wedge fallback adoption saturation cost
    .venv/bin/python bench/agent.py saturation --minutes 60

A real Docker Engine, the agent with its default configuration, GPUs and Ollama stand-ins: model loads take a quarter of a second
here, so what is measured is the finding and the replacing. Beside it: Docker's own `--restart=always`, a HEALTHCHECK with autoheal
(restart what is unhealthy, looked at every 5 s), and a whole chat with a time-out of 15 s, three times in a row, as GPUStack does it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import median, quantiles

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import fakenvml  # noqa: E402 - after the path is set
from agentgraphics import ask  # noqa: E402
from agenthost import ONE, AgentHost, build_images  # noqa: E402
from engines import PrivateEngine, start_engine  # noqa: E402

DEFAULTS = "[engine]\n"  # the agent's own
PARTS = ("crash", "wedge", "fallback", "adoption", "saturation", "cost")


class Bench:
    def __init__(self, engine: PrivateEngine, directory: Path, *, rounds: int, minutes: float) -> None:
        self.engine = engine
        self.rounds = rounds
        self.minutes = minutes
        self._directory = directory
        self._library = fakenvml.build(directory)
        self._hosts = 0
        build_images(directory / "images", engine)

    @contextlib.contextmanager
    def host(self, gpus: int = 2, *, environment: dict[str, str] | None = None) -> Iterator[AgentHost]:
        self._hosts += 1
        directory = self._directory / f"host-{self._hosts}"
        directory.mkdir()
        host = AgentHost(self.engine, directory, self._library, gpus=gpus, extra=DEFAULTS)
        host.write_config(head="[rollout]\nparallel_loads = 8\n", environment=environment)
        try:
            host.start()
            host.wait_ready(timeout_s=120)
            yield host
        finally:
            host.close()

    # --- parts -------------------------------------------------------------------------------------------------------

    def crash(self) -> None:
        print(f"\ncrash: kill -9 of the container's first process → another one runs ({self.rounds} times)")
        with self.host() as host:
            ours: list[float] = []
            for _ in range(self.rounds):
                before = host.ids()
                began_s = self._kill(self._pid(before[0]))
                ours.append(_seconds(began_s, partial(_is_new, host, before[0])))
                host.wait_ready()
                self._forgive(host)
        _row("ollama-agent", ours, "target: 1.5 s at p95")
        _row("docker run --restart=always", self._restart_always(), "back-off of its own; a hung server stays hung")

    def _restart_always(self) -> list[float]:
        taken: list[float] = []
        for _ in range(self.rounds):
            id_ = self.engine.run_cli("run", "-d", "--restart=always", "--name", "always", ONE).stdout.strip()
            pid = self._pid(id_)
            began_s = self._kill(pid)
            taken.append(_seconds(began_s, partial(self._has_another_process, id_, pid)))
            self.engine.run_cli("rm", "-f", id_)
        return taken

    def wedge(self) -> None:
        rounds = max(3, self.rounds // 6)
        print(f"\nwedge: the server hangs before the first token → its container is gone ({rounds} times)")
        with self.host() as host:
            idle = [self._wedged(host) for _ in range(rounds)]
            busy = [self._wedged(host, users=3) for _ in range(rounds)]
        _row("ollama-agent, idle", idle, "target: 20 s")
        _row("ollama-agent, three users wait", busy, "target: 15 s after the last token")
        print(
            "  a HEALTHCHECK that asks the server   never    `/`, /api/version and `ollama list` answer as if all were well:"
        )
        print(f"                                                {self._health_of_a_wedged_server()}")
        print(
            "  a whole chat, 15 s, 3 in a row, each 30 s    75 to 105 s by its own figures, and wrong when busy: see below"
        )

    def _wedged(self, host: AgentHost, *, users: int = 0) -> float:
        before = host.ids()
        over = threading.Event()
        threads = [threading.Thread(target=_use, args=(host, 0, over, 40), daemon=True) for _ in range(users)]
        for thread in threads:
            thread.start()
        time.sleep(3 if users else 0)
        began_s = time.monotonic()
        host.fault(0, "hang_before_first_token")
        taken_s = _seconds(began_s, partial(_is_gone, host, before[0]), limit_s=120)
        over.set()
        host.wait_ready()
        self._forgive(host)
        for thread in threads:
            thread.join()
        return taken_s

    def _health_of_a_wedged_server(self) -> str:
        words = ["run", "-d", "--health-interval=5s", "--health-retries=2"]  # the image's own: `ollama list`
        environment = ["-e", "STANDIN_FAULT=hang_before_first_token"]
        id_ = self.engine.run_cli(*words, *environment, ONE).stdout.strip()
        time.sleep(30)
        status = ask(self.engine, f"/containers/{id_}/json")["State"]["Health"]["Status"]
        self.engine.run_cli("rm", "-f", id_)
        return (
            f"after 30 s of hanging, interval 5 s, 2 retries, Docker calls it {status!r}, so autoheal has nothing to do"
        )

    def fallback(self) -> None:
        rounds = max(3, self.rounds // 6)
        print(f"\nfallback: the container's processes vanish from the GPU → its container is gone ({rounds} times)")
        taken: list[float] = []
        with self.host() as host:
            for _ in range(rounds):
                before = host.ids()
                began_s = time.monotonic()
                host.graphics.cpu_only.add(0)
                taken.append(_seconds(began_s, partial(_is_gone, host, before[0]), limit_s=120))
                host.graphics.cpu_only.clear()
                host.wait_ready()
                self._forgive(host)
        _row("ollama-agent", taken, "target: 15 s; nothing else looks")

    def adoption(self) -> None:
        print("\nadoption: the agent is started again → all of 8 slots are ready")
        with self.host(8) as host:
            before = host.ids()
            for name, how in (("after systemctl stop", signal.SIGTERM), ("after kill -9", signal.SIGKILL)):
                taken: list[float] = []
                for _ in range(5):
                    host.stop(how)
                    began_s = time.monotonic()
                    host.start()
                    taken.append(_seconds(began_s, lambda: host.states() == ["ready"] * 8))
                _row(name, taken, "target: 2 s")
            print(f"  containers replaced: {sum(host.ids()[slot] != id_ for slot, id_ in before.items())} of 8")

    def saturation(self) -> None:
        print(f"\nsaturation: three users a slot, one request at a time, answers of 20 s, for {self.minutes:g} min")
        print("  each minute the engine is frozen for 20 s")
        with self.host(2, environment={"STANDIN_TOKEN_S": "0.05"}) as host:
            before, over = host.ids(), threading.Event()
            naive = Naive(host)
            threads = [threading.Thread(target=_use, args=(host, slot % 2, over, 400)) for slot in range(6)]
            threads += [threading.Thread(target=naive.watch, args=(slot, over)) for slot in (0, 1)]
            for thread in threads:
                thread.start()
            until_s = time.monotonic() + 60 * self.minutes
            while time.monotonic() < until_s:
                over.wait(min(40.0, max(0.0, until_s - time.monotonic())))
                with self.engine.frozen():
                    over.wait(20)
            after = host.ids()
            over.set()
            for thread in threads:
                thread.join()
        wrong = sum(after.get(slot) != id_ for slot, id_ in before.items())
        print(f"  ollama-agent: false restarts {wrong}    target: 0")
        print(f"  a whole chat, 15 s, 3 in a row: false restarts {naive.restarts} (it would have; it only counted)")

    def cost(self) -> None:
        minutes = min(self.minutes, 5.0)
        print(f"\ncost: 8 slots, default configuration, a scrape every 15 s, {minutes:g} min, after one minute")
        with self.host(8) as host:
            time.sleep(60)
            pids = [host.pid, *_children(host.pid)]
            used = [_processor_s(pid) for pid in pids]
            began_s = time.monotonic()
            while time.monotonic() - began_s < 60 * minutes:
                host.engine.http_get(9440, "/metrics")
                time.sleep(15)
            taken_s = time.monotonic() - began_s
            total = 0.0
            for pid, before, name in zip(pids, used, ("agent", "its NVML process"), strict=False):
                share = 100 * (_processor_s(pid) - before) / taken_s
                total += share
                rss, pss = _memory_mib(pid)
                print(f"  {name:<18} {share:5.2f} % of a core   RSS {rss:5.1f} MiB   PSS {pss:5.1f} MiB")
            pss = sum(_memory_mib(pid)[1] for pid in pids)
            print(f"  together           {total:5.2f} % of a core   PSS {pss:5.1f} MiB   targets: 0.5 %, 60 MiB")

    # --- tools -------------------------------------------------------------------------------------------------------

    def _pid(self, container: str) -> int:
        """In the engine's process namespace; 0 while it does not run."""
        return int(ask(self.engine, f"/containers/{container}/json").get("State", {}).get("Pid", 0))

    def _has_another_process(self, container: str, pid: int) -> bool:
        return self._pid(container) not in (0, pid)

    def _kill(self, pid: int) -> float:
        began_s = time.monotonic()
        words = self.engine.command_inside(["sh", "-c", f"kill -9 {pid}"], network_only=False)
        subprocess.run(words, check=True)
        return began_s

    def _forgive(self, host: AgentHost) -> None:
        """A bench breaks more in an hour than a year does: the agent forgets it, or its budget would end."""
        host.stop()
        (host.state / "state.json").unlink(missing_ok=True)
        host.start()
        host.wait_ready()


class Naive:
    """What GPUStack's inference check does: a whole chat of one token, 15 s for it, three failures in a row."""

    def __init__(self, host: AgentHost) -> None:
        self._host = host
        self.restarts = 0

    def watch(self, slot: int, over: threading.Event) -> None:
        failures = 0
        while not over.wait(10):
            try:
                failures = 0 if self._host.chat(slot, tokens=1, timeout_s=15)[0] == 200 else failures + 1
            except OSError:
                failures += 1
            if failures >= 3:
                self.restarts += 1
                failures = 0


def _is_new(host: AgentHost, old: str) -> bool:
    return host.ids().get(0, old) != old


def _is_gone(host: AgentHost, old: str) -> bool:
    return host.ids().get(0) != old


def _use(host: AgentHost, slot: int, over: threading.Event, tokens: int) -> None:
    while not over.is_set():
        with contextlib.suppress(OSError, Exception):
            host.chat(slot, tokens=tokens, timeout_s=120)


def _seconds(began_s: float, true: Callable[[], bool], *, limit_s: float = 60) -> float:
    while time.monotonic() - began_s < limit_s:
        with contextlib.suppress(OSError, ValueError, json.JSONDecodeError):
            if true():
                return time.monotonic() - began_s
        time.sleep(0.02)
    raise TimeoutError("it did not happen")


def _row(name: str, taken: list[float], note: str) -> None:
    p95 = quantiles(taken, n=20)[-1] if len(taken) >= 20 else max(taken)
    word = "p95" if len(taken) >= 20 else "max"
    print(f"  {name:<34} p50 {median(taken):6.2f} s   {word} {p95:6.2f} s   {note}", flush=True)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (thread / "children").read_text().split()]
    return found


def _processor_s(pid: int) -> float:
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def _memory_mib(pid: int) -> tuple[float, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    kib = {line.split()[0]: int(line.split()[1]) for line in lines[1:]}
    return kib["Rss:"] / 1024, kib["Pss:"] / 1024


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; default: all")
    parser.add_argument("--rounds", type=int, default=30, help="crashes; other faults a sixth of it")
    parser.add_argument("--minutes", type=float, default=5, help="of saturation, and at most 5 of cost")
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    print(f"load average at the start: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    engine = start_engine("classic", gpu_hook=True)
    try:
        with tempfile.TemporaryDirectory(prefix="bench-agent-") as name:
            bench = Bench(engine, Path(name), rounds=arguments.rounds, minutes=arguments.minutes)
            for part in arguments.parts or PARTS:
                getattr(bench, part)()
    finally:
        engine.close()
    print(f"\nload average at the end: {os.getloadavg()[0]:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
