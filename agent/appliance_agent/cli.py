"""`ollama-agent`: the words of the command line, and the one place where an error is told to a person."""

from __future__ import annotations

import sys
from importlib.metadata import version
from pathlib import Path

import click
from click.shell_completion import get_completion_class

from appliance_agent import config
from appliance_agent.cli_status import status
from appliance_image.errors import ApplianceError

_PATH = click.Path(path_type=Path)
_EPILOG = """
\b
A new host:
  ollama-agent config check /etc/ollama-appliance/agent.toml
  ollama-agent check          what is missing, with the command that mends it
  systemctl enable --now ollama-agent
  ollama-agent status --watch

\b
Shell completion: eval "$(ollama-agent completion bash)"
"""


def main() -> None:
    sys.exit(run_words(sys.argv[1:]))


def run_words(words: list[str]) -> int:
    """The exit status: 0 done, 1 an error that was told, 2 wrong words, 130 interrupted."""
    try:
        status_ = cli.main(words, prog_name="ollama-agent", standalone_mode=False)
    except ApplianceError as error:
        click.echo(f"error: {error.message}\nhint: {error.hint}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    return status_ if isinstance(status_, int) else 0


@click.group(
    commands=[status],
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(version("ollama-appliance"), "-V", "--version", prog_name="ollama-agent")
def cli() -> None:
    """One container per GPU, proved by tokens, healed without harm."""


def _config_option(function: click.decorators.FC) -> click.decorators.FC:
    return click.option(
        "--config",
        "path",
        type=_PATH,
        default=Path(config.DEFAULT_PATH),
        show_default=True,
        help="The agent's configuration.",
    )(function)


def _state_option(function: click.decorators.FC) -> click.decorators.FC:
    return click.option(
        "--state",
        type=_PATH,
        envvar="STATE_DIRECTORY",
        default=Path(config.DEFAULT_STATE_DIRECTORY),
        show_default=True,
        help="Where failures, quarantines and the last good release are remembered [STATE_DIRECTORY].",
    )(function)


@cli.command(short_help="Keep one working container per GPU; what the service starts.")
@_config_option
@_state_option
def run(path: Path, state: Path) -> None:
    """Keep one working container per GPU, until it is stopped; the containers then go on serving.

    SIGHUP reads the configuration again: a file with mistakes changes nothing, and slots in quarantine for too many
    restarts get another chance.
    """
    from appliance_agent.run import run_agent  # noqa: PLC0415 - imports a lot, and --help need not wait for it

    run_agent(path, state)


@cli.command(short_help="Drain and take away all containers.")
@_config_option
@_state_option
def down(path: Path, state: Path) -> None:
    """Wait for running answers to end, then take all of the agent's containers away.

    The service must be stopped before, because it would start them again: `systemctl stop ollama-agent`.
    """
    from appliance_agent.run import take_down  # noqa: PLC0415

    take_down(path, state)


@cli.command(short_help="Find what is missing, each with the command that mends it.")
@_config_option
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON, for programs.")
def check(path: Path, as_json: bool) -> int:
    """Look at driver, toolkit, engine, image, disk, ports and GPU memory, and say what to type where something is wrong.

    Exit status 1 if there is an error; warnings do not count.
    """
    from appliance_agent.check_command import run_check  # noqa: PLC0415

    return run_check(path, as_json=as_json)


@cli.group(name="config", short_help="Look at a configuration.")
def config_group() -> None:
    """Look at a configuration without using it."""


@config_group.command(name="check", short_help="Tell every mistake in a file at once.")
@click.argument("file", type=_PATH, default=Path(config.DEFAULT_PATH))
def config_check(file: Path) -> None:
    """Read FILE and tell every mistake in it at once, each with the path of its key.

    Without mistakes the `web_config` that it names is read too.
    """
    from appliance_agent.config_file import load  # noqa: PLC0415

    loaded = load(file)
    if loaded.metrics.web_config:
        from appliance_agent.web_access import WebAccess  # noqa: PLC0415

        WebAccess(Path(loaded.metrics.web_config)).open()
    click.echo(f"{file}: no mistakes; {loaded.image} on {_gpus(loaded)}, ports from {loaded.base_port}")


def _gpus(loaded: config.Config) -> str:
    if loaded.gpus == config.GpuChoice.NONE:
        return "the CPU"
    count = "all GPUs" if loaded.gpus == config.GpuChoice.ALL else f"{len(loaded.gpus)} GPUs"
    return count if loaded.gpus_per_instance == 1 else f"{count} in groups of {loaded.gpus_per_instance}"


@cli.command(short_help="Print a shell's completion script.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the completion script of a shell: eval "$(ollama-agent completion bash)"."""
    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "ollama-agent", "_OLLAMA_AGENT_COMPLETE").source())
