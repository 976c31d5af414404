"""How a container gets its GPU, and why: from what the engine says of itself. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from appliance_agent.containers import EngineFacts
from appliance_agent.gpus import Gpu
from appliance_agent.spec import Injection

AUTO: Final = "auto"
NVIDIA_RUNTIME: Final = "nvidia"
_CDI_API: Final = (1, 44)  # Engine 25.0
_LISTING_API: Final = (1, 50)  # Engine 28.2: /info lists what was discovered


@dataclass(frozen=True, slots=True)
class Choice:
    injection: Injection
    because: str  # a sentence for `check` and the status
    sound: bool = True  # whether what the engine says supports it


def cdi_name(uuid: str) -> str:
    return f"nvidia.com/gpu={uuid}"


def choose(facts: EngineFacts, wanted: str, gpus: Sequence[Gpu]) -> Choice:
    """`wanted` is the configuration's word."""
    if not gpus:
        return Choice(Injection.NONE, "no GPU is wanted")
    cdi, runtime = _by_cdi(facts, gpus), _by_runtime(facts)
    request = _by_request(facts, cdi, runtime)
    if wanted == AUTO:
        return next(choice for choice in (cdi, runtime, request) if choice.sound)
    return {Injection.CDI: cdi, Injection.RUNTIME: runtime, Injection.DEVICE_REQUEST: request}[Injection(wanted)]


def _by_cdi(facts: EngineFacts, gpus: Sequence[Gpu]) -> Choice:
    names = [cdi_name(gpu.uuid) for gpu in gpus]
    if all(name in facts.devices for name in names):
        return Choice(Injection.CDI, "CDI: the engine reports the devices")
    if facts.api_version < _CDI_API:
        return Choice(Injection.CDI, f"no CDI: Docker Engine {facts.version} is older than 25.0", sound=False)
    if facts.api_version >= _LISTING_API:
        missing = next(name for name in names if name not in facts.devices)
        return Choice(Injection.CDI, f"no CDI: the engine has not discovered {missing}", sound=False)
    if not facts.cdi_directories:
        return Choice(Injection.CDI, "no CDI: it is not switched on in this engine (`features.cdi`)", sound=False)
    if missing_names := [name for name in names if name not in facts.specified]:
        directories = ", ".join(facts.cdi_directories)
        return Choice(Injection.CDI, f"no CDI: no specification in {directories} names {missing_names[0]}", sound=False)
    return Choice(Injection.CDI, "CDI: a specification in the engine's directories names the devices")


def _by_runtime(facts: EngineFacts) -> Choice:
    if NVIDIA_RUNTIME in facts.runtimes:
        return Choice(Injection.RUNTIME, "the nvidia runtime: the engine has it")
    return Choice(Injection.RUNTIME, "no nvidia runtime: the engine does not have it", sound=False)


def _by_request(facts: EngineFacts, cdi: Choice, runtime: Choice) -> Choice:
    because = "device requests with explicit device nodes"
    if facts.cgroup_driver == "systemd":
        because += ", which survive `systemctl daemon-reload` under the systemd cgroup driver"
    return Choice(Injection.DEVICE_REQUEST, f"{because}: {cdi.because}, {runtime.because}")
