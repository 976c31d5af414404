"""`verify --smoke`: gets the image into the engine if it is not there, runs it, asks, judges, and leaves nothing."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from appliance_builder.engine_container import running
from appliance_builder.engine_sink import EngineSink
from appliance_builder.finished import FinishedImage
from appliance_builder.images import OpenImage, PlatformImage, split_scheme
from appliance_builder.moving import Learning, carry_out
from appliance_builder.network_errors import NetworkError
from appliance_builder.rebasing import plan_push
from appliance_builder.smoke import SmokeError, ask, judge, load_s, wait_until_up
from appliance_builder.workshop import Workshop
from appliance_image.labels import THINK_PATCHED
from appliance_image.reference import ImageReference


def smoke(
    opened: OpenImage, entry: PlatformImage, finished: FinishedImage, question: str, *, gpus: bool, shop: Workshop
) -> None:
    with ExitStack() as stack:
        image = _in_engine(opened, entry, shop, stack)
        shop.reporter.step(f"smoke test: starting {image} read-only and without rights")
        container = stack.enter_context(running(shop.engine, image, gpus=gpus))
        url = container.url
        try:
            wait_until_up(shop.http, url, alive=container.alive)
            teller = _Teller()
            silent_s = load_s(sum(layer.size for layer in finished.weights))
            spoken = ask(
                *(shop.http, url), model=finished.labels.model, question=question, told=teller.told, silent_s=silent_s
            )
            teller.end()
            judge(spoken, must_think=finished.labels.think == THINK_PATCHED)
        except (SmokeError, NetworkError) as error:
            hint = error.hint if isinstance(error, SmokeError) else "see what it said above"
            raise SmokeError(f"{error.message}; the container said:\n{container.log()}", hint=hint) from error
        rate = f", {spoken.done.tokens_per_s:.0f} tokens/s" if spoken.done.tokens_per_s else ""
        shop.reporter.step(f"smoke test passed: first token after {spoken.first_token_s:.1f} s{rate}")


def _in_engine(opened: OpenImage, entry: PlatformImage, shop: Workshop, stack: ExitStack) -> str:
    """The name or id to run; an image that was brought in for this is removed again."""
    scheme, rest = split_scheme(opened.name)
    if scheme == "docker-daemon:":
        return rest
    present = shop.engine.image(str(opened.reference)) if opened.reference else None
    if present and present.id in (entry.descriptor.digest, entry.manifest.config.digest):
        return str(present.id)
    name = ImageReference.parse(f"appliance-smoke:{entry.descriptor.digest.short}")
    if shop.engine.image(str(name)) is None:
        stack.callback(_remove, shop, name)
    sink = EngineSink(shop.engine, name, shop.reporter)
    carry_out(plan_push(opened, [entry]), [sink], learning=Learning(shop.layers, None), reporter=shop.reporter)
    return str(name)


def _remove(shop: Workshop, name: ImageReference) -> None:
    shop.engine.client.call("DELETE", f"images/{name}", doing="removing the image of the smoke test", force="1")


class _Teller:
    """Writes thinking and answer to stderr as they come, each announced once."""

    def __init__(self) -> None:
        self._part = ""

    def told(self, thinking: str, content: str) -> None:
        for part, text in (("thinking", thinking), ("answer", content)):
            if text:
                lead = "" if self._part == part else f"\n{part:>8}: "
                sys.stderr.write(lead + text)
                self._part = part
        sys.stderr.flush()

    def end(self) -> None:
        sys.stderr.write("\n")
