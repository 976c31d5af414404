"""What is shipped: the exact files of wheel and sdist, and a program that starts in a fresh environment."""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PROJECT: Mapping[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
NAME = PROJECT["project"]["name"].replace("-", "_")
RELEASE = f"{NAME}-{PROJECT['project']['version']}"
WHEEL = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]
SDIST = PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]
SHIPPED = (".py", ".typed", ".toml", ".example", ".md", ".service", ".conf")


def uv(*words: str | Path) -> str:
    program = shutil.which("uv")
    if program is None:
        pytest.skip("no uv on PATH: see https://docs.astral.sh/uv")
    environ = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    result = subprocess.run(
        [program, *map(str, words)], cwd=ROOT, env=environ, capture_output=True, text=True, check=False
    )
    if result.returncode:
        pytest.fail(f"uv {' '.join(map(str, words))}\n{result.stdout}{result.stderr}", pytrace=False)
    return result.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    uv("build", "--quiet", "--sdist", "--wheel", "--out-dir", out)
    return out


def files_below(folder: Path) -> set[PurePosixPath]:
    """The files of a source folder that are worth shipping: no caches, nothing hidden, nothing an editor left."""
    return {
        PurePosixPath(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.suffix in SHIPPED and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_the_packages_the_recipes_and_nothing_else(built: Path) -> None:
    expected = {
        str(PurePosixPath(PurePosixPath(folder).name) / file)
        for folder in WHEEL["packages"]
        for file in files_below(ROOT / folder)
    }
    expected |= {
        str(PurePosixPath(target) / file)
        for folder, target in WHEEL["force-include"].items()
        for file in files_below(ROOT / folder)
    }
    facts = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")
    expected |= {f"{RELEASE}.dist-info/{name}" for name in facts}

    with zipfile.ZipFile(built / f"{RELEASE}-py3-none-any.whl") as wheel:
        assert sorted(wheel.namelist()) == sorted(expected)


def test_the_sdist_holds_the_sources_and_nothing_else(built: Path) -> None:
    expected = {"PKG-INFO", "pyproject.toml", ".gitignore"}
    for entry in SDIST["include"]:
        place = ROOT / entry.lstrip("/")
        if place.is_dir():
            expected |= {f"{entry.lstrip('/')}/{file}" for file in files_below(place)}
        else:
            expected.add(entry.lstrip("/"))

    with tarfile.open(built / f"{RELEASE}.tar.gz") as sdist:
        found = {name.removeprefix(f"{RELEASE}/") for name in sdist.getnames()}

    assert sorted(found) == sorted(expected)


def test_the_wheel_names_its_licence_its_extras_and_its_programs(built: Path) -> None:
    with zipfile.ZipFile(built / f"{RELEASE}-py3-none-any.whl") as wheel:
        metadata = wheel.read(f"{RELEASE}.dist-info/METADATA").decode()
        programs = wheel.read(f"{RELEASE}.dist-info/entry_points.txt").decode()

    assert "License-Expression: Apache-2.0" in metadata
    assert "Provides-Extra: builder" in metadata
    assert "appliance = appliance_builder.cli:main" in programs


@pytest.fixture(scope="module")
def environment(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel and its extra for the builder, away from the sources."""
    place = tmp_path_factory.mktemp("install") / "venv"
    uv("venv", "--quiet", place)
    wheel = built / f"{RELEASE}-py3-none-any.whl"
    uv("pip", "install", "--quiet", "--python", place / "bin/python", f"{wheel}[builder]")
    return place


def appliance(environment: Path, empty: Path, *words: str) -> subprocess.CompletedProcess[str]:
    home = empty / "home"
    home.mkdir()
    return subprocess.run(
        [environment / "bin/appliance", *words],
        cwd=home,
        env={"HOME": str(home), "PATH": os.defpath, "LANG": "C.UTF-8"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["build", "--help"], ["plan", "--help"], ["verify", "--help"]])
def test_an_installed_appliance_explains_itself(environment: Path, tmp_path: Path, words: list[str]) -> None:
    result = appliance(environment, tmp_path, *words)

    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: appliance")


def test_an_installed_appliance_knows_its_version(environment: Path, tmp_path: Path) -> None:
    result = appliance(environment, tmp_path, "--version")

    assert result.returncode == 0
    assert PROJECT["project"]["version"] in result.stdout


def test_an_installed_appliance_lists_the_recipes_that_came_with_it(environment: Path, tmp_path: Path) -> None:
    result = appliance(environment, tmp_path, "models")

    assert (result.returncode, result.stderr) == (0, "")
    for recipe in (ROOT / "images" / "recipes").glob("*.toml"):
        assert recipe.stem in result.stdout


def test_an_error_is_told_without_a_traceback_and_leaves_nothing_behind(environment: Path, tmp_path: Path) -> None:
    result = appliance(environment, tmp_path, "build", "深度求索", "--output", "oci:here")

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert "\nhint: " in result.stderr
    assert not (tmp_path / "home" / "here").exists()


def test_wrong_words_are_told_with_status_2(environment: Path, tmp_path: Path) -> None:
    result = appliance(environment, tmp_path, "bild", "deepseek-r1")

    assert (result.returncode, result.stdout) == (2, "")
    assert "bild" in result.stderr
