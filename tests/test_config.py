"""The builder's settings: which place wins, and what each place may say."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from appliance_builder import config, download, recipe_files
from appliance_builder.config import BuilderConfig, ConfigError
from appliance_builder.request import Options
from appliance_image.oci import Platform


class _Machine:
    """A home and an /etc of its own."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.user = self.home / ".config/ollama-appliance"
        self.etc = root / "etc"
        self.user.mkdir(parents=True)
        self.etc.mkdir()
        self.environ = {"HOME": str(self.home)}

    def load(self, environ: Mapping[str, str] | None = None, options: Options | None = None) -> BuilderConfig:
        return config.load(options or Options(), {**self.environ, **(environ or {})}, etc=self.etc)

    def say(self, text: str, *, etc: str = "") -> None:
        (self.user / "builder.toml").write_text(text)
        (self.etc / "builder.toml").write_text(etc)


@pytest.fixture
def machine(tmp_path: Path) -> _Machine:
    return _Machine(tmp_path)


def test_without_any_file_there_are_defaults(machine: _Machine) -> None:
    found = machine.load()

    assert found == BuilderConfig(
        cache=machine.home / ".cache/ollama-appliance",
        recipes=(machine.user / "recipes", machine.etc / "recipes", recipe_files.shipped()),
    )
    assert found.connections == download.CONNECTIONS


def test_every_key_of_the_file_is_read(machine: _Machine, tmp_path: Path) -> None:
    authority, recipes = tmp_path / "ca.pem", tmp_path / "recipes"
    authority.write_text("x")
    recipes.mkdir()
    machine.say(
        f"""
        base = "registry.lan/ollama:0.32.15"
        models_registry = "https://mirror.lan/ollama/"
        base_registry = "hub.lan:5000"
        insecure = ["hub.lan:5000", "10.0.0.1"]
        cache = "~/downloads"
        recipes = "{recipes}"
        platforms = ["linux/amd64", "linux/arm64"]
        connections = 16
        [mirrors]
        "quay.io" = "https://mirror.lan/quay"
        [ca]
        "mirror.lan" = "{authority}"
        """
    )

    found = machine.load()

    assert str(found.base) == "registry.lan/ollama:0.32.15"
    assert (found.models_registry, found.base_registry) == ("https://mirror.lan/ollama", "hub.lan:5000")
    assert found.insecure == {"hub.lan:5000", "10.0.0.1"}
    assert found.cache == machine.home / "downloads"
    assert found.recipes[0] == recipes
    assert found.platforms == (Platform("linux", "amd64"), Platform("linux", "arm64"))
    assert found.connections == 16
    assert found.mirrors == {"quay.io": "https://mirror.lan/quay"}
    assert found.ca == {"mirror.lan": authority}


def test_the_network_asks_mirrors_and_knows_who_speaks_plain_http(machine: _Machine) -> None:
    machine.say(
        """
        models_registry = "https://mirror.lan/ollama"
        base_registry = "hub.lan:5000"
        insecure = ["hub.lan:5000"]
        [mirrors]
        "quay.io" = "https://mirror.lan/quay"
        "docker.io" = "https://not-this-one.lan"
        """
    )

    network = config.network(machine.load())

    assert network.endpoint("registry.ollama.ai") == "https://mirror.lan/ollama"
    assert network.endpoint("docker.io") == "http://hub.lan:5000"
    assert network.endpoint("quay.io") == "https://mirror.lan/quay"
    assert network.endpoint("ghcr.io") == "https://ghcr.io"


def test_the_users_file_wins_and_tables_are_put_together(machine: _Machine) -> None:
    machine.say(
        'connections = 2\ninsecure = ["a"]\nmirrors."a.io" = "user.lan"',
        etc='connections = 4\nbase_registry = "etc.lan"\ninsecure = ["b"]\nmirrors = {"a.io" = "x", "b.io" = "etc.lan"}',
    )

    found = machine.load()

    assert (found.connections, found.base_registry) == (2, "etc.lan")
    assert found.insecure == {"a", "b"}
    assert found.mirrors == {"a.io": "user.lan", "b.io": "etc.lan"}


@pytest.mark.parametrize(
    ("variable", "field", "flags"),
    [
        ("APPLIANCE_MODELS_REGISTRY", "models_registry", Options(models_registry="flag")),
        ("APPLIANCE_BASE_REGISTRY", "base_registry", Options(base_registry="flag")),
        ("APPLIANCE_CACHE", "cache", Options(cache=Path("/flag"))),
    ],
)
def test_a_flag_wins_over_the_environment_and_that_over_the_file(
    machine: _Machine, variable: str, field: str, flags: Options
) -> None:
    root = "/" if field == "cache" else ""
    machine.say(f'{field} = "{root}file"')
    environ = {variable: f"{root}environment"}

    found = [machine.load(), machine.load({variable: " "}), machine.load(environ), machine.load(environ, flags)]

    assert [str(getattr(entry, field)).removeprefix("/") for entry in found] == ["file", "file", "environment", "flag"]


def test_the_base_of_the_environment_wins_over_that_of_the_file(machine: _Machine) -> None:
    machine.say('base = "file.lan/x:1"')

    assert str(machine.load().base) == "file.lan/x:1"
    assert str(machine.load({"APPLIANCE_BASE": "environment.lan/x:1"}).base) == "environment.lan/x:1"


def test_hosts_that_are_insecure_anywhere_are_insecure(machine: _Machine) -> None:
    machine.say('insecure = ["a"]')

    found = machine.load({"APPLIANCE_INSECURE": "b, c:5000,"}, Options(insecure=("d",)))

    assert found.insecure == {"a", "b", "c:5000", "d"}


def test_flags_of_the_command_line_count(machine: _Machine, tmp_path: Path) -> None:
    authority = tmp_path / "ca.pem"
    authority.write_text("x")

    found = machine.load(options=Options(connections=3, ca=(f"a.lan={authority}",)))

    assert found.connections == 3
    assert found.ca == {"a.lan": authority}


def test_a_relative_directory_of_a_flag_is_that_of_the_shell(
    machine: _Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    found = machine.load(options=Options(cache=Path("here")))

    assert found.cache == tmp_path / "here"


def test_a_file_named_by_the_environment_stands_for_the_users(machine: _Machine, tmp_path: Path) -> None:
    machine.say("connections = 2", etc='base_registry = "etc.lan"')
    other = tmp_path / "other.toml"
    other.write_text("platforms = ['linux/arm64']")

    found = machine.load({"APPLIANCE_CONFIG": str(other)})

    assert (found.connections, found.base_registry) == (8, "etc.lan")
    assert found.platforms == (Platform("linux", "arm64"),)


def test_a_missing_file_named_by_the_environment_is_an_error(machine: _Machine) -> None:
    with pytest.raises(ConfigError, match="APPLIANCE_CONFIG names no file: /nowhere"):
        machine.load({"APPLIANCE_CONFIG": "/nowhere"})


def test_the_directories_of_the_xdg_specification_are_used(machine: _Machine, tmp_path: Path) -> None:
    directory = tmp_path / "xdg/ollama-appliance"
    directory.mkdir(parents=True)
    (directory / "builder.toml").write_text("connections = 5")
    machine.say("connections = 2")

    found = machine.load({"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "XDG_CACHE_HOME": str(tmp_path / "cache")})
    relative = machine.load({"XDG_CONFIG_HOME": "xdg"})

    assert (found.connections, relative.connections) == (5, 2)
    assert found.recipes[0] == directory / "recipes"
    assert found.cache == tmp_path / "cache/ollama-appliance"


def test_without_a_home_a_cache_must_be_named(machine: _Machine) -> None:
    with pytest.raises(ConfigError) as caught:
        machine.load({"HOME": ""})

    assert "HOME is not set" in caught.value.message
    assert "--cache DIR" in caught.value.hint
    assert machine.load({"HOME": "", "APPLIANCE_CACHE": "/c"}).cache == Path("/c")


@pytest.mark.parametrize(
    ("text", "mistake"),
    [
        ("conections = 3", "conections: unknown key, did you mean `connections`?"),
        ("connections = 0", "connections: should be from 1 to 64, not 0"),
        ("connections = '3'", "connections: should be a whole number"),
        ("insecure = 'a'", "insecure: should be a list of texts"),
        ("insecure = ['http://a']", "insecure: not a host: 'http://a'"),
        ("platforms = ['amd64']", "platforms: not a platform: 'amd64'"),
        ("models_registry = 'ftp://a'", "models_registry: not a URL of a mirror"),
        ("models_registry = 'https://'", "models_registry: not a URL of a mirror"),
        ("models_registry = 'https://[::1'", "models_registry: not a URL"),
        ("models_registry = 'https://me:secret@a.lan'", "models_registry: a mirror's URL with a password in it: a.lan"),
        ("mirrors.'a b' = 'x'", 'mirrors."a b": not a host'),
        ("mirrors.a.io = 'x'", "mirrors.a: should be a text, not a table"),
        ("mirrors.'a.io' = 'x y'", "mirrors.\"a.io\": not a host: 'x y'"),
        ("ca.'a.io' = '/nowhere.pem'", 'ca."a.io": no certificate file: /nowhere.pem'),
        ("cache = 'here'", "cache: not an absolute path: 'here'"),
        ("recipes = '/nowhere'", "recipes: no directory: /nowhere"),
        ("base = 'A B'", "base: not an image reference"),
        ("=", "not TOML"),
    ],
)
def test_a_mistake_is_told_with_file_and_key(machine: _Machine, text: str, mistake: str) -> None:
    machine.say(text)

    with pytest.raises(ConfigError) as caught:
        machine.load()

    assert caught.value.message.startswith(str(machine.user / "builder.toml"))
    assert mistake in caught.value.message


def test_a_password_in_a_mirrors_url_is_not_repeated(machine: _Machine) -> None:
    machine.say("models_registry = 'https://me:secret@a.lan'")

    with pytest.raises(ConfigError) as caught:
        machine.load()

    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("APPLIANCE_BASE", "A B"),
        ("APPLIANCE_MODELS_REGISTRY", "ftp://x"),
        ("APPLIANCE_BASE_REGISTRY", "x y"),
        ("APPLIANCE_INSECURE", "a,b c"),
    ],
)
def test_a_mistake_in_the_environment_is_told_with_its_variable(machine: _Machine, variable: str, value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        machine.load({variable: value})

    assert caught.value.message.startswith(f"{variable}: ")


@pytest.mark.parametrize("body", [b"\xff", b"cache = '\xe9'"])
def test_a_file_that_is_no_utf8_is_an_error_that_names_it(machine: _Machine, body: bytes) -> None:
    (machine.user / "builder.toml").write_bytes(body)

    with pytest.raises(ConfigError, match=r"builder\.toml is no UTF-8 text"):
        machine.load()


def test_a_directory_in_place_of_the_file_is_an_error_that_names_it(machine: _Machine) -> None:
    (machine.user / "builder.toml").mkdir()

    with pytest.raises(ConfigError, match=r"cannot read .*builder\.toml: Is a directory"):
        machine.load()
