"""What an engine's complaint means for a person. Pure.

That something went wrong is decided by status codes; only which advice fits stands nowhere but in the words. They are
those of Docker Engine 20.10 to 29 and of NVIDIA's toolkit; the tests hear them from real engines. An unknown complaint is
passed on as it is.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from appliance_agent.spec import ContainerSpec

_LOG: Final = "the engine's log tells more: `journalctl -u docker -n 50`"
_TOOLKIT: Final = (
    "install the NVIDIA Container Toolkit, then `nvidia-ctk runtime configure --runtime=docker` and "
    "`systemctl restart docker`, which finds it only when it starts"
)
_CDI: Final = (
    "`nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml` writes the specification anew (or "
    "`systemctl start nvidia-cdi-refresh`); `nvidia-ctk cdi list` shows what it names"
)


@dataclass(frozen=True, slots=True)
class Complaint:
    message: str
    hint: str = _LOG
    obstacle: bool = False  # only a person can help
    host_wide: bool = False  # and no other slot could start either
    release: bool = False  # because the release asks for what this host does not have


@dataclass(frozen=True, slots=True)
class _Meaning:
    words: str  # a regular expression
    message: str  # with the facts in braces; "" keeps the engine's
    hint: str
    obstacle: bool
    host_wide: bool = False
    release: bool = False


_START: Final = (
    _Meaning(
        r"port is already allocated",
        "port {port} is published by another container",
        "`docker ps --filter publish={port}` shows which; remove it, or choose another `base_port`",
        obstacle=True,
    ),
    _Meaning(
        r"address already in use",
        "port {port} is in use by a program of this host",
        "`ss -ltnp 'sport = :{port}'` shows which; stop it, or choose another `base_port`",
        obstacle=True,
    ),
    _Meaning(
        r"cannot assign requested address",
        "address {address} is none of this host's",
        "`ip address` lists them; correct `address`",
        obstacle=True,
        host_wide=True,
        release=True,
    ),
    _Meaning(
        r"could not select device driver",
        "the Docker Engine knows no way to hand out GPUs: {detail}",
        _TOOLKIT,
        obstacle=True,
        host_wide=True,
    ),
    _Meaning(
        r"(?i:unknown) runtime specified|unknown or invalid runtime name",
        "the Docker Engine has no runtime `nvidia`",
        _TOOLKIT,
        obstacle=True,
        host_wide=True,
    ),
    _Meaning(r"unresolvable CDI devices", "no CDI specification names {gpus}", _CDI, obstacle=False),
    _Meaning(
        r"driver/library version mismatch",
        "the NVIDIA driver was changed without a reboot: its library and its kernel module differ",
        "`reboot`, or unload and load the kernel module",
        obstacle=True,
        host_wide=True,
    ),
    _Meaning(
        r"nvidia-container-cli: device error|unknown device",
        "NVIDIA's toolkit does not find {gpus}",
        "`nvidia-smi -L` lists the GPUs of this host",
        obstacle=False,
    ),
    _Meaning(
        r"nvidia-container-cli|nvidia-container-runtime",
        "",
        "`nvidia-smi` shows whether the driver works; `nvidia-container-cli -k -d /dev/tty info` says more",
        obstacle=False,
    ),
    _Meaning(
        r"error gathering device information",
        "a device node is missing: {detail}",
        "`nvidia-modprobe -u -c=0` makes the nodes; enable nvidia-persistenced to have them at boot",
        obstacle=False,
    ),
    _Meaning(
        r"[Nn]o such image",
        "the image {image} is not on this host any more",
        "`docker pull {reference}` brings it back; something on this host removes images, perhaps `docker image prune -a`",
        obstacle=True,
        host_wide=True,
    ),
    _Meaning(
        r"docker-init.*executable file not found",
        "the Docker Engine lacks its `docker-init`",
        "install it: the package `tini` on Debian, `docker-ce` elsewhere",
        obstacle=True,
    ),
    _Meaning(
        r"bind source path does not exist",
        "the store {store} is not there",
        "correct `store`, or mount what belongs there",
        obstacle=True,
        host_wide=True,
        release=True,
    ),
    _Meaning(
        r"no space left on device",
        "",
        "make room where the engine keeps its data: `docker system df`, `docker image prune`",
        obstacle=False,
    ),
)

_PULL: Final = (
    _Meaning(
        r"no space left on device",
        "the disk is full: {text}",
        "make room in {root}: `docker system df`, `docker image prune`",
        obstacle=False,
    ),
    _Meaning(
        r"unauthorized|authoriz|no basic auth|denied|\b40[13]\b",
        "{host} does not give {reference} to this login: {text}",
        "`docker login {host}` as the agent's user, or set `engine.docker_config` to a directory with a login",
        obstacle=False,
    ),
    _Meaning(
        r"^404|manifest unknown|not found",
        "{host} has no image {reference}",
        "correct `image`, or push it there",
        obstacle=False,
    ),
    _Meaning(
        r"server gave HTTP response to HTTPS client",
        "{text}",
        '{host} speaks plain HTTP: name it in `"insecure-registries"` of /etc/docker/daemon.json',
        obstacle=False,
    ),
    _Meaning(
        r"x509|certificate",
        "{text}",
        "put the certificate of its authority into /etc/docker/certs.d/{host}/ca.crt",
        obstacle=False,
    ),
    _Meaning(
        r"dial tcp|no such host|timeout|i/o|refused|unreachable|EOF|reset|TLS handshake|deadline",
        "registry {host} cannot be reached: {text}",
        "`curl -sS https://{host}/v2/` shows whether this host reaches it; a proxy is set for the engine itself",
        obstacle=False,
    ),
)


def about_start(text: str, spec: ContainerSpec) -> Complaint:
    """`text` is what the engine answered to a create or a start that failed."""
    detail = text.rpartition("error: ")[2] or text
    facts = {
        "port": str(spec.plan.port),
        "address": spec.release.address,
        "gpus": ", ".join(spec.plan.gpus),
        "store": spec.release.store,
        "image": f"{spec.release.image} ({spec.release.image_id})",
        "reference": spec.release.image,
        "detail": detail,
    }
    for meaning in _START:
        if re.search(meaning.words, text):
            message = meaning.message.format(**facts) or text
            hint = meaning.hint.format(**facts)
            return Complaint(message, hint, meaning.obstacle, meaning.host_wide, meaning.release)
    return Complaint(text)


def about_pull(text: str, status: int | None, *, reference: str, host: str, root: str) -> Complaint:
    """`status` is None for an error in mid-pull."""
    facts = {"reference": reference, "host": host, "root": root or "the Docker Engine's data directory", "text": text}
    said = f"{status or ''} {text}"
    for meaning in _PULL:
        if re.search(meaning.words, said):
            return Complaint(meaning.message.format(**facts), meaning.hint.format(**facts))
    return Complaint(text)
