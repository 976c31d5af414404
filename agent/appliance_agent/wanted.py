"""Which release the configuration, the image and the engine together ask for, or why that cannot be said yet. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from appliance_agent.config import Config
from appliance_agent.containers import ImageSeen
from appliance_agent.spec import Injection, Release
from appliance_image import contract


@dataclass(frozen=True, slots=True)
class Wish:
    release: Release | None
    problem: str = ""  # why there is none, in words


def wish(config: Config, image: ImageSeen | None, injection: Injection | None) -> Wish:
    if image is None or image.reference != config.image:
        return Wish(None, f"the engine was not asked for {config.image} yet")
    if problem := _problem(config, image):
        return Wish(None, problem)
    if injection is None:
        return Wish(None, "it is not known yet how containers get GPUs")
    model = config.model or (image.labels.model if image.labels else "")
    return Wish(_release(config, image, model, injection))


def _problem(config: Config, image: ImageSeen) -> str:
    name = config.image
    if not image.id:
        advice = "; `pull` is `never`: load it with `docker load`" if config.pull == "never" else ""
        return f"{name} is not on this host{advice}"
    if image.problem:
        return f"{name}: {image.problem}"
    if image.labels is not None and config.store:
        return f"{name} has its weights inside; leave `store` out, or name a plain Ollama image"
    if image.labels is None and not config.model:
        return f"{name} does not say which model is in it: set `model`, and `store` if it has none"
    return ""


def _release(config: Config, image: ImageSeen, model: str, injection: Injection) -> Release:
    container = config.container
    own = dict(contract.ENVIRONMENT) if config.store else {}
    return Release(
        image=config.image,
        image_id=image.id,
        model=model,
        environment=tuple(sorted((own | dict(container.environment)).items())),
        store=config.store,
        user=container.user,
        read_only=container.read_only,
        memory_bytes=container.memory_bytes,
        shm_bytes=container.shm_bytes,
        stop_timeout_s=container.stop_timeout_s,
        log_max_bytes=container.log_max_bytes,
        log_max_files=container.log_max_files,
        address=config.address,
        injection=injection,
    )
