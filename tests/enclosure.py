"""Network, mount and process namespaces that die with the process that opened them, and TCP ways in and out.

No veth, no address, no firewall rule on the host: a socket belongs to the network it was made in, so a thread that
steps inside for a moment can hand back a socket that listens or is connected there. Relays between such sockets and
the host's loopback are all the wiring the tests need, and nothing can be left behind.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

LOOPBACK = "127.0.0.1"
_CLONE_NEWNET = 0x40000000
_PUMP_BYTES = 256 * 1024


class EnclosureError(Exception):
    pass


class Relay:
    """Copies bytes between whoever connects to `listener` and whatever `dial` gives."""

    def __init__(self, listener: socket.socket, dial: Callable[[], socket.socket]) -> None:
        self._listener = listener
        self._dial = dial
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.port: int = listener.getsockname()[1]

    def start(self) -> "Relay":
        self._thread.start()
        return self

    def close(self) -> None:
        with self._lock:
            self._closed = True
            sockets = [self._listener, *self._open]
        for each in sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._thread.join(timeout=10)
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        try:
            far = self._dial()
        except OSError:
            near.close()
            return
        with self._lock:
            if self._closed:
                near.close()
                far.close()
                return
            self._open |= {near, far}
        back = threading.Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(_PUMP_BYTES):
            sink.sendall(chunk)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


class Enclosure:
    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self._relays: list[Relay] = []
        self._exposed: set[int] = set()

    @classmethod
    def open(cls, setup: str) -> "Enclosure":
        """Run `setup` (shell) inside as process 1, which then only reaps orphans; needs root."""
        script = f"ip link set lo up\n{setup}\necho ready\nexec env --ignore-signal=CHLD sleep infinity\n"
        flags = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "KILL", "unshare", *flags, "sh", "-ec", script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            process_group=0,  # Ctrl-C is not for it
        )
        assert process.stdout is not None
        assert process.stderr is not None
        if process.stdout.readline() != "ready\n":
            reason = process.stderr.read().strip()
            process.wait()
            process.stdout.close()
            process.stderr.close()
            raise EnclosureError(f"namespaces cannot be set up: {reason}")
        return cls(process)

    def command(self, arguments: Sequence[str], *, network_only: bool = False) -> list[str]:
        """The words that run `arguments` inside, for subprocess. The files inside may be others: `network_only`
        keeps this machine's."""
        place = f"/proc/{self._process.pid}/ns"
        spaces = [f"--net={place}/net"]
        if not network_only:
            spaces += [f"--mount={place}/mnt", f"--pid={place}/pid_for_children"]
        return ["nsenter", *spaces, "--", *arguments]

    def command_beside(self, arguments: Sequence[str]) -> list[str]:
        """Network and processes as inside, this machine's files."""
        place = f"/proc/{self._process.pid}/ns"
        inside = ["nsenter", f"--net={place}/net", f"--pid={place}/pid_for_children", "--"]
        return [*inside, "unshare", "--mount-proc", "--", *arguments]

    def connect(self, port: int, *, timeout_s: float | None = None) -> socket.socket:
        return self._made_inside(lambda: socket.create_connection((LOOPBACK, port), timeout=timeout_s))

    def expose(self, port: int) -> None:
        """Let the host's loopback `port` be reached inside under the same address."""
        if port in self._exposed:
            return
        self._exposed.add(port)
        listener = self._made_inside(lambda: socket.create_server((LOOPBACK, port)))
        self._relays.append(Relay(listener, lambda: socket.create_connection((LOOPBACK, port))).start())

    def forward(self, port: int) -> int:
        """A port of the host's loopback that leads to `port` inside."""
        relay = Relay(socket.create_server((LOOPBACK, 0)), lambda: self.connect(port)).start()
        self._relays.append(relay)
        return relay.port

    def close(self) -> None:
        for relay in self._relays:
            relay.close()
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        # Process 1 inside is reaped only after everything in its namespace is gone, so waiting here waits for all.
        for child in children.read_text().split():
            os.kill(int(child), signal.SIGKILL)
        self._process.wait(timeout=60)
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _made_inside(self, make: Callable[[], socket.socket]) -> socket.socket:
        def work() -> socket.socket:
            with open(f"/proc/{self._process.pid}/ns/net", "rb") as network:  # noqa: PTH123  # a namespace, not a file
                if ctypes.CDLL(None, use_errno=True).setns(network.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            return make()

        # setns moves one thread; this one ends right after and takes the move with it.
        with ThreadPoolExecutor(max_workers=1) as pool:
            return pool.submit(work).result()
