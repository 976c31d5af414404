"""The whole product in one go: build an image, serve it on every GPU, chat, break it, see it heal, take it down.

Started by `scripts/demo`, which makes the environment. Builder and agent are called as a user calls them, on a real
Docker Engine; what is simulated, the demo says itself.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "monitoring/grafana")]
signal.signal(signal.SIGINT, signal.SIG_DFL)  # until there is something to take down

import demo_monitoring  # noqa: E402 - after the path is set
from demo_agent import PROGRAM, AgentFailedError, is_ready  # noqa: E402
from demo_monitoring import monitored, tell_monitoring  # noqa: E402
from demo_scene import Scene, embedded, find_scene  # noqa: E402
from demo_show import Steps, say, tell_changes, tell_chat, tell_command, tell_facts  # noqa: E402
from demo_signals import ignore_signals, raise_on_signals  # noqa: E402
from engines import EngineError  # noqa: E402

from appliance_agent.status import Status  # noqa: E402
from appliance_image.errors import ApplianceError  # noqa: E402

QUESTION = "天空为什么是蓝色的？"
_APPLIANCE = Path(sys.executable).parent / "appliance"
_LOAD_S, _REAL_LOAD_S = 180, 3600


def main() -> int:
    arguments = _arguments()
    raise_on_signals()
    try:
        _play(arguments.model, keep=arguments.keep, monitoring=arguments.monitoring)
    except KeyboardInterrupt:
        say("\ninterrupted; nothing is left")
        return 130
    except subprocess.CalledProcessError as error:  # which has told why
        return error.returncode
    except ApplianceError as error:
        sys.exit(f"error: {error}\nhint: {error.hint}")
    except (AgentFailedError, EngineError) as error:
        sys.exit(f"error: {error}")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/demo",
        description="Build an appliance image, let the agent serve it on two GPUs, chat, kill a container, see it healed.",
        epilog="Without MODEL a tiny scripted model is made on the spot, and no network is needed.",
    )
    parser.add_argument("model", nargs="?", help="an Ollama model for the real thing, for example qwen3:0.6b")
    parser.add_argument("--keep", action="store_true", help="let it run on at the end, until Ctrl-C")
    parser.add_argument(
        "--monitoring",
        action="store_true",
        help="let it run on with users and with a Prometheus that watches it, until Ctrl-C",
    )
    return parser.parse_args()


def _play(model: str | None, *, keep: bool, monitoring: bool) -> None:
    steps = Steps()
    if monitoring:
        demo_monitoring.check()
    with contextlib.ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="appliance-demo-")))
        with steps.step("find a Docker Engine and GPUs"):
            scene = stack.enter_context(find_scene(work, model))
            tell_facts(*scene.facts(), scene.gpus.advice)
        stack.callback(scene.engine.run_cli, "rmi", "-f", scene.image, check=False)
        stack.callback(scene.agent.close)
        stack.callback(ignore_signals)
        words = [scene.model]
        if not scene.given:
            with steps.step("make a tiny model and a base image"):
                words = embedded(scene)
        with steps.step(f"build {scene.model} into an image"):
            _build(scene, words)
        with steps.step(f"start the agent: {'one container per GPU' if scene.gpus.has_some else 'one container'}"):
            status = _start(scene)
        with contextlib.ExitStack() as watching:
            if monitoring:
                with steps.step("start a Prometheus"):
                    prometheus = watching.enter_context(monitored(scene, status.slots, QUESTION))
                    say(f"it scrapes {scene.agent.metrics_address} every {prometheus.interval_s} s")
            with steps.step("stream a chat through each slot"):
                _chat(scene, status)
            with steps.step("kill a container, and see it come back"):
                _kill(scene)
            with contextlib.suppress(KeyboardInterrupt):  # also one that comes while it is told how to end it
                if monitoring:
                    tell_monitoring(prometheus)
                if keep or monitoring:
                    _keep(scene)
        with steps.step("take everything down"):
            _end(scene)
    say(f"\nwhat each step took:\n{steps.table()}")


def _build(scene: Scene, words: list[str]) -> None:
    words = ["build", *words, "-t", scene.image, "--load"]
    tell_command(["appliance", *words])
    environment = {**os.environ, "DOCKER_HOST": scene.engine.docker_host}
    subprocess.run([_APPLIANCE, *words], env=environment, check=True)


def _start(scene: Scene) -> Status:
    configuration = scene.agent.configure(scene.image, container=scene.container, health=scene.health)
    tell_command(["cat", scene.agent.config.name])
    say(textwrap.indent(configuration, "  "), end="")
    tell_command([PROGRAM.name, "run", "--config", scene.agent.config.name])
    scene.agent.start()
    try:
        tell_changes(scene.agent.changes(_all_ready, timeout_s=_REAL_LOAD_S if scene.given else _LOAD_S))
    except AgentFailedError:
        scene.agent.check()
        raise
    return _show(scene, history=0)


def _show(scene: Scene, *, history: int) -> Status:
    words = ["--history", str(history)]
    say("")
    tell_command([PROGRAM.name, "status", *words])
    scene.agent.show_status(*words)
    return scene.agent.status()


def _all_ready(status: Status) -> bool:
    return bool(status.slots) and all(map(is_ready, status.slots))


def _chat(scene: Scene, status: Status) -> None:
    for slot in status.slots:
        say(f"slot {slot.slot}, {scene.agent.slot_url(slot)}/api/chat\n{'':>6}> {QUESTION}")
        tell_chat(scene.agent.chat(slot, scene.model, QUESTION))


def _kill(scene: Scene) -> None:
    before = scene.agent.status()
    victim, *others = before.slots

    def back(status: Status) -> bool:
        return _all_ready(status) and status.slots[0].container_id != victim.container_id

    tell_command(["docker", "kill", victim.container_name])
    scene.engine.run_cli("kill", victim.container_name)
    began_s = time.monotonic()
    tell_changes(scene.agent.changes(back, timeout_s=_REAL_LOAD_S if scene.given else _LOAD_S, before=before))
    took_s = time.monotonic() - began_s
    after = _show(scene, history=3)
    same = [slot.container_id for slot in after.slots[1:]] == [slot.container_id for slot in others]
    say(f"\nslot 0 answered again after {took_s:.1f} s" + ("; slot 1 was not touched" if others and same else ""))


def _keep(scene: Scene) -> None:
    status = scene.agent.status()
    say("\nIt goes on until Ctrl-C. To look at it from another terminal:")
    tell_command([str(PROGRAM), "status", "--watch", "--url", scene.agent.url])
    tell_command(["tail", "-f", str(scene.agent.log)])
    tell_command(["docker", "-H", scene.engine.docker_host, "ps"])
    for slot in status.slots:
        body = f'{{"model":"{scene.model}","prompt":"hi"}}'
        tell_command(["curl", f"{scene.agent.slot_url(slot)}/api/generate", "-d", body])
    scene.agent.wait()


def _end(scene: Scene) -> None:
    slots = scene.agent.status().slots
    scene.agent.stop()
    answering = [slot for slot in slots if any(scene.agent.chat(slot, scene.model, QUESTION, tokens=8))]
    say(f"the agent is stopped, as for an upgrade: {len(answering)} of {len(slots)} slots answer without it")
    tell_command([PROGRAM.name, "down"])
    scene.agent.take_down()


if __name__ == "__main__":
    sys.exit(main())
