"""Eight minutes of a host, and the picture of its dashboard: users on four GPUs, and what goes wrong there.

    sudo .venv/bin/python monitoring/grafana/story.py docs/dashboard.svg docs/dashboard-short.svg

The agent, its containers and Prometheus are real; GPUs and Ollama are the tests' stand-ins. A container is killed,
another one hangs, a GPU reports an XID, one gets too warm, and a new release is rolled out while users go on.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

import fakenvml  # noqa: E402 - after the path is set
from agenthost import METRICS_PORT, QUICK, AgentHost  # noqa: E402
from building import Site, ok  # noqa: E402
from dashboard_overview import OVERVIEW  # noqa: E402
from engines import PrivateEngine, start_engine  # noqa: E402
from fakenvml import FakeGpu  # noqa: E402
from gpuphysics import Physics  # noqa: E402
from ollamastore import Config, lay_model  # noqa: E402
from picture import seen, with_rows  # noqa: E402
from picture_ask import Said  # noqa: E402
from picture_page import picture  # noqa: E402
from realprometheus import Prometheus  # noqa: E402
from tinygguf import write_tiny_gguf  # noqa: E402

HOST: Final = "gpuhost7"
MODEL: Final = "r1:tiny"
OLD, NEW = ("appliance:r1-0.32.14", "0.32.14"), ("appliance:r1-0.32.15", "0.32.15")
GPUS: Final = 4
USERS: Final = 3  # at most, for each GPU
SHORT: Final = ("Can users work?", "User traffic", "What the agent did")
MINUTES: Final = 8.0
BEFORE_S: Final = 180.0  # so that rates over minutes have their minutes
INTERVAL_S: Final = 5
_OPENAI, _MISTAKEN = 0.35, 0.02  # shares of the questions
_SETTINGS: Final = QUICK.replace("canary_interval_s = 1\n", "canary_interval_s = 5\n")
_CONTAINER: Final = {
    "STANDIN_GPU": "H100", "STANDIN_LOAD_S": "4", "STANDIN_TOKEN_S": "0.03", "OLLAMA_NUM_PARALLEL": "4",
}  # fmt: skip


@dataclass
class Users:
    """They come and go in waves, and each asks again when it has its answer."""

    host: AgentHost
    busy: list[int] = field(default_factory=lambda: [0] * GPUS)
    over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def at_work(self) -> Iterator[None]:
        places = [(slot, number) for slot in range(GPUS) for number in range(USERS)]
        threads = [threading.Thread(target=self._ask, args=place, daemon=True) for place in places]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.over.set()
            for thread in threads:
                thread.join(timeout=10)

    def load(self, slot: int) -> float:
        return min(self.busy[slot] / USERS * 0.97, 1.0)

    def _ask(self, slot: int, number: int) -> None:
        chance = random.Random(f"{slot} {number}")
        while not self.over.wait(chance.uniform(0.3, 1.5)):
            wave = 0.55 + 0.45 * math.sin(time.monotonic() / 38 + 0.9 * slot)
            if number >= 1 + wave * (USERS - 1):
                continue
            self.busy[slot] += 1
            with contextlib.suppress(Exception):  # what a slot says that is being healed
                self._question(slot, chance)
            self.busy[slot] -= 1

    def _question(self, slot: int, chance: random.Random) -> None:
        """Over either API; now and then for a model that is not there."""
        path = "/v1/chat/completions" if chance.random() < _OPENAI else "/api/chat"
        tokens = int(chance.uniform(20, 160))
        body = {
            "model": MODEL if chance.random() > _MISTAKEN else "no-such-model",
            "messages": [{"role": "user", "content": "你好，讲一个故事。" * chance.randrange(1, 60)}],
            "options": {"num_predict": tokens},
            "max_tokens": tokens,
            "stream": True,
        }
        port = 8880 + slot
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as connection:
            connection.sock = self.host.engine.connect(port, timeout_s=25)
            connection.request("POST", path, json.dumps(body))
            connection.getresponse().read()


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    whole, short = map(Path, sys.argv[1:])
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="story-")))
        engine = stack.enter_context(contextlib.closing(start_engine("classic", gpu_hook=True)))
        say("building two releases")
        build(directory, engine)
        host = stack.enter_context(contextlib.closing(make_host(directory, engine)))
        said = told(host, directory)
    whole.write_text(picture(OVERVIEW, said))
    short.write_text(picture(with_rows(SHORT), said))


def build(directory: Path, engine: PrivateEngine) -> None:
    site = Site(directory / "site", {"DOCKER_HOST": engine.docker_host})
    weights = site.directory / "weights.gguf"
    write_tiny_gguf(weights, script="on and on and on ", endless=True, pad_bytes=1 << 20)
    lay_model(site.store, MODEL, {"model": weights}, config=Config(model_type="158K", file_type="F16"))
    for reference, version in (OLD, NEW):
        ok(site.build(MODEL, "-t", reference, "--load", version=version))


def make_host(directory: Path, engine: PrivateEngine) -> AgentHost:
    host = AgentHost(engine, directory, fakenvml.build(directory), gpus=GPUS, extra=_SETTINGS)
    host.graphics.world.gpus = [
        FakeGpu(f"GPU-{index:08d}-5a1e-4c0f-9d3b-0123456789ab", used_gib=58 + index) for index in range(GPUS)
    ]
    host.write_config(OLD[0], environment=_CONTAINER)
    return host


def told(host: AgentHost, directory: Path) -> Said:
    address = f"127.0.0.1:{host.engine.forward(METRICS_PORT)}"
    prometheus = Prometheus(
        directory / "prometheus",
        {HOST: address},
        interval_s=INTERVAL_S,
        rules=sorted(ROOT.glob("monitoring/prometheus/rules/*.yml")),
    )
    users = Users(host)
    with contextlib.ExitStack() as stack:
        stack.callback(prometheus.close)
        began_s = time.monotonic()
        host.start()
        prometheus.start()
        physics = stack.enter_context(Physics(host.graphics, users.load))
        host.wait_ready()
        stack.enter_context(users.at_work())
        for at_s, what, happens in events(host, physics):
            time.sleep(max(0.0, began_s + BEFORE_S + at_s - time.monotonic()))
            say(f"{at_s:5.0f} s  {what}")
            happens()
        return seen(prometheus.api, OVERVIEW, minutes=MINUTES)


def events(host: AgentHost, physics: Physics) -> list[tuple[float, str, Callable[[], object]]]:
    def heat(degrees: float) -> Callable[[], object]:
        return lambda: physics.heat.update({0: degrees})

    return [
        (45, "the container of GPU 2 is killed", lambda: host.engine.run_cli("kill", host.ids()[2])),
        (110, "the server of GPU 1 answers with errors", lambda: host.fault(1, "error_500")),
        (165, "GPU 0 gets too little air", heat(31)),
        (205, "GPU 3 reports XID 94, a contained memory error", lambda: memory_error(host, 3)),
        (240, "GPU 0 gets air again", heat(0)),
        (280, "the server of GPU 2 hangs", lambda: host.fault(2, "stall_mid_stream")),
        (315, "a new release is rolled out", lambda: roll_out(host)),
        (60 * MINUTES, "the end", lambda: None),
    ]


def memory_error(host: AgentHost, place: int) -> None:
    with host.graphics.changing() as world:
        gpu = world.gpus[place]
        world.xid(gpu, 94)
        gpu.uncorrected_ecc_errors = 1
        gpu.uncorrected_ecc_errors_lifetime = 1
        gpu.remapped_rows = (0, 1, True, False)


def roll_out(host: AgentHost) -> None:
    host.write_config(NEW[0], environment=_CONTAINER)
    host.send(signal.SIGHUP)


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    main()
