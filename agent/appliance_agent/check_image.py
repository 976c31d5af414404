"""Asks the engine for the configured image and, where it is absent, for what its registry says. Raises EngineUnseenError."""

from __future__ import annotations

import base64
import ipaddress
import json
import os
from pathlib import Path
from typing import Final

from appliance_agent import check_host, engine_json
from appliance_agent.check_engine import EngineDoor, EngineUnseenError, Reply, image_path
from appliance_agent.check_facts import Answer, ImageState, Reach
from appliance_agent.check_registry import Asking, Login, Said, ask
from appliance_agent.config import Config
from appliance_agent.engine_json import Json
from appliance_image.errors import ApplianceError
from appliance_image.reference import DOCKER_HUB, ImageReference

_HUB_KEY: Final = "https://index.docker.io/v1/"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


def image_state(config: Config, *, deadline_s: float) -> ImageState:
    """The registry has a deadline of its own, begun when the engine has answered."""
    door = EngineDoor(config.engine.socket, timeout_s=deadline_s)
    reply = door.get(f"/images/{image_path(config.image)}/json")
    if reply.status == 404:
        return _absent(config, deadline_s)
    if reply.status != 200:
        raise EngineUnseenError(Reach.BROKEN, reply.message)
    value = reply.value
    return ImageState(
        seen=engine_json.parse_image(config.image, value),
        created_s=engine_json.parse_time(str(value.get("Created", ""))) or None,
        architecture=str(value.get("Architecture", "")),
    )


def _absent(config: Config, deadline_s: float) -> ImageState:
    seen = engine_json.absent_image(config.image)
    try:
        reference = ImageReference.parse(config.image)
    except ApplianceError as error:
        return ImageState(seen, detail=error.message)
    if config.pull == "never":
        return ImageState(seen)
    login = stored_login(login_directory(config), reference.host)
    reply = _by_engine(config, _authority(login, reference.host), deadline_s)
    machine = os.uname().machine
    asking = Asking(
        reference=reference,
        login=login,
        architecture=_MACHINES.get(machine, machine),
        insecure=_is_local(reference.host),
        timeout_s=deadline_s,
    )
    # An engine says 500 for nearly everything that a registry refuses, so the registry is asked as well.
    said = ask(asking) if reply is None or reply.status == 200 or reply.status >= 500 else Said(reply.status)
    answer = Answer.THERE if reply and reply.status == 200 else _answer(said.status)
    return ImageState(
        seen,
        answer=answer,
        detail=_reason(reply, answer, deadline_s),
        download_bytes=said.download_bytes if answer is Answer.THERE else None,
        credentials=login is not None,
    )


def _by_engine(config: Config, headers: dict[str, str], deadline_s: float) -> Reply | None:
    door = EngineDoor(config.engine.socket, timeout_s=deadline_s)
    try:
        return door.get(f"/distribution/{image_path(config.image)}/json", headers)
    except EngineUnseenError:
        return None


def _reason(reply: Reply | None, answer: Answer, deadline_s: float) -> str:
    if reply is None:
        return f"no answer within {deadline_s:g} s"
    return "" if answer is Answer.THERE else reply.message[:300]


def _answer(status: int | None) -> Answer:
    match status:
        case None:
            return Answer.UNREACHABLE
        case 200:
            return Answer.UNKNOWN  # the registry gives it to us, and the engine said no
        case 401 | 403:
            return Answer.DENIED
        case 404:
            return Answer.NO_SUCH_IMAGE
        case _ if status >= 500:
            return Answer.UNREACHABLE
        case _:
            return Answer.UNKNOWN


def login_directory(config: Config) -> str:
    """The service's, where root asks and there is one."""
    if config.engine.docker_config:
        return config.engine.docker_config
    if os.geteuid() == 0 and (home := check_host.service_home()):
        return f"{home}/.docker"
    return os.environ.get("DOCKER_CONFIG") or str(Path("~/.docker").expanduser())


def stored_login(directory: str, host: str) -> Login | None:
    """What `docker login` wrote into config.json; a credential helper is the agent's own to ask, not ours."""
    key = _HUB_KEY if host == DOCKER_HUB else host
    try:
        whole: Json = json.loads(Path(directory, "config.json").read_bytes())
        entries: Json = whole.get("auths") or {}
        entry: Json = entries.get(key) or entries.get(f"https://{key}") or {}
        username, _, password = base64.b64decode(str(entry.get("auth", ""))).decode().partition(":")
    except (OSError, ValueError, AttributeError, RuntimeError):
        return None
    return Login(username, password) if username else None


def _authority(login: Login | None, host: str) -> dict[str, str]:
    if login is None:
        return {}
    text = json.dumps({"username": login.username, "password": login.password, "serveraddress": host})
    return {"X-Registry-Auth": base64.urlsafe_b64encode(text.encode()).decode()}


def _is_local(host: str) -> bool:
    name = host.rpartition(":")[0] if host.count(":") == 1 else host
    try:
        return name == "localhost" or ipaddress.ip_address(name.strip("[]")).is_loopback
    except ValueError:
        return False
