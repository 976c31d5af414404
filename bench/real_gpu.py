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
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "agent"), str(ROOT / "images")]
os.environ["PYTHONPATH"] = os.pathsep.join([*sys.path[:2], os.environ.get("PYTHONPATH", "")])

import pynvml as nvml  # noqa: E402 - after the path is set

from appliance_agent.gpu_source import NvmlSource  # noqa: E402
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
FIELDS = (
    74, 75, 76, 77, 78, 79, 82, 83, 92, 93, 94, 95, 138, 139, 140, 141, 142, 143, 144, 145, 146, 147, 185, 186, 191,
    193, 194, 195, 196, 197, 198, 230, 269, 270, 271, 272, 273, 274,
)  # fmt: skip


def main() -> int:
    _section("every call the agent makes", [sys.executable, "-m", "appliance_agent.nvml_child", "--probe"])
    _section("one snapshot line", [sys.executable, "-m", "appliance_agent.nvml_child", "--once"])
    _candidates()
    _source()
    return 0


def _section(title: str, words: list[str]) -> None:
    print(f"\n== {title}", flush=True)
    subprocess.run(words, check=False, timeout=120)


def _candidates() -> None:
    print("\n== calls that the catalogue of metrics may use")
    nvml.nvmlInit()
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    calls: dict[str, Callable[[], object]] = {
        "utilization samples": lambda: len(nvml.nvmlDeviceGetSamples(handle, 1, 0)[1]),
        "margin temperature": lambda: nvml.nvmlDeviceGetMarginTemperature(handle),
        "slowdown threshold": lambda: nvml.nvmlDeviceGetTemperatureThreshold(handle, 1),
        "performance state": lambda: nvml.nvmlDeviceGetPerformanceState(handle),
        "max sm clock": lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, 1),
        "ecc volatile uncorrected": lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, 1, 0),
        "ecc lifetime corrected": lambda: nvml.nvmlDeviceGetTotalEccErrors(handle, 0, 1),
        "remapped rows": lambda: nvml.nvmlDeviceGetRemappedRows(handle),
        "retired pages pending": lambda: nvml.nvmlDeviceGetRetiredPagesPendingStatus(handle),
        "pcie generation": lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle),
        "pcie width": lambda: nvml.nvmlDeviceGetCurrPcieLinkWidth(handle),
        "pcie max generation": lambda: nvml.nvmlDeviceGetMaxPcieLinkGeneration(handle),
        "pcie replays": lambda: nvml.nvmlDeviceGetPcieReplayCounter(handle),
        "gpm support": lambda: nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice,
        "nvlink 0 state": lambda: nvml.nvmlDeviceGetNvLinkState(handle, 0),
        "cores": lambda: nvml.nvmlDeviceGetNumGpuCores(handle),
        "violation thermal": lambda: nvml.nvmlDeviceGetViolationStatus(handle, 1).violationTime,
        "mig mode": lambda: nvml.nvmlDeviceGetMigMode(handle),
        "supported events": lambda: hex(nvml.nvmlDeviceGetSupportedEventTypes(handle)),
    }
    for name, call in calls.items():
        began_s = time.perf_counter()
        try:
            answer = str(call())
        except (nvml.NVMLError, AttributeError, TypeError) as error:
            answer = f"{type(error).__name__}: {error}"
        print(f"  {name:<28} {1000 * (time.perf_counter() - began_s):8.3f} ms  {answer}")
    for value in nvml.nvmlDeviceGetFieldValues(handle, list(FIELDS)):
        shown = f"error {value.nvmlReturn}" if value.nvmlReturn else f"{value.value.ullVal} (type {value.valueType})"
        print(f"  field {value.fieldId:<22} {value.latencyUsec:8d} us  {shown}")
    _gpm(handle)
    nvml.nvmlShutdown()


def _gpm(handle: object) -> None:
    try:
        before, after = nvml.nvmlGpmSampleAlloc(), nvml.nvmlGpmSampleAlloc()
        nvml.nvmlGpmSampleGet(handle, before)
        time.sleep(0.2)
        nvml.nvmlGpmSampleGet(handle, after)
        asked = nvml.c_nvmlGpmMetricsGet_t()
        asked.version = nvml.NVML_GPM_METRICS_GET_VERSION
        wanted = (1, 2, 3, 5, 10, 20, 21)
        asked.numMetrics, asked.sample1, asked.sample2 = len(wanted), before, after
        for place, metric in enumerate(wanted):
            asked.metrics[place].metricId = metric
        nvml.nvmlGpmMetricsGet(asked)
        for place, metric in enumerate(wanted):
            print(f"  gpm metric {metric:<17}  error {asked.metrics[place].nvmlReturn}  {asked.metrics[place].value}")
    except (nvml.NVMLError, AttributeError) as error:
        print(f"  gpm                          {type(error).__name__}: {error}")


def _source() -> None:
    print("\n== the source, as the agent runs it", flush=True)
    rung = threading.Event()
    source = NvmlSource(rung.set)
    source.start()
    _until(lambda: source.snapshot().up, 30)
    _tell(source, "idle")
    load = subprocess.Popen([sys.executable, "-c", LOAD.format(seconds=12)], stdout=subprocess.PIPE)
    assert load.stdout is not None
    load.stdout.readline()
    time.sleep(4)
    _tell(source, f"under load by process {load.pid}")
    load.wait()
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
