"""The process that alone speaks to NVML: a line a second to stdout, an XID at once; it ends when stdin does.

A call that hangs in the driver hangs only this process, which the agent then abandons. `--nvlink` asks for NVLink's counters
too. `--once` writes one line and ends; for people `--show` prints such a look with names, and `--probe` a table of
every call. `--faster=10` divides all intervals, for tests.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from appliance_agent.beat import beat
from appliance_agent.gpu_wire import Line, Starting, Writer, for_people
from appliance_agent.gpus import Gpu, GpuSnapshot
from appliance_agent.nvml_pace import Pace

if TYPE_CHECKING:
    from appliance_agent.nvml_calls import Meters
    from appliance_agent.nvml_events import XidWatch
    from appliance_agent.nvml_session import Session

_LOOK_S: Final = 1.0
_RETRY_S: Final = 10.0
_NO_BINDINGS: Final = "the Python package nvidia-ml-py is not installed: install ollama-appliance[agent]"


class Pipe:
    """Whole lines to stdout, from two threads. Nobody reads any more: the agent is gone, and so are we."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._writer = Writer()

    def write(self, line: Line) -> None:
        with self._lock:
            rest = memoryview(self._writer.render(line))
            try:
                while rest:
                    rest = rest[os.write(1, rest) :]
            except OSError:
                os._exit(0)


class Watch:
    """Opens NVML, looks, opens it again when it went down."""

    def __init__(self, pipe: Pipe, *, faster: float, with_nvlink: bool) -> None:
        self._pipe = pipe
        self._faster = faster
        self._with_nvlink = with_nvlink
        self._meters: Mapping[str, Meters] = {}
        self._session: Session | None = None
        self._xids: XidWatch | None = None
        self._known: tuple[Gpu, ...] = ()
        self._down = GpuSnapshot(at_s=0.0, up=False)
        self._tried_s = float("-inf")

    def tick(self) -> None:
        from appliance_agent.nvml_device import NvmlDownError  # noqa: PLC0415 - it needs pynvml

        now_s = time.monotonic()
        try:
            if self._session and self._session.stale(now_s) and (self._xids is None or self._xids.end()):
                self.close()
            if self._session is None and now_s - self._tried_s >= _RETRY_S / self._faster:
                self._tried_s = now_s
                self._open(now_s)
            if self._session:
                self._listen()  # first: what happens while NVML is closed and opened is not heard
                self._pipe.write(self._session.look(time.monotonic()))
                return
        except NvmlDownError as error:
            self._down = GpuSnapshot(at_s=now_s, up=False, because=str(error))
            self._pipe.write(self._down)  # first: to close may take as long as a wait for XIDs
            self.close()
            return
        self._pipe.write(self._down)

    def _open(self, now_s: float) -> None:
        from appliance_agent.nvml_session import Session  # noqa: PLC0415 - it needs pynvml

        self._pipe.write(Starting(at_s=now_s))
        pace = Pace().faster(self._faster)
        session = Session(self._known, pace, meters=self._meters, with_nvlink=self._with_nvlink)
        session.open(now_s)
        self._session = session

    def _listen(self) -> None:
        """To the XIDs of exactly the GPUs that there are now."""
        from appliance_agent.nvml_events import XidWatch  # noqa: PLC0415 - it needs pynvml

        if self._session is None or (self._xids and self._xids.hears(self._session.handles)):
            return
        before = self._xids
        if before and not before.end():
            return  # looks do not wait for it
        self._xids = XidWatch(self._session.handles, self._pipe.write, faster=self._faster)
        self._xids.start()
        if before:
            before.close()  # a report to both is one

    def close(self) -> None:
        if self._xids:
            self._xids.close()
        if self._session:
            self._known, self._meters = self._session.gpus, self._session.meters
            self._session.close()
        self._xids = self._session = None


def _end_with_stdin() -> None:
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    os._exit(0)  # also when the other thread hangs in a call


def _give_back_memory() -> None:
    """What importing pynvml left behind: up to 12 MiB where it was compiled just now."""
    import ctypes  # noqa: PLC0415 - pynvml has loaded it

    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _serve(*, faster: float, with_nvlink: bool) -> None:
    threading.Thread(target=_end_with_stdin, name="stdin", daemon=True).start()
    pipe = Pipe()
    pipe.write(Starting(at_s=time.monotonic()))
    missing = _bindings_missing()
    _give_back_memory()
    watch = Watch(pipe, faster=faster, with_nvlink=with_nvlink)
    while True:
        if missing:
            pipe.write(GpuSnapshot(at_s=time.monotonic(), up=False, because=missing))
        else:
            watch.tick()
        now_s = time.monotonic()
        time.sleep(max(0.0, beat(now_s + _LOOK_S / faster, _LOOK_S / faster) - now_s))


def _bindings_missing() -> str | None:
    try:
        import pynvml  # noqa: F401, PLC0415  # pyright: ignore[reportMissingTypeStubs, reportUnusedImport]
    except ImportError:
        return _NO_BINDINGS
    return None


def _once(*, for_a_person: bool) -> int:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own waits for the driver to come back
    from appliance_agent.nvml_device import NvmlDownError  # noqa: PLC0415 - it needs pynvml
    from appliance_agent.nvml_session import Session  # noqa: PLC0415 - it needs pynvml

    session, now_s = Session(), time.monotonic()
    try:
        session.open(now_s)
        snapshot = session.look(time.monotonic())
        session.close()
    except NvmlDownError as error:
        snapshot = GpuSnapshot(at_s=now_s, up=False, because=str(error))
    if for_a_person:
        print(for_people(snapshot), flush=True)  # noqa: T201 - for people
    else:
        Pipe().write(snapshot)
    return 0 if snapshot.up else 1


def _probe() -> int:
    from appliance_agent.nvml_probe import probe  # noqa: PLC0415 - it needs pynvml

    for line in probe():
        print(line, flush=True)  # noqa: T201 - a table for people
    return 0


def main(arguments: Sequence[str]) -> int:
    words = {name: value for name, _, value in (argument.lstrip("-").partition("=") for argument in arguments)}
    if words.keys() & {"once", "show", "probe"} and (missing := _bindings_missing()):
        print(f"error: {missing}", file=sys.stderr)  # noqa: T201 - for people
        return 1
    if words.keys() & {"once", "show"}:
        return _once(for_a_person="show" in words)
    if "probe" in words:
        return _probe()
    _serve(faster=float(words.get("faster", 1)), with_nvlink="nvlink" in words)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
