"""`appliance`: the words of the command line, and the one place where an error is told to a person."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
from click.shell_completion import get_completion_class

from appliance_builder import commands
from appliance_builder.request import BuildRequest, Options, Targets
from appliance_image.errors import ApplianceError
from appliance_image.oci import Platform
from appliance_image.reference import ImageReference

_Command = Callable[..., None]
_PATH = click.Path(path_type=Path)

_EPILOG = """
\b
Examples:
  appliance build deepseek-r1-think:32b           into the local Docker Engine
  appliance build deepseek-r1:32b -t registry.lan/ai/r1:32b --push
  appliance build qwen3:8b --from-store auto --output oci-archive:qwen3.tar
  appliance plan deepseek-r1-think:70b -t registry.lan/ai/r1:70b --push

\b
Shell completion: eval "$(appliance completion bash)"
"""


def main() -> None:
    sys.exit(run(sys.argv[1:]))


def run(words: list[str]) -> int:
    """The exit status: 0 done, 1 an error that was told, 2 wrong words, 130 interrupted."""
    try:
        status = cli.main(words, prog_name="appliance", standalone_mode=False)
    except ApplianceError as error:
        _tell(error.message, error.hint, as_json="--json" in words)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        _tell(
            "interrupted",
            "run the same command again: what was downloaded, uploaded or learnt so far is kept",
            as_json="--json" in words,
        )
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.strerror is None:
            raise
        where = f"{error.filename}: " if error.filename is not None else ""
        hint = "check that path and its permissions" if where else "check the disks: `dmesg` tells what is wrong"
        _tell(f"{where}{error.strerror.lower()}", hint, as_json="--json" in words)
        return 1
    return status if isinstance(status, int) else 0


def _tell(message: str, hint: str, *, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps({"event": "error", "message": message, "hint": hint}, ensure_ascii=False), err=True)
    else:
        click.echo(f"error: {message}\nhint: {hint}", err=True)


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(version("ollama-appliance"), "-V", "--version", prog_name="appliance")
def cli() -> None:
    """Bake an Ollama model into a container image, in one streaming pass.

    An image holds Ollama, the model's weights and, where asked for, a chat template that makes the model always
    think. Weights are the lowest layers: a new Ollama or a new template never moves them again.
    """


def _network_options(function: _Command) -> _Command:
    return _apply(
        function,
        click.option("--insecure", multiple=True, metavar="HOST", help="Speak plain HTTP to this registry."),
        click.option(
            "--ca", multiple=True, metavar="HOST=FILE", help="Trust this CA certificate (PEM) for a registry."
        ),
        click.option(
            "--models-registry", metavar="URL", help="Mirror of the Ollama registry [APPLIANCE_MODELS_REGISTRY]."
        ),
        click.option(
            "--base-registry", metavar="URL", help="Mirror of Docker Hub for bases [APPLIANCE_BASE_REGISTRY]."
        ),
        click.option("--cache", type=_PATH, metavar="DIR", help="Where downloads are kept [APPLIANCE_CACHE]."),
        click.option("--connections", type=click.IntRange(1, 64), help="Connections of one download [8]."),
        click.option("--chunk-size", type=click.IntRange(1, 4096), metavar="MIB", help="Upload in parts of this size."),
        click.option("--json", "as_json", is_flag=True, help="Events as JSON lines on stderr, for programs."),
    )


def _tag_option(default: str) -> Callable[[_Command], _Command]:
    return click.option("-t", "--tag", metavar="NAME", help=f"Name of the new image [{default}].")


def _target_options(function: _Command) -> _Command:
    return _apply(
        function,
        click.option("--push", is_flag=True, help="Push to the registry in that name."),
        click.option(
            "--load", is_flag=True, help="Load into the Docker Engine; what happens if nothing else is asked for."
        ),
        click.option(
            "--output",
            multiple=True,
            metavar="oci:DIR|oci-archive:FILE",
            help="Write an OCI layout or archive; oci-archive:- is stdout. May be repeated.",
        ),
    )


def _build_options(function: _Command) -> _Command:
    return _apply(
        function,
        click.option(
            "--base", metavar="IMAGE", help="Ollama image to build on; also oci:, oci-archive:, docker-daemon:."
        ),
        click.option(
            "--ollama-version", metavar="X.Y.Z", help="Ollama's version in the base, where its tag does not tell."
        ),
        click.option("--from-store", metavar="DIR|auto", help="Take the model from an Ollama store on this machine."),
        click.option("--from-image", metavar="IMAGE", help="Take the model from an appliance image in a registry."),
        click.option("--from-gguf", type=_PATH, metavar="FILE", help="Take the weights from a GGUF file."),
        click.option("--recipe", type=_PATH, metavar="FILE", help="Use this recipe instead of the one of that name."),
        click.option(
            "--think/--no-think", default=None, help="Patch the template so that the model always thinks, or don't."
        ),
        click.option("--no-pin", is_flag=True, help="Accept another model manifest than the recipe pins."),
        click.option("--platform", metavar="LIST", help="linux/amd64, linux/arm64 or both [this machine's]."),
    )


def _apply(function: _Command, *decorators: Callable[[_Command], _Command]) -> _Command:
    for decorator in reversed(decorators):
        function = decorator(function)
    return function


@cli.command(short_help="Build the image of an Ollama model.")
@click.argument("model")
@_build_options
@_tag_option("the model's name")
@_target_options
@_network_options
def build(model: str, **values: Any) -> None:
    """Build the image of MODEL, an Ollama name such as deepseek-r1-think:32b.

    A recipe of that name wins (`appliance models` lists them); else NAME-think:TAG means NAME:TAG with its template
    patched, and any other name is taken as it is. Prints one line for each target: repository@digest or a path.
    """
    options, targets = _options(values), _targets(values)
    _print(commands.build(_request(model, values), targets, options))


@cli.command(short_help="Show what `build` would do, and do nothing.")
@click.argument("model")
@_build_options
@_tag_option("the model's name")
@_target_options
@_network_options
def plan(model: str, **values: Any) -> None:
    """Show what `build` with the same words would do, and do nothing.

    Prints every layer, what would move and what is there already, the change of the template, disk and registry limits.
    """
    options, targets = _options(values), _targets(values)
    _print(commands.plan(_request(model, values), targets, options))


@cli.command(short_help="Say what is in an appliance image.")
@click.argument("image")
@click.option("--platform", metavar="OS/ARCH", help="Which image of an index [this machine's].")
@_network_options
def inspect(image: str, platform: str | None, **values: Any) -> None:
    """Read an appliance image's contract back: model, layers and their blobs, think mode, GPU memory.

    IMAGE is in a registry, or oci:DIR, oci-archive:FILE, docker-daemon:IMAGE. With --json prints one JSON object.
    """
    _print(commands.inspect(image, _platform(platform), _options(values)))


@cli.command(short_help="Check every byte of an image, or run it.")
@click.argument("image")
@click.option("--platform", metavar="OS/ARCH", help="Which image of an index [this machine's].")
@click.option("--smoke", is_flag=True, help="Also start it in the Docker Engine and stream a chat.")
@click.option("--gpus", is_flag=True, help="Give the smoke test all GPUs.")
@click.option("--prompt", default="Why is the sky blue?", show_default=True, help="What the smoke test asks.")
@_network_options
def verify(image: str, platform: str | None, smoke: bool, gpus: bool, prompt: str, **values: Any) -> None:
    """Check the digest of every blob inside IMAGE, its store, environment and template."""
    question = prompt if smoke else None
    _print(commands.verify(image, _platform(platform), _options(values), question=question, gpus=gpus))


@cli.command(short_help="Put a new Ollama under the same weights.")
@click.argument("image")
@click.option("--base", required=True, metavar="IMAGE", help="The new Ollama image.")
@click.option("--ollama-version", metavar="X.Y.Z", help="Ollama's version in the base, where its tag does not tell.")
@_tag_option("IMAGE")
@_target_options
@_network_options
def rebase(image: str, base: str, ollama_version: str | None, **values: Any) -> None:
    """Put a new Ollama under the weights of IMAGE, which stay where they are.

    In a registry only the base's blobs and some JSON move. Without -t the new image takes IMAGE's place.
    """
    options, targets = _options(values), _targets(values)
    _print(commands.rebase(image, base, ollama_version, targets, options))


@cli.command(short_help="Push a layout or archive, byte for byte.")
@click.argument("image")
@click.option("--from", "source", required=True, metavar="oci:DIR|oci-archive:FILE", help="What to push.")
@_network_options
def push(image: str, source: str, **values: Any) -> None:
    """Push a layout or archive to a registry under the name IMAGE, byte for byte: for sites without internet."""
    _print(commands.push(image, source, _options(values)))


@cli.command(short_help="List the recipes and the GPU memory they need.")
@click.option("--recipe", type=_PATH, metavar="FILE", help="Show this recipe file instead.")
@_network_options
def models(recipe: Path | None, **values: Any) -> None:
    """List the recipes: what they pin and what GPU memory they need. With --json prints one JSON object."""
    _print(commands.models(recipe, _options(values)))


@cli.command(short_help="List or clear kept downloads.")
@click.argument("action", type=click.Choice(["list", "clear"]), default="list")
@_network_options
def cache(action: str, **values: Any) -> None:
    """List or clear the downloads kept for later builds."""
    _print(commands.cache(_options(values), clear=action == "clear"))


@cli.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(appliance completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "appliance", "_APPLIANCE_COMPLETE").source())


def _options(values: dict[str, Any]) -> Options:
    names = ("insecure", "ca", "models_registry", "base_registry", "cache", "connections", "chunk_size", "as_json")
    return Options(**{name: values.pop(name) for name in names})


def _targets(values: dict[str, Any]) -> Targets:
    tag = values.pop("tag")
    name = ImageReference.parse(tag) if tag else None
    if name and name.digest:
        raise click.UsageError("an image that is to be made has no digest yet: leave `@sha256:…` out of --tag")
    return Targets(name, push=values.pop("push"), load=values.pop("load"), outputs=values.pop("output"))


def _request(model: str, values: dict[str, Any]) -> BuildRequest:
    given = [name for name in ("from_store", "from_image", "from_gguf") if values[name]]
    if len(given) > 1:
        words = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{words} exclude each other")
    platforms = values.pop("platform")
    return BuildRequest(
        model=model,
        pinned=not values.pop("no_pin"),
        platforms=tuple(Platform.parse(text.strip()) for text in platforms.split(",")) if platforms else (),
        **values,
    )


def _platform(text: str | None) -> Platform | None:
    return Platform.parse(text) if text else None


def _print(lines: list[str]) -> None:
    for line in lines:
        click.echo(line)
