"""What the linters and type checkers say of the whole repository. Their output is the failure, not a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TOOLS = Path(sys.executable).parent
_NO_NETWORK = ("npm error", "npm ERR!", "getaddrinfo", "ENOTFOUND", "ECONNREFUSED", "urlopen error", "No such node")


def run(tool: str, *words: str) -> subprocess.CompletedProcess[str]:
    program = TOOLS / tool
    if not program.is_file():
        pytest.skip(f"no {tool} beside {sys.executable}: run `uv sync --all-extras`")
    return subprocess.run([program, *words], cwd=ROOT, capture_output=True, text=True, check=False)


def must_be_clean(result: subprocess.CompletedProcess[str]) -> None:
    if result.returncode:
        pytest.fail(f"{result.stdout}\n{result.stderr}".strip(), pytrace=False)


def kept_files() -> list[Path]:
    """What git keeps or would keep; in an unpacked archive, everything but hidden folders."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if listed.returncode == 0:
        found = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        found = [path for path in ROOT.rglob("*") if not any(part.startswith(".") for part in path.parts)]
    return sorted(path for path in found if path.is_file())


def is_shell_script(path: Path) -> bool:
    if path.suffix == ".sh":
        return True
    with path.open("rb") as file:
        first = file.readline(80)
    return first.startswith(b"#!") and first.split()[-1].rpartition(b"/")[2] in (b"sh", b"bash", b"dash")


def test_ruff_finds_nothing() -> None:
    must_be_clean(run("ruff", "check", "--no-fix"))


def test_every_python_file_is_formatted() -> None:
    must_be_clean(run("ruff", "format", "--check", "--diff"))


def test_mypy_finds_nothing() -> None:
    must_be_clean(run("mypy"))


def test_pyright_finds_nothing() -> None:
    result = run("pyright")
    if result.returncode and any(sign in result.stdout + result.stderr for sign in _NO_NETWORK):
        pytest.skip("pyright could not fetch its npm package: run `pyright --version` once with a network")
    must_be_clean(result)


def test_shellcheck_finds_nothing() -> None:
    scripts = [str(path) for path in kept_files() if is_shell_script(path)]
    if scripts:
        must_be_clean(run("shellcheck", *scripts))


def test_codespell_finds_nothing() -> None:
    meant = "conections,temprature"  # typos of users, in the tests of what is said to them
    cut_off = ROOT / "tests" / "recordings" / "agent"  # what a narrow window shows of a word
    words = [str(path.relative_to(ROOT)) for path in kept_files() if path.name != "uv.lock" and path.parent != cut_off]

    must_be_clean(run("codespell", "--ignore-words-list", meant, *words))
