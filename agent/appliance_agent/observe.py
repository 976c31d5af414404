"""The newest news of all neighbours put together for `reconcile`. Pure: it knows what each piece means for the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from appliance_agent import fabric, injection, rollout, slot_plan
from appliance_agent.config import Config, GpuChoice
from appliance_agent.containers import ContainerSeen, EngineSeen, PullSeen
from appliance_agent.evidence import Evidence
from appliance_agent.gpus import Gpu, GpuSnapshot
from appliance_agent.ports import Target
from appliance_agent.slot_view import Seen
from appliance_agent.slots import Done, Host
from appliance_agent.spec import ContainerSpec, Injection, SlotPlan
from appliance_agent.wanted import wish

_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_GIGABYTE = 1e9
_HIDDEN = (
    "the containers' processes cannot be seen (`hidepid` of /proc?), so neither whether a model is on its GPU nor whether"
    " bytes flow; `ollama-agent check` says what to do"
)


@dataclass(frozen=True, slots=True)
class News:
    engine: EngineSeen
    gpus: GpuSnapshot
    evidence: Mapping[int, Evidence]
    done: tuple[Done, ...]
    trusted_since_s: float


@dataclass(frozen=True, slots=True)
class Observed:
    seen: Seen
    problems: tuple[str, ...]  # what stands in the way of the whole host


def observe(config: Config, host: Host, news: News) -> Observed:
    known = _known(host, config, news.engine.containers)
    mig = [uuid for uuid, reading in news.gpus.readings.items() if reading.mig_enabled]
    listed = news.gpus.up or config.gpus == GpuChoice.NONE
    if listed or news.gpus.gpus:
        plans, problems = slot_plan.plan_slots(config, news.gpus.gpus, known, mig_enabled=mig)
    else:
        plans, problems = known, (news.gpus.because,)
    result = wish(config, news.engine.image, _injection(config, host, news, plans))
    waiting = _pulling(news.engine) or result.problem
    seen = Seen(
        engine=news.engine,
        gpus=news.gpus,
        evidence=news.evidence,
        plans=plans,
        plans_known=listed,
        wanted=result.release,
        waiting_for=waiting,
        misfits=_misfits(config, news, plans),
        unready=_unready(config, news.gpus, plans),
        done=news.done,
        trusted_since_s=news.trusted_since_s,
    )
    engine = _of_engine(config, news.engine)
    driver = (news.gpus.because,) if not news.gpus.up and config.gpus != GpuChoice.NONE else ()
    wanted = {uuid for plan in plans for uuid in plan.gpus}
    links = fabric.pending((gpu for gpu in news.gpus.gpus if gpu.uuid in wanted), news.gpus.readings)
    waits = (links,) if links and news.gpus.up and config.healing.wait_for_fabric else ()
    newest = _pull_failed(news.engine.pull) if host.pull_due else ""
    image = newest if result.release else waiting
    release = (image,) if image and news.engine.up and not host.down else ()
    refused = (f"the release is refused: {host.refused.because}",) if host.refused else ()
    hidden = (_HIDDEN,) if any(each.hidden for each in news.evidence.values()) else ()
    return Observed(seen, tuple(dict.fromkeys((*engine, *driver, *hidden, *waits, *problems, *release, *refused))))


def _of_engine(config: Config, engine: EngineSeen) -> tuple[str, ...]:
    if not engine.up:
        return (engine.because,)
    if engine.facts is None and config.gpus != GpuChoice.NONE:
        return ("the Docker Engine has not answered `docker info` yet, which tells how containers get GPUs",)
    return ()


def targets(host: Host, containers: Sequence[ContainerSeen]) -> tuple[Target, ...]:
    """What is to be watched: the containers of slots that run."""
    found: list[Target] = []
    for container in containers:
        slot = host.slot(container.slot)
        release = container.release
        if slot is None or release is None or not container.running or container.name != slot.plan.name:
            continue
        if container.id in host.removed:
            continue
        address = _ANY.get(release.address, release.address)
        found.append(
            Target(container.slot, container.id, container.pid, address, slot.plan.port, release.model, slot.plan.gpus)
        )
    return tuple(found)


def watched_closely(host: Host, containers: Sequence[ContainerSeen]) -> frozenset[int]:
    """Slots that are to be replaced as soon as nobody is served."""
    if host.down:
        return frozenset(slot.plan.index for slot in host.slots)
    found: set[int] = set()
    for container in containers:
        slot = host.slot(container.slot)
        release = rollout.target(host, slot) if slot else None
        if slot and release and container.spec_hash != ContainerSpec(slot.plan, release).hash:
            found.add(container.slot)
    return frozenset(found)


def _known(host: Host, config: Config, containers: Sequence[ContainerSeen]) -> tuple[SlotPlan, ...]:
    """Who has which number already: from memory, and where that was lost, from the containers' labels."""
    if host.slots:
        return tuple(slot.plan for slot in host.slots)
    found = {each.slot: SlotPlan(each.slot, each.name, each.gpus, config.base_port + each.slot) for each in containers}
    return tuple(found[index] for index in sorted(found))


def _injection(config: Config, host: Host, news: News, plans: Sequence[SlotPlan]) -> Injection | None:
    """Once chosen it stays for as long as the engine supports it: what is found later must not roll a whole host."""
    if config.gpus == GpuChoice.NONE:
        return Injection.NONE
    wanted = {uuid for plan in plans for uuid in plan.gpus}
    facts, gpus = news.engine.facts, [gpu for gpu in news.gpus.gpus if gpu.uuid in wanted]
    if facts is None or not gpus:
        return None
    before = host.wanted or host.good
    if config.injection == injection.AUTO and before is not None and before.injection is not Injection.NONE:
        kept = injection.choose(facts, before.injection.value, gpus)
        if kept.sound:
            return kept.injection
    return injection.choose(facts, config.injection, gpus).injection


def _pulling(engine: EngineSeen) -> str:
    pull = engine.pull
    if pull is None:
        return ""
    if pull.running:
        total = f" of {pull.total_bytes / _GIGABYTE:.1f}" if pull.total_bytes else ""
        return f"the image is being pulled: {pull.done_bytes / _GIGABYTE:.1f}{total} GB"
    return _pull_failed(pull)


def _pull_failed(pull: PullSeen | None) -> str:
    return f"the image could not be pulled: {pull.error}: {pull.hint}" if pull and pull.error else ""


def _misfits(config: Config, news: News, plans: Sequence[SlotPlan]) -> dict[int, str]:
    image = news.engine.image
    if config.partial_offload or image is None or image.labels is None:
        return {}
    gpus: Sequence[Gpu] = news.gpus.gpus
    found = {plan.index: slot_plan.fits(config, gpus, plan, image.labels) for plan in plans}
    return {index: text for index, text in found.items() if text}


def _unready(config: Config, snapshot: GpuSnapshot, plans: Sequence[SlotPlan]) -> dict[int, str]:
    """Nothing while NVML does not answer, for then nothing is known."""
    if not snapshot.up or not config.healing.wait_for_fabric:
        return {}
    found = {
        plan.index: fabric.pending((gpu for gpu in snapshot.gpus if gpu.uuid in plan.gpus), snapshot.readings)
        for plan in plans
    }
    return {index: text for index, text in found.items() if text}
