"""How GPUs reach containers, as findings: toolkit, hook, CDI, and the trap of the systemd cgroup driver. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from appliance_agent import daemon_json
from appliance_agent.check_facts import CdiFile, CheckFacts
from appliance_agent.containers import EngineFacts
from appliance_agent.finding import Finding, Severity, error, fine, warning
from appliance_agent.findings_engine import ENGINE_OLDEST
from appliance_agent.gpus import Gpu
from appliance_agent.injection import Choice, cdi_name, choose
from appliance_agent.spec import Injection

_TOPIC = "toolkit"
_CDI_SINCE = (1, 44)  # Docker Engine 25
_TOOLKIT_GUIDE = "docs.nvidia.com/datacenter/cloud-native/container-toolkit"
_INSTALL = f"{_TOOLKIT_GUIDE}/latest/install-guide.html"
_CDI = f"{_TOOLKIT_GUIDE}/latest/cdi-support.html"
_TRAP = f"{_TOOLKIT_GUIDE}/latest/troubleshooting.html (containers losing access to GPUs)"
_SAID = 'could not select device driver "" with capabilities: [[gpu]]'
_GENERATE = "sudo nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
_LOOKS_WITHIN_S = 1.0  # of its start, dockerd does, and the two clocks agree only so well
_GPU_NAME = cdi_name("")
_TRAP_HINT = "after `systemctl daemon-reload` running containers lose their GPUs and Ollama goes on on the CPU"


def toolkit_findings(facts: CheckFacts, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """`gpus` are those that slots want; where the driver is down none is known, and the toolkit is looked at all the same."""
    engine = facts.engine.facts
    if facts.driver is None or engine is None or engine.api_version < ENGINE_OLDEST:
        return
    way = choose(engine, facts.config.injection, gpus or (_any_gpu(engine),))
    found = list(_problems(facts, engine, way))
    bad = any(finding.severity is Severity.ERROR for finding in found)
    if not way.sound and not bad:
        found.append(error(_TOPIC, "injection", f'`injection = "{facts.config.injection}"` cannot work: {way.because}'))
    elif gpus and not bad:
        yield fine(_TOPIC, "injection", f"GPUs reach containers by {way.because}")
    yield from found


def _any_gpu(engine: EngineFacts) -> Gpu:
    names = [
        name.removeprefix(_GPU_NAME) for name in (*engine.devices, *engine.specified) if name.startswith(_GPU_NAME)
    ]
    return Gpu(uuid=names[0] if names else "GPU-unknown", index=0, minor=None, name="", memory_bytes=0)


def _problems(facts: CheckFacts, engine: EngineFacts, way: Choice) -> Iterator[Finding]:
    toolkit = facts.toolkit
    by_request = way.injection is Injection.DEVICE_REQUEST
    if by_request and not (toolkit.ctk or toolkit.hook):
        yield _missing(facts)
        return
    if by_request:
        yield from _later(facts)
    stuck = not way.sound or (by_request and not toolkit.hook)
    yield from _cdi(facts, engine, used=way.injection is Injection.CDI, stuck=stuck)
    if way.injection in (Injection.DEVICE_REQUEST, Injection.RUNTIME) and engine.cgroup_driver == "systemd":
        yield _trap(engine, way.injection)


def _missing(facts: CheckFacts) -> Finding:
    package = {
        "apt": "sudo apt-get install -y nvidia-container-toolkit",
        "dnf": "sudo dnf install -y nvidia-container-toolkit",
        "zypper": "sudo zypper install -y nvidia-container-toolkit",
    }.get(facts.host.distribution, f"# install nvidia-container-toolkit as {_INSTALL} says")
    return error(
        _TOPIC,
        "toolkit-missing",
        f"the NVIDIA Container Toolkit is not installed; `docker run --gpus all` says `{_SAID}`",
        package,
        f"sudo nvidia-ctk runtime configure --runtime=docker && {daemon_json.RESTART}",
        see=_INSTALL,
    )


def _later(facts: CheckFacts) -> Iterator[Finding]:
    hook, started_s = facts.toolkit.hook, facts.engine.started_s
    if hook is None or started_s is None or hook.installed_s <= started_s + _LOOKS_WITHIN_S:
        return
    yield error(
        _TOPIC,
        "toolkit-later",
        f"the NVIDIA Container Toolkit was installed after the Docker Engine started, which looks for {hook.path} "
        f"only then; `docker run --gpus all` says `{_SAID}`",
        f"{daemon_json.RESTART}{_stops(facts)}",
        see=_INSTALL,
    )


def _stops(facts: CheckFacts) -> str:
    engine = facts.engine.facts
    running = sum(container.running for container in facts.containers)
    if not running or (engine and engine.live_restore):
        return ""
    return f"   # stops {running} running container{'s' if running > 1 else ''}"


def _cdi(facts: CheckFacts, engine: EngineFacts, *, used: bool, stuck: bool) -> Iterator[Finding]:
    """`stuck`: nothing else would work, so that an advice becomes an error."""
    if engine.api_version < _CDI_SINCE:
        return
    make = error if stuck else warning
    specifications = [file for file in facts.toolkit.cdi if file.devices or file.problem]
    if not engine.cdi_directories and not engine.devices:
        yield make(
            _TOPIC,
            "cdi-off",
            f"CDI is off in Docker Engine {engine.version} (it is on by itself from 28.2): GPUs by UUID work best with it",
            *(() if specifications else (_GENERATE,)),
            daemon_json.cdi() + _stops(facts),
            see=_CDI,
        )
        return
    if not specifications and not engine.devices:
        places = " or ".join(engine.cdi_directories)
        yield make(
            _TOPIC, "cdi-missing", f"there is no CDI specification for the GPUs in {places}", _GENERATE, see=_CDI
        )
        return
    for file in specifications:
        yield from _stale(facts, file, severe=used or stuck)


def _stale(facts: CheckFacts, file: CdiFile, *, severe: bool) -> Iterator[Finding]:
    problem = file.problem or _outdated(facts, file)
    if not problem:
        return
    make = error if severe else warning
    yield make(
        _TOPIC,
        "cdi-stale",
        f"the CDI specification {file.path} {problem}",
        f"sudo nvidia-ctk cdi generate --output={file.path}",
        see=_CDI,
    )


def _outdated(facts: CheckFacts, file: CdiFile) -> str:
    snapshot = facts.nvml.snapshot
    if snapshot is None or not snapshot.up:
        return ""
    named = [device for device in file.devices if device.startswith(("GPU-", "MIG-"))]
    there = {gpu.uuid for gpu in snapshot.gpus}
    parents = {gpu.parent_uuid for gpu in snapshot.gpus}
    if gone := [device for device in named if device not in there]:
        return f"names a GPU that is not there: {_few(gone)}"
    if file.driver_version and file.driver_version != snapshot.driver_version:
        return f"is of driver {file.driver_version}, and {snapshot.driver_version} runs: containers would get files that are gone"
    unnamed = [gpu.uuid for gpu in snapshot.gpus if gpu.uuid not in named and gpu.uuid not in parents]
    if named and unnamed:
        return f"does not name {_few(unnamed)}: a newer card, or another division"
    if not named:
        return (
            "names GPUs by index only, which changes when one falls off the bus; a toolkit from 1.15 on names UUIDs too"
        )
    return ""


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")


def _trap(engine: EngineFacts, injection: Injection) -> Finding:
    guarded = injection is Injection.DEVICE_REQUEST
    saved = (
        "; the agent names the device nodes one by one, which guards its own containers"
        if guarded
        else ", unless the toolkit is 1.18 or newer"
    )
    by_cdi = engine.api_version >= _CDI_SINCE
    fix = (_GENERATE, daemon_json.cdi()) if by_cdi else (daemon_json.cgroupfs(),)
    return warning(
        _TOPIC,
        "cgroup-reload",
        f"systemd cgroup driver without CDI: {_TRAP_HINT}{saved}",
        *fix,
        see=_TRAP,
    )
