"""Uploads of one blob against a real docker-registry whose connection misbehaves, and against registries with manners of
their own. Every fault ends in the right blob or in an error that says what to do."""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import MakeRegistry
from engines import wait_until
from faults import Answer, Corrupt, Cut, DropResponse, Fault, Headers, Stall, session_lost
from registries import Options, Registry
from registry_client import BODY, MIB, Bar, Bytes, Time, builder, close_connections, open_repository, pattern

from appliance_builder.http import Http, Timeouts
from appliance_builder.network import Network
from appliance_builder.network_errors import Fault as NetworkFault
from appliance_builder.network_errors import NetworkError
from appliance_builder.ports import Payload
from appliance_builder.quirks import Mode, Quirks, quirks_for
from appliance_builder.registry_errors import RegistryError
from appliance_builder.stream import run_pass
from appliance_builder.upload import upload
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError

UPLOADS = r"/blobs/uploads/"
PLAIN = quirks_for("127.0.0.1")


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_connections()


def error_body(code: str) -> bytes:
    return json.dumps({"errors": [{"code": code, "message": "told so"}]}).encode()


# Each is survived; the blob is in the registry in the end, whole.
SURVIVED: dict[str, list[tuple[Fault, dict[str, object]]]] = {
    "nothing": [],
    "reset in the body": [(Cut(3 * MIB, of="request"), {"method": "PATCH", "nth": 1})],
    "closed in the body": [(Cut(3 * MIB, of="request", how="fin"), {"method": "PATCH", "nth": 1})],
    "reset at once": [(Cut(0, of="request"), {"method": "PATCH", "nth": 1})],
    "reset three times": [(Cut(2 * MIB, of="request"), {"method": "PATCH", "times": 3})],
    "answer to POST lost": [(DropResponse(), {"method": "POST", "nth": 1})],
    "answer to PATCH lost": [(DropResponse(), {"method": "PATCH", "nth": 1})],
    "answer to PUT lost": [(DropResponse(how="rst"), {"method": "PUT", "nth": 1})],
    "PUT stored but 504": [(Answer(504, carry_out=True), {"method": "PUT", "nth": 1})],
    "PUT stored but 499": [(Answer(499, carry_out=True), {"method": "PUT", "nth": 1})],
    "PUT stored but unknown": [
        (Answer(404, error_body("BLOB_UPLOAD_UNKNOWN"), carry_out=True), {"method": "PUT", "nth": 1})
    ],
    "PUT not stored and 500": [(Answer(500), {"method": "PUT", "nth": 1})],
    "PUT not stored and 522": [(Answer(522), {"method": "PUT", "times": 2})],
    "session lost before the body": [(session_lost(), {"method": "PATCH", "nth": 1})],
    "session lost before the end": [(session_lost(), {"method": "PUT", "nth": 1})],
    "session invalid": [(Answer(400, error_body("BLOB_UPLOAD_INVALID")), {"method": "PATCH", "nth": 1})],
    "429 to POST": [(Answer(429, headers={"Retry-After": "7"}), {"method": "POST", "nth": 1})],
    "429 to PATCH": [(Answer(429, headers={"Retry-After": "7"}, early=True), {"method": "PATCH", "nth": 1})],
    "429 to PUT": [(Answer(429, headers={"Retry-After": "7"}), {"method": "PUT", "nth": 1})],
    "503 to POST": [(Answer(503), {"method": "POST", "times": 3})],
    "503 early to PATCH": [(Answer(503, early=True), {"method": "PATCH", "nth": 1})],
    "502 page late to PATCH": [(Answer(502, b"<html>bad gateway</html>"), {"method": "PATCH", "nth": 1})],
    "408 to PATCH": [(Answer(408), {"method": "PATCH", "nth": 1})],
    "416 to a sized PATCH": [(Answer(416, error_body("RANGE_INVALID")), {"method": "PATCH", "nth": 1})],
    "bytes changed on the way": [(Corrupt(2 * MIB, of="request"), {"method": "PATCH", "nth": 1})],
    "HEAD after a lost PUT in trouble": [
        (DropResponse(), {"method": "PUT", "nth": 1}),
        (Answer(503), {"method": "HEAD", "times": 2}),
    ],
    "status in trouble after a cut": [
        (Cut(MIB, of="request"), {"method": "PATCH", "nth": 1}),
        (Answer(502), {"method": "GET", "path": UPLOADS, "times": 2}),
    ],
}


@pytest.mark.parametrize("known", [False, True], ids=["digest unknown", "digest known"])
@pytest.mark.parametrize("name", SURVIVED)
def test_a_fault_is_survived(registry: Registry, name: str, known: bool) -> None:
    rules = [registry.proxy.add(fault, **where) for fault, where in SURVIVED[name]]  # type: ignore[arg-type]  # a table's values
    time, bar = Time(), Bar()

    digest = upload(open_repository(registry.host, time=time), Bytes(BODY, known=known), bar, quirks=PLAIN)

    assert digest == Digest.of(BODY)
    assert registry.has_blob(str(digest))
    assert bar.done == len(BODY)
    assert all(rule.hits for rule in rules)
    if name.startswith("429"):
        assert max(time.slept) >= 7
        assert any("429" in note for note in bar.notes)


@pytest.mark.parametrize("name", [name for name in SURVIVED if name.startswith("PUT stored") or "PUT lost" in name])
def test_a_blob_whose_commit_had_no_clear_answer_is_not_sent_again(registry: Registry, name: str) -> None:
    for fault, where in SURVIVED[name]:
        registry.proxy.add(fault, **where)  # type: ignore[arg-type]  # the table's values are what add takes

    upload(open_repository(registry.host), Bytes(BODY), Bar(), quirks=PLAIN)

    assert len(registry.requests("PATCH")) == 1
    assert len(registry.requests("PUT")) == 1


def test_a_blob_that_is_there_is_not_sent(registry: Registry) -> None:
    repository = open_repository(registry.host)
    upload(repository, Bytes(BODY, known=True), Bar(), quirks=PLAIN)
    registry.forget()
    bar = Bar()

    upload(repository, Bytes(BODY, known=True), bar, quirks=PLAIN)

    assert [each.method for each in registry.requests()] == ["HEAD"]
    assert bar.done == len(BODY)


def test_the_body_goes_out_with_its_length_and_once(registry: Registry) -> None:
    payload = Bytes(BODY)

    upload(open_repository(registry.host), payload, Bar(), quirks=PLAIN)

    patch = registry.requests("PATCH")[0]
    assert patch.headers["content-length"] == str(len(BODY))
    assert "content-range" not in patch.headers
    assert [each.method for each in registry.requests()] == ["POST", "PATCH", "PUT"]
    assert payload.reads == [0]


def test_what_was_sent_may_be_taken_for_longer_than_other_requests(registry: Registry) -> None:
    """Another request, begun while this one waits, has long been given up when the answer comes."""
    taking, other = Stall(len(BODY), of="request"), Stall(of="request")
    registry.proxy.add(taking, method="PATCH")
    registry.proxy.add(other, method="GET")
    with Http(Network(), environ={}, timeouts=Timeouts(read_s=1)) as http:
        repository = open_repository(registry.host, http=http)
        sending = threading.Thread(target=lambda: upload(repository, Bytes(BODY), Bar(), quirks=PLAIN))
        sending.start()
        try:
            assert taking.reached.wait(60)
            with pytest.raises(NetworkError, match="silent for 1 s"), http.exchange("GET", registry.url, doing="ask"):
                pass
        finally:
            taking.release()
            other.release()
            sending.join(60)

    assert registry.has_blob(str(Digest.of(BODY)))
    assert len(registry.requests("PATCH")) == 1


def keepalive_s(port: int) -> set[float]:
    """In how long each connection to a port here would be probed, by the kernel's own timers; empty for those without."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    timers = [row[5].split(":") for row in rows if row[2].endswith(f":{port:04X}") and row[3] == "01"]
    return {int(jiffies, 16) / os.sysconf("SC_CLK_TCK") for kind, jiffies in timers if kind == "02"}


@pytest.mark.parametrize("mode", [Mode.STREAM, Mode.WHOLE])
def test_a_commit_is_awaited_with_a_word_and_on_a_connection_that_no_firewall_forgets(
    registry: Registry, mode: Mode
) -> None:
    body, bar = pattern(65 * MIB), Bar()
    commit = Stall(len(body) if mode is Mode.WHOLE else 0, of="request")
    registry.proxy.add(commit, method="PUT")
    repository, quirks = open_repository(registry.host), Quirks((), "", "", mode_known=mode)
    sending = threading.Thread(target=lambda: upload(repository, Bytes(body, known=True), bar, quirks=quirks))
    sending.start()
    try:
        assert commit.reached.wait(60)
        wait_until(
            lambda: any(0 < left <= 60 for left in keepalive_s(registry.proxy.port)), timeout_s=60, what="a probe"
        )
        wait_until(lambda: bar.notes[-1:] == ["the registry puts the layer together"], timeout_s=60, what="the word")
    finally:
        commit.release()
        sending.join(60)

    assert registry.has_blob(str(Digest.of(body)))
    assert bar.notes[-1] == ""


def test_chunks_are_as_large_as_the_user_says(registry: Registry) -> None:
    upload(open_repository(registry.host), Bytes(BODY), Bar(), quirks=quirks_for(registry.host, chunk_bytes=2 * MIB))

    patches = registry.requests("PATCH")
    assert [each.request_bytes for each in patches] == [2 * MIB, 2 * MIB, MIB + 4321]
    assert patches[1].headers["content-range"] == f"{2 * MIB}-{4 * MIB - 1}"
    assert registry.has_blob(str(Digest.of(BODY)))


@pytest.mark.parametrize(("cuts", "sizes"), [(1, [66, 66]), (2, [66, 66, 64, 2])])
def test_long_requests_that_are_cut_twice_give_way_to_shorter_ones(
    registry: Registry, cuts: int, sizes: list[int]
) -> None:
    """Distribution 2.8 loses the session with the first byte of a request that it does not get to the end."""
    body, bar = pattern(66 * MIB), Bar()
    uploads = registry.files / "docker/registry/v2/repositories/ai/model/_uploads"
    registry.proxy.add(Cut(3 * MIB, of="request"), method="PATCH", times=cuts)

    looked_at = 0

    def registry_has_some() -> None:
        """Of each request that was cut, once: asked before, it would still know the session."""
        nonlocal looked_at
        if looked_at < len(registry.requests("PATCH")):
            looked_at += 1
            wait_until(
                lambda: any(each.stat().st_size for each in uploads.glob("*/data")), timeout_s=60, what="a byte of it"
            )

    digest = upload(open_repository(registry.host, time=Time(registry_has_some)), Bytes(body), bar, quirks=PLAIN)

    patches = registry.requests("PATCH")
    assert [int(each.headers["content-length"]) // MIB for each in patches] == sizes
    assert len(registry.requests("POST")) == cuts + 1
    assert registry.has_blob(str(digest))
    assert any(note.startswith("this registry keeps nothing of a broken upload") for note in bar.notes)


def test_a_registry_that_moves_to_another_location_is_followed(registry: Registry) -> None:
    registry.proxy.add(Headers({"Docker-Upload-UUID": None}), method="PATCH")

    digest = upload(open_repository(registry.host), Bytes(BODY), Bar(), quirks=PLAIN)

    assert registry.has_blob(str(digest))


@pytest.mark.parametrize("fault", [Cut(3 * MIB, of="request"), DropResponse(), Answer(503, carry_out=True)])
def test_one_put_survives_what_happens_to_it(registry: Registry, fault: Fault) -> None:
    registry.proxy.add(fault, method="PUT", nth=1)
    whole = Quirks((), "", "", mode=Mode.WHOLE, mode_known=Mode.WHOLE, resumable=False)

    digest = upload(open_repository(registry.host), Bytes(BODY, known=True), Bar(), quirks=whole)

    assert registry.has_blob(str(digest))
    assert len(registry.requests("PUT")) == (2 if isinstance(fault, Cut) else 1)


def test_one_put_ends_only_after_the_digest_was_earned(registry: Registry) -> None:
    payload = Bytes(BODY, known=True)
    payload.verdict = ApplianceError("blob is corrupt", hint="fetch it again")
    whole = Quirks((), "", "", mode_known=Mode.WHOLE)

    with pytest.raises(ApplianceError, match="blob is corrupt"):
        upload(open_repository(registry.host), payload, Bar(), quirks=whole)

    assert not registry.has_blob(str(payload.digest))
    assert registry.requests("PUT")[0].request_bytes < len(BODY)


# --- refusals


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT"])
def test_a_refusal_ends_the_upload_and_takes_the_session_back(registry: Registry, method: str) -> None:
    registry.proxy.add(Answer(403, error_body("DENIED")), method=method)

    with pytest.raises(RegistryError, match=r"403 DENIED: told so") as caught:
        upload(open_repository(registry.host), Bytes(BODY), Bar(), quirks=PLAIN)

    assert "docker login" in caught.value.hint
    assert len(registry.requests("DELETE")) == (0 if method == "POST" else 1)


@pytest.mark.parametrize(("method", "mode"), [("PATCH", Mode.STREAM), ("PUT", Mode.STREAM), ("PUT", Mode.WHOLE)])
def test_bytes_that_are_refused_twice_are_not_sent_a_third_time(registry: Registry, method: str, mode: Mode) -> None:
    registry.proxy.add(Answer(400, error_body("")), method=method)
    quirks = Quirks((), "", "", mode_known=mode)

    with pytest.raises(RegistryError, match="answered 400: told so") as caught:
        upload(open_repository(registry.host), Bytes(BODY, known=True), Bar(), quirks=quirks)

    assert "size of a layer" in caught.value.hint
    assert sum(each.request_bytes for each in registry.requests()) == 2 * len(BODY)
    assert len(registry.requests("DELETE")) == 1


def test_an_upload_that_is_refused_further_on_each_time_goes_on(registry: Registry) -> None:
    for nth in (1, 3, 6):
        registry.proxy.add(Answer(400, error_body("BLOB_UPLOAD_INVALID")), method="PATCH", nth=nth)

    upload(open_repository(registry.host), Bytes(BODY), Bar(), quirks=quirks_for(registry.host, chunk_bytes=2 * MIB))

    assert [each.status for each in registry.requests("PATCH")] == [400, 202, 400, 202, 202, 400, 202, 202, 202]
    assert registry.has_blob(str(Digest.of(BODY)))


def test_bytes_that_are_wrong_twice_are_an_error(registry: Registry) -> None:
    registry.proxy.add(Corrupt(MIB, of="request"), method="PATCH")

    with pytest.raises(RegistryError, match="DIGEST_INVALID"):
        upload(open_repository(registry.host), Bytes(BODY), Bar(), quirks=PLAIN)

    assert len(registry.requests("PATCH")) == 2


def test_a_registry_that_always_forgets_is_given_up(registry: Registry) -> None:
    registry.proxy.add(session_lost(), method="PATCH")

    with pytest.raises(RegistryError, match="lost the upload") as caught:
        upload(open_repository(registry.host), Bytes(BODY), Bar(), quirks=PLAIN)

    assert "http.secret" in caught.value.hint
    assert len(registry.requests("PATCH")) < 10


@pytest.mark.parametrize(("method", "status"), [("POST", 503), ("PATCH", 500), ("PUT", 502)])
def test_trouble_without_end_is_given_up_after_the_patience(registry: Registry, method: str, status: int) -> None:
    registry.proxy.add(Answer(status, early=method == "PATCH"), method=method)
    time = Time()

    with pytest.raises(RegistryError, match=str(status)):
        upload(open_repository(registry.host, time=time, patience_s=60), Bytes(BODY), Bar(), quirks=PLAIN)

    assert 60 <= sum(time.slept) < 200


def test_a_wait_beyond_reason_is_an_error_at_once(registry: Registry) -> None:
    registry.proxy.add(Answer(429, headers={"Retry-After": "86400"}), method="POST")
    time = Time()

    with pytest.raises(RegistryError, match="429"):
        upload(open_repository(registry.host, time=time), Bytes(BODY), Bar(), quirks=PLAIN)

    assert time.slept == []


def test_an_early_answer_stops_the_sending(registry: Registry) -> None:
    registry.proxy.add(Answer(403, error_body("DENIED"), early=True), method="PATCH")
    body = pattern(64 * MIB)
    bar = Bar()

    with pytest.raises(RegistryError, match="DENIED"):
        upload(open_repository(registry.host), Bytes(body), bar, quirks=PLAIN)

    assert bar.done < len(body) // 2


# --- the source's own trouble


@pytest.mark.parametrize(
    "error",
    [
        ApplianceError("disk gone", hint="look"),
        NetworkError("source gone", hint="look", host="other", fault=NetworkFault.BROKEN),
        OSError(5, "input/output error"),
    ],
    ids=["application", "network", "system"],
)
@pytest.mark.parametrize("known", [False, True])
def test_what_the_source_raises_comes_out_unchanged(registry: Registry, error: Exception, known: bool) -> None:
    def fail(offset: int) -> None:
        if offset >= 2 * MIB:
            raise error

    with pytest.raises(type(error)) as caught:
        upload(open_repository(registry.host), Bytes(BODY, known=known, hook=fail), Bar(), quirks=PLAIN)

    assert caught.value is error
    assert len(registry.requests("PATCH")) == 1
    assert len(registry.requests("DELETE")) == 1


def test_a_digest_that_is_not_earned_leaves_no_blob(registry: Registry) -> None:
    payload = Bytes(BODY)
    payload.verdict = NetworkError("check failed", hint="look", host="other", fault=NetworkFault.BROKEN)

    with pytest.raises(NetworkError, match="check failed"):
        upload(open_repository(registry.host), payload, Bar(), quirks=PLAIN)

    assert registry.requests("PUT") == []
    assert len(registry.requests("DELETE")) == 1
    assert not registry.has_blob(str(payload.digest))


def test_a_source_that_ends_early_is_not_an_upload(registry: Registry) -> None:
    payload = Bytes(BODY)
    payload.size += 10

    with pytest.raises(ApplianceError, match=f"source ended after {len(BODY)} of"):
        upload(open_repository(registry.host), payload, Bar(), quirks=PLAIN)

    assert registry.requests("PUT") == []


def test_the_other_consumers_of_a_pass_do_not_wait_for_a_broken_upload(registry: Registry) -> None:
    body = pattern(40 * MIB)
    stall = Stall(MIB, of="request")
    registry.proxy.add(Cut(MIB, of="request"), method="PATCH", nth=1)
    registry.proxy.add(stall, method="PATCH", nth=2)
    repository = open_repository(registry.host)
    other_done = threading.Event()
    other: list[int] = []

    def push(payload: Payload) -> None:
        upload(repository, payload, Bar(), quirks=PLAIN)

    def count(payload: Payload) -> None:
        other.append(sum(map(len, payload.read())))
        other_done.set()

    passing = threading.Thread(target=lambda: run_pass(Bytes(body), consumers=[push, count]))
    passing.start()
    try:
        assert other_done.wait(30)
    finally:
        stall.release()
        passing.join(30)

    assert other == [len(body)]
    assert registry.has_blob(str(Digest.of(body)))


# --- tokens


def test_a_token_that_ends_in_mid_upload_is_renewed(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token"))
    assert registry.tokens
    challenge = f'Bearer realm="{registry.tokens.realm}",service="test registry",error="invalid_token"'
    refusal = Answer(401, error_body("UNAUTHORIZED"), {"WWW-Authenticate": challenge}, early=True)
    registry.proxy.add(refusal, method="PATCH", nth=2)
    registry.proxy.add(refusal, method="PUT", nth=1)
    repository = open_repository(registry.host, credentials=builder)

    upload(repository, Bytes(BODY), Bar(), quirks=quirks_for(registry.host, chunk_bytes=2 * MIB))

    assert registry.has_blob(str(Digest.of(BODY)))
    assert len(registry.tokens.asked) == 3
    assert len({each.headers["authorization"] for each in registry.requests("PATCH")}) == 2
    assert len(registry.requests("POST")) == 2  # the first one without a token


def test_a_token_is_renewed_before_it_ends(make_registry: MakeRegistry) -> None:
    registry = make_registry(Options(auth="token"))
    assert registry.tokens
    registry.tokens.reported_s = 100
    time = Time()

    def pass_time(offset: int) -> None:
        if offset == 3 * MIB:
            time.now_s += 90

    payload = Bytes(BODY, hook=pass_time)
    repository = open_repository(registry.host, credentials=builder, time=time)

    upload(repository, payload, Bar(), quirks=quirks_for(registry.host, chunk_bytes=2 * MIB))

    assert len(registry.tokens.asked) == 2
    assert [each.status for each in registry.requests() if each.status == 401] == [401]
