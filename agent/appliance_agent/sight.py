"""What can be seen of a container from outside, without asking it: bytes, connections, GPU, CPU, and whether it moves."""

from __future__ import annotations

from typing import Any, Final

from appliance_agent.access_log import Access
from appliance_agent.evidence import Evidence
from appliance_agent.flow import Flow
from appliance_agent.gpu_facts import GpuFacts, gpu_facts
from appliance_agent.gpus import GpuSnapshot
from appliance_agent.http import Meter
from appliance_agent.ports import Target
from appliance_agent.procfs import Group, Processes
from appliance_agent.values import updated

_GPU_COMPUTES: Final = 0.05
_CPU_COMPUTES: Final = 0.05  # cores; one that has to share them gets little, a frozen one none
_MOVED_BYTES: Final = 1024 * 1024
_LOAD_COMPUTES: Final = 0.1  # cores; Ollama 0.13 takes 0.05 to ask a runner that is stuck, again and again
_LOAD_WINDOW_S: Final = 10.0  # in which a burst, such as a collection of garbage, is little
_LOAD_BELIEVED_S: Final = 3600.0  # one that waits for a dead GPU in a busy loop uses processors, too
_ANSWER_BYTES: Final = 100  # a broken-off request has a line, too, but no bytes


class Sight:
    """Of one container; used by one thread at a time."""

    def __init__(self, target: Target, processes: Processes, meter: Meter, *, port: int) -> None:
        self._target = target
        self._processes = processes
        self._meter = meter
        self._port = port
        self._visible = False
        self._group: Group | None = None
        self._flow = Flow()
        self._cpu: tuple[float, float] | None = None  # when, CPU seconds
        self._sizes: tuple[int, ...] = ()
        self._load_cpu: tuple[float, float] | None = None  # when, CPU seconds: where the window began
        self._own: set[int] = set()  # of the container's processes those that were on its GPUs at the last look
        self._listed: set[int] = set()  # at this one

    def look(
        self,
        before: Evidence,
        snapshot: GpuSnapshot,
        *,
        flow_bytes_per_s: float,
        count_peers: bool,
        now_s: float,
    ) -> Evidence:
        facts = gpu_facts(snapshot, self._target.gpus, self._belongs_still, now_s)
        self._own, self._listed = self._listed, set()
        news: dict[str, Any] = {
            "on_gpu": facts.on_gpu,
            "on_gpu_since_s": before.on_gpu_since_s if facts.on_gpu is before.on_gpu else now_s,
            "gpu_memory_bytes": facts.memory_bytes,
            "gpu_pids": facts.pids,
        }
        cores = None
        if visible := self._is_visible():
            cores = self._cores(now_s) if facts.utilization_ratio is None else None
            news |= self._traffic(flow_bytes_per_s, now_s)
        news |= _computing(facts.utilization_ratio, cores, now_s)
        works = visible and self._works_at_a_load(before, now_s)
        if works or (visible and _is_waiting(before) and self._has_moved(facts)):
            news["progress_s"] = now_s
        news["hidden"] = not visible and self._processes.hides(self._target.pid)
        news["peers"] = peers = self._peers() if visible and count_peers else None
        if peers:
            news["peers_s"] = now_s
        return updated(before, **news)

    def leave_out(self, line: Access) -> None:
        self._flow.leave_out(line)

    def is_answer(self, now_s: float) -> bool:
        """Whether bytes were sent of late, as they are at the end of an answer. Where that cannot be seen, yes."""
        self._sample(now_s)
        lately = self._flow.bytes_lately()
        return lately is None or lately >= _ANSWER_BYTES

    def _traffic(self, flow_bytes_per_s: float, now_s: float) -> dict[str, Any]:
        self._sample(now_s)
        rate = self._flow.rate()
        flows = rate is not None and rate >= flow_bytes_per_s
        return {"bytes_per_s": rate} | ({"flow_s": now_s} if flows else {})

    def _peers(self) -> int | None:
        """The kernel walks through the connections of the whole host for it, which takes milliseconds."""
        own = self._meter.connections
        all_of_them = self._processes.connections(self._target.pid, self._port)
        return None if all_of_them is None else max(0, all_of_them - own)

    def _sample(self, now_s: float) -> None:
        sent = self._processes.sent_bytes(self._target.pid) if self._is_visible() else None
        if sent is not None:
            self._flow.sample(now_s, sent_bytes=sent, own_bytes=self._meter.arrived_bytes())

    def _is_visible(self) -> bool:
        """The process id must be the container's: in another namespace, or later, it may be anybody's."""
        if not self._visible:
            self._visible = self._belongs(self._target.pid) is True
            self._group = self._processes.group(self._target.pid) if self._visible else None
        return self._visible

    def _belongs(self, pid: int) -> bool | None:
        return self._processes.same_container(pid, self._target.container_id)

    def _belongs_still(self, pid: int) -> bool | None:
        """Of a process on a GPU. One that was listed at the last look, too, is the same one."""
        belongs = pid in self._own or self._belongs(pid)
        if belongs:
            self._listed.add(pid)
        return belongs

    def _cores(self, now_s: float) -> float | None:
        used_s = self._group.cpu_s() if self._group else None
        last, self._cpu = self._cpu, None if used_s is None else (now_s, used_s)
        if used_s is None or last is None or now_s <= last[0]:
            return None
        return max(0.0, used_s - last[1]) / (now_s - last[0])

    def _has_moved(self, facts: GpuFacts) -> bool:
        group = self._group
        sizes = (
            facts.memory_bytes or 0,
            (group.memory_bytes() or 0) if group else 0,
            (group.read_bytes() or 0) if group else 0,
        )
        last = self._sizes or sizes
        moved = any(abs(now - then) >= _MOVED_BYTES for now, then in zip(sizes, last, strict=True))
        if moved or not self._sizes:
            self._sizes = sizes  # small steps add up
        return moved

    def _works_at_a_load(self, before: Evidence, now_s: float) -> bool:
        """What is read from ZFS, GPFS or NFS without a page cache can be seen by nothing else: not in `io.stat`, not in
        the cgroup's memory, and the GPU's is taken all at once."""
        began_s = _load_began_s(before)
        if began_s is None:
            self._load_cpu = None
            return False
        last = self._load_cpu
        if last is not None and now_s - last[0] < _LOAD_WINDOW_S:
            return False
        used_s = self._group.cpu_s() if self._group else None
        self._load_cpu = None if used_s is None else (now_s, used_s)
        if used_s is None or last is None:
            return False
        young = now_s - began_s < _LOAD_BELIEVED_S
        return young and used_s - last[1] > _LOAD_COMPUTES * (now_s - last[0])


def _is_waiting(evidence: Evidence) -> bool:
    """For a load, or for a first token that may need one."""
    first_token = evidence.canary is not None and not evidence.canary.pieces
    return first_token or not evidence.loaded or _load_began_s(evidence) is not None


def _load_began_s(evidence: Evidence) -> float | None:
    """For us, or for somebody else."""
    load = evidence.load
    return load.started_s if load is not None and load.ended_s is None else evidence.loading_since_s


def _computing(utilization: float | None, cores: float | None, now_s: float) -> dict[str, Any]:
    ratio = utilization if utilization is not None else cores
    least = _GPU_COMPUTES if utilization is not None else _CPU_COMPUTES
    computes = ratio is not None and ratio > least
    return {"compute_ratio": ratio} | ({"compute_s": now_s} if computes else {})
