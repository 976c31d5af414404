"""Image, registry, disk and store as findings: is there something to run, and can it be had. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from appliance_agent.check_facts import SERVICE_USER, Answer, CheckFacts, ImageState, StoreState
from appliance_agent.containers import ImageSeen
from appliance_agent.finding import Finding, error, fine, size, warning
from appliance_image.contract import OLLAMA_MINIMUM_FOR_THINK
from appliance_image.errors import ApplianceError
from appliance_image.labels import THINK_PATCHED, Labels
from appliance_image.reference import DOCKER_HUB, ImageReference, ModelName

_TOPIC = "image"
_GIBIBYTE = 1024**3
_UNPACKED = 2  # the layers as they come, and unpacked
_TIGHT_BYTES = 10 * _GIBIBYTE  # free, where nobody knows how large the image is
_MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
_LOAD = "docker.com/reference/cli/docker/image/load"


def image_findings(facts: CheckFacts) -> Iterator[Finding]:
    image = facts.image
    if image.seen is None:
        return
    if not image.seen.id:
        yield _absent(facts, image)
        yield from _disk(facts, image)
        return
    yield from _present(facts, image.seen)
    yield from _age(facts, image)


def _absent(facts: CheckFacts, image: ImageState) -> Finding:
    reference, host = facts.config.image, _registry(facts.config.image)
    there = image.answer is Answer.THERE
    if there and facts.config.pull != "never":
        return fine(_TOPIC, "image-to-pull", f"{reference} is not on this host yet; {host} has it, the agent pulls it")
    if image.answer in (Answer.NO_SUCH_IMAGE, Answer.DENIED, Answer.UNREACHABLE):
        return _refused(facts, host, image)
    never = ", and `pull` is `never`" if facts.config.pull == "never" else ""
    says = f", and {host} says: {image.detail}" if image.detail else ""
    return error(_TOPIC, "image-absent", f"{reference} is not on this host{never or says}", f"docker pull {reference}")


def _refused(facts: CheckFacts, host: str, image: ImageState) -> Finding:
    reference = facts.config.image
    if image.answer is Answer.NO_SUCH_IMAGE:
        return error(
            _TOPIC,
            "image-unknown",
            f"{reference} is not on this host, and {host} has no such image",
            f"appliance build MODEL -t {reference} --push   # on the machine that builds images",
            "# or correct `image` in the configuration",
        )
    if image.answer is Answer.DENIED:
        known = "the stored credentials are not good enough" if image.credentials else "no credentials are stored"
        return error(
            _TOPIC,
            "registry-denied",
            f"{reference} is not on this host, and {host} refuses to give it: {known}",
            _log_in(facts, host),
            see="`docker_config` in [engine] names the directory of config.json",
        )
    return error(
        _TOPIC,
        "registry-unreachable",
        f"{reference} is not on this host, and the Docker Engine cannot reach {host}: {image.detail}",
        f"curl -sSI {_url(host)}/v2/",
        f"docker load -i IMAGE.tar   # written by `docker save -o IMAGE.tar {reference}` on a host that has it",
        see=_LOAD,
    )


def _log_in(facts: CheckFacts, host: str) -> str:
    if directory := facts.config.engine.docker_config:
        return (
            f"sudo docker --config {directory} login {host}   # and let the agent's user read {directory}/config.json"
        )
    if facts.host.service_home:
        return f"sudo -H -u {SERVICE_USER} -g docker docker login {host}"
    return f"docker login {host}"


def _registry(reference: str) -> str:
    try:
        return ImageReference.parse(reference).host
    except ApplianceError:
        return "the registry"


def _url(host: str) -> str:
    name = "registry-1.docker.io" if host == DOCKER_HUB else host
    return f"http://{name}" if name.startswith(("localhost", "127.")) else f"https://{name}"


def _disk(facts: CheckFacts, image: ImageState) -> Iterator[Finding]:
    free = facts.engine.free_bytes
    if free is None or facts.config.pull == "never":
        return
    where = facts.engine.images_root
    fix = (
        "docker system df; docker image prune   # what may go",
        f'df -h {where}   # or move "data-root" to a larger disk',
    )
    needed = _UNPACKED * image.download_bytes if image.download_bytes is not None else None
    if needed is not None and free < needed:
        yield error(
            "disk",
            "disk-small",
            f"{size(free)} are free in {where}, the image needs about {size(needed)} while it is pulled and unpacked",
            *fix,
            see="docs.docker.com/engine/daemon/#daemon-data-directory",
        )
    elif needed is None and free < _TIGHT_BYTES:
        yield warning(
            "disk", "disk-tight", f"only {size(free)} are free in {where}, where the image has to be unpacked", *fix
        )
    elif needed is not None:
        yield fine("disk", "disk", f"{size(free)} are free in {where}, the image needs about {size(needed)}")


def _present(facts: CheckFacts, image: ImageSeen) -> Iterator[Finding]:
    config, labels, reference = facts.config, image.labels, image.reference
    if image.problem:
        newer = "layout version" in image.problem
        yield error(
            _TOPIC,
            "image-layout" if newer else "image-labels",
            f"{reference}: {image.problem}",
            "scripts/install-agent   # of a newer release" if newer else f"appliance build MODEL -t {reference}",
        )
        return
    yield from _machine(facts)
    if labels is None:
        yield from _plain(facts)
    elif config.store:
        yield error(
            _TOPIC,
            "image-and-store",
            f"{reference} has its weights inside, and `store` names others",
            "# leave `store` out of the configuration, or name a plain Ollama image, for example `ollama/ollama:0.13.5`",
        )
    else:
        yield fine(_TOPIC, "image", f"{reference}: {labels.model}, {labels.quantization}, {size(labels.weights_bytes)}")
        yield from _age_of_ollama(labels, reference)
        if config.model and config.model != labels.model:
            yield error(
                _TOPIC,
                "image-model",
                f"`model` says `{config.model}`, and {reference} has `{labels.model}`",
                f'# set `model = "{labels.model}"`, or leave it out',
            )


def _plain(facts: CheckFacts) -> Iterator[Finding]:
    config = facts.config
    if config.store:
        yield fine(_TOPIC, "image", f"{config.image}, with models from {config.store}")
    elif config.model:
        yield warning(
            _TOPIC,
            "image-plain",
            f"{config.image} is not an appliance image: only its start shows whether `{config.model}` is in it",
            f"appliance build {config.model} -t {config.image}-{config.model.rpartition(':')[0] or config.model}",
        )
    else:
        yield error(
            _TOPIC,
            "image-plain",
            f"{config.image} is not an appliance image, and no `store` says where the models are",
            "appliance build MODEL -t IMAGE   # and set `image`; or set `store` and `model`",
        )


def _machine(facts: CheckFacts) -> Iterator[Finding]:
    wanted, has = facts.image.architecture, _MACHINES.get(facts.host.architecture, facts.host.architecture)
    if wanted and wanted != has:
        yield error(
            _TOPIC,
            "image-architecture",
            f"{facts.config.image} is for {wanted}, this host is {has}",
            f"docker pull --platform linux/{has} {facts.config.image}",
        )


def _age_of_ollama(labels: Labels, reference: str) -> Iterator[Finding]:
    version = _version(labels.ollama_version)
    least = ".".join(map(str, OLLAMA_MINIMUM_FOR_THINK))
    if version and version < OLLAMA_MINIMUM_FOR_THINK and labels.think == THINK_PATCHED:
        yield warning(
            _TOPIC,
            "ollama-old",
            f"{reference} has Ollama {labels.ollama_version}: before {least} a model that always thinks answers "
            "without the opening tag",
            f"appliance rebase {reference} --base ollama/ollama:{least} --push",
        )
    elif version and version < OLLAMA_MINIMUM_FOR_THINK:
        yield warning(
            _TOPIC,
            "ollama-old",
            f"{reference} has Ollama {labels.ollama_version}, this agent is tested with {least} and newer",
            f"appliance rebase {reference} --base ollama/ollama:{least} --push",
        )


def _version(text: str) -> tuple[int, ...]:
    words = text.partition("-")[0].split(".")
    return tuple(map(int, words)) if all(word.isdecimal() for word in words) else ()


def _age(facts: CheckFacts, image: ImageState) -> Iterator[Finding]:
    if image.created_s is not None and image.created_s > facts.host.now_s + 60:
        yield warning(
            "host",
            "clock-behind",
            "the host's clock is behind the time at which the image was made: TLS and tokens may fail",
            "sudo timedatectl set-ntp true && timedatectl",
        )


def store_findings(facts: CheckFacts) -> Iterator[Finding]:
    config, store = facts.config, facts.store
    if store is None:
        return
    if finding := _broken_store(facts, store):
        yield finding
        return
    yield fine("store", "store", f"{config.store} has `{config.model}`, user {config.container.user} can read it")


def _broken_store(facts: CheckFacts, store: StoreState) -> Finding | None:
    config = facts.config
    if store.problem:
        return error(
            "store",
            "store-absent",
            f"the store {config.store} cannot be used: {store.problem}",
            "# set `store` to the server's OLLAMA_MODELS, for example /usr/share/ollama/.ollama/models",
            f"sudo OLLAMA_MODELS={config.store} ollama pull {config.model}",
        )
    if not store.manifest:
        close = get_close_matches(_short(config.model), store.models, 1, 0.6)
        there = f"did you mean `{close[0]}`?" if close else _there(store)
        return error(
            "store",
            "store-model",
            f"`{config.model}` is not in the store {config.store} ({there})",
            f"ollama pull {config.model}   # by the server that owns the store",
        )
    if store.missing_blobs:
        return error(
            "store",
            "store-incomplete",
            f"`{config.model}` is not whole in {config.store}: {store.missing_blobs} of its files are missing",
            f"ollama pull {config.model}   # by the server that owns the store: it fetches what is missing",
        )
    if store.unreadable:
        return error(
            "store",
            "store-unreadable",
            f"user {config.container.user} of the containers cannot read {store.unreadable}",
            f"sudo chmod -R a+rX {config.store}",
            *((f'# or set `user = "{store.owner}"` in [container]',) if store.owner else ()),
        )
    return None


def _there(store: StoreState) -> str:
    if not store.models:
        return "it holds no model at all"
    return "it holds " + ", ".join(store.models[:5]) + (" …" if len(store.models) > 5 else "")


def _short(name: str) -> str:
    try:
        return ModelName.parse(name).short
    except ApplianceError:
        return name
