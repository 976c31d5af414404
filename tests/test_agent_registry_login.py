"""Logins for registries: found where `docker login` leaves them, and never told to anybody else."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from appliance_agent.registry_login import LoginError, registry_header

HOST = "registry.lan:5000"


def written(directory: Path, config: object) -> str:
    (directory / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    return str(directory)


def entry(user: str = "me", password: str = "open:sesame") -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{password}".encode()).decode()}


def header(host: str, directory: str, **environ: str) -> dict[str, Any] | None:
    text = registry_header(host, directory, environ=environ)
    return json.loads(base64.urlsafe_b64decode(text)) if text else None


@pytest.mark.parametrize("key", [HOST, f"https://{HOST}", f"http://{HOST}/v2/"])
def test_a_login_is_found_however_its_key_is_written(tmp_path: Path, key: str) -> None:
    found = header(HOST, written(tmp_path, {"auths": {"other.lan": entry("x"), key: entry()}}))

    assert found == {"username": "me", "password": "open:sesame", "serveraddress": HOST}


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"])
def test_docker_hub_goes_by_many_names(tmp_path: Path, key: str) -> None:
    found = header("docker.io", written(tmp_path, {"auths": {key: entry()}}))

    assert found
    assert found["username"] == "me"


def test_no_file_and_no_entry_are_no_login(tmp_path: Path) -> None:
    assert header(HOST, str(tmp_path / "none")) is None
    assert header(HOST, written(tmp_path, {})) is None
    assert header(HOST, written(tmp_path, {"auths": {HOST: {}}})) is None
    assert header(HOST, written(tmp_path, {"auths": {HOST: None}})) is None
    assert header("registry.lan", written(tmp_path, {"auths": {HOST: entry()}})) is None


def test_the_place_is_the_configured_one_then_dockers(tmp_path: Path) -> None:
    for name in ("configured", "docker", "home/.docker"):
        (tmp_path / name).mkdir(parents=True)
        written(tmp_path / name, {"auths": {HOST: entry(name)}})
    environ = {"DOCKER_CONFIG": str(tmp_path / "docker"), "HOME": str(tmp_path / "home")}

    users = [
        header(HOST, str(tmp_path / "configured"), **environ),
        header(HOST, "", **environ),
        header(HOST, "", HOME=environ["HOME"]),
    ]

    assert [user["username"] for user in users if user] == ["configured", "docker", "home/.docker"]


def test_an_identity_token_is_passed_on(tmp_path: Path) -> None:
    found = header(HOST, written(tmp_path, {"auths": {HOST: {"identitytoken": "t0ken", "auth": ""}}}))

    assert found == {"identitytoken": "t0ken", "serveraddress": HOST}


@pytest.mark.parametrize("text", ["{", "[]", '{"auths": {"registry.lan:5000": {"auth": "c2VjcmV0*"}}}'])
def test_a_broken_file_is_told_without_its_content(tmp_path: Path, text: str) -> None:
    with pytest.raises(LoginError) as told:
        header(HOST, written(tmp_path, text))

    assert "c2VjcmV0" not in told.value.message + told.value.hint
    assert "docker login" in told.value.hint


def helper(directory: Path, script: str) -> None:
    program = directory / "docker-credential-test"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)


HELPERS = {
    'echo \'{"Username": "me", "Secret": "s"}\'': {"username": "me", "password": "s", "serveraddress": HOST},
    'echo \'{"Username": "<token>", "Secret": "s"}\'': {"identitytoken": "s", "serveraddress": HOST},
    'echo \'{"Username": "", "Secret": ""}\'': None,
    'echo "credentials not found in native keychain"; exit 1': None,
}


@pytest.mark.parametrize(("script", "login"), HELPERS.items(), ids=range(len(HELPERS)))
def test_helpers_answer_in_their_own_ways(tmp_path: Path, script: str, login: dict[str, str] | None) -> None:
    helper(tmp_path, script)
    environ = {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    for config in ({"credsStore": "test"}, {"credHelpers": {HOST: "test"}, "credsStore": "missing"}):
        assert header(HOST, written(tmp_path, config), **environ) == login


def test_a_helper_for_another_registry_is_not_asked(tmp_path: Path) -> None:
    config = {"credHelpers": {"other.lan": "missing"}, "auths": {HOST: entry()}}

    found = header(HOST, written(tmp_path, config), PATH="/nowhere")

    assert found
    assert found["username"] == "me"


def test_what_is_wrong_with_a_helper_is_told(tmp_path: Path) -> None:
    config = written(tmp_path, {"credsStore": "test"})

    with pytest.raises(LoginError, match="`docker-credential-test` is not installed"):
        header(HOST, config, PATH="/nowhere")
    helper(tmp_path, "echo the keyring is locked; exit 1")
    with pytest.raises(LoginError, match="the keyring is locked"):
        header(HOST, config, PATH=f"{tmp_path}:/usr/bin:/bin")
    helper(tmp_path, "echo nonsense")
    with pytest.raises(LoginError, match="its answer is no login"):
        header(HOST, config, PATH=f"{tmp_path}:/usr/bin:/bin")
