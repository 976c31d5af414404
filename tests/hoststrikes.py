"""What strikes an agent's host with a real engine, fault by fault, and how each ends. The words are those of `ordeal`."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from agentengine import overfill, shim_of
from agentgraphics import Found
from agenthost import MODEL, ONE, QUICK, TWO, AgentHost
from engines import PrivateEngine
from fakenvml import VERSION_MISMATCH, FakeGpu, FakeMig
from leakysocket import LeakySocket

from appliance_agent.gpus import RecoveryAction

SLOTS = 4
TAKEN = 3  # the slot whose name or port somebody else takes
SLOTS_STRUCK, CARDS_STRUCK = (1, 0), (2, 3, 0)
LASTS_S = 7.0
FOREIGN = "somebody-elses"
_STANDIN = {
    "exit 0": "die,code=0", "hang before first token": "hang_before_first_token", "stall": "stall_mid_stream,after=3",
    "slow": "slow,factor=10", "garbage": "garbage", "error 500": "error_500", "dead 503": "hang_before_first_token",
    "never loads": "never_load", "cannot be killed": "hang_before_first_token",
}  # fmt: skip
_SIGNALS = {"segmentation fault": signal.SIGSEGV, "hang at connect": signal.SIGSTOP, "exit 137": signal.SIGKILL}


class Strikes:
    def __init__(self, row: Mapping[str, str], engine: PrivateEngine, directory: Path, library: Path) -> None:
        self.row = row
        self.slots = [each for each in row["slot"].split("+") if each != "none"]
        self.gpus = [each for each in row["gpu"].split("+") if each != "none"]
        self.engine = engine
        self.library = directory / "driver" / library.name
        self.library.parent.mkdir()
        self.library.write_bytes(library.read_bytes())
        self.leaky = LeakySocket(directory / "leaky.sock", engine.socket) if row["engine"] == "event gap" else None
        quick = QUICK.replace("canaries = 2", "canaries = 1")
        if self.leaky:
            quick = quick.replace("[engine]\n", f'[engine]\nsocket = "{self.leaky.path}"\n')
        self.host = AgentHost(engine, directory, self.library, gpus=SLOTS, extra=f"{quick}")
        self.cards = list(self.host.graphics.world.gpus)
        self.ends: list[Callable[[], None]] = []
        self.over = threading.Event()  # users go home
        self.calm = threading.Event()  # nobody looks any more
        self.threads: list[threading.Thread] = []

    # --- the faults --------------------------------------------------------------------------------------------------

    def _strike(self) -> None:
        for fault, card in zip(self.gpus, CARDS_STRUCK, strict=False):
            self._strike_gpu(fault, card)
        at_start = self.row["phase"] == "start"
        if not at_start:
            for fault, slot in zip(self.slots, SLOTS_STRUCK, strict=False):
                self._strike_slot(fault, slot)
        self._strike_engine()
        if at_start:
            self.host.start()
            if self._can_begin():
                self._strike_first_containers()
        self._strike_agent()

    def _can_begin(self) -> bool:
        """Whether there will be containers while the faults last."""
        engine = self.row["engine"] in ("frozen", "socket gone", "image missing")
        return not engine and not {"NVML hang", "library missing", "driver mismatch"} & set(self.gpus)

    def _strike_first_containers(self) -> None:
        struck = [slot for slot, _ in zip(SLOTS_STRUCK, self.slots, strict=False)]
        self.host.wait(lambda: set(struck) <= set(self.host.ids()), "the first containers")
        for fault, slot in zip(self.slots, SLOTS_STRUCK, strict=False):
            self._strike_slot(fault, slot)

    def _strike_slot(self, fault: str, slot: int) -> None:
        host = self.host
        container = next((each for each in host.containers() if each.slot == slot and each.running), None)
        if container is None:
            return
        if fault == "on CPU":
            host.graphics.cpu_only.add(slot)
            self.ends.append(host.graphics.cpu_only.clear)
        elif fault in _SIGNALS:
            self._signal(container, _SIGNALS[fault])
        elif fault == "out of memory":
            self._in_thread(overfill, self.engine, 8880 + slot)
        if text := _STANDIN.get(fault):
            self._misbehave(slot, text)
        if fault in ("busy 503", "dead 503"):
            for _ in range(6):
                self._in_thread(self._use, slot, 60)
        if fault == "never loads":
            self._unload(slot)
        if fault == "cannot be killed":
            shim = shim_of(container.id)
            os.kill(shim, signal.SIGSTOP)
            self.ends.append(lambda: os.kill(shim, signal.SIGCONT))
            host.wait(lambda: host.states()[slot] == "quarantined", "the slot to be put aside", timeout_s=120)

    def _misbehave(self, slot: int, text: str) -> None:
        """Whichever container the slot has in the end, this ends with the faults."""
        with contextlib.suppress(OSError, http.client.HTTPException):  # one that dies does not answer
            self.host.fault(slot, text)
        self.ends.append(lambda: self._heal(slot))

    def _heal(self, slot: int) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException, AssertionError):
            self.host.fault(slot, "")

    def _signal(self, container: Found, which: signal.Signals) -> None:
        """To the server itself; a first process that passes signals on stands before it."""
        script = f"kill -{which.value} $(cat /proc/{container.pid}/task/{container.pid}/children)"
        subprocess.run(self.engine.command_inside(["sh", "-c", script], network_only=False), check=True)

    def _unload(self, slot: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", 8880 + slot)
        with contextlib.closing(connection):
            connection.sock = self.engine.connect(8880 + slot, timeout_s=20)
            connection.request("POST", "/api/generate", json.dumps({"model": MODEL, "keep_alive": 0}))
            connection.getresponse().read()

    def _strike_gpu(self, fault: str, number: int) -> None:
        toolkit = self.engine.toolkit
        with self.host.graphics.changing() as world:
            card = self.cards[number]
            if code := {"XID observe": 63, "XID restart": 31, "XID reset": 48, "XID reboot": 79}.get(fault):
                card.recovery_action = None if fault == "XID reboot" else card.recovery_action
                card.recovery_action = RecoveryAction.GPU_RESET if fault == "XID reset" else card.recovery_action
                world.xid(card, code)
            elif fault == "one fewer":
                world.gpus.remove(card)
                self.ends.append(lambda: world.gpus.insert(number, card))
            elif fault == "one more":
                world.gpus.insert(
                    0, FakeGpu("GPU-00000009-0000-4000-8000-000000000000", name="Tesla T4", memory_gib=16)
                )
                self.host.count += 1
            elif fault == "reshuffle":
                world.gpus.reverse()
            elif fault == "NVML hang":
                world.hangs = True
            elif fault == "driver mismatch":
                world.init_error = VERSION_MISMATCH
                toolkit.fail("nvidia-container-cli: initialization error: nvml error: driver/library version mismatch")
            elif fault == "library missing":
                self._lose_library()
            else:
                self._spoil(card, fault)
            self.ends.append(lambda: mend(card))
        self.ends.append(lambda: toolkit.fail(""))

    def _lose_library(self) -> None:
        away = self.library.with_suffix(".away")
        self.library.rename(away)
        self.engine.toolkit.fail("nvidia-container-cli: initialization error: load library failed: libnvidia-ml.so.1")
        if self.host.process is not None:
            for child in children(self.host.pid):
                os.kill(child, signal.SIGKILL)  # that speaks to NVML and has it in memory
        self.ends.append(partial(moved, away, self.library))

    def _spoil(self, card: FakeGpu, fault: str) -> None:
        card.lost = fault == "lost"
        card.reset_required = fault == "reset required"
        card.recovery_action = RecoveryAction.DRAIN_AND_RESET if fault == "drain and reset" else card.recovery_action
        card.uncorrected_ecc_errors = 7 if fault == "ECC" else 0
        card.clock_event_reasons = 0x40 if fault == "throttling" else 0
        if fault == "MIG":
            card.mig_enabled = True
            card.migs = [FakeMig(f"MIG-{number:08d}-0000-4000-8000-000000000000", number) for number in range(2)]

    def _strike_engine(self) -> None:
        engine = self.engine
        match self.row["engine"]:
            case "restart":
                engine.stop()
                engine.start()
            case "frozen":
                engine.freeze()
                self.ends.append(engine.thaw)
            case "socket gone":
                away = engine.socket.with_suffix(".away")
                engine.socket.rename(away)
                self.ends.append(partial(moved, away, engine.socket))
            case "event gap" if self.leaky:
                self.leaky.loses_events = True
            case "image missing":
                self._lose_image(ONE if self.row["phase"] in ("start", "steady") else TWO)
            case "name taken" | "port taken":
                with self._agent_stopped():
                    self._take(self.row["engine"])
            case _:
                pass

    @contextlib.contextmanager
    def _agent_stopped(self) -> Iterator[None]:
        """So that it does not take back what it has just lost."""
        if self.host.process is None:
            yield
            return
        self.host.send(signal.SIGSTOP)
        yield
        self.host.send(signal.SIGCONT)
        self.host.process.send_signal(signal.SIGCONT)  # nsenter, which stopped with its child

    def _lose_image(self, name: str) -> None:
        """Slots that run keep it; whoever starts anew does not find it."""
        archive = self.host.directory / "image.tar"
        self.engine.run_cli("save", "-o", str(archive), name)
        self.engine.run_cli("image", "rm", "-f", name, check=False)

        def bring_back() -> None:
            self.engine.run_cli("load", "-i", str(archive))
            if self.host.process is not None and self.host.process.poll() is None:
                self.host.send(signal.SIGHUP)  # who loads an image says so; else it is found within a minute

        self.ends.append(bring_back)

    def _take(self, fault: str) -> None:
        name = f"ollama-{TAKEN}"
        self.engine.run_cli("rm", "-f", name, check=False)
        how = ["--name", name] if fault == "name taken" else ["--name", FOREIGN, "-p", f"127.0.0.1:{8880 + TAKEN}:80"]
        foreign = self.engine.run_cli("run", "-d", *how, ONE).stdout.strip()

        def give_back() -> None:
            alive = self.engine.run_cli("inspect", "-f", "{{.State.Running}}", foreign).stdout.strip()
            self.engine.run_cli("rm", "-f", foreign)
            assert alive == "true" or self.row["engine"] == "restart"

        self.ends.append(give_back)

    def _strike_agent(self) -> None:
        host, good = self.host, self.host.config.read_text()
        match self.row["agent"]:
            case "kill":
                host.stop(signal.SIGKILL)
                host.start()
            case "bad file":
                host.wait(lambda: bool(host.status()), "the agent to have begun")
                host.config.write_text("immage = 'x'\n")
                host.send(signal.SIGHUP)
                self.ends.append(partial(written, host.config, good))
            case "standstill":
                with self._agent_stopped():
                    self.calm.wait(LASTS_S)
            case _:
                pass

    def _end(self) -> None:
        """Once each, whatever comes."""
        ends, self.ends = self.ends[::-1], []
        for end in ends:
            end()
        self.over.set()
        with self.host.graphics.changing() as world:
            world.hangs, world.init_error = False, 0

    def _use(self, slot: int, tokens: int) -> None:
        while not self.over.is_set():
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.host.chat(slot, tokens=tokens, timeout_s=20)
            self.over.wait(0.05)

    def _in_thread(self, work: Callable[..., None], *words: object) -> None:
        thread = threading.Thread(target=work, args=words, daemon=True)
        self.threads.append(thread)
        thread.start()


def mend(card: FakeGpu) -> None:
    card.lost = card.reset_required = card.mig_enabled = False
    card.recovery_action, card.uncorrected_ecc_errors, card.clock_event_reasons = RecoveryAction.NONE, 0, 0
    card.migs = []


def moved(path: Path, to: Path) -> None:
    path.rename(to)


def written(path: Path, text: str) -> None:
    path.write_text(text)


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):  # a thread that has just ended
            found += map(int, (task / "children").read_text().split())
    return found
