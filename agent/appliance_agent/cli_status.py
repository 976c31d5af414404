"""`ollama-agent status`: the words of the command, and where its output goes."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from appliance_agent import config
from appliance_image.errors import ApplianceError

if TYPE_CHECKING:
    from appliance_agent.status_table import Window

_PLAIN_COLUMNS = 120  # where the output is no terminal
_WATCH_TIMEOUT_S = 2.0
_PERIOD_S = 2.0  # an answer costs the agent a millisecond
_SHORTEST_S, _LONGEST_S = 0.5, 60.0
_HISTORY = 10
_EPILOG = """
\b
GPU         NVML's index, red when the driver has lost the GPU
STATE, FOR  what the slot is and since when; why not ready stands below it
1ST TOKEN   how long the last good probe waited for it, or how the last failed
TOKENS/S    of the last good probe; OF USUAL: of what the slot usually gives
RESTARTS    containers made after the first one

\b
Only with --watch, over the last minutes:
UTIL        of the slot's GPUs, 0 to 100 %
USERS       tokens per second of users' answers, known when an answer ends
SENT        bytes per second to users; stands for USERS before Ollama 0.30
Each character is 5 seconds, the newest on the right. `.` is not known, the
lowest one is exactly 0. Without a UTF-8 locale digits stand for the blocks:
0 is exactly 0, 9 is the top.
"""


@click.command(
    short_help="What runs where, how fast, and what was done lately and why.",
    epilog=_EPILOG,
    context_settings={"max_content_width": 110},
)
@click.option(
    "--config", "path", type=click.Path(path_type=Path), default=Path(config.DEFAULT_PATH), show_default=True,
    help="The agent's configuration, which says where it answers.",
)  # fmt: skip
@click.option("--url", help="Where the agent answers, for example http://gpuhost7:9440/status.")
@click.option("--json", "as_json", is_flag=True, help="What /status says, for programs.")
@click.option(
    "--watch", "period_s", is_flag=False, flag_value=_PERIOD_S, metavar="[SECONDS]",
    type=click.FloatRange(_SHORTEST_S, _LONGEST_S),
    help=f"Draw the table anew every {_PERIOD_S:g} or so many seconds, until q or Ctrl-C.",
)  # fmt: skip
@click.option(
    "--history", type=click.IntRange(0, 200), default=_HISTORY, show_default=True,
    help="How many of the last actions are shown.",
)  # fmt: skip
def status(path: Path, url: str | None, as_json: bool, period_s: float | None, history: int) -> None:
    """What runs where, since when, how fast, and what was done lately and why."""
    if as_json and period_s:
        raise click.UsageError("--json and --watch do not go together: programs may ask /status again")
    from appliance_agent import status_client  # noqa: PLC0415 - `run` needs none of it
    from appliance_agent.status_json import parse  # noqa: PLC0415
    from appliance_agent.status_table import render_table  # noqa: PLC0415
    from appliance_agent.status_watch import watch  # noqa: PLC0415

    where = url or status_client.url_of(_metrics(path))

    def window() -> Window:
        return _window(history)

    _encodable(sys.stdout, "backslashreplace" if as_json else "replace")
    if period_s:
        watch(lambda: status_client.ask(where, timeout_s=_WATCH_TIMEOUT_S), window, sys.stdout, period_s=period_s)
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
        blocks=has_blocks(os.environ, utf8_by_default=bool(sys.flags.utf8_mode)),
    )


def has_blocks(environment: Mapping[str, str], *, utf8_by_default: bool) -> bool:
    """Whether the person's locale is one of UTF-8. Python makes one up where there is none, and then says so in LC_CTYPE."""
    made_up = utf8_by_default and environment.get("LC_CTYPE") == "C.UTF-8"
    named = environment.get("LC_ALL") or (not made_up and environment.get("LC_CTYPE")) or environment.get("LANG") or ""
    return (
        "utf8" in named.lower().replace("-", "") and environment.get("TERM") != "linux"
    )  # the console's font has none


def _encodable(out: TextIO, errors: str) -> None:
    """A name that this locale has no letters for is no reason to end."""
    if isinstance(out, io.TextIOWrapper):
        out.reconfigure(errors=errors)


def _size() -> tuple[int, int]:
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return (0, 0)
