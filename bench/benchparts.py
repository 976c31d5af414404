"""How long it takes: from a crash, a hang, a fallback to the CPU or a restart of the agent to a server that serves."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack, closing
from typing import Final

from benchhost import (
    SECOND_NS,
    Bench,
    Row,
    Users,
    found,
    in_parallel,
    misbehave,
    quantile,
    serves_after_ns,
    spread,
)
from rivals import Autoheal, chat_check, plain_check, run_rival

from appliance_agent.spec import LABEL_SLOT

RIVAL_PORT: Final = 9100
POLICY: Final = "`--restart=always`"
PLAIN: Final = "autoheal, `ollama list`"
CHAT: Final = "autoheal, chat 30 s x 3"
TUNED: Final = "autoheal, chat 5 s x 2"
_LOAD_S: Final = 0.25  # what the stand-in takes to load its model
_PATIENCE_S: Final = 200.0  # interval and timeout of 30 s, three times


def crash(bench: Bench) -> list[Row]:
    """One after the other, so that no back-off is measured: the agent forgives after a second, Docker after ten."""
    agents, policies, served, policies_served = list[float](), list[float](), list[float](), list[float]()
    with bench.agent("crash", extra="[healing]\nproven_s = 1\n") as host, ExitStack() as stack:
        rivals = [run_rival(bench.engine, f"policy-{index}", RIVAL_PORT + index) for index in range(8)]
        stack.callback(bench.engine.run_cli, "rm", "-f", *rivals)
        heal_only = run_rival(bench.engine, "heal-only", RIVAL_PORT + 8, restart="no", check=chat_check(5, 5, 2))
        stack.callback(bench.engine.run_cli, "rm", "-f", heal_only)
        stack.enter_context(closing(Autoheal(bench.engine)))
        for index in range(9):
            serves_after_ns(bench.engine, RIVAL_PORT + index)
        bench.kill_server(bench.pid_of(heal_only))
        killed_ns = time.time_ns()
        for number in range(bench.rounds):
            slot = number % 8
            bench.kill_server(found(host, slot).pid)
            agents.append(_restarted(bench, LABEL_SLOT, str(slot)))
            served.append(_served(bench, 8880 + slot, LABEL_SLOT, str(slot)))
            bench.kill_server(bench.pid_of(rivals[slot]))
            policies.append(_restarted(bench, "rival", f"policy-{slot}"))
            policies_served.append(_served(bench, RIVAL_PORT + slot, "rival", f"policy-{slot}"))
            host.wait_ready()
        again = bench.events.matching("start", after_ns=killed_ns, rival="heal-only")
    extra_s = quantile(served, 0.5) - _LOAD_S
    autoheal = dict.fromkeys((PLAIN, CHAT, TUNED), "restarted" if again else "never without a restart policy")
    return [
        Row("crash: container started again", spread(agents), {POLICY: spread(policies), **autoheal}),
        Row(
            f"crash: a user gets a token ({_LOAD_S:g} s of it load the model)",
            spread(served),
            {POLICY: spread(policies_served), **autoheal},
            "load + 1.5 s",
            extra_s <= 1.5,
        ),
    ]


def _restarted(bench: Bench, label: str, value: str) -> float:
    """From the end of the container to the start of the next, as the engine's clock says."""
    after_ns = time.time_ns() - SECOND_NS // 2
    died = bench.events.first("die", after_ns=after_ns, timeout_s=30, **{label: value})
    assert died is not None
    started = bench.events.first("start", after_ns=died.at_ns, timeout_s=60, **{label: value})
    return float("inf") if started is None else (started.at_ns - died.at_ns) / SECOND_NS


def _served(bench: Bench, port: int, label: str, value: str) -> float:
    died = bench.events.matching("die", after_ns=0, **{label: value})[-1]
    return (serves_after_ns(bench.engine, port) - died.at_ns) / SECOND_NS


def wedge(bench: Bench) -> list[Row]:
    """A server whose chats hang while `/` and `/api/tags` answer; nobody else asks it anything, or four users do."""
    idle, busy = list[float](), list[float]()
    rounds = max(4, bench.rounds // 4)
    with bench.agent("wedge") as host, ExitStack() as stack:
        healer = stack.enter_context(closing(Autoheal(bench.engine)))
        names = {PLAIN: plain_check(), CHAT: chat_check(30, 30, 3), TUNED: chat_check(5, 5, 2)}
        rivals: dict[str, float] = {}
        for index, check in enumerate(names.values()):
            made = run_rival(bench.engine, f"heal-{index}", RIVAL_PORT + index, check=check)
            stack.callback(bench.engine.run_cli, "rm", "-f", made)
            serves_after_ns(bench.engine, RIVAL_PORT + index)

        def agent_rounds() -> None:
            for number in range(rounds):
                idle.append(_hang(bench, number % 8))
                host.wait_ready(timeout_s=120)

        def rival(index: int, name: str) -> None:
            rivals[name] = _rival_hang(bench, index)

        in_parallel([agent_rounds, *(lambda i=i, name=name: rival(i, name) for i, name in enumerate(names))])
        for number in range(max(2, rounds // 2)):
            busy.append(_hang_under_traffic(bench, number % 8))
            host.wait_ready(timeout_s=120)
        del healer
    told = {name: f"{seconds:.0f} s" if seconds < _PATIENCE_S else "never" for name, seconds in rivals.items()}
    never = {POLICY: "never"}
    return [
        Row("hang, idle: another container started", spread(idle), told | never, "20 s", quantile(idle, 0.95) <= 20),
        Row("hang in mid-answer, four users", spread(busy), never, "", None),
    ]


def _hang(bench: Bench, slot: int) -> float:
    after_ns = time.time_ns()
    misbehave(bench.engine, 8880 + slot, "hang_before_first_token")
    return bench.started(slot, after_ns)


def _hang_under_traffic(bench: Bench, slot: int) -> float:
    users = Users(bench.engine, 8880 + slot, 4, tokens=200)
    time.sleep(5)
    after_ns = time.time_ns()
    misbehave(bench.engine, 8880 + slot, "stall_mid_stream,after=3")
    users.leave()
    took_s = bench.started(slot, after_ns)
    users.close()
    return took_s


def _rival_hang(bench: Bench, index: int) -> float:
    after_ns = time.time_ns()
    misbehave(bench.engine, RIVAL_PORT + index, "hang_before_first_token")
    event = bench.events.first("start", after_ns=after_ns, timeout_s=_PATIENCE_S, rival=f"heal-{index}")
    return _PATIENCE_S if event is None else (event.at_ns - after_ns) / SECOND_NS


def cpu_fallback(bench: Bench) -> list[Row]:
    """Tokens come as before, but no process of the container is on its GPU any more; no probe of a server can see that."""
    taken: list[float] = []
    with bench.agent("cpu") as host:
        for number in range(max(4, bench.rounds // 4)):
            slot = number % 8
            after_ns = time.time_ns()
            host.graphics.cpu_only.add(slot)
            taken.append(bench.started(slot, after_ns))
            host.graphics.cpu_only.clear()
            host.wait_ready(timeout_s=120)
    never = dict.fromkeys((POLICY, PLAIN, CHAT, TUNED), "never")
    return [Row("fallback to the CPU", spread(taken), never, "15 s", quantile(taken, 0.95) <= 15)]


def adoption(bench: Bench) -> list[Row]:
    """From the start of the program to a status in which all eight slots are ready again."""
    stopped, killed = list[float](), list[float]()
    with bench.agent("adoption") as host:
        before, after_ns = host.ids(), time.time_ns()
        for number in range(10):
            host.stop(signal.SIGKILL if number % 2 else signal.SIGTERM)
            began_s = time.monotonic()
            host.start()
            host.wait_ready()
            (killed if number % 2 else stopped).append(time.monotonic() - began_s)
        restarts = len(bench.events.matching("start", after_ns=after_ns))
        same = host.ids() == before
    return [
        Row("agent restarted: 8 slots ready again", spread(stopped), {}, "2 s", quantile(stopped, 0.5) <= 2),
        Row("agent killed (-9): 8 slots ready again", spread(killed), {}, "2 s", quantile(killed, 0.5) <= 2),
        Row("containers restarted by that", str(restarts), {}, "0", restarts == 0 and same),
    ]
