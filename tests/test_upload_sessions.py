"""Uploads to registries that keep what they have, and to such with manners of their own: resumed where they are, in this
process and in a later one."""

import os
import signal
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from faultproxy import FaultProxy
from faults import Answer, Cut, Stall
from lasting_registry import LastingRegistry, Manners
from registries import Registry
from registry_client import BODY, MIB, Bar, Bytes, Time, close_connections, open_repository, pattern

from appliance_builder.layer_bytes import LayerContent
from appliance_builder.quirks import Quirks, quirks_for
from appliance_builder.registry_errors import RegistryError
from appliance_builder.registry_sink import RegistrySink
from appliance_builder.sessions import UploadState
from appliance_builder.stream import run_pass
from appliance_builder.upload import upload
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.layer import Blob, weights_layer
from appliance_image.oci import LAYER_TAR
from appliance_image.reference import ImageReference

PLAIN = quirks_for("127.0.0.1")


@pytest.fixture(autouse=True)
def _closed_connections() -> Iterator[None]:
    yield
    close_connections()


@pytest.fixture
def lasting() -> Iterator[Callable[..., LastingRegistry]]:
    made: list[LastingRegistry] = []

    def make(manners: Manners | None = None) -> LastingRegistry:
        made.append(LastingRegistry(manners).start())
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def before() -> Iterator[Callable[[LastingRegistry], FaultProxy]]:
    """A fault proxy before a registry."""
    made: list[FaultProxy] = []

    def make(registry: LastingRegistry) -> FaultProxy:
        made.append(FaultProxy(("127.0.0.1", registry.port)).start())
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_a_cut_between_chunks_loses_only_the_chunk(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy]
) -> None:
    target = lasting()
    proxy = before(target)
    proxy.add(Cut(MIB, of="request"), method="PATCH", nth=2)
    bar = Bar()

    repository = open_repository(proxy.host, time=Time(lambda: target.wait_for_bytes(3 * MIB)))
    upload(repository, Bytes(BODY), bar, quirks=quirks_for(proxy.host, chunk_bytes=2 * MIB))

    assert target.store.begun == 1
    assert bar.restarts == [3 * MIB]
    assert str(Digest.of(BODY)) in target.store.blobs


@pytest.mark.parametrize("absolute", [False, True], ids=["relative location", "absolute location with a query"])
@pytest.mark.parametrize("how", ["rst", "fin"])
def test_a_cut_is_resumed_where_the_registry_is(
    lasting: Callable[..., LastingRegistry],
    before: Callable[[LastingRegistry], FaultProxy],
    how: str,
    absolute: bool,
) -> None:
    target = lasting(Manners(absolute_locations=absolute))
    proxy = before(target)
    proxy.add(Cut(3 * MIB, of="request", how="rst" if how == "rst" else "fin"), method="PATCH", nth=1)
    payload, bar = Bytes(BODY), Bar()

    upload(open_repository(proxy.host, time=Time(lambda: target.wait_for_bytes(3 * MIB))), payload, bar, quirks=PLAIN)

    assert target.store.begun == 1
    assert target.store.blobs[str(payload.digest)] == BODY
    assert payload.reads == [0, 3 * MIB]
    assert target.store.patches[-1].content_range == f"{3 * MIB}-{len(BODY) - 1}"
    assert bar.done == len(BODY)


def test_a_registry_that_is_elsewhere_than_thought_says_where(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy]
) -> None:
    target = lasting()
    proxy = before(target)
    proxy.add(Answer(416, headers={"Range": "0-5"}, carry_out=True), method="PATCH", nth=1)
    payload = Bytes(BODY)

    upload(open_repository(proxy.host), payload, Bar(), quirks=quirks_for(proxy.host, chunk_bytes=2 * MIB))

    assert target.store.blobs[str(payload.digest)] == BODY


def test_bytes_that_a_proxy_hands_on_after_its_time_are_progress(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy]
) -> None:
    """It takes the whole body at once and answers 504; the registry has a little more of it each time it is asked."""
    target = lasting()
    proxy = before(target)
    body, step = BODY[:MIB], 16 * 1024
    impatient = proxy.add(Answer(504), method="PATCH", times=40)

    def hand_on() -> None:
        there = target.store.uploads["u1"]
        there += body[len(there) : len(there) + step]

    upload(open_repository(proxy.host, time=Time(hand_on)), Bytes(body), Bar(), quirks=PLAIN)

    assert impatient.hits == 40
    assert target.store.begun == 1
    assert target.store.patches[-1].size == MIB - 40 * step
    assert target.store.blobs[str(Digest.of(body))] == body


def test_bytes_that_a_registry_has_now_and_then_are_no_progress(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy]
) -> None:
    target = lasting()
    proxy = before(target)
    proxy.add(Answer(504), method="PATCH")

    def one_or_the_other() -> None:
        there = target.store.uploads["u1"]
        there[:] = b"" if there else BODY[:MIB]

    with pytest.raises(RegistryError, match="504"):
        upload(open_repository(proxy.host, time=Time(one_or_the_other)), Bytes(BODY), Bar(), quirks=PLAIN)


@pytest.mark.parametrize(
    ("manners", "quirks", "modes"),
    [
        (Manners(sized_patch_most=4 * MIB), quirks_for("ghcr.io"), [None]),
        (Manners(sized_patch_most=4 * MIB), PLAIN, [len(BODY), None]),
        (Manners(ends_with_first_patch=True), PLAIN, [len(BODY)]),
        (Manners(ends_with_first_patch=True), quirks_for("1.dkr.ecr.eu-west-1.amazonaws.com"), [None]),
        (Manners(ends_with_first_patch=True), quirks_for("example.com", chunk_bytes=MIB), [MIB, len(BODY)]),
        (Manners(chunk_least=3 * MIB), quirks_for("example.com", chunk_bytes=MIB), [3 * MIB, 2 * MIB + 4321]),
    ],
    ids=["ghcr", "like ghcr", "like ecr", "ecr", "like ecr, chunks wanted", "chunks of 3 MiB at least"],
)
def test_registries_with_manners_get_what_they_want(
    lasting: Callable[..., LastingRegistry], manners: Manners, quirks: Quirks, modes: list[int | None]
) -> None:
    target = lasting(manners)

    digest = upload(open_repository(target.host), Bytes(BODY), Bar(), quirks=quirks)

    assert target.store.blobs[str(digest)] == BODY
    assert [patch.size for patch in target.store.patches] == modes


@pytest.mark.parametrize("manners", [Manners(no_patch=True), Manners(sized_patch_most=1, request_most=10**9)])
def test_a_registry_without_patch_gets_one_put_where_the_digest_is_known(
    lasting: Callable[..., LastingRegistry], manners: Manners
) -> None:
    target = lasting(manners)

    digest = upload(open_repository(target.host), Bytes(BODY, known=True), Bar(), quirks=PLAIN)

    assert target.store.blobs[str(digest)] == BODY


def test_a_limit_on_requests_leads_to_smaller_ones(lasting: Callable[..., LastingRegistry]) -> None:
    target = lasting(Manners(request_most=64 * MIB))
    body = pattern(65 * MIB)

    digest = upload(open_repository(target.host), Bytes(body), Bar(), quirks=PLAIN)

    assert digest == Digest.of(body)
    assert str(digest) in target.store.blobs
    assert [patch.size for patch in target.store.patches] == [65 * MIB, 64 * MIB, MIB]


def test_a_limit_that_smaller_requests_do_not_meet_is_explained(lasting: Callable[..., LastingRegistry]) -> None:
    target = lasting(Manners(request_most=MIB))

    with pytest.raises(RegistryError) as caught:
        upload(open_repository(target.host), Bytes(BODY), Bar(), quirks=PLAIN)

    assert caught.value.status == 413
    assert "--chunk-size" in caught.value.hint
    assert target.store.uploads == {}


# --- a later process

_CHILD = """
    import sys
    from pathlib import Path
    from registry_client import Bar, Bytes, open_repository, pattern
    from appliance_builder.quirks import quirks_for
    from appliance_builder.sessions import UploadState
    from appliance_builder.upload import upload

    host, file, size = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    repository = open_repository(host)
    state = UploadState(file, repository=repository, layer="the layer")
    upload(repository, Bytes(pattern(size)), Bar(), quirks=quirks_for(host), state=state)
"""


_LONG = pattern(32 * MIB)  # more than sockets hold for a process that is dead


def _child(host: str, file: Path) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-c", textwrap.dedent(_CHILD), host, str(file), str(len(_LONG))]
    return subprocess.Popen(words, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_an_upload_goes_on_after_kill_9(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy], tmp_path: Path
) -> None:
    target = lasting()
    proxy = before(target)
    stall = Stall(3 * MIB, of="request")
    rule = proxy.add(stall, method="PATCH", nth=1)
    file = tmp_path / "sessions" / "upload.json"
    first = _child(proxy.host, file)
    target.wait_for_bytes(3 * MIB - 65536)
    first.send_signal(signal.SIGKILL)
    first.wait()
    mode = stat.S_IMODE(file.stat().st_mode)
    proxy.remove(rule)
    proxy.wait_for(lambda log: log[-1].finished)
    target.wait_until_idle()

    second = _child(proxy.host, file)

    assert second.wait() == 0
    assert mode == 0o600
    assert target.store.begun == 1
    assert int(target.store.patches[-1].content_range.partition("-")[0]) >= 3 * MIB - 65536
    assert str(Digest.of(_LONG)) in target.store.blobs
    assert not file.exists()


@pytest.mark.registry3
def test_a_distribution_3_takes_the_rest_after_kill_9(registry3: Registry, tmp_path: Path) -> None:
    stall = Stall(12 * MIB, of="request")
    rule = registry3.proxy.add(stall, method="PATCH", nth=1)
    file = tmp_path / "sessions" / "upload.json"
    first = _child(registry3.host, file)
    assert stall.reached.wait(60)
    first.kill()
    first.wait()
    registry3.proxy.remove(rule)
    registry3.proxy.wait_for(lambda log: log[-1].finished)

    second = _child(registry3.host, file)

    assert second.wait() == 0
    assert len(registry3.requests("POST")) == 1
    goes_on_at = int(registry3.requests("PATCH")[1].headers["content-range"].partition("-")[0])
    assert goes_on_at >= 12 * MIB - 65536
    assert registry3.has_blob(str(Digest.of(_LONG)))


@pytest.mark.registry3
def test_a_distribution_3_takes_the_rest_after_a_cut(registry3: Registry) -> None:
    registry3.proxy.add(Cut(3 * MIB, of="request"), method="PATCH", nth=1)
    payload = Bytes(BODY)

    upload(open_repository(registry3.host), payload, Bar(), quirks=PLAIN)

    assert len(registry3.requests("POST")) == 1
    assert registry3.has_blob(str(payload.digest))


def test_a_session_that_the_registry_forgot_begins_anew(registry: Registry, tmp_path: Path) -> None:
    repository = open_repository(registry.host)
    state = UploadState(tmp_path / "upload.json", repository=repository, layer="x")
    session = repository.uploads.begin()
    state.save(session)
    repository.delete_upload(session.location)

    upload(repository, Bytes(BODY), Bar(), quirks=PLAIN, state=state)

    assert registry.has_blob(str(Digest.of(BODY)))
    assert not (tmp_path / "upload.json").exists()


def test_a_session_of_other_bytes_is_found_out(lasting: Callable[..., LastingRegistry], tmp_path: Path) -> None:
    target = lasting()
    repository = open_repository(target.host)
    state = UploadState(tmp_path / "upload.json", repository=repository, layer="x")
    session = repository.uploads.begin()
    target.store.uploads["u1"] += pattern(MIB, seed=9)
    state.save(session)

    digest = upload(repository, Bytes(BODY), Bar(), quirks=PLAIN, state=state)

    assert target.store.blobs[str(digest)] == BODY


def test_a_session_is_kept_when_the_registry_goes_away(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy], tmp_path: Path
) -> None:
    target = lasting()
    proxy = before(target)
    proxy.add(Cut(2 * MIB, of="request"), method="PATCH")
    proxy.add(Answer(503), method="GET")
    repository = open_repository(proxy.host, time=Time(lambda: target.wait_for_bytes(2 * MIB)))
    state = UploadState(tmp_path / "upload.json", repository=repository, layer="x")
    with pytest.raises(ApplianceError):
        upload(repository, Bytes(BODY), Bar(), quirks=PLAIN, state=state)
    proxy.clear()
    payload = Bytes(BODY)

    upload(repository, payload, Bar(), quirks=PLAIN, state=state)

    assert target.store.begun == 1
    assert payload.reads == [2 * MIB]
    assert target.store.blobs[str(payload.digest)] == BODY


def test_a_session_in_trouble_for_good_stands_in_nobodys_way(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy], tmp_path: Path
) -> None:
    target = lasting()
    proxy = before(target)
    trouble = proxy.add(Answer(500), path="/uploads/u1")
    time = Time()
    repository = open_repository(proxy.host, time=time)
    state = UploadState(tmp_path / "upload.json", repository=repository, layer="x")
    state.save(repository.uploads.begin())

    digest = upload(repository, Bytes(BODY), Bar(), quirks=PLAIN, state=state)

    assert target.store.blobs[str(digest)] == BODY
    assert sum(time.slept) >= 120
    assert trouble.hits > 1
    assert list(tmp_path.iterdir()) == []


def test_a_session_outlives_a_registry_in_trouble(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy], tmp_path: Path
) -> None:
    target = lasting()
    proxy = before(target)
    repository = open_repository(proxy.host)
    state = UploadState(tmp_path / "upload.json", repository=repository, layer="x")
    state.save(repository.uploads.begin())
    target.store.uploads["u1"] += BODY[: 2 * MIB]
    proxy.add(Answer(503))
    with pytest.raises(RegistryError, match="503"):
        upload(repository, Bytes(BODY), Bar(), quirks=PLAIN, state=state)
    proxy.clear()
    payload = Bytes(BODY)

    upload(repository, payload, Bar(), quirks=PLAIN, state=state)

    assert target.store.begun == 1
    assert payload.reads == [2 * MIB]
    assert target.store.blobs[str(payload.digest)] == BODY


def test_a_commit_that_comes_to_nothing_in_two_runs_is_not_tried_in_a_third(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy], tmp_path: Path
) -> None:
    target = lasting()
    proxy = before(target)
    proxy.add(Answer(500), method="PUT", path="/uploads/u1")
    repository = open_repository(proxy.host)
    state = UploadState(tmp_path / "upload.json", repository=repository, layer="x")
    with pytest.raises(RegistryError, match="500"):
        upload(repository, Bytes(BODY), Bar(), quirks=PLAIN, state=state)
    begun, payload, bar = target.store.begun, Bytes(BODY), Bar()

    digest = upload(repository, payload, bar, quirks=PLAIN, state=state)

    assert (begun, target.store.begun) == (1, 2)
    assert payload.reads == [0]
    assert bar.done == len(BODY)
    assert target.store.blobs[str(digest)] == BODY
    assert list(tmp_path.iterdir()) == []


def test_a_layer_that_was_never_read_to_its_end_is_gone_on_with(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy], tmp_path: Path
) -> None:
    """Its digest is not known yet, but what it is put together from is."""
    target = lasting()
    proxy = before(target)
    proxy.add(Cut(2 * MIB, of="request"), method="PATCH")
    proxy.add(Answer(503), method="GET")
    plan = weights_layer([Blob(Digest.of(BODY), len(BODY))])

    def push() -> Digest:
        repository = open_repository(proxy.host, time=Time(lambda: target.wait_for_bytes(2 * MIB)))
        name = ImageReference.parse(f"{proxy.host}/ai/model:1")
        sink = RegistrySink(repository, name, quirks=PLAIN, mount_from=lambda _: [], sessions=tmp_path)
        content = LayerContent(plan, {Digest.of(BODY): Bytes(BODY)})
        return run_pass(content, consumers=[lambda payload: sink.write(payload, LAYER_TAR, Bar())], plan=plan)

    with pytest.raises(ApplianceError):
        push()
    proxy.clear()
    digest = push()

    assert target.store.begun == 1
    assert target.store.patches[-1].content_range.startswith(f"{2 * MIB}-")
    assert list(target.store.blobs) == [str(digest)]
    assert list(tmp_path.iterdir()) == []


def test_two_at_once_do_not_share_a_session(lasting: Callable[..., LastingRegistry], tmp_path: Path) -> None:
    target = lasting()
    repository = open_repository(target.host)
    one, other = (UploadState(tmp_path / "upload.json", repository=repository, layer="x") for _ in range(2))
    session = repository.uploads.begin()
    one.save(session)

    upload(repository, Bytes(BODY), Bar(), quirks=PLAIN, state=other)
    begun = target.store.begun
    kept = one.load()
    one.close()

    assert begun == 2
    assert kept == session
    assert other.load() == session
    other.clear()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"version": 1}', '{"version": 1, "repository": "h/n", "layer": "y", "location": 3}']
)
def test_a_state_file_that_makes_no_sense_is_no_session(tmp_path: Path, content: str) -> None:
    file = tmp_path / "upload.json"
    file.write_text(content)

    assert UploadState(file, repository=open_repository("h", "n"), layer="y").load() is None


def test_bytes_still_on_their_way_when_the_status_was_asked_do_no_harm(
    lasting: Callable[..., LastingRegistry], before: Callable[[LastingRegistry], FaultProxy]
) -> None:
    target = lasting()
    proxy = before(target)
    proxy.add(Cut(3 * MIB, of="request"), method="PATCH", nth=1)
    proxy.add(Answer(204, headers={"Range": "0-0"}), method="GET", nth=1)
    payload = Bytes(BODY)

    upload(open_repository(proxy.host, time=Time(lambda: target.wait_for_bytes(3 * MIB))), payload, Bar(), quirks=PLAIN)

    assert target.store.begun == 1
    assert payload.reads == [0, 0, 3 * MIB]
    assert target.store.blobs[str(payload.digest)] == BODY
