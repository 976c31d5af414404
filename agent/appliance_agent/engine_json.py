"""The Docker Engine's JSON as values: containers, obstacles, images, facts. Pure; what is missing has a quiet default."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from appliance_agent.containers import ContainerSeen, EngineFacts, ImageSeen, Obstacle
from appliance_agent.spec import (
    LABEL_GPUS,
    LABEL_MANAGED,
    LABEL_RELEASE,
    LABEL_RELEASE_JSON,
    LABEL_SLOT,
    LABEL_SPEC,
    Release,
    SlotPlan,
)
from appliance_image.contract import LABEL_LAYOUT, ContractError
from appliance_image.labels import Labels

Json = Mapping[str, Any]
NO_SLOT: Final = -1  # of a container with our label and without a number


def parse_container(body: Json) -> ContainerSeen:
    """From `GET /containers/ID/json`."""
    state: Json = body.get("State") or {}
    labels = labels_of(body)
    return ContainerSeen(
        id=str(body["Id"]),
        name=str(body.get("Name", "")).removeprefix("/"),
        **_ours(labels),
        image_id=str(body.get("Image", "")),
        status=str(state.get("Status", "")),
        pid=int(state.get("Pid") or 0),
        started_at_s=parse_time(str(state.get("StartedAt", ""))),
        finished_at_s=parse_time(str(state.get("FinishedAt", ""))),
        exit_code=int(state.get("ExitCode") or 0),
        oom_killed=bool(state.get("OOMKilled")),
        error=str(state.get("Error", "")),
    )


def parse_row(row: Json, before: ContainerSeen | None) -> ContainerSeen:
    """From a row of `GET /containers/json`, for a container that cannot be inspected now; the rest is as it was."""
    status = str(row.get("State", ""))
    if before:
        return replace(before, name=row_name(row), status=status, pid=before.pid if status == "running" else 0)
    return ContainerSeen(
        id=str(row["Id"]),
        name=row_name(row),
        **_ours(row.get("Labels") or {}),
        image_id=str(row.get("ImageID", "")),
        status=status,
        pid=0,
        started_at_s=0.0,
        finished_at_s=0.0,
        exit_code=0,
        oom_killed=False,
        error="",
    )


def row_name(row: Json) -> str:
    names: Sequence[str] = row.get("Names") or ()
    return next((name.removeprefix("/") for name in names if name.count("/") == 1), "")  # others are links


def managed_by(labels: Mapping[str, str], prefix: str) -> bool:
    return labels.get(LABEL_MANAGED) == prefix


def parse_obstacles(
    rows: Iterable[Json], plans: Sequence[SlotPlan], *, prefix: str, address: str
) -> tuple[Obstacle, ...]:
    """Of all containers: those of others that have a slot's name, or publish its port where we would."""
    foreign = [row for row in rows if not managed_by(row.get("Labels") or {}, prefix)]
    found = [
        Obstacle(plan.index, row_name(row), f"name {plan.name}")
        for plan in plans
        for row in foreign
        if plan.name == row_name(row)
    ]
    found += [
        Obstacle(plan.index, row_name(row), f"port {plan.port}")
        for plan in plans
        for row in foreign
        if _publishes(row, plan.port, address)
    ]
    return tuple(found)


def _publishes(row: Json, port: int, address: str) -> bool:
    ports: Sequence[Json] = row.get("Ports") or ()
    return any(
        entry.get("PublicPort") == port
        and entry.get("Type", "tcp") == "tcp"
        and _overlap(str(entry.get("IP", "")), address)
        for entry in ports
    )


def _overlap(one: str, other: str) -> bool:
    try:
        first, second = ipaddress.ip_address(one or "0.0.0.0"), ipaddress.ip_address(other)
    except ValueError:
        return True
    if first.is_unspecified or second.is_unspecified:
        return first.version == second.version or first.is_unspecified  # "::" of an engine takes both
    return first == second


def parse_image(reference: str, body: Json) -> ImageSeen:
    """From `GET /images/NAME/json`. A plain Ollama image has no labels of ours, which is no problem."""
    labels = labels_of(body)
    parsed, problem = None, ""
    if LABEL_LAYOUT in labels:
        try:
            parsed = Labels.parse(labels)
        except ContractError as error:
            problem = f"{error.message}; {error.hint}"
    return ImageSeen(
        reference=reference,
        id=str(body.get("Id", "")),
        digest=_digest(reference, body.get("RepoDigests") or ()),
        size_bytes=int(body.get("Size") or 0),
        labels=parsed,
        problem=problem,
    )


def absent_image(reference: str) -> ImageSeen:
    return ImageSeen(reference=reference, id="", digest="", size_bytes=0, labels=None)


def _digest(reference: str, digests: Sequence[str]) -> str:
    """The one of the repository that was asked for, else any."""
    repository = reference.partition("@")[0]
    if ":" in repository.rpartition("/")[2]:
        repository = repository.rpartition(":")[0]
    same = [digest for digest in digests if digest.partition("@")[0] == repository]
    return (same or list(digests) or [""])[0]


def parse_facts(version: Json, info: Json, specified: Iterable[str] = ()) -> EngineFacts:
    """`specified`: the CDI names that stand in specifications, where the engine has none to tell."""
    devices: Sequence[Json] = info.get("DiscoveredDevices") or ()
    return EngineFacts(
        version=str(version.get("Version", "")),
        api_version=parse_api_version(str(version.get("ApiVersion", ""))),
        runtimes=tuple(sorted(info.get("Runtimes") or {})),
        devices=tuple(str(device.get("ID", "")) for device in devices if device.get("Source", "cdi") == "cdi"),
        cdi_directories=tuple(info.get("CDISpecDirs") or ()),
        cgroup_driver=str(info.get("CgroupDriver", "")),
        cgroup_version=str(info.get("CgroupVersion", "")),
        root=str(info.get("DockerRootDir", "")),
        live_restore=bool(info.get("LiveRestoreEnabled")),
        specified=tuple(sorted(specified)),
    )


def parse_api_version(text: str) -> tuple[int, int]:
    major, _, minor = text.partition(".")
    return (int(major), int(minor)) if major.isdecimal() and minor.isdecimal() else (0, 0)


def parse_time(text: str) -> float:
    """Seconds since the epoch; 0 for the engine's way to say never, and for what is no time."""
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp())
    except (ValueError, OverflowError):
        return 0.0


def labels_of(body: Json) -> Mapping[str, str]:
    config: Json = body.get("Config") or {}
    return config.get("Labels") or {}


def _release(labels: Mapping[str, str]) -> Release | None:
    try:
        return Release.parse(labels.get(LABEL_RELEASE_JSON, ""))
    except ValueError:
        return None


def _ours(labels: Mapping[str, str]) -> dict[str, Any]:
    slot = labels.get(LABEL_SLOT, "")
    return {
        "slot": int(slot) if slot.isdecimal() else NO_SLOT,
        "spec_hash": labels.get(LABEL_SPEC, ""),
        "release_hash": labels.get(LABEL_RELEASE, ""),
        "release": _release(labels),
        "gpus": tuple(uuid for uuid in labels.get(LABEL_GPUS, "").split(",") if uuid),
    }
