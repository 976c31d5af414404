"""The pages of `--help`: whole, and as wide as the narrowest terminal."""

from __future__ import annotations

from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from appliance_agent.cli import cli as agent
from appliance_builder.cli import cli as builder

COLUMNS = 80


def pages(command: click.Command, *words: str) -> Iterator[tuple[str, ...]]:
    yield words
    if isinstance(command, click.Group):
        for name, child in command.commands.items():
            yield from pages(child, *words, name)


CASES = [(cli, words) for cli, name in ((agent, "ollama-agent"), (builder, "appliance")) for words in pages(cli, name)]


@pytest.mark.parametrize(("cli", "words"), CASES, ids=[" ".join(words) for _, words in CASES])
def test_a_help_page_fits_80_columns_and_nothing_is_cut_off(cli: click.Group, words: tuple[str, ...]) -> None:
    told = CliRunner().invoke(
        cli, [*words[1:], "--help"], prog_name=words[0], terminal_width=COLUMNS, catch_exceptions=False
    )

    assert told.exit_code == 0
    assert [line for line in told.output.splitlines()[1:] if len(line) > COLUMNS or line.endswith("...")] == []
