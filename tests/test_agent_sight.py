"""What is seen of a container from outside: over files such as the kernel's, and readings such as NVML's."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from appliance_agent.access_log import Access
from appliance_agent.evidence import Evidence, Load, Running
from appliance_agent.gpu_facts import GpuFacts, gpu_facts
from appliance_agent.gpus import NO_GPUS, GpuPids, GpuProcess, GpuReading, GpuSnapshot
from appliance_agent.http import Meter
from appliance_agent.ports import Target
from appliance_agent.procfs import Processes
from appliance_agent.sight import Sight

ID, OTHER = "ab" * 32, "cd" * 32
GPU, SECOND = "GPU-1", "GPU-2"
PID, RUNNER, STRANGER = 40, 41, 50
MIB = 1024 * 1024
LOADED = Evidence(ID, watched_since_s=0.0, loaded=True)


class Machine:
    """A container of process 40 with a runner, and somebody else's process, as files."""

    def __init__(self, root: Path, *, gpus: tuple[str, ...] = (GPU,)) -> None:
        self.root = root
        self.meter = Meter()
        for pid, identity in ((PID, ID), (RUNNER, ID), (STRANGER, OTHER)):
            self.put(f"proc/{pid}/cgroup", f"0::/docker/{identity}\n")
        self.sends(0)
        self.uses(cpu_s=0.0, memory_bytes=0, read_bytes=0)
        processes = Processes(root / "proc", root / "cgroup")
        target = Target(0, ID, PID, "127.0.0.1", 8880, "m", gpus)
        self.sight = Sight(target, processes, self.meter, port=11434)

    def put(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def sends(self, payload: int, *, acknowledgements: int = 0) -> None:
        row = f"eth0: 0 0 0 0 0 0 0 0 {payload + 66 * (10 + acknowledgements)} {10 + acknowledgements} 0 0 0 0 0 0\n"
        self.put(f"proc/{PID}/net/dev", f"\n\n{row}")

    def connects(self, count: int) -> None:
        rows = "".join(f"{n}: 0500140A:2CAA 0100140A:D2F{n} 01 0:0 0:0 0 0 0\n" for n in range(count))
        self.put(f"proc/{PID}/net/tcp", f"sl\n{rows}")

    def uses(self, *, cpu_s: float = 0.0, memory_bytes: int = 0, read_bytes: int = 0) -> None:
        place = f"cgroup/docker/{ID}"
        self.put(f"{place}/cpu.stat", f"usage_usec {int(cpu_s * 1e6)}\n")
        self.put(f"{place}/memory.current", f"{memory_bytes}\n")
        self.put(f"{place}/io.stat", f"8:0 rbytes={read_bytes} wbytes=1\n")

    def look(self, now_s: float, before: Evidence = LOADED, snapshot: GpuSnapshot = NO_GPUS) -> Evidence:
        return self.sight.look(before, snapshot, flow_bytes_per_s=500, count_peers=True, now_s=now_s)


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def gpu(
    *pids: int, at_s: float = 100.0, util: float | None = 0.0, memory: int | None = 7 * MIB, up: bool = True
) -> GpuSnapshot:
    processes = tuple(GpuProcess(pid, memory) for pid in pids)
    return GpuSnapshot(at_s, up, readings={GPU: GpuReading(at_s, utilization_ratio=util, processes=processes)})


# --- bytes -----------------------------------------------------------------------------------------------------------


def seen_after(machine: Machine, *payloads: int) -> Evidence:
    """One look a second."""
    evidence = LOADED
    for second, payload in enumerate(payloads):
        machine.sends(payload)
        evidence = machine.look(100.0 + second, evidence)
    return evidence


def test_tokens_of_users_are_a_flow(machine: Machine) -> None:
    evidence = seen_after(machine, 0, 1000, 2000, 3000)

    assert evidence.bytes_per_s == 1000
    assert evidence.flow_s == 103.0


def test_the_flow_has_an_age_when_it_stops(machine: Machine) -> None:
    evidence = seen_after(machine, *(0, 1000, 2000), *[2000] * 6)

    assert evidence.bytes_per_s == 0
    assert evidence.flow_s is not None
    assert 102.0 <= evidence.flow_s <= 104.0


def test_our_own_bytes_are_no_flow(machine: Machine) -> None:
    machine.look(100.0)
    machine.sends(5000)
    machine.meter.received_bytes = 4900
    evidence = machine.look(101.0)

    assert evidence.bytes_per_s == 100
    assert evidence.flow_s is None


def test_acknowledgements_of_long_prompts_are_no_flow(machine: Machine) -> None:
    machine.look(100.0)
    machine.sends(0, acknowledgements=1000)

    assert machine.look(101.0).bytes_per_s == 0


def test_polls_and_errors_are_no_flow(machine: Machine) -> None:
    machine.look(100.0)
    for status, path in ((200, "/api/ps"), (500, "/api/chat"), (503, "/api/chat"), (200, "/api/tags")):
        machine.sight.leave_out(Access(status, 0.1, "", "GET" if status == 200 else "POST", path))
    machine.sends(600 + 300 + 300 + 800)

    assert machine.look(101.0).bytes_per_s == 0


def test_a_line_is_an_answer_only_if_bytes_went_with_it(machine: Machine) -> None:
    """A request whose client gave up is logged as 200, too."""
    machine.look(100.0)
    machine.sends(20)
    without = machine.sight.is_answer(100.5)
    machine.sends(600)

    assert without is False
    assert machine.sight.is_answer(100.6) is True


# --- connections -----------------------------------------------------------------------------------------------------


def test_peers_are_the_connections_that_are_not_ours(machine: Machine) -> None:
    machine.connects(3)
    machine.meter.connections = 1

    assert machine.look(100.0).peers == 2


# --- the process that is not visible ---------------------------------------------------------------------------------


def test_what_belongs_to_another_container_is_not_looked_at(machine: Machine) -> None:
    machine.put(f"proc/{PID}/cgroup", f"0::/docker/{OTHER}\n")
    machine.connects(3)
    machine.look(100.0)
    machine.sends(50_000)
    evidence = machine.look(101.0)

    assert (evidence.peers, evidence.bytes_per_s, evidence.flow_s, evidence.compute_ratio) == (None, None, None, None)
    assert machine.sight.is_answer(101.0) is True  # it cannot be seen, so nothing speaks against it


def test_processes_that_are_there_and_not_shown_are_told(machine: Machine) -> None:
    there = Target(0, ID, os.getpid(), "127.0.0.1", 8880, "m", (GPU,))
    hidden = Sight(there, Processes(machine.root / "empty"), machine.meter, port=11434)

    seen, unseen = machine.look(1), hidden.look(LOADED, NO_GPUS, flow_bytes_per_s=500, count_peers=True, now_s=1)

    assert (seen.hidden, unseen.hidden) == (False, True)


def test_a_container_that_is_gone_leaves_no_numbers(machine: Machine) -> None:
    machine.connects(1)
    machine.look(100.0)
    for name in ("net/dev", "net/tcp", "cgroup"):
        (machine.root / f"proc/{PID}/{name}").unlink()

    assert machine.look(101.0).peers is None


# --- the GPU ---------------------------------------------------------------------------------------------------------


def placed(snapshot: GpuSnapshot, uuids: tuple[str, ...] = (GPU,), *, readable: bool = True) -> GpuFacts:
    own = {PID: True, RUNNER: True, STRANGER: False}
    return gpu_facts(snapshot, uuids, lambda pid: own.get(pid) if readable else None, 103.0)


@pytest.mark.parametrize(
    ("snapshot", "facts"),
    [
        (gpu(STRANGER, RUNNER, util=0.5), GpuFacts(True, 7 * MIB, 0.5)),
        (gpu(PID, RUNNER), GpuFacts(True, 14 * MIB, 0.0)),
        (gpu(RUNNER, memory=None), GpuFacts(True, None, 0.0)),
        (gpu(STRANGER, util=1.0), GpuFacts(False, None, 1.0)),
        (gpu(), GpuFacts(False, None, 0.0)),
        (gpu(RUNNER, up=False), GpuFacts(None, None, None)),
        (gpu(RUNNER, at_s=97.0), GpuFacts(None, None, None)),
        (gpu(60), GpuFacts(None, None, 0.0)),  # a process that is just gone
        (replace(gpu(), readings={GPU: GpuReading(100.0, utilization_ratio=0.3)}), GpuFacts(None, None, 0.3)),
        (replace(gpu(), readings={}), GpuFacts(None, None, None)),
        (NO_GPUS, GpuFacts(None, None, None)),
    ],
)
def test_the_gpu_is_used_if_a_process_of_the_container_is_on_it(snapshot: GpuSnapshot, facts: GpuFacts) -> None:
    assert replace(placed(snapshot), pids=None) == facts


def test_processes_on_the_gpu_are_told_apart_by_whose_they_are() -> None:
    assert placed(gpu(PID, STRANGER, RUNNER)).pids == GpuPids(frozenset({PID, RUNNER}), frozenset({STRANGER}))
    assert placed(gpu(60)).pids == GpuPids(frozenset(), frozenset())  # just gone: nobody's
    assert placed(gpu(STRANGER, up=False)).pids is None


def test_processes_that_may_not_be_looked_at_are_unknown() -> None:
    assert placed(gpu(RUNNER), readable=False).on_gpu is None


def test_a_group_of_gpus_is_used_if_one_is_and_unused_only_if_all_are_seen() -> None:
    one = gpu(RUNNER)

    assert placed(one, (GPU, SECOND)).on_gpu is True
    assert placed(gpu(), (GPU, SECOND)).on_gpu is None
    assert placed(one, ()).on_gpu is None


def test_since_when_changes_with_the_answer_only(machine: Machine) -> None:
    first = machine.look(100.0, snapshot=gpu(RUNNER))
    same = machine.look(101.0, first, gpu(RUNNER))
    other = machine.look(102.0, same, gpu(STRANGER))

    assert (first.on_gpu, first.on_gpu_since_s) == (True, 100.0)
    assert (same.on_gpu, same.on_gpu_since_s) == (True, 100.0)
    assert (other.on_gpu, other.on_gpu_since_s) == (False, 102.0)


# --- computing -------------------------------------------------------------------------------------------------------


def test_a_gpu_that_works_computes(machine: Machine) -> None:
    busy = machine.look(100.0, snapshot=gpu(RUNNER, util=0.4))
    idle = machine.look(101.0, busy, gpu(RUNNER, util=0.01))

    assert (busy.compute_ratio, busy.compute_s) == (0.4, 100.0)
    assert (idle.compute_ratio, idle.compute_s) == (0.01, 100.0)


def test_without_nvml_the_processors_show_whether_it_computes(machine: Machine) -> None:
    machine.look(100.0)
    machine.uses(cpu_s=1.5)
    busy = machine.look(101.0)
    machine.uses(cpu_s=1.51)
    idle = machine.look(102.0, busy)

    assert busy.compute_ratio == pytest.approx(1.5)
    assert busy.compute_s == 101.0
    assert idle.compute_ratio == pytest.approx(0.01)
    assert idle.compute_s == 101.0


def test_a_runner_that_gets_a_fifth_of_a_core_computes(machine: Machine) -> None:
    """Measured with a real Ollama: so little on a host with other work; when frozen, 0.00003."""
    machine.look(100.0)
    machine.uses(cpu_s=0.2)

    assert machine.look(101.0).compute_s == 101.0


# --- a load that goes on ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["memory_bytes", "read_bytes"])
def test_a_load_moves_while_memory_or_disk_do(machine: Machine, what: str) -> None:
    loading = replace(LOADED, loaded=False, load=Load(99.0))
    evidence = machine.look(100.0, loading)
    machine.uses(**{what: 8 * MIB})
    moved = machine.look(101.0, evidence)
    still = machine.look(102.0, moved)

    assert evidence.progress_s is None
    assert moved.progress_s == still.progress_s == 101.0


def test_a_load_moves_while_the_memory_of_the_gpu_does(machine: Machine) -> None:
    loading = replace(LOADED, loaded=False, load=Load(99.0))
    evidence = machine.look(100.0, loading, gpu(RUNNER))

    assert machine.look(101.0, evidence, gpu(RUNNER, memory=900 * MIB)).progress_s == 101.0


def test_small_steps_add_up_to_a_move(machine: Machine) -> None:
    loading = replace(LOADED, loaded=False, load=Load(99.0))
    evidence = machine.look(100.0, loading)
    seen: list[float | None] = []
    for second in range(1, 6):
        machine.uses(memory_bytes=second * 300 * 1024)
        evidence = machine.look(100.0 + second, evidence)
        seen.append(evidence.progress_s)

    assert seen == [None, None, None, 104.0, 104.0]


def progress_of_a_load(machine: Machine, *, cores: float, seconds: int = 60, since_s: float = 0.0) -> float | None:
    """Of one that only uses processors, at the end of so many looks, a second apart; it began `since_s` before them."""
    evidence = replace(LOADED, loaded=False, load=Load(100.0 - since_s))
    for second in range(seconds + 1):
        machine.uses(cpu_s=50 + cores * second)
        evidence = machine.look(100.0 + second, evidence)
    return evidence.progress_s


@pytest.mark.parametrize("cores", [0.12, 0.3, 1.0, 8.0])
def test_a_load_that_reads_where_nothing_is_counted_moves_because_it_uses_processors(
    machine: Machine, cores: float
) -> None:
    """404 GB from ZFS, GPFS or NFS without a page cache, into a buffer of the GPU that was taken all at once."""
    moved_s = progress_of_a_load(machine, cores=cores)

    assert moved_s is not None
    assert moved_s >= 150.0


def test_a_load_for_somebody_else_moves_as_well(machine: Machine) -> None:
    evidence = replace(LOADED, loaded=False, loading_since_s=100.0)
    for second in range(61):
        machine.uses(cpu_s=50 + 0.3 * second)
        evidence = machine.look(100.0 + second, evidence)

    assert evidence.progress_s is not None
    assert evidence.progress_s >= 150.0


@pytest.mark.parametrize("cores", [0.0, 0.005, 0.052])
def test_a_load_whose_runner_is_stuck_does_not_move(machine: Machine, cores: float) -> None:
    """Measured with a runner that was stopped: the servers of Ollama 0.32 and 0.13 ask it, and take so much for that."""
    assert progress_of_a_load(machine, cores=cores) is None


def test_a_load_that_spins_is_believed_for_an_hour_only(machine: Machine) -> None:
    moved_s = progress_of_a_load(machine, cores=1.0, seconds=120, since_s=3540.0)

    assert moved_s is not None
    assert moved_s <= 160.0


def test_a_burst_is_no_load_that_moves(machine: Machine) -> None:
    """Go collects its garbage every two minutes, whether or not anything goes on."""
    evidence = replace(LOADED, loaded=False, load=Load(99.0))
    for second in range(60):
        machine.uses(cpu_s=0.5 * (second >= 35))
        evidence = machine.look(100.0 + second, evidence)

    assert evidence.progress_s is None


def test_a_canary_that_waits_is_not_a_load_that_moves_because_the_server_spins(machine: Machine) -> None:
    evidence = replace(LOADED, canary=Running(99.0))
    for second in range(60):
        machine.uses(cpu_s=float(second))
        evidence = machine.look(100.0 + second, evidence)

    assert evidence.progress_s is None


def test_a_canary_without_a_token_may_be_a_load(machine: Machine) -> None:
    waiting, heard = replace(LOADED, canary=Running(99.0)), replace(LOADED, canary=Running(99.0, 99.5, 99.5, 1))
    for second, memory in enumerate((0, 8, 16)):
        machine.uses(memory_bytes=memory * MIB)
        heard = machine.look(100.0 + second, heard)
        waiting = machine.look(100.0 + second, waiting)

    assert heard.progress_s is None
    assert waiting.progress_s == 102.0
