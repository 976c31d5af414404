"""What a web-config file may say, and that Prometheus' own tool says the same of it."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from pathlib import Path

import pytest
from authority import make_authority, make_client
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as some
from webguard import WITH_TLS, hashed

from appliance_agent.cli import cli
from appliance_agent.config import ConfigError
from appliance_agent.config import parse as parse_toml
from appliance_agent.web_config import ClientAuth, Tls, WebConfig, WebConfigError, parse
from appliance_agent.yaml_tree import YamlError
from appliance_agent.yaml_tree import parse as tree_of

PATH = Path("/etc/ollama-appliance/web.yml")
README = Path(__file__).parent.parent / "systemd" / "README.md"
HASH = "$2y$10$QOauhQNbBCuQDKes6eFzPeMqBSjb7Mr5DUmpZ/VcEd00UAV/LDeSi"
WHOLE = f"""
tls_server_config:
  cert_file: server.crt
  key_file: server.key
  client_auth_type: RequireAndVerifyClientCert
  client_ca_file: ca.crt
  min_version: TLS13
  max_version: TLS13
  prefer_server_cipher_suites: true
http_server_config:
  http2: true
  headers:
    Strict-Transport-Security: max-age=31536000
    X-Frame-Options: deny
    X-XSS-Protection:
    X-Content-Type-Options: nosniff
basic_auth_users:
  prometheus: {HASH}
  007: {HASH}
"""


def mistake(text: str) -> str:
    with pytest.raises(WebConfigError) as raised:
        parse(text, path=PATH)
    assert raised.value.hint
    return raised.value.message


def test_everything_that_it_may_say_is_read() -> None:
    beside = PATH.parent

    assert parse(WHOLE, path=PATH) == WebConfig(
        tls=Tls(beside / "server.crt", beside / "server.key", beside / "ca.crt", ClientAuth.REQUIRED, "TLS13", "TLS13"),
        headers={
            "Strict-Transport-Security": "max-age=31536000",
            "X-Frame-Options": "deny",
            "X-Content-Type-Options": "nosniff",
        },
        users={"prometheus": HASH, "007": HASH},
    )


@pytest.mark.parametrize("text", ["", "---\n", "# nothing\n", "tls_server_config:\n", "basic_auth_users: {}\n"])
def test_a_file_that_says_nothing_wants_nothing(text: str) -> None:
    assert parse(text, path=PATH) == WebConfig()


def test_absolute_paths_stay_what_they_are() -> None:
    text = "tls_server_config: {cert_file: /srv/a.pem, key_file: ../b.pem}"

    assert parse(text, path=PATH).tls == Tls(Path("/srv/a.pem"), PATH.parent / "../b.pem")


TLS = "tls_server_config:\n  cert_file: a\n  key_file: b\n  "
MISTAKES = [
    ("tls_server_config:\n  cert_file: a\n", "line 2: tls_server_config.key_file: is missing"),
    ("tls_server_config:\n  key_file: a\n", "line 2: tls_server_config.cert_file: is missing"),
    (TLS + "min_version: TLS11", "line 4: tls_server_config.min_version: should be TLS12 or TLS13, not `TLS11`"),
    (TLS + "min_version: TLS13\n  max_version: TLS12", "tls_server_config.max_version: is older than `min_version`"),
    (
        TLS + "cipher_suites: [TLS_RSA_WITH_RC4_128_SHA]",
        "cipher_suites: is not supported by ollama-agent: take it away",
    ),
    (TLS + "client_allowed_sans: [a]", "client_allowed_sans: is not supported"),
    (TLS + "client_auth_type: RequireAnyClientCert", "client_auth_type: should be NoClientCert or VerifyClientCertIf"),
    (TLS + "client_auth_type: RequireAndVerifyClientCert", "client_auth_type: and `client_ca_file` are of use only"),
    (TLS + "client_ca_file: a", "client_auth_type: and `client_ca_file` are of use only together"),
    (
        TLS + "cert: |\n    -----BEGIN",
        "tls_server_config.cert: is not supported by ollama-agent: name a file with `cert_f",
    ),
    (TLS + "cert_flie: a", "line 4: tls_server_config.cert_flie: is no key of this place"),
    (TLS + "key_file: c", "not YAML: /etc/ollama-appliance/web.yml, line 4: `key_file` stands there twice"),
    ("tls_server_config: yes", "line 1: tls_server_config should have keys"),
    ("- a", "line 1: the file should have keys"),
    ("basic_auth_users:\n  a: secret", "line 2: basic_auth_users.a: is no bcrypt hash, which `htpasswd -nBC 10"),
    (f"basic_auth_users:\n  a: {HASH[:-1]}", "basic_auth_users.a: is no bcrypt hash"),
    (f"basic_auth_users:\n  a: {HASH.replace('$10$', '$31$')}", "basic_auth_users.a: has a cost of 31: from 4 to 16"),
    ("basic_auth_users:\n  a: [x]", "basic_auth_users.a: should be a text"),
    (
        "http_server_config:\n  headers:\n    Server: x",
        "line 3: http_server_config.headers.Server: cannot be set, only",
    ),
    ("http_server_config: {headers: {X-Frame-Options: all}}", "should be deny or sameorigin, not `all`"),
    ('http_server_config: {headers: {X-XSS-Protection: "0\\r\\nX: 1"}}', "should be one line of ASCII"),
    ("rate_limit: {burst: 1}", "line 1: rate_limit: is no key of this place"),
    ("a: [", "not YAML: /etc/ollama-appliance/web.yml, line 1: "),
    ("a: &a {b: *a}", "not YAML: /etc/ollama-appliance/web.yml: it is nested too deeply"),
    ("[" * 5000, "not YAML: "),
    ("a: \x07", "not YAML: /etc/ollama-appliance/web.yml: it holds what no text holds"),
    ("? [a]\n: b", "a key that is no text"),
    ("<<: {a: b}", "<<: is no key of this place"),
]


@pytest.mark.parametrize(("text", "told"), MISTAKES, ids=[told[-40:] for _, told in MISTAKES])
def test_a_mistake_is_told_with_its_line_and_key(text: str, told: str) -> None:
    assert told in mistake(text)


def test_aliases_of_aliases_cost_nothing() -> None:
    lines = ["a0: &a0 {x: y}", *(f"a{n}: &a{n} {{l: *a{n - 1}, r: *a{n - 1}}}" for n in range(1, 60))]

    assert "a0: is no key of this place" in mistake("\n".join(lines))


@given(some.text(max_size=200))
def test_any_text_is_a_tree_or_an_error(text: str) -> None:
    with contextlib.suppress(YamlError):
        tree_of(text)


def promtool_says(path: Path) -> int:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("no promtool: sudo apt-get install prometheus")
    return subprocess.run([program, "check", "web-config", path], capture_output=True, check=False).returncode


def test_promtool_finds_nothing_either(tmp_path: Path) -> None:
    make_authority(tmp_path)
    make_client(tmp_path)
    (tmp_path / "web.yml").write_text(WHOLE)

    assert promtool_says(tmp_path / "web.yml") == 0


@pytest.mark.parametrize(
    "text",
    [
        WITH_TLS + "  cert_flie: a\n",
        "tls_server_config:\n  cert_file: server.crt\n",
        WITH_TLS + "  client_ca_file: ca.crt\n",
        WITH_TLS + "  client_auth_type: Nobody\n",
        "basic_auth_users:\n  a: secret\n",
        "http_server_config: {headers: {Server: x}}\n",
        "http_server_config: {headers: {X-Frame-Options: all}}\n",
        "rate_limits: {}\n",
    ],
)
def test_what_promtool_refuses_is_refused_here(tmp_path: Path, text: str) -> None:
    make_authority(tmp_path)
    (tmp_path / "web.yml").write_text(text)

    assert mistake(text)
    assert promtool_says(tmp_path / "web.yml") != 0


def test_the_example_of_the_documentation_is_a_good_one(tmp_path: Path) -> None:
    """It is copied by people."""
    example = README.read_text().partition("```yaml\n")[2].partition("```")[0]
    make_authority(tmp_path)
    (tmp_path / "web.yml").write_text(example)

    config = parse(example, path=tmp_path / "web.yml")

    assert config.tls
    assert config.tls.files == (tmp_path / "server.crt", tmp_path / "server.key")
    assert list(config.users) == ["prometheus"]
    assert promtool_says(tmp_path / "web.yml") == 0


def test_a_hash_of_the_python_line_is_a_good_one() -> None:
    assert parse(f"basic_auth_users:\n  a: {hashed()}\n", path=PATH).users


def test_the_configuration_is_not_good_while_the_file_that_it_names_is_not(tmp_path: Path) -> None:
    make_authority(tmp_path)
    web, toml = tmp_path / "web.yml", tmp_path / "agent.toml"
    toml.write_text(f'image = "a"\n[metrics]\nweb_config = "{web}"\n')
    missing = CliRunner().invoke(cli, ["config", "check", str(toml)])
    web.write_text(WITH_TLS)
    good = CliRunner().invoke(cli, ["config", "check", str(toml)])

    assert isinstance(missing.exception, WebConfigError)
    assert good.exit_code == 0
    assert "no mistakes" in good.output


def test_the_path_of_the_file_is_absolute() -> None:
    with pytest.raises(ConfigError, match=r"metrics\.web_config: should be an absolute path"):
        parse_toml('image = "a"\n[metrics]\nweb_config = "web.yml"\n', where="agent.toml")
