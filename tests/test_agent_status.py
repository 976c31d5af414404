"""The JSON of /status, and the command that asks a running agent for it."""

from __future__ import annotations

import json
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import snapshots
import soundhost
from click.testing import CliRunner

from appliance_agent.cli_status import status as status_command
from appliance_agent.config import MetricsConfig
from appliance_agent.front import Front
from appliance_agent.slots import Now
from appliance_agent.snapshot import Snapshot
from appliance_agent.status import Status
from appliance_agent.status_client import StatusUnavailableError, ask, url_of
from appliance_agent.status_json import StatusError, parse, render
from appliance_agent.status_view import status_of

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "recordings" / "agent"
ALL = {
    "good_night": snapshots.good_night(),
    "bad_night": snapshots.bad_night(),
    "without_gpus": snapshots.without_gpus(),
    "unknown": snapshots.unknown(),
    "no_slots": snapshots.good_night(0),
    "groups": snapshots.in_groups(),
    "mig": snapshots.mig(),
}


# the JSON


@pytest.mark.parametrize("snapshot", ALL.values(), ids=ALL)
def test_what_is_written_is_read_back(snapshot: Snapshot) -> None:
    assert parse(render(snapshot)) == status_of(snapshot)


def test_the_json_of_a_known_night_is_what_it_always_was() -> None:
    """Keys are API: whoever changes this file changes what programs read, and says so in CHANGELOG."""
    assert render(snapshots.bad_night()) == (GOLDEN / "status.json").read_text()


def test_times_are_utc_and_unknown_values_are_null() -> None:
    status = json.loads(render(snapshots.unknown()))

    assert status["time"] == "2026-11-28T12:03:11.000Z"
    assert status["engine"]["since"] is None
    assert status["driver"] == {"up": False, "because": "NVML was not asked yet", "version": None, "cuda_version": None}


def test_in_a_rolling_change_each_slot_shows_the_release_that_it_runs() -> None:
    slots = status_of(snapshots.half_way()).slots

    assert [(slot.image, slot.model) for slot in slots] == [
        (f"{soundhost.IMAGE}-v2", soundhost.MODEL),
        (soundhost.IMAGE, soundhost.MODEL),
    ]


def test_a_key_of_a_newer_agent_is_ignored_and_a_null_may_be_absent() -> None:
    values = json.loads(render(snapshots.bad_night()))
    values["new"] = values["slots"][0]["new"] = {"a": 1}
    del values["slots"][0]["canary"]

    read = parse(json.dumps(values))

    assert read.slots[0].canary is None
    assert read.slots[1:] == status_of(snapshots.bad_night()).slots[1:]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the answer is not JSON"),
        ("[" * 100_000, "the answer is not JSON"),
        ("[]", "status: should be an object"),
        ('{"schema": "1"}', 'status.schema: should be int, not "1"'),
        ('{"schema": true}', "status.schema: should be int, not true"),
        ('{"schema": 1, "time": "yesterday"}', "status.time: not a time: yesterday"),
        ('{"schema": 1, "time": "2026-11-28T12:03:11Z"}', "status.agent: should be an object"),
    ],
)
def test_what_no_agent_says_is_told_with_its_place(text: str, message: str) -> None:
    with pytest.raises(StatusError, match=f"^{re.escape(message)}"):
        parse(text)


@pytest.mark.parametrize("key", ["restarts", "gpus", "container_name", "port", "serving"])
def test_a_slot_with_a_wrong_value_is_told_with_its_place(key: str) -> None:
    values = json.loads(render(snapshots.good_night(2)))
    values["slots"][1][key] = 1.5

    with pytest.raises(StatusError, match=rf"^status\.slots\[1\]\.{key}: "):
        parse(json.dumps(values))


def test_a_number_that_is_none_is_null() -> None:
    base = snapshots.good_night(1)
    reading = soundhost.reading(0)._replace(power_w=float("nan"), temperature_c=float("inf"))
    broken = replace(base, gpus=replace(base.gpus, readings={soundhost.uuid(0): reading}))

    gpu = json.loads(render(broken))["slots"][0]["gpus"][0]

    assert (gpu["power_watts"], gpu["temperature_celsius"]) == (None, None)


def keys(kind: Any, path: str = "") -> Iterator[str]:
    """The paths of all keys, from the types."""
    arguments = get_args(kind)
    if get_origin(kind) is UnionType:
        yield from keys(arguments[0], path)
    elif get_origin(kind) is tuple:
        yield from keys(arguments[0], f"{path}[]")
    elif is_dataclass(kind):
        for name, inner in get_type_hints(kind).items():
            yield from keys(inner, f"{path}.{name}".lstrip("."))
    else:
        yield path


def test_every_key_is_documented_and_no_other() -> None:
    documented = re.findall(r"^\| `([^`]+)` \|", (ROOT / "agent" / "STATUS.md").read_text(), re.MULTILINE)
    same = {re.sub(r"good_canary\..*", "good_canary", key) for key in keys(Status)}

    assert len(documented) == len(set(documented))
    assert set(documented) == same


# the command


@pytest.fixture
def front() -> Iterator[Front]:
    made = Front(MetricsConfig("127.0.0.1", 0))
    made.open()
    yield made
    made.close()


def current(snapshot: Snapshot) -> Snapshot:
    """The same state, seen just now."""
    return replace(snapshot, now=Now(time.monotonic(), snapshot.now.wall_s))


def url(front: Front) -> str:
    return f"http://127.0.0.1:{front.port}/status"


def test_status_shows_what_the_agent_has_published(front: Front) -> None:
    front.publish(current(snapshots.good_night()))

    result = CliRunner().invoke(status_command, ["--url", url(front)], catch_exceptions=False)

    assert result.exit_code == 0
    assert "gpuhost7: 8 of 8 slots serving" in result.output
    assert "\x1b" not in result.output


def test_status_as_json_is_what_the_agent_says(front: Front) -> None:
    snapshot = current(snapshots.bad_night())
    front.publish(snapshot)

    result = CliRunner().invoke(status_command, ["--json", "--url", url(front)], catch_exceptions=False)

    assert result.output == render(snapshot)


def test_the_address_is_the_one_of_the_configuration(front: Front, tmp_path: Path) -> None:
    front.publish(current(snapshots.good_night(1)))
    path = tmp_path / "agent.toml"
    path.write_text(f'image = "a"\n[metrics]\nport = {front.port}\n')

    result = CliRunner().invoke(status_command, ["--config", str(path)], catch_exceptions=False)

    assert "1 of 1 slots serving" in result.output


def test_a_broken_configuration_does_not_hide_the_agent(front: Front, tmp_path: Path) -> None:
    front.publish(current(snapshots.good_night(1)))
    path = tmp_path / "agent.toml"
    path.write_text("image = 1\n")

    result = CliRunner().invoke(status_command, ["--config", str(path), "--url", url(front)], catch_exceptions=False)

    assert "1 of 1 slots serving" in result.output


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("0.0.0.0", "http://127.0.0.1:9440/status"),
        ("::", "http://[::1]:9440/status"),
        ("192.0.2.7", "http://192.0.2.7:9440/status"),
        ("2001:db8::7", "http://[2001:db8::7]:9440/status"),
    ],
)
def test_an_agent_is_asked_where_it_listens(address: str, expected: str) -> None:
    assert url_of(MetricsConfig(address)) == expected


def test_no_agent_is_told_with_what_to_do() -> None:
    with pytest.raises(
        StatusUnavailableError, match=r"no agent answers at http://127\.0\.0\.1:1/status: Connection refused"
    ) as told:
        ask("http://127.0.0.1:1/status")

    assert "systemctl status ollama-agent" in told.value.hint


@pytest.mark.parametrize(
    "wrong", ["", "gpuhost7", "ftp://gpuhost7", "http://", "http://a:b/", "http://[::1", "file:///etc/passwd"]
)
def test_what_is_no_address_is_told(wrong: str) -> None:
    with pytest.raises(StatusUnavailableError, match=r"^not a URL: "):
        ask(wrong)


def test_another_page_or_an_agent_that_only_starts_is_no_status(front: Front) -> None:
    with pytest.raises(
        StatusUnavailableError, match="answers 503 Service Unavailable: the agent has only just started"
    ):
        ask(url(front))
    with pytest.raises(StatusUnavailableError, match="answers 200 OK: is another program on this port"):
        ask(url(front).replace("/status", "/metrics"))


def test_a_port_that_says_nothing_does_not_hold_up_the_person() -> None:
    with silent_listener() as port, pytest.raises(StatusUnavailableError, match="timed out"):
        ask(f"http://127.0.0.1:{port}/status", timeout_s=0.2)


def test_a_proxy_of_the_environment_is_not_asked(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    front.publish(current(snapshots.good_night(1)))

    assert parse(ask(url(front)).text).host.serving == 1


def test_json_and_watch_do_not_go_together() -> None:
    result = CliRunner().invoke(status_command, ["--json", "--watch"])

    assert result.exit_code == 2


@contextmanager
def silent_listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]
