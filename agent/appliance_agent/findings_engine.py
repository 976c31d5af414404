"""The Docker Engine as findings: can it be reached, is it new enough, is it the right kind. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from appliance_agent.check_facts import CheckFacts, EngineState, Reach
from appliance_agent.finding import Finding, error, fine, warning

_TOPIC = "engine"
ENGINE_OLDEST = (1, 41)
_INSTALL = "docs.docker.com/engine/install"
_POSTINSTALL = f"{_INSTALL}/linux-postinstall"


def engine_findings(facts: CheckFacts) -> Iterator[Finding]:
    engine = facts.engine
    if engine.reach is not Reach.UP:
        yield _unreachable(facts)
        return
    if engine.slow:
        yield _slow(engine)
    elif engine.facts is None:
        yield error(
            _TOPIC,
            "engine-broken",
            f"the Docker Engine does not say what it is: {engine.detail or 'no answer to /info'}",
            "sudo journalctl -u docker -n 50",
        )
    if engine.facts is None:
        return
    version = f"Docker Engine {engine.facts.version}"
    api = ".".join(map(str, engine.facts.api_version))
    if engine.facts.api_version < ENGINE_OLDEST:
        yield error(
            _TOPIC,
            "engine-old",
            f"{version} speaks API {api}, the agent needs 1.41 (Docker Engine 20.10) or newer",
            _upgrade(facts),
            see=_INSTALL,
        )
        return
    yield from _kind(facts, version, f"{version}, API {api}, data in {engine.facts.root}")


def _kind(facts: CheckFacts, version: str, description: str) -> Iterator[Finding]:
    if facts.engine.snap:
        yield error(
            _TOPIC,
            "engine-snap",
            f"{version} is the snap: it sees neither NVIDIA's toolkit nor the host's files",
            "sudo snap remove --purge docker && curl -fsSL https://get.docker.com | sudo sh",
            see=_INSTALL,
        )
    else:
        yield fine(_TOPIC, "engine", description)
    if facts.engine.rootless:
        yield warning(
            _TOPIC,
            "engine-rootless",
            f"{version} runs rootless: GPUs need `no-cgroups = true` in NVIDIA's configuration, memory limits may not hold",
            "sudo nvidia-ctk config --set nvidia-container-cli.no-cgroups --in-place",
            see="docs.docker.com/engine/security/rootless",
        )


def _slow(engine: EngineState) -> Finding:
    meaning = "the agent has to wait for it" if engine.facts else "what depends on it is not checked"
    return warning(
        _TOPIC,
        "engine-slow",
        f"the Docker Engine {engine.slow}, and answers other questions: {meaning}",
        "docker node ls   # a Swarm without a quorum delays it by 20 s",
        "sudo journalctl -u docker -n 50",
        see="docs.docker.com/engine/swarm/admin_guide/#recover-from-losing-the-quorum",
    )


def _unreachable(facts: CheckFacts) -> Finding:
    engine, config = facts.engine, facts.config.engine
    match engine.reach:
        case Reach.NO_SOCKET:
            return error(
                _TOPIC,
                "socket-missing",
                f"there is no Docker Engine at {config.socket}",
                "sudo systemctl enable --now docker",
                "# not installed: curl -fsSL https://get.docker.com | sudo sh",
                see=f"{_INSTALL}; another socket is `socket` in [engine]",
            )
        case Reach.FORBIDDEN:
            return _forbidden(facts)
        case Reach.FROZEN:
            return error(
                _TOPIC,
                "engine-frozen",
                f"the Docker Engine takes connections at {config.socket} and does not answer: it is frozen or overloaded"
                + (f" ({engine.detail})" if engine.detail else ""),
                "sudo systemctl status docker --no-pager; sudo journalctl -u docker -n 50",
                "sudo kill -USR1 $(pidof dockerd)   # writes the stacks of all its goroutines to a file",
                "sudo systemctl restart docker",
                see="docs.docker.com/engine/daemon/logs (stack traces)",
            )
        case Reach.REFUSED:
            return error(
                _TOPIC,
                "engine-down",
                f"nobody listens at {config.socket}: the Docker Engine is not running",
                "sudo systemctl start docker; sudo journalctl -u docker -n 50",
                see=f"{_INSTALL}",
            )
        case _:
            return error(
                _TOPIC,
                "engine-broken",
                f"what answers at {config.socket} is no Docker Engine: {engine.detail}",
                f"curl --unix-socket {config.socket} http://localhost/version",
            )


def _forbidden(facts: CheckFacts) -> Finding:
    host, engine = facts.host, facts.engine
    group = engine.socket_group or "docker"
    if host.docker_group:
        return error(
            _TOPIC,
            "group-session",
            f"user `{host.user}` is in the group `{group}`, but this session began before that",
            f"newgrp {group}   # or log out and in again",
            see=_POSTINSTALL,
        )
    if group in ("root", "nogroup"):
        return error(
            _TOPIC,
            "group-missing",
            f"user `{host.user}` may not use {facts.config.engine.socket}, which is root's: there is no group `docker`",
            f"sudo groupadd docker && sudo usermod -aG docker {host.user} && sudo systemctl restart docker.socket docker",
            see=_POSTINSTALL,
        )
    return error(
        _TOPIC,
        "socket-forbidden",
        f"user `{host.user}` may not use {facts.config.engine.socket}: not in the group `{group}`",
        f"sudo usermod -aG {group} {host.user} && newgrp {group}   # this group is as good as root",
        see=_POSTINSTALL,
    )


def _upgrade(facts: CheckFacts) -> str:
    if facts.host.distribution == "dnf":
        return "sudo dnf upgrade docker-ce"
    if facts.host.distribution == "zypper":
        return "sudo zypper update docker"
    return "sudo apt-get update && sudo apt-get install --only-upgrade docker-ce || sudo apt-get install docker.io"
