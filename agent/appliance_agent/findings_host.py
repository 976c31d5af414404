"""Slots, ports, names, clock and memory of the host as findings. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance_agent import gpu_choice
from appliance_agent.check_facts import SERVICE_USER, CheckFacts, ContainerThere, GpuUser, Listener
from appliance_agent.config import GpuChoice
from appliance_agent.finding import Finding, error, fine, size, warning
from appliance_agent.slot_plan import fits
from appliance_agent.spec import SlotPlan

_GIBIBYTE = 1024**3
_SMALL_USER_BYTES = 128 * 1024**2  # a desktop's or a monitor's
_OPEN_FILES = 1024
_EACH_SLOT_BYTES = _GIBIBYTE  # of the host's memory, for a server whose model lies on a GPU
_WILDCARDS = frozenset({"0.0.0.0", "::"})


def slot_findings(facts: CheckFacts, plans: Sequence[SlotPlan], problems: Sequence[str]) -> Iterator[Finding]:
    for problem in problems:
        make = error if isinstance(facts.config.gpus, tuple) or not plans else warning
        yield make("slots", "gpu-choice", problem, "nvidia-smi -L")
    yield from _fit(facts, plans)
    yield from _busy(facts, plans)
    if plans:
        yield fine("slots", "slots", _slots(facts, plans))


def _slots(facts: CheckFacts, plans: Sequence[SlotPlan]) -> str:
    ports = f"port {plans[0].port}" if len(plans) == 1 else f"ports {plans[0].port} to {plans[-1].port}"
    if facts.config.gpus == GpuChoice.NONE:
        return f"one slot on the CPU, {facts.config.address} {ports}"
    gpus = len(plans[0].gpus)
    each = "one GPU each" if gpus == 1 else f"{gpus} GPUs each"
    return f"{len(plans)} slot{'s' if len(plans) > 1 else ''}, {each}, {facts.config.address} {ports}"


def _fit(facts: CheckFacts, plans: Sequence[SlotPlan]) -> Iterator[Finding]:
    snapshot, image = facts.nvml.snapshot, facts.image.seen
    if snapshot is None or image is None:
        return
    sentences = [text for plan in plans if (text := fits(facts.config, snapshot.gpus, plan, image.labels))]
    if not sentences:
        return
    more = f" (and {len(sentences) - 1} more slots)" if len(sentences) > 1 else ""
    sentence, _, instead = sentences[0].partition("; ")
    if facts.config.partial_offload:
        yield warning(
            "slots", "gpu-memory", f"{sentence}{more}: a part of it will be computed on the CPU", f"# {instead}"
        )
        return
    yield error(
        "slots",
        "gpu-memory",
        sentence + more,
        f"# {instead}",
        "# or `partial_offload = true`: a part of it is then computed on the CPU, many times slower",
    )


def _busy(facts: CheckFacts, plans: Sequence[SlotPlan]) -> Iterator[Finding]:
    snapshot = facts.nvml.snapshot
    mine = {container.id for container in facts.containers if container.mine}
    names = {container.id: container.name for container in facts.containers}
    wanted = [uuid for plan in plans for uuid in plan.gpus]
    for uuid in wanted:
        gpu = snapshot.gpu(uuid) if snapshot else None
        foreign = [
            user
            for user in facts.gpu_users
            if user.uuid == uuid
            and user.container_id not in mine
            and (user.memory_bytes is None or user.memory_bytes >= _SMALL_USER_BYTES)
        ]
        if gpu is None or not foreign:
            continue
        users = ", ".join(_tell(user, names) for user in foreign)
        yield warning(
            "gpu",
            "gpu-busy",
            f"{gpu_choice.tell(gpu)} is used by others: {users}; the model may not fit, and both are slow",
            *dict.fromkeys(_end(user, names) for user in foreign),
        )


def _tell(user: GpuUser, names: dict[str, str]) -> str:
    what = f"container `{names[user.container_id]}`" if user.container_id in names else f"`{user.name}` ({user.pid})"
    return f"{what} {size(user.memory_bytes)}" if user.memory_bytes is not None else what


def _end(user: GpuUser, names: dict[str, str]) -> str:
    if user.container_id in names:
        return f"docker stop {names[user.container_id]}"
    if user.name.startswith("ollama"):
        return "sudo systemctl disable --now ollama"
    return f"ps -fp {user.pid}   # whose it is; then `sudo kill {user.pid}`"


def port_findings(facts: CheckFacts, plans: Sequence[SlotPlan]) -> Iterator[Finding]:
    found = [*_names(facts, plans), *_ports(facts, plans)]
    yield from found
    if not found and plans:
        yield fine("ports", "ports", f"the slots' ports and {facts.config.metrics.port} for metrics are free or ours")


def _names(facts: CheckFacts, plans: Sequence[SlotPlan]) -> Iterator[Finding]:
    names = {plan.name for plan in plans}
    for container in facts.containers:
        if container.name in names and not container.mine:
            yield error(
                "ports",
                "name-taken",
                f"a container that is not the agent's has the name `{container.name}`",
                f"docker rename {container.name} {container.name}-old",
                "# or set `name_prefix` in [container]",
            )


def _ports(facts: CheckFacts, plans: Sequence[SlotPlan]) -> Iterator[Finding]:
    config = facts.config
    for plan in plans:
        yield from _taken(facts, f"slot {plan.index}", config.address, plan.port)
    yield from _taken(facts, "metrics", config.metrics.address, config.metrics.port)


def _taken(facts: CheckFacts, whose: str, address: str, port: int) -> Iterator[Finding]:
    owner = _container_at(facts, address, port)
    if owner is not None and owner.mine:
        return
    elsewhere = (
        "# or another `base_port` in the configuration" if whose != "metrics" else "# or another `port` in [metrics]"
    )
    if owner is not None:
        yield error(
            "ports",
            "port-taken",
            f"port {port} for {whose} is taken by the container `{owner.name}`",
            f"docker stop {owner.name}",
            elsewhere,
        )
        return
    listener = next((each for each in facts.listeners if each.port == port and _collide(each.address, address)), None)
    if listener is None or listener.agent:
        return
    yield error(
        "ports", "port-taken", f"port {port} for {whose} is taken by {_who(listener)}", _look(listener), elsewhere
    )


def _container_at(facts: CheckFacts, address: str, port: int) -> ContainerThere | None:
    running = [container for container in facts.containers if container.running]
    return next(
        (each for each in running if any(at == port and _collide(of, address) for of, at in each.ports)),
        None,
    )


def _collide(one: str, other: str) -> bool:
    return one == other or one in _WILDCARDS or other in _WILDCARDS


def _who(listener: Listener) -> str:
    if listener.pid is None:
        return f"a process of user `{listener.user}`"
    return f"`{listener.name}` (process {listener.pid}, user {listener.user})"


def _look(listener: Listener) -> str:
    if listener.pid is None:
        return f"sudo ss -ltnp 'sport = :{listener.port}'"
    return f"ps -fp {listener.pid}   # whose it is; then `sudo kill {listener.pid}`"


def host_findings(facts: CheckFacts, plans: Sequence[SlotPlan]) -> Iterator[Finding]:
    yield from _clock(facts)
    yield from _memory(facts, plans)
    yield from _hidden(facts)
    if facts.host.open_files < _OPEN_FILES:
        yield warning(
            "host",
            "open-files",
            f"this user may open {facts.host.open_files} files, the agent wants {_OPEN_FILES}",
            f"ulimit -n {_OPEN_FILES}   # the unit sets LimitNOFILE by itself",
        )
    for neighbour in facts.late:
        yield warning("host", "late", f"{neighbour}; what depends on it is not checked")


def _clock(facts: CheckFacts) -> Iterator[Finding]:
    if facts.host.synchronized is False:
        yield warning(
            "host",
            "clock",
            "the clock is not synchronised: TLS certificates and registry tokens may be refused",
            "sudo timedatectl set-ntp true && timedatectl",
        )


def _hidden(facts: CheckFacts) -> Iterator[Finding]:
    if option := facts.host.hides:
        user = SERVICE_USER if facts.host.service_home else facts.host.user
        yield warning(
            "host",
            "proc-hidden",
            f"/proc is mounted with `{option}`, so user `{user}` cannot see the containers' processes: whether a model is"
            " on its GPU and whether a busy server still sends is not known",
            "sudo mount -o remount,hidepid=0 /proc   # and take `hidepid` out of /etc/fstab, or of what else sets it",
            f"# or keep it, with `gid=proc` beside it: groupadd --system proc, then usermod -aG proc {user}",
            see="man 5 proc, section Mount options",
        )


def _memory(facts: CheckFacts, plans: Sequence[SlotPlan]) -> Iterator[Finding]:
    config, free, image = facts.config, facts.host.free_memory_bytes, facts.image.seen
    labels = image.labels if image else None
    running = {container.slot for container in facts.containers if container.mine and container.running}
    to_start = [plan for plan in plans if plan.index not in running]
    if not to_start or not free:
        return
    if config.gpus == GpuChoice.NONE:
        needed = (labels.gpu_memory_bytes or labels.weights_bytes) if labels else _EACH_SLOT_BYTES
    else:
        needed = _EACH_SLOT_BYTES * len(to_start)
    if free < needed:
        yield warning(
            "host",
            "memory-small",
            f"{size(free)} of memory are free, {_slots_need(len(to_start))} about {size(needed)}",
            "ps axo pid,rss,comm --sort=-rss | head",
        )
    if config.gpus == GpuChoice.NONE and 0 < config.container.memory_bytes < needed:
        yield error(
            "host",
            "memory-limit",
            f"`memory` in [container] is {size(config.container.memory_bytes)}, the model needs about {size(needed)}",
            f'# set `memory = "{-(-needed // _GIBIBYTE) + 1}G"`, or leave it out',
        )


def _slots_need(count: int) -> str:
    return "the slot needs" if count == 1 else f"{count} slots need"
