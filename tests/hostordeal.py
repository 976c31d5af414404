"""One case of the fault matrix on a real engine: an agent with four slots is brought to a phase, faults strike, and end.

`row["slot"]` and `row["gpu"]` may name two faults, as `"stall+garbage"`: they strike different slots of the one host. The
words are those of `ordeal`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from agentgraphics import Found
from agenthost import ONE, TWO
from engines import EngineError, PrivateEngine
from hoststrikes import CARDS_STRUCK, FOREIGN, LASTS_S, SLOTS, SLOTS_STRUCK, TAKEN, Strikes
from ordeal import GPU_HARMLESS, HARMLESS

_MEMORY = "64M"


class HostOrdeal(Strikes):
    def __init__(self, row: Mapping[str, str], engine: PrivateEngine, directory: Path, library: Path) -> None:
        super().__init__(row, engine, directory, library)
        self.touched = self._touched()
        self.doubles: list[list[Found]] = []  # moments at which a GPU was used twice

    def run(self) -> None:
        self._open()
        try:
            before = self._reach_phase()
            self._strike()
            self.calm.wait(LASTS_S)
            self._end()
            self._serves_again()
            self._judge(before)
        finally:
            self.close()

    def close(self) -> None:
        self.over.set()
        self.calm.set()
        self._end()
        for thread in self.threads:
            thread.join()
        self.host.close()
        if self.leaky:
            self.leaky.close()
        self.engine.run_cli("rm", "-f", FOREIGN, "bystander", check=False)

    def _touched(self) -> set[int]:
        touched = {slot for slot, fault in zip(SLOTS_STRUCK, self.slots, strict=False) if fault not in HARMLESS} | {
            card for card, fault in zip(CARDS_STRUCK, self.gpus, strict=False) if fault not in GPU_HARMLESS
        }
        if self.row["engine"] == "restart":
            touched |= set(range(SLOTS))
        return touched | ({TAKEN} if self.row["engine"] in ("name taken", "port taken") else set())

    # --- the phases --------------------------------------------------------------------------------------------------

    def _open(self) -> None:
        if self.leaky:
            self.leaky.open()
        self.engine.run_cli("run", "-d", "--name", "bystander", ONE)
        self._configure(ONE)
        self._in_thread(self._look_for_doubles)

    def _configure(self, image: str) -> None:
        head = f'[container]\nmemory = "{_MEMORY}"\n'
        self.host.write_config(image, environment={"OLLAMA_NUM_PARALLEL": "1", "OLLAMA_MAX_QUEUE": "2"})
        self.host.config.write_text(
            self.host.config.read_text().replace("[container.environment]", f"{head}[container.environment]")
        )

    def _reach_phase(self) -> dict[int, str]:
        """Ids by slot, where there are some already."""
        host, phase = self.host, self.row["phase"]
        if phase == "start":
            return {}
        host.start()
        host.wait_ready()
        before = host.ids()
        if phase == "steady":
            return before
        if phase == "drain":
            for slot in range(SLOTS):
                self._in_thread(self._use, slot, 300)
            host.wait(lambda: all(self._is_served(slot) for slot in range(SLOTS)), "users to be served")
        host.wait(lambda: all(self._proven()), "all slots to be proved")
        self._configure(TWO)
        host.send(signal.SIGHUP)
        if phase == "drain":
            host.wait(lambda: "draining" in host.states(), "a slot to drain")
        else:
            host.wait(lambda: host.ids().get(0, before[0]) != before[0], "the new release on a slot")
        return before

    def _proven(self) -> list[bool]:
        """As the agent remembers it."""
        text = (self.host.state / "state.json").read_text()
        return [bool(slot["proven"]) for slot in json.loads(text)["slots"]]

    def _is_served(self, slot: int) -> bool:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            return bool(json.loads(self.engine.http_get(8880 + slot, "/standin/state").body)["speaking"])
        return False

    # --- what must hold ----------------------------------------------------------------------------------------------

    def _serves_again(self) -> None:
        host = self.host

        def right() -> bool:
            told = host.status()
            if not told or host.states() != ["ready"] * host.count:
                return False
            images = {each.image for each in host.containers() if each.running}
            return len(images) == 1 and not told["host"]["rolling"] and all(self._proven())

        host.wait(right, "everything to serve again", timeout_s=180)

    def _judge(self, before: dict[int, str]) -> None:
        host = self.host
        history, after = host.history(), host.ids()
        print(*(f"{entry['slot']} {entry['action']}: {entry['because']}" for entry in history), sep="\n")

        assert not self.doubles
        assert all(entry["because"] for entry in history)
        assert all(entry["evidence"] for entry in history if entry["action"] == "remove" and self._was_watched(entry))
        assert sorted(after) == list(range(host.count))
        assert len({gpu for each in host.containers() for gpu in each.gpus}) == host.count
        if self.row["phase"] == "steady":
            assert {slot: after[slot] for slot in before if slot not in self.touched} == {
                slot: before[slot] for slot in before if slot not in self.touched
            }
        allowed = ("no container for", "another image or configuration is wanted", "back to the release before")
        assert [
            entry for entry in history
            if entry["action"] in ("create", "remove") and entry["slot"] is not None
            and entry["slot"] not in self.touched and not entry["because"].startswith(allowed)
        ] == []  # fmt: skip
        assert host.status()["host"]["refused"] is None or set(self.slots) - HARMLESS
        for slot in range(SLOTS):
            assert len([entry for entry in history if (entry["slot"], entry["action"]) == (slot, "create")]) <= 10
        self._bystander_is_untouched()

    def _was_watched(self, entry: Mapping[str, Any]) -> bool:
        words = ("is left over", "another image", "back to the release", "never started", "found ended", "GPU")
        return not any(word in entry["because"] for word in words)

    def _bystander_is_untouched(self) -> None:
        running = self.engine.run_cli("inspect", "-f", "{{.State.Running}}", "bystander").stdout.strip()

        assert running == "true" or self.row["engine"] == "restart"

    # --- beside it ---------------------------------------------------------------------------------------------------

    def _look_for_doubles(self) -> None:
        while not self.calm.wait(0.5):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError, http.client.HTTPException, EngineError):
                running = [each for each in self.host.containers() if each.running]
                used = [gpu for each in running for gpu in each.gpus]
                if len(used) != len(set(used)):
                    self.doubles.append(running)
