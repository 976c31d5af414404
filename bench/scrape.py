"""What a scrape of the agent costs and tells, beside prometheus_client's own server in the same run and beside the
published figures of other exporters. Prints a table with its targets. Six minutes.

    .venv/bin/python bench/scrape.py                       all parts
    .venv/bin/python bench/scrape.py --parts servers       without root: the two servers alone

servers: two scrapers at a time, as Prometheus asks (OpenMetrics, gzip), of 8 slots; each finds another snapshot.
agent:   a whole agent with 8 slots on a Docker Engine of its own (root, docker.io, gcc; GPUs and Ollama are the tests'
         stand-ins): the same in peace and while NVML, the engine and a model hang, the age of samples, XIDs, footprint.

What others publish: dcgm-exporter, etc/default-counters.csv and README (an interval of 30 s unless told otherwise; XID
as the last value); nvidia_gpu_exporter 1.14, docs/CONFIGURE.md (PCIe throughput, which is asked for by NVML's busy
window of 20 ms for each direction and GPU: 320 ms for 8 GPUs). They need a GPU, and are not run here.
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

import scrapeserver  # noqa: E402 - after the path is set
from benchhost import Row  # noqa: E402

CLIENT = "prometheus_client's server"
SMI = "nvidia_gpu_exporter"
DCGM = "dcgm-exporter"
_PUBLISHED = {SMI: "320 ms more with PCIe throughput"}


def servers(scrapes: int, slots: int) -> list[Row]:
    ours, theirs = (scrapeserver.measure(kind, scrapes=scrapes, slots=slots) for kind in scrapeserver.KINDS)

    def times(told: scrapeserver.Measured) -> str:
        return f"p50 {told.times_ms.p50:.1f} ms, p99 {told.times_ms.p99:.1f} ms"

    what = f"scrape, {slots} slots, 2 scrapers (n={2 * scrapes})"
    met = ours.times_ms.p99 <= 10
    return [
        Row(what, times(ours), {CLIENT: times(theirs), **_PUBLISHED}, "p99 10 ms", met),
        Row("CPU for a scrape", f"{ours.cpu_ms:.2f} ms", {CLIENT: f"{theirs.cpu_ms:.2f} ms"}),
        Row("its body, gzip", f"{ours.body_bytes / 1000:.1f} kB", {CLIENT: f"{theirs.body_bytes / 1000:.1f} kB"}),
        Row("memory of the server's process", f"{ours.pss_mib:.1f} MiB", {CLIENT: f"{theirs.pss_mib:.1f} MiB"}),
    ]


def agent(seconds: float, *, apart: bool) -> list[Row]:
    import fakenvml  # noqa: PLC0415 - the part without root needs none of it
    import scrapeparts  # noqa: PLC0415
    from agenthost import build_images  # noqa: PLC0415
    from benchhost import Bench, Events  # noqa: PLC0415
    from engines import start_engine  # noqa: PLC0415

    with (
        tempfile.TemporaryDirectory(prefix="bench-scrape-") as name,
        closing(start_engine("classic", gpu_hook=True)) as engine,
    ):
        build_images(Path(name, "images"), engine)
        library = fakenvml.build(Path(name))
        with closing(Events(engine)) as events:
            bench = Bench(engine, Path(name), library, events, 0, 0)
            with bench.agent("scrape") as host:
                return [
                    *scrapeparts.in_peace(bench),
                    *scrapeparts.xid(bench, host),
                    *scrapeparts.footprint(bench, host, seconds),
                    *scrapeparts.hangs(bench, host, seconds, apart=apart),
                ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(". ")[0])
    parser.add_argument("--parts", default="servers,agent", help="some of: %(default)s")
    parser.add_argument("--scrapes", type=int, default=1000, help="of each of the two scrapers of a server")
    parser.add_argument("--slots", type=int, default=8, help="of the servers")
    parser.add_argument("--seconds", type=float, default=150, help="of the hang, and of the footprint")
    parser.add_argument("--apart", action="store_true", help="neighbours hang one after the other, not all at once")
    parser.add_argument("--serve", choices=scrapeserver.KINDS, help=argparse.SUPPRESS)
    words = parser.parse_args()
    if words.serve:
        scrapeserver.serve(words.serve, words.slots)
        return
    parts = words.parts.split(",")
    if unknown := set(parts) - {"servers", "agent"}:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    rows = servers(words.scrapes, words.slots) if "servers" in parts else []
    rows += agent(words.seconds, apart=words.apart) if "agent" in parts else []
    print_table(rows)
    if missed := [row.what for row in rows if row.met is False]:
        sys.exit(f"missed: {'; '.join(missed)}")


def print_table(rows: Sequence[Row]) -> None:
    load = os.getloadavg()[1] / (os.cpu_count() or 1)
    print(f"load of this machine over the last 5 minutes: {load:.1f} for each of {os.cpu_count()} cores\n")
    rivals = [name for name in (CLIENT, SMI, DCGM) if any(name in row.theirs for row in rows)]
    columns = [
        "",
        "ollama-agent",
        *(f"{name}{'' if name == CLIENT else ' (published)'}" for name in rivals),
        "target",
        "",
    ]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")
    for row in rows:
        met = "" if row.met is None else "met" if row.met else "missed"
        theirs = [row.theirs.get(name, "") for name in rivals]
        print("| " + " | ".join([row.what, row.ours, *theirs, row.target, met]) + " |")


if __name__ == "__main__":
    main()
