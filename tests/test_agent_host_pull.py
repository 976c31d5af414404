"""The whole agent with a registry that wants a login: the first pull, a tag that moves, and a registry that is away."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from agenthost import MODEL, QUICK, AgentHost
from building import MIB, Site, ok
from conftest import MakeRegistry
from engines import PrivateEngine
from faults import Stall
from registries import PASSWORD, USER, Options, Registry, start_registry

REPOSITORY = "ai/r1"


@dataclass(frozen=True, slots=True)
class Shelf:
    """A registry's storage with two releases of a model, `one` and `two`."""

    storage: Path
    weights: str  # digest of the layer

    def point(self, tag: str, at: str, directory: Path) -> None:
        """The tag means that release from now on."""
        writer = start_registry(directory / f"writer-{at}", Options(storage=self.storage))
        name = f"docker://{writer.host}/{REPOSITORY}"
        plain = ["--src-tls-verify=false", "--dest-tls-verify=false", "--preserve-digests"]
        try:
            subprocess.run(["skopeo", "copy", *plain, f"{name}:{at}", f"{name}:{tag}"], check=True, capture_output=True)
        finally:
            writer.close()


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    directory = tmp_path_factory.mktemp("shelf")
    writer = start_registry(directory / "registry", Options(storage=directory / "storage"))
    try:
        site = Site(directory / "site")
        site.lay(MODEL, pad_bytes=70 * MIB, seed=3)
        for tag, version in (("one", "0.32.14"), ("two", "0.32.15")):
            ok(site.build(MODEL, "-t", f"{writer.host}/{REPOSITORY}:{tag}", "--push", version=version))
        manifest = json.loads(subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{writer.host}/{REPOSITORY}:one"],
            check=True, capture_output=True,
        ).stdout)  # fmt: skip
        largest = max(manifest["layers"], key=lambda layer: int(layer["size"]))
        return Shelf(directory / "storage", largest["digest"])
    finally:
        writer.close()


@pytest.fixture
def registry(shelf: Shelf, gpu_engine: PrivateEngine, make_registry: MakeRegistry) -> Registry:
    made = make_registry(Options(storage=shelf.storage, auth="basic"))
    gpu_engine.expose(*made.ports)
    return made


@pytest.fixture
def host(gpu_engine: PrivateEngine, nvml_library: Path, tmp_path: Path) -> Iterator[AgentHost]:
    login = tmp_path / "login"
    login.mkdir()
    made = AgentHost(gpu_engine, tmp_path, nvml_library, extra=f'{QUICK}docker_config = "{login}"\n')
    try:
        yield made
    finally:
        made.close()


def log_in(host: AgentHost, registry: Registry, password: str = PASSWORD) -> None:
    login = base64.b64encode(f"{USER}:{password}".encode()).decode()
    text = json.dumps({"auths": {registry.host: {"auth": login}}})
    (host.directory / "login/config.json").write_text(text)


def because(host: AgentHost) -> str:
    return str(host.slots()[0]["because"]) if host.slots() else ""


def problems(host: AgentHost) -> str:
    return "; ".join(host.status().get("host", {}).get("problems", ["no status"]))


def images(host: AgentHost) -> set[str]:
    return {each.image for each in host.containers()}


def test_an_image_comes_from_a_registry_and_goes_with_its_tag(
    host: AgentHost, shelf: Shelf, registry: Registry, tmp_path: Path
) -> None:
    reference = f"{registry.host}/{REPOSITORY}:now"
    shelf.point("now", "one", tmp_path)
    stall = Stall(after=60 * MIB)
    registry.proxy.add(stall, method="GET", path=f"/blobs/{shelf.weights}")
    log_in(host, registry, password="guessed")
    host.write_config(reference, pull="missing")
    host.start()

    host.wait(lambda: "does not give" in because(host), "the wrong password to be told")
    told = because(host)
    assert f"{registry.host} does not give {reference} to this login" in told
    assert f"`docker login {registry.host}`" in told
    assert told in problems(host)
    assert host.states() == ["waiting", "waiting"]

    log_in(host, registry)
    host.send(signal.SIGHUP)
    host.wait(lambda: because(host).startswith("the image is being pulled: 0.1 of 0.1 GB"), "progress to be told")
    assert host.status()["host"]["pull"]["done_bytes"] > 40 * MIB
    stall.release()
    host.wait_ready()
    first, before = images(host), host.ids()
    assert problems(host) == ""

    shelf.point("now", "two", tmp_path)
    host.write_config(reference, pull="always")
    host.send(signal.SIGHUP)
    least = 2

    def rolled() -> bool:
        nonlocal least
        least = min(least, sum(state in ("ready", "draining") for state in host.states()))
        return not images(host) & first and not set(host.ids().values()) & set(before.values())

    host.wait(rolled, "both slots to run the new image")
    host.wait_ready()
    assert least == 1
    assert len(images(host)) == 1
    assert all(slot["restarts"] == {"start": 1, "config": 1} for slot in host.slots())


def test_while_the_registry_is_away_what_is_here_serves_and_the_problem_is_told(
    host: AgentHost, shelf: Shelf, registry: Registry, tmp_path: Path
) -> None:
    reference = f"{registry.host}/{REPOSITORY}:now"
    shelf.point("now", "one", tmp_path)
    log_in(host, registry)
    host.write_config(reference, pull="always")
    host.start()
    host.wait_ready()
    before = host.ids()
    registry.stop()

    host.send(signal.SIGHUP)
    host.wait(lambda: "could not be pulled" in problems(host), "the problem to be told")
    assert f"registry {registry.host} cannot be reached" in problems(host)
    assert host.states() == ["ready", "ready"]
    assert host.chat(0)[0] == 200

    assert host.stop() == 0
    host.start()
    host.wait_ready()
    host.wait(lambda: "could not be pulled" in problems(host), "the problem to be told again")
    assert host.ids() == before

    host.engine.run_cli("kill", before[1])
    host.wait(lambda: host.ids().get(1, before[1]) != before[1], "slot 1 to come back without the registry")
    host.wait_ready()

    registry.start()
    host.send(signal.SIGHUP)
    host.wait(lambda: problems(host) == "", "the problem to end")
    assert host.ids()[0] == before[0]
