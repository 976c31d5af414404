"""What agent.toml may say, what a person is told about mistakes, and that the sample tells of every key."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from appliance_agent.config import Config, ConfigError, Container, Engine, parse
from appliance_agent.config_file import load
from appliance_agent.states import Reaction
from appliance_image.strict_toml import Table

SAMPLE = Path(__file__).parent.parent / "systemd" / "agent.toml"
IMAGE = 'image = "registry.lan/ai/deepseek-r1-think:32b"\n'


def read(text: str) -> Config:
    return parse(IMAGE + text, where="agent.toml")


def problem(text: str, *, image: str = IMAGE) -> str:
    with pytest.raises(ConfigError) as raised:
        parse(image + text, where="agent.toml")
    assert raised.value.hint
    return raised.value.message


def uncommented() -> str:
    return re.sub(r'^#(?=[\w"]+ = )', "", SAMPLE.read_text(), flags=re.MULTILINE)


def keys(table: Mapping[str, Any], path: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield f"{path}{key}"
            yield from keys(value, f"{path}{key}.")
        else:
            yield f"{path}{key}"


def test_the_sample_has_every_key_that_is_read_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: set[str] = set()
    get = Table._get  # noqa: SLF001 - each key that is asked for goes through it

    def noted(table: Table, key: str) -> object:
        asked.add(table.path(key))
        return get(table, key)

    monkeypatch.setattr(Table, "_get", noted)

    parse(uncommented(), where="agent.toml")

    assert sorted(keys(tomllib.loads(uncommented()))) == sorted(asked)


def test_the_sample_shows_the_defaults_of_the_code() -> None:
    shown = parse(uncommented(), where="agent.toml")

    examples = {
        "model": "",
        "store": "",
        "engine": replace(shown.engine, docker_config=""),
        "container": replace(shown.container, environment={}, memory_bytes=0),
        "healing": replace(shown.healing, xids={}),
        "metrics": replace(shown.metrics, web_config=""),
    }
    assert replace(shown, **examples) == Config(image=shown.image) == read("")  # type: ignore[arg-type]


def test_the_sample_as_it_is_lacks_nothing_but_the_image() -> None:
    assert problem(SAMPLE.read_text(), image="") == (
        'agent.toml: image: is missing: the image to run, for example `image = "registry.lan/ai/r1:32b"`'
    )
    assert read(SAMPLE.read_text()) == read("")


def test_the_sample_fits_a_terminal() -> None:
    assert [line for line in SAMPLE.read_text().splitlines() if len(line) > 120] == []


def test_every_mistake_is_told_at_once_with_the_path_of_its_key() -> None:
    told = problem(
        """
        gpus = ["GPU-8f6e1b2a", "GPU-8f6e1b2a"]
        base_port = 70000
        pul = "always"
        [health]
        canary_interval_s = "often"
        canary_token = 8
        [healing.xids]
        79 = "explode"
        many = "reset"
        [container.environment]
        OLLAMA_HOST = "0.0.0.0"
        [metrics]
        port = 0
        """,
        image="",
    )

    first, *others = told.splitlines()
    assert first == "agent.toml: 10 mistakes"
    assert [line.strip().partition(": ")[0] for line in others] == [
        "image",
        "gpus",
        "base_port",
        "container.environment.OLLAMA_HOST",
        "health.canary_interval_s",
        "healing.xids.79",
        "healing.xids.many",
        "metrics.port",
        "pul",
        "health.canary_token",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('image_ = "x"', "image_: unknown key, did you mean `image`?"),
        ("gpu = 1", "gpu: unknown key, did you mean `gpus`?"),
        ("[engine]\nsocet = 1", "engine.socet: unknown key, did you mean `socket`?"),
        ("[heatlh]\nstall_s = 1", "heatlh: unknown key, did you mean `health`?"),
        ("[metrics]\nPort = 1", "metrics.Port: unknown key, did you mean `port`?"),
        ('"模型" = 1', '"模型": unknown key'),
    ],
)
def test_an_unknown_key_is_a_mistake_and_the_near_one_is_named(text: str, expected: str) -> None:
    assert problem(text) == f"agent.toml: {expected}"


RANGES: list[tuple[str, float, float, float]] = [
    # key, smallest, largest, what is too small by little
    ("gpus_per_instance", 1, 16, 1),
    ("base_port", 1, 65471, 1),
    ("engine.timeout_s", 1, 300, 0.01),
    ("container.stop_timeout_s", 1, 3600, 1),
    ("container.log_max_files", 1, 100, 1),
    ("health.canary_interval_s", 1, 3600, 0.01),
    ("health.canary_tokens", 2, 256, 1),
    ("health.first_token_s", 0.5, 3600, 0.01),
    ("health.stall_s", 0.5, 3600, 0.01),
    ("health.silent_s", 1, 86400, 0.01),
    ("health.on_cpu_s", 1, 3600, 0.01),
    ("health.load_s", 1, 86400, 0.01),
    ("health.failures", 1, 100, 1),
    ("health.fresh_s", 1, 3600, 0.01),
    ("health.flow_bytes_per_s", 1, 1e9, 0.01),
    ("health.slow_ratio", 0.05, 0.99, 0.001),
    ("health.slow_canaries", 1, 100, 1),
    ("healing.backoff_s", 0.1, 3600, 0.01),
    ("healing.backoff_max_s", 1, 86400, 0.01),
    ("healing.budget", 1, 1000, 1),
    ("healing.budget_window_s", 1, 604800, 0.01),
    ("healing.proven_s", 1, 604800, 0.01),
    ("healing.probation_s", 1, 86400, 0.01),
    ("rollout.drain_s", 0, 86400, 0.01),
    ("rollout.canaries", 1, 100, 1),
    ("rollout.slower_ratio", 0.05, 1, 0.001),
    ("rollout.parallel_loads", 1, 64, 1),
    ("metrics.port", 1, 65535, 1),
]


def setting(key: str, value: float) -> str:
    table, _, name = key.rpartition(".")
    number = int(value) if value == int(value) else value
    return f"[{table}]\n{name} = {number}\n" if table else f"{name} = {number}\n"


def found(config: object, key: str) -> object:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize(("key", "smallest", "largest", "little"), RANGES, ids=[entry[0] for entry in RANGES])
def test_a_number_may_reach_the_ends_of_its_range_and_not_pass_them(
    key: str, smallest: float, largest: float, little: float
) -> None:
    assert found(read(setting(key, smallest)), key) == smallest
    assert found(read(setting(key, largest)), key) == largest
    for outside in (smallest - little, largest + little):
        told = problem(setting(key, outside))
        assert told.startswith(f"agent.toml: {key}: should be from {smallest:g} to ") or f"{key}: " in told


def test_every_number_of_the_sample_has_its_range_tested() -> None:
    numbers = {
        key
        for key in keys(tomllib.loads(uncommented()))
        if isinstance(_value(tomllib.loads(uncommented()), key), int | float)
        and not isinstance(_value(tomllib.loads(uncommented()), key), bool)
    }

    assert numbers == {key for key, *_ in RANGES}


def _value(table: Mapping[str, Any], key: str) -> object:
    value: Any = table
    for part in key.split("."):
        value = value[part]
    return value


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('gpus = "all"', "all"),
        ('gpus = "none"', "none"),
        ("gpus = [0, 2]", (0, 2)),
        ('gpus = ["GPU-8f6e1b2a-0000-1111-2222-333344445555", 3]', ("GPU-8f6e1b2a-0000-1111-2222-333344445555", 3)),
        ('gpus = ["MIG-GPU-8f6e1b2a/1/0"]', ("MIG-GPU-8f6e1b2a/1/0",)),
        ('gpus = "GPU-8f6e1b2a"', ("GPU-8f6e1b2a",)),
    ],
)
def test_gpus_are_all_none_or_a_list(text: str, expected: object) -> None:
    assert read(text).gpus == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gpus = []", "gpus: should be a text or a list of texts and whole numbers, not a list"),
        ("gpus = [-1]", "gpus: should be a text or a list of texts and whole numbers, not a list"),
        ("gpus = [true]", "gpus: should be a text or a list of texts and whole numbers, not a list"),
        ("gpus = 1.5", "gpus: should be a text or a list of texts and whole numbers, not the number 1.5"),
        ("gpus = [1, 1]", "gpus: names a GPU twice"),
        ('gpus = ["all"]\ngpus_per_instance = 2\n[x]', "x: unknown key"),
        ('gpus = "A100"', "gpus: `A100` is neither a UUID such as `GPU-8f6e…` (see `nvidia-smi -L`) nor an index"),
        ("gpus = [0, 1, 2]\ngpus_per_instance = 2", "gpus_per_instance: 3 GPUs cannot be shared out in groups of 2"),
        ('gpus = "none"\ngpus_per_instance = 2', 'gpus_per_instance: has no meaning with `gpus = "none"`'),
        ('pull = "sometimes"', "pull: should be `missing` or `always` or `never`, not `sometimes`"),
        ('injection = "magic"', "injection: should be `auto` or `cdi` or `runtime` or `device-request`, not `magic`"),
        ('address = "localhost"', "address: not an IP address: `localhost`"),
        ('store = "models"\nmodel = "r1"', "store: should be an absolute path, not `models`"),
        (
            'store = "/models"',
            "model: is missing: with `store` it says which model to serve, for example `deepseek-r1:32b`",
        ),
        ("model = 3", "model: should be a text, not the number 3"),
        ('model = " "', "model: is empty"),
        ("base_port = true", "base_port: should be a whole number, not true"),
        ("base_port = 8880.0", "base_port: should be a whole number, not the number 8880.0"),
        ("engine = 1", "engine: should be a table, not the number 1"),
        (
            '[engine]\nsocket = "tcp://10.0.0.1:2375"',
            "engine.socket: should be an absolute path, not `tcp://10.0.0.1:2375`",
        ),
        ("[engine]\ntimeout_s = nan", "engine.timeout_s: should be a number, not the number nan"),
        ("[engine]\ntimeout_s = inf", "engine.timeout_s: should be from 1 to 300, not inf"),
        ('[container]\nmemory = "lots"', "container.memory: should be a size such as `512M` or `64G`, not `lots`"),
        ("[container]\nmemory = 64", "container.memory: should be a text, not the number 64"),
        ('[container]\nname_prefix = "-x"', "container.name_prefix: not the beginning of a container's name: `-x`"),
        ('[container]\nread_only = "yes"', "container.read_only: should be true or false, not the text 'yes'"),
        (
            "[container.environment]\nOLLAMA_NUM_PARALLEL = 4",
            "container.environment.OLLAMA_NUM_PARALLEL: should be a text, not the number 4",
        ),
        ('[container.environment]\n"1X" = "y"', "container.environment.1X: is no name of an environment variable"),
        *[
            (f'[container.environment]\n{name} = "x"', f"container.environment.{name}: is set by the agent itself")
            for name in ("OLLAMA_HOST", "OLLAMA_MODELS", "NVIDIA_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
        ],
        (
            'address = "0.0.0.0"\n[metrics]\nport = 8881',
            "metrics: `port` lies among the slots' ports, which begin at 8880",
        ),
        (
            '[healing.xids]\n79 = "explode"',
            "healing.xids.79: should be `observe` or `restart` or `reset` or `reboot`, not `explode`",
        ),
        ('[healing.xids]\nfallen = "reset"', "healing.xids.fallen: is no XID: the key is the number, for example `94`"),
        ("[healing]\nbackoff_s = 10\nbackoff_max_s = 5", "healing.backoff_max_s: should be from 10 to 86400, not 5"),
        ("gpus = [", "not TOML: Invalid value"),
    ],
)
def test_what_cannot_be_is_told_with_its_reason(text: str, expected: str) -> None:
    assert expected in problem(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512M", 512 << 20), ("64G", 64 << 30), ("1T", 1 << 40), ("8GiB", 8 << 30), ("16 gb", 16 << 30), ("100k", 102400)],
)
def test_sizes_are_read_in_powers_of_1024(text: str, expected: int) -> None:
    assert read(f'[container]\nmemory = "{text}"').container.memory_bytes == expected


def test_a_socket_may_be_written_as_docker_writes_it() -> None:
    assert read('[engine]\nsocket = "unix:///run/user/1000/docker.sock"').engine == Engine(
        socket="/run/user/1000/docker.sock"
    )


def test_values_may_be_in_any_script() -> None:
    config = read(
        'model = "深度求索:32b"\n[health]\ncanary_prompt = "你好，请问你是谁？"\n[container.environment]\nA = "值"'
    )

    assert config.model == "深度求索:32b"
    assert config.health.canary_prompt == "你好，请问你是谁？"
    assert config.container == Container(environment={"A": "值"})


def test_xids_are_numbers_with_a_reaction() -> None:
    assert read('[healing.xids]\n94 = "observe"\n79 = "reboot"').healing.xids == {
        94: Reaction.OBSERVE,
        79: Reaction.REBOOT,
    }


def test_a_long_first_back_off_lifts_the_default_of_the_longest() -> None:
    assert read("[healing]\nbackoff_s = 900").healing.backoff_max_s == 900


def test_a_file_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text("\ufeff" + IMAGE + 'model = "深度求索:32b"\r\n')

    assert load(path) == read('model = "深度求索:32b"')


def test_mistakes_name_the_file(tmp_path: Path) -> None:
    path = tmp_path / "agent.toml"
    path.write_text(IMAGE + "gpus = 1.5")

    with pytest.raises(ConfigError, match=f"^{path}: gpus: "):
        load(path)


def missing(path: Path) -> None:
    assert not path.exists()


def a_directory(path: Path) -> None:
    path.mkdir()


def in_another_encoding(path: Path) -> None:
    path.write_bytes(IMAGE.encode() + b"\n# \xc4\xe3\xba\xc3\n")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(5 << 20)


def a_loop_of_links(path: Path) -> None:
    path.symlink_to(path)


def below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.write_text("")


@pytest.mark.parametrize(
    ("made", "message", "hint"),
    [
        (missing, "no configuration: PATH", "start from the sample"),
        (a_directory, "a directory, not a file: PATH", "PATH/agent.toml"),
        (in_another_encoding, "not UTF-8: PATH, line 3", "iconv -f GB18030 -t UTF-8 PATH"),
        (huge, "larger than 1 MiB: PATH", "TOML"),
        (a_loop_of_links, "configuration cannot be read: PATH: Too many levels of symbolic links", "ls -l PATH"),
        (below_a_file, "configuration cannot be read: PATH: Not a directory", "ls -l PATH"),
    ],
)
def test_a_file_that_cannot_be_read_is_told_with_what_to_do(
    made: Callable[[Path], None], message: str, hint: str, tmp_path: Path
) -> None:
    path = tmp_path / "etc" / "agent.toml"
    path.parent.mkdir()
    made(path)

    with pytest.raises(ConfigError) as raised:
        load(path)

    assert raised.value.message == message.replace("PATH", str(path))
    assert hint.replace("PATH", str(path)) in raised.value.hint


def test_a_file_of_another_user_is_told_with_what_to_do(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("to be somebody else needs root")
    path = tmp_path / "agent.toml"
    path.write_text(IMAGE)
    path.chmod(0o600)
    os.chown(path, 0, 0)

    os.seteuid(65534)
    try:
        with pytest.raises(ConfigError) as raised:
            load(path)
    finally:
        os.seteuid(0)

    assert raised.value.message == f"configuration cannot be read: {path}: permission denied"
    assert f"chmod 644 {path}" in raised.value.hint
