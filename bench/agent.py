"""The agent beside what stands in for it on other hosts, in one run on one engine. Prints a table with its targets.

    .venv/bin/python bench/agent.py                                  all parts, half an hour
    .venv/bin/python bench/agent.py --parts crash,wedge              crash, wedge, cpu, adoption, saturation, footprint
    .venv/bin/python bench/agent.py --parts saturation --minutes 60

Needs root (a Docker Engine of its own), docker.io and gcc. GPUs and Ollama are the tests' stand-ins, so what is
measured is the agent and its rivals, not a model: a stand-in takes 0.25 s to load one. Autoheal is a loop with the
semantics of willfarrell/autoheal; its HEALTHCHECK is `ollama list` as most people write it, or a chat, with Docker's
defaults (30 s, three times) or tuned (5 s, twice). "chat, 15 s x 3" is GPUStack's inference check, asked every 10 s
instead of every 300: it counts what it would restart.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests")]

import fakenvml  # noqa: E402 - after the path is set
from agenthost import build_images  # noqa: E402
from benchhost import Bench, Events, Row  # noqa: E402
from benchload import NAIVE, footprint, saturation  # noqa: E402
from benchparts import CHAT, PLAIN, POLICY, TUNED, adoption, cpu_fallback, crash, wedge  # noqa: E402
from engines import start_engine  # noqa: E402

PARTS = {
    "crash": crash,
    "wedge": wedge,
    "cpu": cpu_fallback,
    "adoption": adoption,
    "saturation": saturation,
    "footprint": footprint,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--parts", default=",".join(PARTS), help="some of: %(default)s")
    parser.add_argument("--rounds", type=int, default=32, help="crashes; a quarter of them hangs and fallbacks")
    parser.add_argument("--minutes", type=float, default=5, help="of each saturation, and of the footprint")
    words = parser.parse_args()
    parts = words.parts.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    rows = list[Row]()
    with (
        tempfile.TemporaryDirectory(prefix="bench-agent-") as name,
        closing(start_engine("classic", gpu_hook=True)) as engine,
    ):
        build_images(Path(name, "images"), engine)
        library = fakenvml.build(Path(name))
        with closing(Events(engine)) as events:
            bench = Bench(engine, Path(name), library, events, words.rounds, words.minutes)
            for part in parts:
                print(f"{part} …", file=sys.stderr, flush=True)
                rows += PARTS[part](bench)
    print_table(rows)
    if missed := [row.what for row in rows if row.met is False]:
        sys.exit(f"missed: {'; '.join(missed)}")


def print_table(rows: Sequence[Row]) -> None:
    load = os.getloadavg()[2] / (os.cpu_count() or 1)
    print(f"load of this machine over the last 15 minutes: {load:.1f} for each of {os.cpu_count()} cores\n")
    told = {name for row in rows for name in row.theirs}
    rivals = [name for name in (POLICY, PLAIN, CHAT, TUNED, NAIVE) if name in told]
    columns = ["", "ollama-agent", *rivals, "target", ""]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        met = "" if row.met is None else "met" if row.met else "missed"
        theirs = [row.theirs.get(name, "") for name in rivals]
        print("| " + " | ".join([row.what, row.ours, *theirs, row.target, met]) + " |")


if __name__ == "__main__":
    main()
