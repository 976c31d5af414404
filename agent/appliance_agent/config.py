"""The agent's configuration as frozen values, and how they are read from TOML. Pure: `config_file` touches the disk.

`systemd/agent.toml` documents every key; a test compares the two.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from appliance_agent.states import Reaction
from appliance_image.errors import ApplianceError
from appliance_image.strict_toml import Table

DEFAULT_PATH: Final = "/etc/ollama-appliance/agent.toml"
DEFAULT_STATE_DIRECTORY: Final = "/var/lib/ollama-agent"
_PORT_MAX = 65535
_HOUR_S = 3600.0
_DAY_S = 86400.0
_UUID = re.compile(r"(GPU|MIG)-[0-9A-Za-z][0-9A-Za-z/_-]{3,80}")
_IMAGE = re.compile(r"[\w][\w.:/@-]{0,510}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_HINT = "correct the file; `ollama-agent config check FILE` looks again, systemd/agent.toml documents every key"


class ConfigError(ApplianceError):
    pass


class GpuChoice:
    """What `gpus` may say besides a list."""

    ALL: Final = "all"
    NONE: Final = "none"


@dataclass(frozen=True, slots=True)
class Engine:
    socket: str = "/run/docker.sock"
    timeout_s: float = 10.0  # without an answer for so long it counts as frozen
    docker_config: str = ""  # directory with config.json for pulls; "" means $DOCKER_CONFIG or ~/.docker


@dataclass(frozen=True, slots=True)
class Container:
    """What all slots' containers have in common."""

    name_prefix: str = "ollama"
    environment: Mapping[str, str] = field(default_factory=dict[str, str])
    user: str = "65534:65534"
    read_only: bool = True
    memory_bytes: int = 0  # 0 is no limit
    shm_bytes: int = 256 * 1024 * 1024
    stop_timeout_s: int = 30
    log_max_bytes: int = 50 * 1024 * 1024  # of one file
    log_max_files: int = 3


@dataclass(frozen=True, slots=True)
class HealthConfig:
    canary_interval_s: float = 10.0  # idle; a probe is left out while users' traffic proves life
    canary_prompt: str = "Say hello."
    canary_tokens: int = 8
    first_token_s: float = 8.0  # an idle slot that says nothing for so long is wedged
    stall_s: float = 10.0  # between two tokens
    silent_s: float = 300.0  # users wait, the GPU computes, and not a byte comes: after so long it is wedged
    on_cpu_s: float = 8.0  # tokens without a process on the GPU
    load_s: float = 300.0  # a load without any progress
    failures: int = 3  # failed canaries in a row
    fresh_s: float = 10.0  # how long a user's finished request proves life
    flow_bytes_per_s: float = 200.0  # less is no stream of tokens
    slow_ratio: float = 0.5  # of the slot's own baseline
    slow_canaries: int = 3  # in a row


@dataclass(frozen=True, slots=True)
class HealingConfig:
    backoff_s: float = 1.0  # before the second restart; doubles
    backoff_max_s: float = 300.0
    budget: int = 6  # restarts within `budget_window_s`, then quarantine
    budget_window_s: float = 1800.0
    proven_s: float = 600.0  # ready for so long ends the memory of earlier failures
    probation_s: float = 600.0  # first quarantine; doubles up to a day
    restart_slow: bool = False
    wait_for_fabric: bool = True  # no start on a GPU whose NVSwitch fabric is not set up
    xids: Mapping[int, Reaction] = field(default_factory=dict[int, Reaction])  # overrides NVIDIA's table


@dataclass(frozen=True, slots=True)
class RolloutConfig:
    drain_s: float = 600.0  # how long running answers may take before a planned replacement
    canaries: int = 3  # good ones in a row prove a slot
    slower_ratio: float = 0.7  # of what the old release gave; less is a bad release
    parallel_loads: int = 2  # models that load at the same time


@dataclass(frozen=True, slots=True)
class MetricsConfig:
    address: str = "0.0.0.0"
    port: int = 9440
    web_config: str = ""  # TLS and users, in the format of Prometheus' exporter-toolkit
    nvlink: bool = False  # counters of NVLink, which one model per GPU does not use


@dataclass(frozen=True, slots=True)
class Config:
    image: str
    model: str = ""  # "" means the one that the image's label names
    store: str = ""  # an Ollama store of the host, mounted read-only into a plain Ollama image
    pull: str = "missing"  # missing, always or never
    gpus: str | tuple[str | int, ...] = GpuChoice.ALL  # or UUIDs and NVML indexes
    gpus_per_instance: int = 1
    partial_offload: bool = False  # start a model that does not fit: part of it is then computed on the CPU
    injection: str = "auto"  # auto, cdi, runtime or device-request
    address: str = "127.0.0.1"
    base_port: int = 8880
    engine: Engine = field(default_factory=Engine)
    container: Container = field(default_factory=Container)
    health: HealthConfig = field(default_factory=HealthConfig)
    healing: HealingConfig = field(default_factory=HealingConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)


def parse(text: str, *, where: str) -> Config:
    """Every mistake of the file at once, each with the path of its key. Raises ConfigError."""
    table = Table.parse(text, where=where)
    image = table.value("image", _image)
    if image is None and not table.has("image"):
        table.problem("image", 'is missing: the image to run, for example `image = "registry.lan/ai/r1:32b"`')
    config = Config(
        image=image or "",
        model=table.text("model", default=""),
        store=table.value("store", _absolute) or "",
        pull=table.choice("pull", ("missing", "always", "never"), default="missing"),
        gpus=_gpus(table),
        gpus_per_instance=table.integer("gpus_per_instance", minimum=1, maximum=16, default=1),
        partial_offload=table.boolean("partial_offload", default=False),
        injection=table.choice("injection", ("auto", "cdi", "runtime", "device-request"), default="auto"),
        address=table.value("address", _address) or "127.0.0.1",
        base_port=table.integer("base_port", minimum=1, maximum=_PORT_MAX - 64, default=8880),
        engine=_engine(table.table("engine")),
        container=_container(table.table("container")),
        health=_health(table.table("health")),
        healing=_healing(table.table("healing")),
        rollout=_rollout(table.table("rollout")),
        metrics=_metrics(table.table("metrics")),
    )
    _check_together(table, config)
    table.check(ConfigError, hint=_HINT)
    return config


def _check_together(table: Table, config: Config) -> None:
    if config.store and not config.model:
        table.problem("model", "is missing: with `store` it says which model to serve, for example `deepseek-r1:32b`")
    if config.gpus == GpuChoice.NONE and config.gpus_per_instance != 1:
        table.problem("gpus_per_instance", 'has no meaning with `gpus = "none"`')
    if isinstance(config.gpus, tuple) and len(config.gpus) % config.gpus_per_instance:
        count = len(config.gpus)
        table.problem("gpus_per_instance", f"{count} GPUs cannot be shared out in groups of {config.gpus_per_instance}")
    if config.base_port <= config.metrics.port < config.base_port + 64 and config.address in (
        "0.0.0.0",
        config.metrics.address,
    ):
        table.problem("metrics", f"`port` lies among the slots' ports, which begin at {config.base_port}")


def _gpus(table: Table) -> str | tuple[str | int, ...]:
    entries = table.words_or_numbers("gpus", default=(GpuChoice.ALL,))
    if entries in ((GpuChoice.ALL,), (GpuChoice.NONE,)):
        return str(entries[0])
    if len(set(entries)) != len(entries):
        table.problem("gpus", "names a GPU twice")
    for entry in entries:
        if isinstance(entry, str) and not _UUID.fullmatch(entry):
            table.problem("gpus", f"`{entry}` is neither a UUID such as `GPU-8f6e…` (see `nvidia-smi -L`) nor an index")
    return entries


def _engine(table: Table) -> Engine:
    default = Engine()
    return Engine(
        socket=table.value("socket", _socket) or default.socket,
        timeout_s=table.number("timeout_s", minimum=1, maximum=300, default=default.timeout_s),
        docker_config=table.value("docker_config", _absolute) or "",
    )


def _container(table: Table) -> Container:
    default = Container()
    return Container(
        name_prefix=table.value("name_prefix", _prefix) or default.name_prefix,
        environment=_environment(table.table("environment")),
        user=table.text("user", default=default.user),
        read_only=table.boolean("read_only", default=default.read_only),
        memory_bytes=table.value("memory", _bytes) or 0,
        shm_bytes=table.value("shm", _bytes) or default.shm_bytes,
        stop_timeout_s=table.integer("stop_timeout_s", minimum=1, maximum=3600, default=default.stop_timeout_s),
        log_max_bytes=table.value("log_max_size", _bytes) or default.log_max_bytes,
        log_max_files=table.integer("log_max_files", minimum=1, maximum=100, default=default.log_max_files),
    )


def _environment(table: Table) -> dict[str, str]:
    for name in table.keys():  # noqa: SIM118 - a Table, not a dict
        if not _VARIABLE.fullmatch(name):
            table.problem(name, "is no name of an environment variable")
        if name in ("OLLAMA_HOST", "OLLAMA_MODELS", "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES"):
            table.problem(name, "is set by the agent itself")
    return table.mapping(str)


def _health(table: Table) -> HealthConfig:
    default = HealthConfig()

    def seconds(key: str, minimum: float, maximum: float = _HOUR_S) -> float:
        return table.number(key, minimum=minimum, maximum=maximum, default=float(getattr(default, key)))

    return HealthConfig(
        canary_interval_s=seconds("canary_interval_s", 1),
        canary_prompt=table.text("canary_prompt", default=default.canary_prompt),
        canary_tokens=table.integer("canary_tokens", minimum=2, maximum=256, default=default.canary_tokens),
        first_token_s=seconds("first_token_s", 0.5),
        stall_s=seconds("stall_s", 0.5),
        silent_s=seconds("silent_s", 1, _DAY_S),
        on_cpu_s=seconds("on_cpu_s", 1),
        load_s=seconds("load_s", 1, _DAY_S),
        failures=table.integer("failures", minimum=1, maximum=100, default=default.failures),
        fresh_s=seconds("fresh_s", 1),
        flow_bytes_per_s=table.number("flow_bytes_per_s", minimum=1, maximum=1e9, default=default.flow_bytes_per_s),
        slow_ratio=table.number("slow_ratio", minimum=0.05, maximum=0.99, default=default.slow_ratio),
        slow_canaries=table.integer("slow_canaries", minimum=1, maximum=100, default=default.slow_canaries),
    )


def _healing(table: Table) -> HealingConfig:
    default = HealingConfig()
    backoff_s = table.number("backoff_s", minimum=0.1, maximum=_HOUR_S, default=default.backoff_s)
    return HealingConfig(
        backoff_s=backoff_s,
        backoff_max_s=table.number(
            "backoff_max_s", minimum=backoff_s, maximum=_DAY_S, default=max(default.backoff_max_s, backoff_s)
        ),
        budget=table.integer("budget", minimum=1, maximum=1000, default=default.budget),
        budget_window_s=table.number("budget_window_s", minimum=1, maximum=7 * _DAY_S, default=default.budget_window_s),
        proven_s=table.number("proven_s", minimum=1, maximum=7 * _DAY_S, default=default.proven_s),
        probation_s=table.number("probation_s", minimum=1, maximum=_DAY_S, default=default.probation_s),
        restart_slow=table.boolean("restart_slow", default=default.restart_slow),
        wait_for_fabric=table.boolean("wait_for_fabric", default=default.wait_for_fabric),
        xids=_xids(table.table("xids")),
    )


def _xids(table: Table) -> dict[int, Reaction]:
    words = [reaction.value for reaction in Reaction]
    found: dict[int, Reaction] = {}
    for key in table.keys():  # noqa: SIM118 - a Table, not a dict
        word = table.choice(key, words, default=Reaction.OBSERVE.value)
        if key.isdecimal():
            found[int(key)] = Reaction(word)
        else:
            table.problem(key, "is no XID: the key is the number, for example `94`")
    return found


def _rollout(table: Table) -> RolloutConfig:
    default = RolloutConfig()
    return RolloutConfig(
        drain_s=table.number("drain_s", minimum=0, maximum=_DAY_S, default=default.drain_s),
        canaries=table.integer("canaries", minimum=1, maximum=100, default=default.canaries),
        slower_ratio=table.number("slower_ratio", minimum=0.05, maximum=1, default=default.slower_ratio),
        parallel_loads=table.integer("parallel_loads", minimum=1, maximum=64, default=default.parallel_loads),
    )


def _metrics(table: Table) -> MetricsConfig:
    default = MetricsConfig()
    return MetricsConfig(
        address=table.value("address", _address) or default.address,
        port=table.integer("port", minimum=1, maximum=_PORT_MAX, default=default.port),
        web_config=table.value("web_config", _absolute) or "",
        nvlink=table.boolean("nvlink", default=default.nvlink),
    )


def _image(text: str) -> str:
    if not _IMAGE.fullmatch(text):
        raise ConfigError(f"not the name of an image: `{text[:80]}`", hint=_HINT)
    return text


def _absolute(text: str) -> str:
    if not text.startswith("/"):
        raise ConfigError(f"should be an absolute path, not `{text[:80]}`", hint=_HINT)
    return text.rstrip("/") or "/"


def _socket(text: str) -> str:
    return _absolute(text.removeprefix("unix://"))


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError as error:
        raise ConfigError(f"not an IP address: `{text[:80]}`", hint=_HINT) from error


def _prefix(text: str) -> str:
    if not re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,40}", text):
        raise ConfigError(f"not the beginning of a container's name: `{text[:80]}`", hint=_HINT)
    return text


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d{1,6})\s*([KMGT])i?B?", text.strip(), re.IGNORECASE)
    if not match:
        raise ConfigError(f"should be a size such as `512M` or `64G`, not `{text[:40]}`", hint=_HINT)
    power: int = " KMGT".index(match[2].upper())
    return int(match[1]) * int(1024**power)
