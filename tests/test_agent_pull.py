"""The agent fetches its image: real engines, real registries, real logins, and what is said when it does not work."""

from __future__ import annotations

import base64
import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import smallbase
from agentengine import AgentSite, agent_site
from building import MIB, Site, ok
from conftest import BASE_VERSION, MakeEngine, MakeRegistry
from engines import Engine, EngineKind, wait_until
from faults import Stall
from registries import PASSWORD, USER, Options, Registry, start_registry

from appliance_agent.slots import Done

KINDS: tuple[EngineKind, ...] = ("classic", "containerd")
REPOSITORY = "ai/r1"


@dataclass(frozen=True, slots=True)
class Baked:
    """Appliance images in a registry's storage: `small`, and `big` with weights that take a while."""

    storage: Path
    weights: str  # the digest of the big one's


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Baked:
    directory = tmp_path_factory.mktemp("baked")
    registry = start_registry(directory / "registry", Options(storage=directory / "storage"))
    try:
        site = Site(directory / "site")
        for tag, pad_bytes in (("small", MIB), ("big", 70 * MIB)):
            site.lay(f"r1:{tag}", pad_bytes=pad_bytes)
            ok(site.build(f"r1:{tag}", "-t", f"{registry.host}/{REPOSITORY}:{tag}", "--push"))
        told = ok(site.run("inspect", f"{registry.host}/{REPOSITORY}:big", "--json"))
        return Baked(directory / "storage", json.loads(told.out)["layers"][0]["digest"])
    finally:
        registry.close()


def logged_in(directory: Path, registry: Registry, *, password: str = PASSWORD) -> str:
    login = base64.b64encode(f"{USER}:{password}".encode()).decode()
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps({"auths": {registry.host: {"auth": login}}}))
    return str(directory)


def exposed(engine: Engine, registry: Registry) -> Registry:
    engine.expose(*registry.ports)
    return registry


@pytest.fixture
def no_login(tmp_path: Path) -> str:
    directory = tmp_path / "no-login"
    directory.mkdir()
    return str(directory)


@pytest.fixture
def site(engine: Engine, small_base: Path, no_login: str) -> Iterator[AgentSite]:
    with agent_site(engine, small_base, docker_config=no_login) as made:
        yield made


def pull(site: AgentSite, reference: str) -> Done:
    site.source.want_image(reference)
    return site.pull()


def test_a_pulled_image_is_seen_before_the_pull_is_done(
    site: AgentSite, baked: Baked, make_registry: MakeRegistry
) -> None:
    registry = exposed(site.engine, make_registry(Options(storage=baked.storage)))
    reference = f"{registry.host}/{REPOSITORY}:small"

    done = pull(site, reference)
    seen = site.seen()

    assert done.ok
    assert seen.pull is None
    assert seen.image
    assert seen.image.reference == reference
    assert seen.image.id.startswith("sha256:")
    assert seen.image.digest.startswith(f"{registry.host}/{REPOSITORY}@sha256:")
    assert seen.image.labels
    assert seen.image.labels.model == "r1:small"


def test_what_was_pulled_runs_in_a_slot(site: AgentSite, baked: Baked, make_registry: MakeRegistry) -> None:
    registry = exposed(site.engine, make_registry(Options(storage=baked.storage)))
    pull(site, f"{registry.host}/{REPOSITORY}:small")
    image = site.seen().image
    assert image

    done = site.create(site.spec(release=replace(site.release(), image_id=image.id, environment=())))
    seen = site.container(done.container_id)

    assert done.ok
    assert seen
    assert (seen.status, seen.image_id) == ("running", image.id)


@pytest.mark.parametrize("kind", KINDS)
def test_progress_is_told_while_the_layers_come(
    make_engine: MakeEngine, small_base: Path, baked: Baked, make_registry: MakeRegistry, kind: EngineKind
) -> None:
    registry = make_registry(Options(storage=baked.storage))
    stall = Stall(after=60 * MIB)
    registry.proxy.add(stall, method="GET", path=f"/blobs/{baked.weights}")
    with agent_site(make_engine(kind), small_base) as site:
        exposed(site.engine, registry)
        worker = threading.Thread(target=lambda: results.append(pull(site, f"{registry.host}/{REPOSITORY}:big")))
        results: list[Done] = []
        worker.start()
        seen = site.until(lambda seen: seen.pull is not None and seen.pull.done_bytes > 40 * MIB, "bytes").pull
        stall.release()
        worker.join()

        assert seen
        assert seen.running
        assert seen.done_bytes < 70 * MIB < seen.total_bytes < 110 * MIB
        assert results[0].ok


@pytest.fixture(params=["basic", "token"])
def closed_registry(
    request: pytest.FixtureRequest, engine: Engine, baked: Baked, make_registry: MakeRegistry
) -> Registry:
    return exposed(engine, make_registry(Options(storage=baked.storage, auth=request.param)))


def test_the_login_of_docker_is_used(
    engine: Engine, small_base: Path, closed_registry: Registry, tmp_path: Path
) -> None:
    with agent_site(engine, small_base, docker_config=logged_in(tmp_path, closed_registry)) as site:
        done = pull(site, f"{closed_registry.host}/{REPOSITORY}:small")

        assert done.ok


@pytest.mark.parametrize("login", ["none", "wrong"])
def test_a_registry_that_wants_a_login_is_told_with_the_command(
    engine: Engine, small_base: Path, closed_registry: Registry, tmp_path: Path, login: str
) -> None:
    registry = closed_registry
    config = logged_in(tmp_path, registry, password="guessed") if login == "wrong" else str(tmp_path)
    with agent_site(engine, small_base, docker_config=config) as site:
        done = pull(site, f"{registry.host}/{REPOSITORY}:small")
        told = site.seen().pull

        assert not done.ok
        assert f"{registry.host} does not give {registry.host}/{REPOSITORY}:small to this login" in done.error
        assert f"docker login {registry.host}" in done.hint
        assert told
        assert (told.running, told.error, told.hint) == (False, done.error, done.hint)
        assert told.failed_at_s > 0
        assert PASSWORD not in done.error + done.hint


def test_a_credential_helper_is_asked(
    engine: Engine, small_base: Path, closed_registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = closed_registry
    helper = tmp_path / "docker-credential-test"
    answer = json.dumps({"ServerURL": registry.host, "Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\ngrep -q '^{registry.host}$' && echo '{answer}'\n")
    helper.chmod(0o755)
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {registry.host: "test"}}))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with agent_site(engine, small_base, docker_config=str(tmp_path)) as site:
        done = pull(site, f"{registry.host}/{REPOSITORY}:small")

        assert done.ok


def test_an_image_that_the_registry_does_not_have_is_told(
    site: AgentSite, baked: Baked, make_registry: MakeRegistry
) -> None:
    registry = exposed(site.engine, make_registry(Options(storage=baked.storage)))
    reference = f"{registry.host}/{REPOSITORY}:none"

    done = pull(site, reference)

    assert not done.ok
    assert done.error == f"pulling {reference}: {registry.host} has no image {reference}"


def test_a_registry_that_is_down_is_told_and_the_image_that_is_here_stays(
    site: AgentSite, baked: Baked, make_registry: MakeRegistry
) -> None:
    registry = exposed(site.engine, make_registry(Options(storage=baked.storage)))
    reference = f"{registry.host}/{REPOSITORY}:small"
    pull(site, reference)
    before = site.seen().image
    registry.close()

    done = site.pull()
    seen = site.seen()

    assert not done.ok
    assert f"registry {registry.host} cannot be reached" in done.error
    assert f"https://{registry.host}/v2/" in done.hint
    assert before
    assert seen.image == before
    assert seen.pull
    assert not seen.pull.running


def test_a_tag_that_has_moved_is_seen_after_the_next_pull(
    site: AgentSite, small_base: Path, make_registry: MakeRegistry
) -> None:
    registry = exposed(site.engine, make_registry())
    reference = f"{registry.host}/ai/moving:1"
    smallbase.push(small_base, reference, version=BASE_VERSION)
    pull(site, reference)
    first = site.seen().image
    other = registry.directory / "other"
    smallbase.assemble(other, version="0.13.6")
    smallbase.push(other, reference, version="0.13.6")

    site.pull()
    second = site.seen().image

    assert first
    assert second
    assert first.id != second.id
    assert first.reference == second.reference == reference


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_is_full_is_told(
    make_engine: MakeEngine, small_base: Path, baked: Baked, make_registry: MakeRegistry, kind: EngineKind
) -> None:
    registry = make_registry(Options(storage=baked.storage))
    with agent_site(make_engine(kind, disk_bytes=110 * MIB), small_base) as site:
        exposed(site.engine, registry)
        done = pull(site, f"{registry.host}/{REPOSITORY}:big")

        assert not done.ok
        assert "the disk is full" in done.error
        assert "docker system df" in done.hint


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_dies_in_mid_pull_ends_the_pull(
    make_engine: MakeEngine, small_base: Path, baked: Baked, make_registry: MakeRegistry, kind: EngineKind
) -> None:
    registry = make_registry(Options(storage=baked.storage))
    stall = Stall(after=10 * MIB)
    registry.proxy.add(stall, method="GET", path=f"/blobs/{baked.weights}")
    engine = make_engine(kind)
    with agent_site(engine, small_base) as site:
        exposed(engine, registry)
        results: list[Done] = []
        worker = threading.Thread(target=lambda: results.append(pull(site, f"{registry.host}/{REPOSITORY}:big")))
        worker.start()
        assert stall.reached.wait(30)
        engine.stop(how=signal.SIGKILL)
        worker.join(30)
        stall.release()
        engine.start()
        site.until(lambda seen: seen.up, "the engine again")
        again = site.pull()

        assert not results[0].ok
        assert "the Docker Engine ended the connection" in results[0].error
        assert again.ok


def test_a_registry_that_says_nothing_is_waited_for_and_an_engine_that_says_nothing_is_not(
    make_engine: MakeEngine, small_base: Path, baked: Baked, make_registry: MakeRegistry
) -> None:
    registry = make_registry(Options(storage=baked.storage))
    stall = Stall(after=10 * MIB)
    registry.proxy.add(stall, method="GET", path=f"/blobs/{baked.weights}")
    engine = make_engine("classic")
    with agent_site(engine, small_base, timeout_s=3, quiet_s=0.5) as site:
        exposed(engine, registry)
        results: list[Done] = []
        worker = threading.Thread(target=lambda: results.append(pull(site, f"{registry.host}/{REPOSITORY}:big")))
        worker.start()
        assert stall.reached.wait(30)
        worker.join(5)
        patient = worker.is_alive()
        with engine.frozen():
            worker.join(30)
            impatient = not worker.is_alive()
        stall.release()

        assert patient
        assert impatient
        assert not results[0].ok
        assert "has not answered" in results[0].error
        wait_until(lambda: site.seen().up, timeout_s=30, what="the thaw")


def test_a_name_that_is_none_is_told(site: AgentSite) -> None:
    done = pull(site, "ai//x")

    assert not done.ok
    assert "not an image reference" in done.error
