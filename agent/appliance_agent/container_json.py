"""The body of `POST /containers/create` for a slot. Pure: which device nodes exist is told, see `device_nodes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from appliance_agent.injection import NVIDIA_RUNTIME, cdi_name
from appliance_agent.spec import (
    LABEL_GPUS,
    LABEL_MANAGED,
    LABEL_RELEASE,
    LABEL_RELEASE_JSON,
    LABEL_SLOT,
    LABEL_SPEC,
    ContainerSpec,
    Injection,
)
from appliance_image.contract import ENVIRONMENT, MODELS_DIRECTORY

SERVER_PORT: Final = 11434
_NO_GPU: Final = "void"  # the image's own default is all
_PORT: Final = f"{SERVER_PORT}/tcp"

Body = Mapping[str, object]


def render(spec: ContainerSpec, *, prefix: str, nodes: Sequence[str] = ()) -> Body:
    release = spec.release
    return {
        "Image": release.image_id,
        "Labels": _labels(spec, prefix),
        "Env": [f"{name}={value}" for name, value in sorted(_environment(spec).items())],
        "User": release.user,
        "ExposedPorts": {_PORT: {}},
        "StopTimeout": release.stop_timeout_s,
        "Healthcheck": {"Test": ["NONE"]},  # the agent judges
        "HostConfig": {**_host(spec), **_injection(spec, nodes)},
    }


def _labels(spec: ContainerSpec, prefix: str) -> Mapping[str, str]:
    return {
        LABEL_MANAGED: prefix,
        LABEL_SLOT: str(spec.plan.index),
        LABEL_GPUS: ",".join(spec.plan.gpus),
        LABEL_SPEC: spec.hash,
        LABEL_RELEASE: spec.release.hash,
        LABEL_RELEASE_JSON: spec.release.render(),
    }


def _environment(spec: ContainerSpec) -> Mapping[str, str]:
    """A baked image has the contract's variables; a plain one with a store gets them here."""
    return {
        **(ENVIRONMENT if spec.release.store else {}),
        **dict(spec.release.environment),
        "OLLAMA_HOST": f"0.0.0.0:{SERVER_PORT}",
        "NVIDIA_VISIBLE_DEVICES": ",".join(spec.plan.gpus) or _NO_GPU,
    }


def _host(spec: ContainerSpec) -> Body:
    release = spec.release
    logs = {"max-size": str(release.log_max_bytes), "max-file": str(release.log_max_files)}
    return {
        "PortBindings": {_PORT: [{"HostIp": release.address, "HostPort": str(spec.plan.port)}]},
        "RestartPolicy": {"Name": "no"},  # the agent is the only supervisor
        "LogConfig": {"Type": "json-file", "Config": logs},
        "ReadonlyRootfs": release.read_only,
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges"],
        "Init": True,
        "ShmSize": release.shm_bytes,
        "Memory": release.memory_bytes,
        "Tmpfs": {"/tmp": "mode=1777"},  # noqa: S108 - the container's own
        "Mounts": [_store(release.store)] if release.store else [],
    }


def _store(path: str) -> Body:
    return {"Type": "bind", "Source": path, "Target": MODELS_DIRECTORY, "ReadOnly": True}


def _injection(spec: ContainerSpec, nodes: Sequence[str]) -> Body:
    uuids = list(spec.plan.gpus)
    if not uuids:
        return {}
    match spec.release.injection:
        case Injection.CDI:
            return {"DeviceRequests": [{"Driver": "cdi", "DeviceIDs": [cdi_name(uuid) for uuid in uuids]}]}
        case Injection.RUNTIME:
            return {"Runtime": NVIDIA_RUNTIME}
        case Injection.DEVICE_REQUEST:
            request = {"Driver": "", "DeviceIDs": uuids, "Capabilities": [["gpu"]]}
            return {"DeviceRequests": [request], "Devices": [_node(path) for path in nodes]}
        case Injection.NONE:
            return {}


def _node(path: str) -> Body:
    return {"PathOnHost": path, "PathInContainer": path, "CgroupPermissions": "rwm"}
