"""The engine's words as values: listings, inspections, images, facts, streams of lines, progress and complaints."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from test_agent_injection import RELEASE

from appliance_agent.complaints import about_pull, about_start
from appliance_agent.containers import Obstacle
from appliance_agent.engine_json import (
    parse_container,
    parse_facts,
    parse_image,
    parse_obstacles,
    parse_row,
    parse_time,
)
from appliance_agent.http_answer import HttpAnswer, HttpAnswerError, HttpLines
from appliance_agent.pull_progress import PullProgress
from appliance_agent.spec import LABEL_GPUS, LABEL_MANAGED, LABEL_RELEASE_JSON, LABEL_SLOT, ContainerSpec, SlotPlan
from appliance_image.contract import LABEL_LAYOUT, LABEL_MODEL

INSPECTED: dict[str, Any] = {
    "Id": "85ab",
    "Name": "/ollama-gpu0",
    "Image": "sha256:63cd",
    "State": {
        "Status": "running",
        "Pid": 281,
        "ExitCode": 0,
        "OOMKilled": False,
        "Error": "",
        "StartedAt": "2026-11-27T16:55:54.944578848Z",
        "FinishedAt": "0001-01-01T00:00:00Z",
    },
    "Config": {"Labels": {LABEL_MANAGED: "ollama", LABEL_SLOT: "0", LABEL_GPUS: "GPU-a,GPU-b"}},
}
ROW: dict[str, Any] = {
    "Id": "85ab",
    "Names": ["/other/link", "/ollama-gpu0"],
    "ImageID": "sha256:63cd",
    "State": "exited",
    "Labels": INSPECTED["Config"]["Labels"],
    "Ports": [],
}
PLANS = (SlotPlan(0, "ollama-gpu0", ("GPU-a",), 8880), SlotPlan(1, "ollama-gpu1", ("GPU-b",), 8881))


def test_an_inspected_container_is_a_value() -> None:
    seen = parse_container(INSPECTED)

    assert (seen.id, seen.name, seen.slot, seen.gpus) == ("85ab", "ollama-gpu0", 0, ("GPU-a", "GPU-b"))
    assert (seen.status, seen.running, seen.pid, seen.finished_at_s) == ("running", True, 281, 0.0)
    assert seen.started_at_s == pytest.approx(1795798554.944578)
    assert seen.release is None


def test_a_release_in_a_label_comes_back_whole() -> None:
    labels = {**INSPECTED["Config"]["Labels"], LABEL_RELEASE_JSON: RELEASE.render()}

    assert parse_container({**INSPECTED, "Config": {"Labels": labels}}).release == RELEASE


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"injection": "magic"}', "null"])
def test_a_release_that_cannot_be_read_is_none(text: str) -> None:
    labels = {**INSPECTED["Config"]["Labels"], LABEL_RELEASE_JSON: text}

    assert parse_container({**INSPECTED, "Config": {"Labels": labels}}).release is None


@pytest.mark.parametrize("slot", ["", "x", "-1", "1.5"])
def test_a_container_whose_slot_is_no_number_belongs_to_none(slot: str) -> None:
    labels = {LABEL_MANAGED: "ollama", LABEL_SLOT: slot}

    assert parse_container({**INSPECTED, "Config": {"Labels": labels}}).slot == -1


def test_what_an_engine_leaves_out_is_quiet() -> None:
    seen = parse_container({"Id": "1", "State": None, "Config": {"Labels": None}})

    assert (seen.slot, seen.status, seen.pid, seen.started_at_s) == (-1, "", 0, 0.0)


def test_a_row_changes_what_it_knows_and_keeps_the_rest() -> None:
    before = parse_container(INSPECTED)

    seen = parse_row(ROW, before)

    assert seen == replace(before, status="exited", pid=0)
    assert parse_row(ROW, None).gpus == ("GPU-a", "GPU-b")


@pytest.mark.parametrize("text", ["0001-01-01T00:00:00Z", "", "yesterday"])
def test_never_is_zero(text: str) -> None:
    assert parse_time(text) == 0.0


def stranger(name: str, *ports: dict[str, Any], labels: dict[str, str] | None = None) -> dict[str, Any]:
    return {"Id": name, "Names": [f"/{name}"], "Labels": labels, "Ports": list(ports), "State": "running"}


def published(port: int, address: str = "0.0.0.0", kind: str = "tcp") -> dict[str, Any]:
    return {"IP": address, "PrivatePort": 80, "PublicPort": port, "Type": kind}


OBSTACLES: dict[str, tuple[dict[str, Any], str, tuple[Obstacle, ...]]] = {
    "a name": (stranger("ollama-gpu1"), "127.0.0.1", (Obstacle(1, "ollama-gpu1", "name ollama-gpu1"),)),
    "a port everywhere": (stranger("web", published(8880)), "127.0.0.1", (Obstacle(0, "web", "port 8880"),)),
    "a port everywhere, in version 6": (stranger("web", published(8880, "::")), "127.0.0.1", (Obstacle(0, "web", "port 8880"),)),
    "the same address": (stranger("web", published(8880, "127.0.0.1")), "127.0.0.1", (Obstacle(0, "web", "port 8880"),)),
    "another address": (stranger("web", published(8880, "10.0.0.1")), "127.0.0.1", ()),
    "any address of ours": (stranger("web", published(8880, "10.0.0.1")), "0.0.0.0", (Obstacle(0, "web", "port 8880"),)),
    "another protocol": (stranger("dns", published(8880, kind="udp")), "127.0.0.1", ()),
    "not published": (stranger("web", {"PrivatePort": 8880, "Type": "tcp"}), "127.0.0.1", ()),
    "the agent's own": (stranger("ollama-gpu1", published(8880), labels={LABEL_MANAGED: "ollama"}), "127.0.0.1", ()),
    "another agent's": (stranger("ollama-gpu1", labels={LABEL_MANAGED: "x"}), "127.0.0.1", (Obstacle(1, "ollama-gpu1", "name ollama-gpu1"),)),
}  # fmt: skip


@pytest.mark.parametrize(("row", "address", "obstacles"), OBSTACLES.values(), ids=OBSTACLES)
def test_an_obstacle_is_what_a_slot_could_not_have(
    row: dict[str, Any], address: str, obstacles: tuple[Obstacle, ...]
) -> None:
    assert parse_obstacles([row], PLANS, prefix="ollama", address=address) == obstacles


def test_a_port_on_both_protocols_is_one_obstacle() -> None:
    row = stranger("web", published(8880), published(8880, "::"))

    assert len(parse_obstacles([row], PLANS, prefix="ollama", address="127.0.0.1")) == 1


def test_the_digest_is_that_of_the_repository_that_was_asked_for() -> None:
    digests = ["mirror.lan/x@sha256:1", "registry.lan:5000/ai/r1@sha256:2"]

    assert parse_image("registry.lan:5000/ai/r1:32b", {"Id": "i", "RepoDigests": digests}).digest == digests[1]
    assert parse_image("registry.lan:5000/ai/r1", {"Id": "i", "RepoDigests": digests}).digest == digests[1]
    assert parse_image("other/x:1", {"Id": "i", "RepoDigests": digests}).digest == digests[0]
    assert parse_image("other/x:1", {"Id": "i", "RepoDigests": None}).digest == ""


def test_a_plain_image_has_no_labels_and_no_problem() -> None:
    seen = parse_image("ollama/ollama", {"Id": "i", "Config": {"Labels": {"org.opencontainers.image.version": "24"}}})

    assert (seen.labels, seen.problem) == (None, "")


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({LABEL_LAYOUT: "99", LABEL_MODEL: "r1"}, "layout version 99"),
        ({LABEL_LAYOUT: "x", LABEL_MODEL: "r1"}, "no number"),
        ({LABEL_LAYOUT: "1"}, "labels are missing"),
    ],
)
def test_an_appliance_image_that_cannot_be_read_is_a_problem_in_words(labels: dict[str, str], problem: str) -> None:
    seen = parse_image("x", {"Id": "i", "Config": {"Labels": labels}})

    assert seen.labels is None
    assert problem in seen.problem


def test_discovered_devices_and_directories_are_facts() -> None:
    info = {
        "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=GPU-a"}, {"Source": "other", "ID": "x"}],
        "CDISpecDirs": ["/etc/cdi"],
        "Runtimes": {"runc": {}, "nvidia": {}},
        "LiveRestoreEnabled": True,
    }

    facts = parse_facts({"Version": "29.0.0", "ApiVersion": "1.52"}, info)

    assert facts.devices == ("nvidia.com/gpu=GPU-a",)
    assert (facts.api_version, facts.runtimes, facts.live_restore) == ((1, 52), ("nvidia", "runc"), True)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
LINES = [b'{"a":1}', b'{"b":"\xc3\xbc"}', b'{"c":3}']
WIRE = HEAD + b'8\r\n{"a":1}\n\r\n6\r\n{"b":"\r\nc;x=y\r\n\xc3\xbc"}\r\n{"c":3\r\n2\r\n}\n\r\n0\r\n\r\n'


@pytest.mark.parametrize("size", range(1, len(WIRE) + 1))
def test_boundaries_do_not_matter(size: int) -> None:
    lines = HttpLines()

    found = [line for i in range(0, len(WIRE), size) for line in lines.feed(WIRE[i : i + size])]

    assert found == LINES
    assert lines.status == 200
    assert lines.ended


def test_an_answer_that_is_cut_has_not_ended() -> None:
    for size in range(len(WIRE) - 4):
        lines = HttpLines()
        lines.feed(WIRE[:size])

        assert not lines.ended


PLAIN = b"HTTP/1.1 404 Not Found\r\ncontent-length:  5\r\n\r\nhello"
ENDLESS = b"HTTP/1.0 200 OK\r\n\r\nhello"


@pytest.mark.parametrize("size", range(1, len(PLAIN) + 1))
@pytest.mark.parametrize(("wire", "ends"), [(PLAIN, True), (PLAIN + b"HTTP/1.1 200 OK", True), (ENDLESS, False)])
def test_a_body_has_the_length_that_was_told_or_ends_with_the_connection(wire: bytes, size: int, *, ends: bool) -> None:
    answer = HttpAnswer()

    body = b"".join(answer.feed(wire[i : i + size]) for i in range(0, len(wire), size))

    assert body == b"hello"
    assert answer.ended is ends
    answer.close()
    assert answer.ended


@pytest.mark.parametrize(
    "wire",
    [
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 2000 + b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n",
    ],
)
def test_an_answer_without_a_body_ends_with_its_head(wire: bytes) -> None:
    answer = HttpAnswer()
    assert answer.feed(wire) == b""

    assert answer.status in (204, 304)
    assert answer.frees_connection


@pytest.mark.parametrize("field", [b"Connection: close", b"connection: Keep-Alive, Close", b"X: y"])
def test_a_connection_that_the_server_will_close_is_not_used_again(field: bytes) -> None:
    answer = HttpAnswer()
    answer.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n" + field + b"\r\n\r\nhello")

    assert answer.ended
    assert answer.frees_connection is (field == b"X: y")


@pytest.mark.parametrize("wire", [b"", HEAD[:-1], HEAD, HEAD + b"2\r\nab\r\n", PLAIN[:-1]])
def test_an_answer_that_broke_off_is_an_error_at_the_end(wire: bytes) -> None:
    answer = HttpAnswer()
    answer.feed(wire)

    with pytest.raises(HttpAnswerError):
        answer.close()


@pytest.mark.parametrize(
    "wire", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\r\n\r\n", HEAD + b"zz\r\n", HEAD + b"-1\r\n", b"x" * 70000]
)
def test_what_is_no_http_is_refused(wire: bytes) -> None:
    with pytest.raises(HttpAnswerError):
        HttpLines().feed(wire)


@given(some.binary(max_size=200))
def test_no_bytes_break_the_decoder_in_another_way(wire: bytes) -> None:
    try:
        HttpLines().feed(wire)
        HttpLines().feed(HEAD + wire)
    except HttpAnswerError:
        pass


def progress(*lines: dict[str, object]) -> PullProgress:
    found = PullProgress()
    for line in lines:
        found = found.after(line)
    return found


def loading(layer: str, done: int, total: int, status: str = "Downloading") -> dict[str, object]:
    return {"status": status, "progressDetail": {"current": done, "total": total}, "id": layer}


def test_progress_adds_up_over_layers_and_never_goes_back() -> None:
    lines: list[dict[str, object]] = [
        {"status": "Pulling from ai/r1", "id": "32b"},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": "a"},
        {"status": "Already exists", "progressDetail": {}, "id": "z"},
        loading("a", 10, 100),
        loading("b", 50, 50),
        {"status": "Download complete", "progressDetail": {}, "id": "b"},
        loading("b", 5, 50, "Extracting"),
        loading("a", 100, 100),
        {"status": "Pull complete", "progressDetail": {}, "id": "a"},
    ]
    done = [progress(*lines[: count + 1]).done_bytes for count in range(len(lines))]

    assert done == [0, 0, 0, 10, 60, 60, 60, 150, 150]
    assert progress(*lines).total_bytes == 150


def test_an_error_in_the_stream_is_an_error() -> None:
    assert progress({"errorDetail": {"message": "no space left"}, "error": "no space"}).error == "no space left"
    assert progress({"error": "bad"}).error == "bad"
    assert progress({"errorDetail": {}}).error == "no reason given"


SPEC = ContainerSpec(PLANS[0], RELEASE)
COMPLAINTS = {
    # 20.10 and 26.1 say these in the tests with real engines; here are those of others.
    "failed to set up container networking: driver failed programming external connectivity on endpoint x: failed to "
    "bind host port for 127.0.0.1:8880:172.17.0.2:11434/tcp: address already in use": "port 8880 is in use by a program",
    "failed to set up container networking: driver failed programming external connectivity on endpoint x: Bind for "
    "127.0.0.1:8880 failed: port is already allocated": "port 8880 is published by another container",
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: error running prestart hook #0: exit status 1, "
    "stdout: , stderr: Auto-detected mode as 'legacy'\nnvidia-container-cli: initialization error: nvml error: "
    "driver/library version mismatch": "the NVIDIA driver was changed without a reboot",
    "CDI device injection failed: unresolvable CDI devices nvidia.com/gpu=GPU-a": "no CDI specification names GPU-a",
    'error gathering device information while adding custom device "/dev/nvidia0": no such file or directory':
        "a device node is missing",
    "something that nobody has seen": "something that nobody has seen",
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), COMPLAINTS.items(), ids=range(len(COMPLAINTS)))
def test_complaints_of_other_engines_are_understood(text: str, message: str) -> None:
    complaint = about_start(f"starting container ollama-gpu0: {text}", SPEC)

    assert message in complaint.message
    assert complaint.hint
    assert "{" not in complaint.message + complaint.hint


PULLS = {
    'Get "https://registry.lan/v2/": x509: certificate signed by unknown authority': "certs.d/registry.lan/ca.crt",
    'Get "https://registry.lan/v2/": http: server gave HTTP response to HTTPS client': "insecure-registries",
    "pull access denied for registry.lan/ai/x, repository does not exist or may require 'docker login': denied": "docker login",
    'Get "https://registry.lan/v2/": net/http: TLS handshake timeout': "curl -sS https://registry.lan/v2/",
    "unexpected EOF": "curl -sS",
    "failed to register layer: write /models/blobs/sha256-1: no space left on device": "/var/lib/docker",
    "toomanyrequests: You have reached your pull rate limit": "journalctl",
}


@pytest.mark.parametrize(("text", "hint"), PULLS.items(), ids=range(len(PULLS)))
def test_why_a_pull_failed_is_understood(text: str, hint: str) -> None:
    complaint = about_pull(text, 500, reference="registry.lan/ai/x:1", host="registry.lan", root="/var/lib/docker")

    assert hint in complaint.hint
    assert text.partition(":")[0] in complaint.message


def test_braces_in_a_complaint_are_harmless() -> None:
    text = json.dumps({"a": {"b": 1}})

    assert about_start(f"no space left on device: {text}", SPEC).message.endswith(text)
    assert text in about_pull(f"dial tcp {text}", 500, reference="x", host="y", root="").message
