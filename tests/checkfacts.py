"""A healthy GPU host as `ollama-agent check` would see it, for tests to break one thing at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from appliance_agent.check_facts import (
    CdiFile,
    CheckFacts,
    ContainerThere,
    DriverState,
    EngineState,
    HostState,
    ImageState,
    Nvml,
    Program,
    Reach,
    Toolkit,
)
from appliance_agent.config import Config
from appliance_agent.containers import EngineFacts, ImageSeen
from appliance_agent.gpus import Gpu, GpuReading, GpuSnapshot
from appliance_image.labels import Labels

GIBIBYTE = 1024**3
IMAGE = "registry.lan/ai/r1:32b"
DRIVER = "550.54.15"
NOW_S = 1_764_000_000.0

GPUS = tuple(
    Gpu(
        uuid=f"GPU-{number:08d}-0000-4000-8000-000000000000",
        index=number,
        minor=number,
        name="NVIDIA L40S",
        memory_bytes=44 * GIBIBYTE,
        pci_bus_id=f"00000000:{number + 1:02X}:00.0",
    )
    for number in range(2)
)
LABELS = Labels(
    layout=1,
    model="deepseek-r1:32b",
    source="registry.ollama.ai/library/deepseek-r1:32b",
    think="patched",
    weights_bytes=20 * GIBIBYTE,
    parameters="32.8B",
    quantization="Q4_K_M",
    family="qwen2",
    context_length=8192,
    gpu_memory_bytes=24 * GIBIBYTE,
    base="ollama/ollama:0.13.5",
    ollama_version="0.13.5",
    builder="0.1.0",
    environment=(),
)
SEEN = ImageSeen(IMAGE, "sha256:" + "1" * 64, "", 21 * GIBIBYTE, LABELS)
ABSENT = ImageSeen(IMAGE, "", "", 0, None)
FACTS = EngineFacts(
    version="28.5.2",
    api_version=(1, 51),
    runtimes=("nvidia", "runc"),
    devices=tuple(f"nvidia.com/gpu={gpu.uuid}" for gpu in GPUS),
    cdi_directories=("/etc/cdi", "/var/run/cdi"),
    cgroup_driver="systemd",
    cgroup_version="2",
    root="/var/lib/docker",
    live_restore=False,
)
OLD = replace(FACTS, version="20.10.24", api_version=(1, 41), devices=(), cdi_directories=(), runtimes=("runc",))
CDI = CdiFile("/etc/cdi/nvidia.yaml", ("0", "1", "all", *(gpu.uuid for gpu in GPUS)), DRIVER)
TOOLKIT = Toolkit(
    ctk=Program("/usr/bin/nvidia-ctk", NOW_S - 9000),
    hook=Program("/usr/bin/nvidia-container-runtime-hook", NOW_S - 9000),
    runtime=Program("/usr/bin/nvidia-container-runtime", NOW_S - 9000),
    cdi=(CDI,),
)
SNAPSHOT = GpuSnapshot(
    at_s=0.0,
    up=True,
    driver_version=DRIVER,
    gpus=GPUS,
    readings={gpu.uuid: GpuReading(at_s=0.0, persistence=True, mig_enabled=False) for gpu in GPUS},
)
HEALTHY = CheckFacts(
    config=Config(image=IMAGE),
    host=HostState(
        kernel="6.1.0-18-amd64",
        architecture="x86_64",
        distribution="apt",
        ubuntu=False,
        user="svc",
        root=False,
        now_s=NOW_S,
        synchronized=True,
        memory_bytes=256 * GIBIBYTE,
        free_memory_bytes=200 * GIBIBYTE,
        open_files=1 << 19,
        docker_group=True,
    ),
    engine=EngineState(
        Reach.UP,
        socket_group="docker",
        facts=FACTS,
        started_s=NOW_S - 6000,
        free_bytes=500 * GIBIBYTE,
        images_root="/var/lib/docker",
    ),
    image=ImageState(SEEN, created_s=NOW_S - 90000, architecture="amd64"),
    driver=DriverState(
        cards=2,
        module_version=DRIVER,
        module_built=True,
        nouveau=False,
        library="/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1",
        library_version=DRIVER,
        uvm_node=True,
        persistenced=True,
    ),
    nvml=Nvml(SNAPSHOT),
    toolkit=TOOLKIT,
)


def broken(**parts: Mapping[str, Any] | object) -> CheckFacts:
    """The healthy host, but: `broken(host={"synchronized": False})` changes a field of a part, a value replaces the part."""
    changed = {
        name: replace(getattr(HEALTHY, name), **part) if isinstance(part, dict) else part
        for name, part in parts.items()
    }
    return replace(HEALTHY, **changed)  # type: ignore[arg-type]


def reading(**values: object) -> Nvml:
    """The first GPU reads so."""
    first = SNAPSHOT.readings[GPUS[0].uuid]._replace(**values)  # type: ignore[arg-type]
    return Nvml(replace(SNAPSHOT, readings={**SNAPSHOT.readings, GPUS[0].uuid: first}))


def container(name: str, *, mine: bool = False, slot: int | None = None, port: int = 0, **more: Any) -> ContainerThere:
    values: dict[str, Any] = {
        "id": "c" * 64,
        "name": name,
        "mine": mine,
        "slot": slot,
        "gpus": (),
        "running": True,
        "ports": (("127.0.0.1", port),) if port else (),
    }
    return ContainerThere(**{**values, **more})
