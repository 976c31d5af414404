"""The agent's NVML code on a machine with a real GPU: what answers, what it costs, and what a load and a fault look like.

    python bench/real_gpu.py            needs nvidia-ml-py; with PyTorch it also puts a load on GPU 0 and breaks a kernel on it

Nothing here changes a setting of the GPU. The kernel that is broken on purpose reads beyond its memory: XID 31 or 13.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "agent"), str(ROOT / "images")]
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

import pynvml as nvml  # noqa: E402 - after the path is set

from appliance_agent.gpu_source import NvmlSource  # noqa: E402
from appliance_agent.nvml_process import COMMAND  # noqa: E402
from appliance_agent.xids import describe, reaction  # noqa: E402

LOAD = """
import time, torch
a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
print("up", flush=True)
until_s = time.time() + {seconds}
while time.time() < until_s:
    a @ a
    torch.cuda.synchronize()
"""
BROKEN = """
import torch, triton, triton.language as tl
@triton.jit
def broken(p):
    tl.store(p + (1 << 40), 1)
broken[(1,)](torch.zeros(4, device="cuda", dtype=torch.int32))
torch.cuda.synchronize()
"""
COPY = """
import torch
print("up", flush=True)
input()
there = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
here = torch.empty(1 << 30, dtype=torch.uint8).pin_memory()
for _ in range({times}):
    there.copy_(here)
torch.cuda.synchronize()
print("done", flush=True)
input()
"""
FIELDS = (
    3, 4, 5, 6, 74, 75, 76, 77, 78, 79, 82, 83, 92, 93, 94, 95, 185, 186, 191, 193, 194, 195, 196, 197, 198, 230, 269,
    270, 271, 272, 273, 274,
)  # fmt: skip
ALL_LINKS = 2**32 - 1
NVLINK_FIELDS = (38, 45, 52, 59, 91, 138, 139, 140, 141, 160, 161, 162, 163, 202, 204)
GPM = {1: "graphics", 2: "sm", 3: "occupancy", 5: "tensor", 10: "dram", 20: "pcie sent", 21: "pcie received"}


def main() -> int:
    _section("every call the agent makes", [sys.executable, "-m", "appliance_agent.nvml_child", "--probe"])
    _section("one look", [sys.executable, "-m", "appliance_agent.nvml_child", "--show"])
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    _others(handle)
    _fields(handle)
    _samples(handle)
    _gpm(handle)
    _bus(handle)
    nvml.nvmlShutdown()
    _source()
    return 0


def _section(title: str, words: list[str]) -> None:
    print(f"\n== {title}", flush=True)
    subprocess.run(words, check=False, timeout=120)


def _others(handle: object) -> None:
    print("\n== calls that the agent does not make")
    calls: dict[str, Callable[[], object]] = {
        "gpm support": lambda: nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice,
        "gpu max threshold": lambda: nvml.nvmlDeviceGetTemperatureThreshold(handle, 3),
        "memory max threshold": lambda: nvml.nvmlDeviceGetTemperatureThreshold(handle, 2),
        "nvlink 0 state": lambda: nvml.nvmlDeviceGetNvLinkState(handle, 0),
        "cores": lambda: nvml.nvmlDeviceGetNumGpuCores(handle),
        "violation power": lambda: nvml.nvmlDeviceGetViolationStatus(handle, 0).violationTime,
        "violation thermal": lambda: nvml.nvmlDeviceGetViolationStatus(handle, 1).violationTime,
        "supported events": lambda: hex(nvml.nvmlDeviceGetSupportedEventTypes(handle)),
    }
    for name, call in calls.items():
        began_s = time.perf_counter()
        try:
            answer = str(call())
        except (nvml.NVMLError, AttributeError, TypeError) as error:
            answer = f"{type(error).__name__}: {error}"
        print(f"  {name:<28} {1000 * (time.perf_counter() - began_s):8.3f} ms  {answer}")


def _fields(handle: object) -> None:
    print("\n== fields; type 1 has 32 bits, 3 has 64")
    wanted = [*FIELDS, *((number, ALL_LINKS) for number in NVLINK_FIELDS), *((number, 0) for number in NVLINK_FIELDS)]
    for value in nvml.nvmlDeviceGetFieldValues(handle, wanted):
        shown = f"error {value.nvmlReturn}" if value.nvmlReturn else f"{value.value.ullVal} (type {value.valueType})"
        print(f"  field {value.fieldId:<4} scope {value.scopeId:<12} {value.latencyUsec:8d} us  {shown}")


def _samples(handle: object) -> None:
    """How far apart they are, how many are kept, and whether those that come later join on."""
    print("\n== samples of the utilisation")
    try:
        kind, kept = nvml.nvmlDeviceGetSamples(handle, nvml.NVML_GPU_UTILIZATION_SAMPLES, 0)
        time.sleep(2)
        _, later = nvml.nvmlDeviceGetSamples(handle, nvml.NVML_GPU_UTILIZATION_SAMPLES, kept[-1].timeStamp)
    except nvml.NVMLError as error:
        print(f"  {error}")
        return
    steps_ms = sorted((after.timeStamp - before.timeStamp) / 1000 for before, after in pairwise(kept))
    age_s = time.time() - later[-1].timeStamp / 1e6
    print(f"  type {kind}, {len(kept)} kept, {len(later)} in the next 2 s, the newest is {age_s:.3f} s old")
    print(f"  apart by {steps_ms[0]:.1f} to {steps_ms[-1]:.1f} ms, half of them by less than {median(steps_ms):.1f}")


def _gpm(handle: object) -> None:
    print("\n== GPM under load", flush=True)
    load = subprocess.Popen([sys.executable, "-c", LOAD.format(seconds=6)], stdout=subprocess.PIPE)
    assert load.stdout is not None
    load.stdout.readline()
    try:
        before, after = nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()
        nvml.nvmlGpmSampleGet(handle, before)
        time.sleep(2)
        nvml.nvmlGpmSampleGet(handle, after)
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
        asked.numMetrics, asked.sample1, asked.sample2 = len(GPM), before, after
        for place, metric in enumerate(GPM):
            asked.metrics[place].metricId = metric
        nvml.nvmlGpmMetricsGet(asked)
        for place, (metric, name) in enumerate(GPM.items()):
            told = asked.metrics[place]
            print(f"  {metric:3} {name:<16} error {told.nvmlReturn}  {told.value}")
    except (nvml.NVMLError, AttributeError) as error:
        print(f"  {type(error).__name__}: {error}")
    load.wait()


def _bus(handle: object) -> None:
    """Whether fields 197 and 198 count bytes, which is which, and where they wrap: after 1 GiB and after 32."""
    print("\n== bytes of the bus", flush=True)
    for times in (1, 32):
        words = [sys.executable, "-c", COPY.format(times=times)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as copy:
            assert copy.stdin is not None
            assert copy.stdout is not None
            if not copy.stdout.readline():
                print("  no PyTorch")
                return
            before = nvml.nvmlDeviceGetFieldValues(handle, [197, 198])
            print(file=copy.stdin, flush=True)
            copy.stdout.readline()
            after = nvml.nvmlDeviceGetFieldValues(handle, [197, 198])
            print(file=copy.stdin, flush=True)
        for old, new in zip(before, after, strict=True):
            moved = new.value.ullVal - old.value.ullVal
            print(
                f"  {times:2} GiB to the card: field {old.fieldId} +{moved} ({moved / 2**30:.2f} GiB), type {new.valueType}"
            )


def _source() -> None:
    print("\n== the source, as the agent runs it", flush=True)
    rung = threading.Event()
    source = NvmlSource(rung.set, command=(*COMMAND, "--nvlink"))
    source.start()
    _until(lambda: source.snapshot().up, 30)
    _tell(source, "idle")
    load = subprocess.Popen([sys.executable, "-c", LOAD.format(seconds=12)], stdout=subprocess.PIPE)
    assert load.stdout is not None
    load.stdout.readline()
    time.sleep(4)
    _tell(source, f"under load by process {load.pid}")
    load.wait()
    time.sleep(11)
    _tell(source, "after the load, with the values of ten seconds: busy_s should have grown by 12")
    pid = source.pid
    began_s, used_s = time.monotonic(), _processor_s(pid)
    time.sleep(20)
    ratio = (_processor_s(pid) - used_s) / (time.monotonic() - began_s)
    print(f"  the NVML process, 20 s: {100 * ratio:.2f} % of a core, {_memory(pid)}")
    print(f"  this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    _break(source)
    source.close()


def _break(source: NvmlSource) -> None:
    print("  a kernel that writes beyond its memory:", flush=True)
    kernel = ROOT / ".broken_kernel.py"
    kernel.write_text(BROKEN)  # triton reads the source file, so `-c` would not do
    began_s = time.monotonic()
    result = subprocess.run([sys.executable, kernel], capture_output=True, text=True, check=False, timeout=120)
    ended_s = time.monotonic()
    kernel.unlink()
    print(f"    {(result.stderr.strip().splitlines() or ['it did not fail'])[-1][:150]}")
    _until(lambda: bool(source.snapshot().xids), 10)
    for xid in source.snapshot().xids:
        told = f"{xid.code}: {describe(xid.code)} -> {reaction(xid.code, {}).value}"
        print(f"    XID {told}, {xid.at_s - began_s:.2f} s after the start, {xid.at_s - ended_s:+.2f} s to its end")
    if not source.snapshot().xids:
        print("    no XID was reported")
    _tell(source, "after it")


def _tell(source: NvmlSource, title: str) -> None:
    snapshot = source.snapshot()
    print(f"  {title}: up={snapshot.up} {snapshot.because} driver {snapshot.driver_version}", flush=True)
    for gpu in snapshot.gpus:
        print(f"    {gpu}\n    {snapshot.readings.get(gpu.uuid)}")


def _processor_s(pid: int | None) -> float:
    parts = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(parts[11]) + int(parts[12])) / os.sysconf("SC_CLK_TCK")


def _memory(pid: int | None) -> str:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return " ".join(" ".join(line.split()) for line in lines if line.startswith(("Rss", "Pss:", "Private_Dirty")))


def _until(true: object, seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while callable(true) and not true() and time.monotonic() < until_s:
        time.sleep(0.05)


if __name__ == "__main__":
    sys.exit(main())
