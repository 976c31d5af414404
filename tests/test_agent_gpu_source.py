"""The life of the NVML process and of the source over it: no driver, hangs, crashes and ends."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import fakenvml
import pytest
from engines import wait_until
from fakenvml import FakeGpu, World
from gpuwatch import FAST, GpuHost

from appliance_agent.gpu_source import NvmlSource, Patience
from appliance_agent.gpus import NO_GPUS


@pytest.fixture
def host(tmp_path: Path, nvml_library: Path) -> Iterator[GpuHost]:
    host = GpuHost(tmp_path, nvml_library, World([FakeGpu("GPU-aaaa"), FakeGpu("GPU-bbbb")]))
    yield host
    host.close()


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def test_before_the_start_nothing_is_known_and_nothing_runs() -> None:
    source = NvmlSource(lambda: None)
    source.close()

    assert source.snapshot() is NO_GPUS
    assert source.pid is None


def test_without_a_driver_the_snapshot_says_so_until_one_is_there(host: GpuHost, nvml_library: Path) -> None:
    empty = host.path.parent / "empty"
    empty.mkdir()
    (empty / "libnvidia-ml.so.1").touch()  # hides one that this machine may have
    host.environment["LD_LIBRARY_PATH"] = str(empty)
    with host.watched():
        seen = host.until(lambda seen: "libnvidia" in seen.because, "the reason")
        assert not seen.up
        assert seen.because == "no NVIDIA driver: libnvidia-ml.so.1 was not found"
        assert host.until_woken(lambda seen: "libnvidia" in seen.because, "the reason")
        (empty / "libnvidia-ml.so.1").unlink()
        (empty / "libnvidia-ml.so.1").symlink_to(nvml_library)

        assert len(host.until_up().gpus) == 2


@pytest.mark.parametrize(
    ("code", "because"),
    [
        (fakenvml.DRIVER_NOT_LOADED, "kernel module is not loaded"),
        (fakenvml.VERSION_MISMATCH, "different versions"),
        (fakenvml.NO_PERMISSION, "no permission"),
        (fakenvml.NO_PERMISSION, "`systemctl restart ollama-agent`, if the driver came after it"),
        (17, "`systemctl restart ollama-agent`, if the driver came after it"),
        (15, "a GPU is lost"),
        (fakenvml.UNKNOWN, "cannot be initialised: unknown error"),
    ],
)
def test_what_is_wrong_with_the_driver_is_said_in_words_and_tried_again(host: GpuHost, code: int, because: str) -> None:
    host.world.init_error = code
    host.change()
    with host.watched() as source:
        host.until(lambda seen: because in seen.because, "the reason")
        assert not host.seen.up
        pid = source.pid
        host.world.init_error = 0
        host.change()
        host.until_up()

        assert source.pid == pid


def test_a_driver_that_goes_away_takes_no_gpus_with_it(host: GpuHost) -> None:
    with host.watched():
        up = host.until_up()
        host.world.init_error = fakenvml.DRIVER_NOT_LOADED
        host.change()
        down = host.until(lambda seen: not seen.up, "the driver to go")

        assert down.gpus == up.gpus
        assert down.readings.keys() == up.readings.keys()


def test_the_bindings_may_be_missing(host: GpuHost) -> None:
    program = "import sys; sys.modules['pynvml'] = None; from appliance_agent.nvml_child import main; main([])"
    with host.watched(command=(sys.executable, "-c", program)):
        host.until(lambda seen: "nvidia-ml-py is not installed" in seen.because, "the reason")


def test_nvml_that_hangs_is_given_up_and_asked_again_by_another_process(host: GpuHost) -> None:
    with host.watched() as source:
        up, first = host.until_up(), source.pid
        assert first
        woken = host.until_woken(lambda seen: seen.up, "NVML")
        host.world.hangs = True
        host.change()
        hung = host.until(lambda seen: not seen.up, "the hang")
        assert hung.because == "NVML has not answered for 2 s: the driver hangs, see `dmesg | grep -i xid`"
        assert (hung.gpus, hung.readings.keys()) == (up.gpus, up.readings.keys())
        assert hung.at_s >= up.at_s
        assert host.until_woken(lambda seen: not seen.up, "the hang") > woken
        wait_until(lambda: not alive(first), timeout_s=20, what="the process that hung to end")
        host.world.hangs = False
        host.change()
        host.until_up()

        assert source.pid != first


def test_one_gpu_that_hangs_is_noticed_though_xids_still_come(host: GpuHost) -> None:
    with host.watched(patience=Patience(answer_s=2.0, init_s=60.0, respawn_s=60.0)):
        host.until_up()
        host.until_later()
        host.world.gpus[0].hangs.add("nvmlDeviceGetTemperature")
        host.change()

        def given_up() -> bool:
            host.world.xid(host.world.gpus[1], 1000 + len(host.world.xids))
            host.change()
            return not host.seen.up

        wait_until(given_up, timeout_s=30, what="the hang")

        assert len(host.seen.xids) > 1


def test_a_process_that_cannot_be_killed_is_abandoned_and_there_are_never_more_than_so_many(host: GpuHost) -> None:
    left: list[subprocess.Popen[bytes]] = []
    patience = Patience(answer_s=0.5, init_s=0.5, respawn_s=0.1, abandoned=3)
    host.world.hangs = True
    host.change()
    # Left to itself, a process whose agent is gone ends; these are held as the driver would hold them.
    command = (sys.executable, "-c", "import time; time.sleep(600)")
    with host.watched(patience=patience, command=command, kill=left.append) as source:
        host.until(lambda seen: "3 processes that asked it cannot be killed" in seen.because, "the limit")
        assert source.abandoned == 3
        assert source.pid is None
        left[0].kill()
        wait_until(lambda: len(left) == 4, timeout_s=20, what="another try once one has died")
    for process in left:
        process.kill()
        process.wait()

    assert len(left) <= 5


def test_an_initialisation_that_takes_long_is_no_hang(host: GpuHost) -> None:
    host.world.init_delay_ms = 3000
    host.change()
    with host.watched(patience=Patience(answer_s=1.0, init_s=60.0, respawn_s=0.1)) as source:
        host.until(lambda seen: seen.because == "NVML is being initialised", "the beginning")
        pid = source.pid
        host.until_up()

        assert source.pid == pid


def test_an_initialisation_that_never_ends_is_a_hang(host: GpuHost) -> None:
    host.world.hangs = True
    host.change()
    with host.watched(patience=Patience(answer_s=60.0, init_s=1.0, respawn_s=0.1)):
        host.until(lambda seen: "has not answered for 1 s" in seen.because, "the hang")
        host.world.hangs = False
        host.change()

        host.until_up()


def test_a_process_that_is_killed_is_replaced(host: GpuHost) -> None:
    with host.watched(patience=Patience(respawn_s=3.0)) as source:
        up = host.until_up()
        assert source.pid
        os.kill(source.pid, signal.SIGKILL)
        down = host.until(lambda seen: not seen.up, "its end")
        assert down.because == "the process that asks NVML was ended by signal 9"
        assert down.gpus == up.gpus
        host.until_up()

        assert source.abandoned == 0


@pytest.mark.parametrize(
    ("command", "because"),
    [
        ((sys.executable, "-c", "print('hello')"), "not a line of the NVML process"),
        ((sys.executable, "-c", "raise SystemExit(7)"), "ended with status 7"),
        (("/nowhere/python",), "cannot be started: No such file or directory"),
    ],
)
def test_a_process_that_is_not_ours_is_told_in_words(host: GpuHost, command: tuple[str, ...], because: str) -> None:
    with host.watched(command=command, patience=Patience(respawn_s=60.0)):
        host.until(lambda seen: because in seen.because, "the reason")

        assert not host.seen.up


AGENT = """
import sys, time
from pathlib import Path
from appliance_agent.gpu_source import NvmlSource, Patience
def woken():
    snapshot = source.snapshot()
    print("up" if snapshot.up else "down", source.pid, snapshot.because, flush=True)
source = NvmlSource(woken, patience=Patience(answer_s=2.0), command=sys.argv[1:], kernel_log=Path("/nowhere"))
source.start()
time.sleep(600)
"""


def agent(host: GpuHost) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-c", AGENT, *FAST], env=host.environment, stdout=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("hangs", [False, True])
def test_the_process_ends_when_the_agent_is_killed(host: GpuHost, hangs: bool) -> None:
    with agent(host) as parent:
        assert parent.stdout
        line = next(line for line in parent.stdout if line.startswith("up"))
        child = int(line.split()[1])
        assert alive(child)
        host.world.hangs = hangs
        host.change()
        parent.kill()

        wait_until(lambda: not alive(child), timeout_s=20, what="the NVML process to end")


def test_an_agent_that_was_stopped_takes_its_own_silence_for_no_hang(host: GpuHost) -> None:
    with agent(host) as parent:
        assert parent.stdout
        line = next(line for line in parent.stdout if line.startswith("up"))
        child = int(line.split()[1])
        os.kill(parent.pid, signal.SIGSTOP)
        os.kill(child, signal.SIGSTOP)
        over_s = time.monotonic() + 4.5  # the agent's patience is 2 s
        wait_until(lambda: time.monotonic() > over_s, timeout_s=20, what="more than its patience")
        os.kill(parent.pid, signal.SIGCONT)
        os.kill(child, signal.SIGCONT)
        host.world.gpus[0].lost = True
        host.change()
        told = parent.stdout.readline()
        parent.kill()

        assert told.split()[:2] == ["up", str(child)]


@pytest.mark.parametrize("hangs", [False, True])
def test_closing_is_prompt_and_leaves_no_process(host: GpuHost, hangs: bool) -> None:
    with host.watched() as source:
        host.until_up()
        host.world.hangs = hangs
        host.change()
        pid = source.pid
    assert pid

    assert not alive(pid)
    assert "gpus" not in [thread.name for thread in threading.enumerate()]


def test_closing_gives_back_every_descriptor(host: GpuHost) -> None:
    before = {*Path("/proc/self/fd").iterdir()}
    with host.watched():
        host.until_up()

    assert {*Path("/proc/self/fd").iterdir()} <= before  # somebody else's may have gone meanwhile
