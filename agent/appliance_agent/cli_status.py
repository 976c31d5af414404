"""`ollama-agent status`: the words of the command, and where its output goes."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from appliance_agent import config
from appliance_image.errors import ApplianceError

if TYPE_CHECKING:
    from appliance_agent.status_table import Window

_PLAIN_COLUMNS = 120  # where the output is no terminal
_WATCH_TIMEOUT_S = 2.0
_HISTORY = 10


@click.command()
@click.option(
    "--config", "path", type=click.Path(path_type=Path), default=Path(config.DEFAULT_PATH), show_default=True,
    help="The agent's configuration, which says where it answers.",
)  # fmt: skip
@click.option("--url", help="Where the agent answers, for example http://gpuhost7:9440/status.")
@click.option("--json", "as_json", is_flag=True, help="What /status says, for programs.")
@click.option("--watch", "live", is_flag=True, help="Draw the table anew each second, until Ctrl-C.")
@click.option(
    "--history", type=click.IntRange(0, 200), default=_HISTORY, show_default=True,
    help="How many of the last actions are shown.",
)  # fmt: skip
def status(path: Path, url: str | None, as_json: bool, live: bool, history: int) -> None:
    """What runs where, since when, how fast, and what was done lately and why."""
    if as_json and live:
        raise click.UsageError("--json and --watch do not go together: programs may ask /status again")
    from appliance_agent import status_client  # noqa: PLC0415 - `run` needs none of it
    from appliance_agent.status_json import parse  # noqa: PLC0415
    from appliance_agent.status_table import render_table  # noqa: PLC0415
    from appliance_agent.status_watch import watch  # noqa: PLC0415

    where = url or status_client.url_of(_metrics(path))

    def window() -> Window:
        return _window(history)

    if live:
        watch(lambda: status_client.ask(where, timeout_s=_WATCH_TIMEOUT_S), window, sys.stdout)
        return
    told = status_client.ask(where)
    if as_json:
        click.echo(told.text, nl=False)
        return
    shown = replace(window(), lines=None, age_s=told.age_s)
    click.echo(render_table(parse(told.text), shown), nl=False, color=True)


def _metrics(path: Path) -> config.MetricsConfig:
    """A file that was broken after the agent has read it must not hide what the agent does."""
    from appliance_agent.config_file import load  # noqa: PLC0415

    default = config.MetricsConfig()
    if path == Path(config.DEFAULT_PATH) and not path.exists():
        return default
    try:
        return load(path).metrics
    except ApplianceError as error:
        click.echo(
            f"warning: {error.message}\nwarning: asks port {default.port} instead, `--url` names another", err=True
        )
        return default


def _window(history: int) -> Window:
    from appliance_agent.status_table import Window  # noqa: PLC0415

    terminal = sys.stdout.isatty()
    columns, lines = _size() if terminal else (_PLAIN_COLUMNS, 0)
    return Window(
        columns=columns or _PLAIN_COLUMNS,
        lines=lines or None,
        colour=terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb",
        history=history,
        zone=datetime.now().astimezone().tzinfo or UTC,
    )


def _size() -> tuple[int, int]:
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return (0, 0)
