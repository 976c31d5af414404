"""What the agent costs, and that it leaves alone what is only busy."""

from __future__ import annotations

import os
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Final

from benchhost import Bench, Row, Users, serves_after_ns
from benchparts import CHAT, POLICY, RIVAL_PORT, TUNED
from rivals import Autoheal, NaiveCheck, chat_check, run_rival

NAIVE: Final = "chat, 15 s x 3"
_NAIVE_EACH_S: Final = 10.0
_PULSE_S: Final = 20.0
_BUSY: Final = {"OLLAMA_NUM_PARALLEL": "1", "STANDIN_TOKEN_S": "0.1"}
_SHORT_QUEUE: Final = {**_BUSY, "OLLAMA_MAX_QUEUE": "4"}  # most are refused with 503
_SLOTS: Final = 2
_CROWD: Final = 30  # users at each server


def saturation(bench: Bench) -> list[Row]:
    """Answers of two seconds, one at a time, and thirty users at each server from the first second to the last."""
    rows = list[Row]()
    for name, environment in (("long queue", _BUSY), ("full queue, 503", _SHORT_QUEUE)):
        for pulses in (False, True):
            rows += _saturated(bench, name, environment, pulses=pulses)
    return rows


def _saturated(bench: Bench, name: str, environment: dict[str, str], *, pulses: bool) -> list[Row]:
    label = f"{name}, engine frozen {_PULSE_S:.0f} s a minute" if pulses else name
    place = label.replace(" ", "-").replace(",", "")
    with bench.agent(place, slots=_SLOTS, environment=environment) as host, ExitStack() as stack:
        with host.graphics.changing() as world:
            for gpu in world.gpus:
                gpu.utilization_ratio = 0.95
        rivals = _rivals(bench, stack, environment)
        healer = stack.enter_context(closing(Autoheal(bench.engine)))
        naive = stack.enter_context(closing(NaiveCheck(bench.engine, 8880, interval_s=_NAIVE_EACH_S)))
        after_ns = time.time_ns()
        ports = [8880 + slot for slot in range(_SLOTS)] + [RIVAL_PORT + index for index in range(len(rivals))]
        crowds = [stack.enter_context(closing(Users(bench.engine, port, _CROWD, tokens=200))) for port in ports]
        _last(bench, bench.minutes * 60, pulses=pulses)
        restarts = len([each for each in bench.events.matching("die", after_ns=after_ns) if "rival" not in each.labels])
        told = _told(healer, naive)
        answered = sum(crowd.answered for crowd in crowds[:_SLOTS])
        refused, cut = (sum(getattr(crowd, how) for crowd in crowds[:_SLOTS]) for how in ("refused", "cut"))
        for crowd in crowds:
            crowd.leave()
        bench.engine.run_cli("rm", "-f", *rivals)
        host.remove_containers()
    what = f"false restarts in {bench.minutes:g} min: {label} ({answered} answers, {refused} refused, {cut} cut)"
    return [Row(what, str(restarts), told, "0", restarts == 0 and cut == 0)]


def _rivals(bench: Bench, stack: ExitStack, environment: dict[str, str]) -> list[str]:
    checks = (chat_check(30, 30, 3), chat_check(5, 5, 2))
    made = [
        run_rival(bench.engine, f"busy-{index}", RIVAL_PORT + index, check=check, environment=environment)
        for index, check in enumerate(checks)
    ]
    stack.callback(bench.engine.run_cli, "rm", "-f", *made, check=False)
    for index in range(len(made)):
        serves_after_ns(bench.engine, RIVAL_PORT + index)
    return made


def _told(healer: Autoheal, naive: NaiveCheck) -> dict[str, str]:
    return {
        POLICY: "0",
        CHAT: str(healer.restarts.count("busy-0")),
        TUNED: str(healer.restarts.count("busy-1")),
        NAIVE: f"{naive.restarts} (of {naive.asked} checks {naive.failed} failed)",
    }


def _last(bench: Bench, seconds: float, *, pulses: bool) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        left_s = until_s - time.monotonic()
        time.sleep(min(60 - _PULSE_S if pulses else 60, left_s))
        if pulses and time.monotonic() < until_s:
            with bench.engine.frozen():
                time.sleep(_PULSE_S)


def footprint(bench: Bench) -> list[Row]:
    """Eight slots with the default configuration, idle: canaries go on."""
    with bench.agent("footprint") as host:
        time.sleep(30)
        own = host.pid
        pids = [own, *children(own)]
        before, began_s = {pid: cpu_s(pid) for pid in pids}, time.monotonic()
        time.sleep(bench.minutes * 60)
        lasted_s = time.monotonic() - began_s
        shares = {pid: 100 * (cpu_s(pid) - before[pid]) / lasted_s for pid in pids}
        sizes = {pid: memory_mib(pid) for pid in pids}
    rows = [Row(f"{_name(pid, own)}: RSS, PSS", f"{sizes[pid][0]:.1f} MiB, {sizes[pid][1]:.1f} MiB") for pid in pids]
    rows += [Row(f"{_name(pid, own)}: CPU", f"{shares[pid]:.2f} % of a core") for pid in pids]
    total_mib, total_share = sum(size[1] for size in sizes.values()), sum(shares.values())
    rows.append(Row("together: PSS", f"{total_mib:.1f} MiB", {}, "60 MiB", total_mib <= 60))
    rows.append(Row("together: CPU", f"{total_share:.2f} % of a core", {}, "0.5 %", total_share <= 0.5))
    return rows


def _name(pid: int, own: int) -> str:
    return "agent" if pid == own else "its NVML process"


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(word) for task in tasks for word in (task / "children").read_text().split()]


def cpu_s(pid: int) -> float:
    """Seconds, threads that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory_mib(pid: int) -> tuple[float, float]:
    """RSS and PSS."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    sizes = {words[0]: int(words[1]) / 1024 for words in map(str.split, lines) if words[0] in ("Rss:", "Pss:")}
    return sizes["Rss:"], sizes["Pss:"]
