"""Logins as `docker login`, credential helpers and `podman login` leave them."""

import base64
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from docker.auth import AuthConfig, load_config

from appliance_builder.credentials import CredentialError, Credentials, stored_credentials

SECRET = "s3cret-word"
HOST = "registry.example.com:5000"
HUB = "https://index.docker.io/v1/"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    (tmp_path / ".docker").mkdir()
    (tmp_path / "bin").mkdir()
    return tmp_path


@pytest.fixture
def environ(home: Path) -> dict[str, str]:
    return {"HOME": str(home), "PATH": f"{home / 'bin'}:/usr/bin:/bin"}


def encoded(user: str = "ann", secret: str = SECRET) -> dict[str, str]:
    return {"auth": base64.b64encode(f"{user}:{secret}".encode()).decode()}


def write(path: Path, node: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(node))


@pytest.fixture
def helper(home: Path) -> Callable[[str, str], None]:
    def make(name: str, script: str) -> None:
        path = home / "bin" / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    return make


ANSWER = f"""cat > "$HOME/asked"; echo '{{"ServerURL":"x","Username":"ann","Secret":"{SECRET}"}}'"""


@pytest.mark.parametrize(
    ("host", "key"),
    [
        (HOST, HOST),
        (HOST, f"https://{HOST}"),
        (HOST, f"https://{HOST}/v2/"),
        ("docker.io", HUB),
        ("docker.io", "docker.io"),
        ("docker.io", "index.docker.io"),
    ],
)
def test_a_login_in_the_file_is_found_under_any_name_of_its_host(
    home: Path, environ: dict[str, str], host: str, key: str
) -> None:
    write(home / ".docker/config.json", {"auths": {"other.example.com": encoded("bob"), key: encoded()}})

    assert stored_credentials(host, environ=environ) == Credentials("ann", SECRET)


def test_an_identity_token_is_kept_as_one(home: Path, environ: dict[str, str]) -> None:
    write(home / ".docker/config.json", {"auths": {HOST: {"auth": encoded()["auth"], "identitytoken": SECRET}}})

    found = stored_credentials(HOST, environ=environ)

    assert found
    assert found.identity_token == SECRET
    assert not found.password


@pytest.mark.parametrize(
    "node", [{}, {"auths": {}}, {"auths": {HOST: {}}}, {"HttpHeaders": {"a": "b"}}, {"psFormat": "x"}]
)
def test_no_login_is_no_error(home: Path, environ: dict[str, str], node: object) -> None:
    write(home / ".docker/config.json", node)

    assert stored_credentials(HOST, environ=environ) is None


def test_no_file_is_no_error(environ: dict[str, str]) -> None:
    assert stored_credentials(HOST, environ=environ) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="to be somebody else needs root")
def test_places_of_another_user_are_passed_over() -> None:
    """`su builder` leaves XDG_RUNTIME_DIR as it was."""
    with tempfile.TemporaryDirectory() as theirs, tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        write(Path(home) / ".config/containers/auth.json", {"auths": {HOST: encoded()}})
        os.seteuid(65534)
        try:
            found = stored_credentials(HOST, environ={"HOME": home, "XDG_RUNTIME_DIR": theirs})
        finally:
            os.seteuid(0)

    assert found == Credentials("ann", SECRET)


def test_the_places_are_asked_in_their_order(home: Path, environ: dict[str, str]) -> None:
    places = {
        "REGISTRY_AUTH_FILE": home / "explicit.json",
        "DOCKER_CONFIG": home / "docker" / "config.json",
        "XDG_RUNTIME_DIR": home / "run" / "containers" / "auth.json",
        "XDG_CONFIG_HOME": home / "config" / "containers" / "auth.json",
    }
    settings = {
        "REGISTRY_AUTH_FILE": str(home / "explicit.json"),
        "DOCKER_CONFIG": str(home / "docker"),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "XDG_CONFIG_HOME": str(home / "config"),
    }
    for name, path in places.items():
        write(path, {"auths": {HOST: encoded(name)}})
    found: list[str] = []

    for path in places.values():
        credentials = stored_credentials(HOST, environ={**environ, **settings})
        found.append(credentials.username if credentials else "")
        path.unlink()

    assert found == list(places)


@pytest.mark.parametrize("node", [{"credsStore": "vault"}, {"credHelpers": {HOST: "vault"}}])
def test_a_helper_is_asked_for_the_host(
    home: Path, environ: dict[str, str], helper: Callable[[str, str], None], node: object
) -> None:
    helper("vault", ANSWER)
    write(home / ".docker/config.json", node)

    assert stored_credentials(HOST, environ=environ) == Credentials("ann", SECRET)
    assert (home / "asked").read_text() == HOST


def test_a_helper_is_asked_for_docker_hub_by_its_old_name(
    home: Path, environ: dict[str, str], helper: Callable[[str, str], None]
) -> None:
    helper("vault", ANSWER)
    write(home / ".docker/config.json", {"credsStore": "vault"})

    stored_credentials("docker.io", environ=environ)

    assert (home / "asked").read_text() == HUB


def test_a_helpers_identity_token_is_kept_as_one(
    home: Path, environ: dict[str, str], helper: Callable[[str, str], None]
) -> None:
    helper("vault", ANSWER.replace('"ann"', '"<token>"'))
    write(home / ".docker/config.json", {"credsStore": "vault"})

    found = stored_credentials(HOST, environ=environ)

    assert found == Credentials("<token>", identity_token=SECRET)


@pytest.mark.parametrize(
    "script",
    [
        "echo credentials not found in native keychain; exit 1",
        """echo '{"ServerURL":"","Username":"","Secret":""}'""",
    ],
)
def test_what_a_helper_does_not_know_may_stand_in_the_file(
    home: Path, environ: dict[str, str], helper: Callable[[str, str], None], script: str
) -> None:
    helper("vault", script)
    write(home / ".docker/config.json", {"credsStore": "vault", "auths": {HOST: encoded()}})

    assert stored_credentials(HOST, environ=environ) == Credentials("ann", SECRET)


_SILENT = "exec sleep 60"


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo locked: ask your admin; exit 3", r"failed for .*: locked: ask your admin"),
        ("exit 3", r"failed for .*: exit 3"),
        (_SILENT, r"failed for .*: no answer in 0 s"),
        (f"echo 'not json {SECRET}'", r"failed for .*: its answer is not JSON"),
    ],
)
def test_a_helper_that_fails_is_an_error_with_its_words(
    home: Path, environ: dict[str, str], helper: Callable[[str, str], None], script: str, message: str
) -> None:
    helper("vault", script)
    write(home / ".docker/config.json", {"credsStore": "vault"})

    with pytest.raises(CredentialError, match=message) as caught:
        stored_credentials(HOST, environ=environ, helper_s=0.4 if script == _SILENT else 30)

    assert SECRET not in caught.value.message + caught.value.hint
    assert "docker-credential-vault get" in caught.value.hint


def test_a_helper_that_is_missing_is_an_error(home: Path, environ: dict[str, str]) -> None:
    write(home / ".docker/config.json", {"credsStore": "vault"})

    with pytest.raises(CredentialError, match="`docker-credential-vault` is not installed"):
        stored_credentials(HOST, environ=environ)


@pytest.mark.parametrize(
    "text", ["{", "[1]", f'{{"auths": {{"h": {{"auth": "{SECRET}"}}}}}}', f'{{"auths": {{"{HOST}": "{SECRET}"}}}}']
)
def test_a_damaged_file_is_an_error_that_does_not_quote_it(home: Path, environ: dict[str, str], text: str) -> None:
    (home / ".docker/config.json").write_text(text)

    with pytest.raises(CredentialError, match=r"cannot read the logins in .*config\.json") as caught:
        stored_credentials(HOST, environ=environ)

    assert SECRET not in str(caught.getrepr(style="long"))


def test_secrets_are_not_shown() -> None:
    assert SECRET not in repr(Credentials("ann", SECRET, SECRET))


@pytest.mark.parametrize("host", [HOST, "docker.io", "quay.io", "nothing.example.com"])
def test_the_library_finds_the_same(home: Path, environ: dict[str, str], host: str) -> None:
    node = {"auths": {HOST: encoded("a"), HUB: encoded("b"), "https://quay.io/v2/": encoded("c"), "z.io": encoded("d")}}
    write(home / ".docker/config.json", node)
    config: AuthConfig = load_config(str(home / ".docker/config.json"))

    found = stored_credentials(host, environ=environ)
    expected = config.resolve_authconfig(host)

    assert (found.username if found else None) == (expected["username"] if expected else None)
