"""Fixtures over the real components, and the rule on skips: each says what to install, and CI allows none."""

import os
import ssl
import subprocess
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fakenvml
import hypothesis
import pytest
import smallbase
from agentbundle import make_bundle
from authority import Authority, make_authority
from blobsources import BlobSource
from building import APPLIANCE, Site
from enclosure import EnclosureError
from engines import Engine, EngineKind, EngineUnavailableError, PrivateEngine, desktop_engine, start_engine
from ollamafront import Manners, OllamaFront, start_front
from registries import Options, Registry, RegistryUnavailableError, start_registry
from systemd_host import SystemdHost, start_systemd_host
from trouble import Ground, NobodysSite, Place

# How long an example takes says more about the machine than about the code.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

_ENGINE_FIXTURES = {
    "engine",
    "classic_engine",
    "containerd_engine",
    "gpu_engine",
    "cdi_engine",
    "make_engine",
    "systemd_host",
}
_REGISTRY_FIXTURES = {"registry", "make_registry"}


def _no_skip() -> bool:
    return os.environ.get("APPLIANCE_TEST_NO_SKIP") == "1"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if names & _ENGINE_FIXTURES:
            item.add_marker("engine")
        if names & _REGISTRY_FIXTURES:
            item.add_marker("registry")
    config.stash[_DESELECTED] = [
        _without(program, config, items) for program in _NAMED if not os.environ.get(program.variable)
    ]


@dataclass(frozen=True, slots=True)
class _Named:
    """A program that no Debian package has: the tests marked so run where its variable names one."""

    marker: str
    variable: str
    what: str


_NAMED = (
    _Named("ollama", "OLLAMA_BIN", "a real Ollama"),
    _Named("registry3", "REGISTRY3_BIN", "a distribution 3 registry"),
)


def _without(program: _Named, config: pytest.Config, items: list[pytest.Item]) -> str:
    """What was left out, where a skip would not do."""
    real = [item for item in items if item.get_closest_marker(program.marker)]
    if _no_skip() and real:
        items[:] = [item for item in items if item not in real]
        config.hook.pytest_deselected(items=real)
        return f"deselected {len(real)} tests that want {program.what}: {program.variable} is not set"
    for item in real:
        item.add_marker(pytest.mark.skip(reason=f"set {program.variable} to the program of {program.what}"))
    return ""


_DESELECTED = pytest.StashKey[list[str]]()


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    return [line for line in config.stash.get(_DESELECTED, []) if line]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _no_skip():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid}: this run allows no skip: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if report.skipped and _no_skip():
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid}: this run allows no skip: {report.longrepr}"
    return report


def _session_engine(kind: EngineKind, state: Path) -> Iterator[Engine]:
    try:
        private = start_engine(kind)
    except (EngineUnavailableError, EnclosureError) as error:
        desktop = desktop_engine(state)
        if desktop is None or desktop.kind != kind:
            pytest.skip(f"no Docker Engine of kind {kind}: {error}, and no Docker of yours of that kind answers")
        with desktop.tidied():
            yield desktop
        return
    try:
        yield private
    finally:
        private.close()


@pytest.fixture(scope="session")
def classic_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Debian 12's Docker Engine with a graph driver."""
    yield from _session_engine("classic", tmp_path_factory.mktemp("docker-client"))


@pytest.fixture(scope="session")
def containerd_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Debian 13's Docker Engine with the containerd image store."""
    yield from _session_engine("containerd", tmp_path_factory.mktemp("docker-client"))


@pytest.fixture(scope="session", params=["classic", "containerd"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """Both kinds, one after the other; what is loaded stays for the session, so clean up or use unique names."""
    found: Engine = request.getfixturevalue(f"{request.param}_engine")
    return found


@pytest.fixture(scope="session")
def gpu_engine() -> Iterator[PrivateEngine]:
    """A classic engine on which `--gpus device=GPU-…` works with any UUID; `gpu_engine.toolkit.hook_calls()` says what
    was asked. It lives as long as the session: clean up or use unique names."""
    yield from _session_private("classic", gpu_hook=True)


@pytest.fixture(scope="session")
def cdi_engine() -> Iterator[PrivateEngine]:
    """A containerd engine (26.1) with a CDI specification for CDI_GPUS and a runtime `nvidia`."""
    yield from _session_private("containerd", cdi=CDI_GPUS, nvidia_runtime=True)


CDI_GPUS = tuple(f"GPU-{index:08d}-0000-4000-8000-000000000000" for index in range(8))


def _session_private(kind: EngineKind, **options: Any) -> Iterator[PrivateEngine]:
    try:
        private = start_engine(kind, **options)
    except (EngineUnavailableError, EnclosureError) as error:
        pytest.skip(f"no private Docker Engine of kind {kind}: {error}")
    try:
        yield private
    finally:
        private.close()


MakeEngine = Callable[..., PrivateEngine]


@pytest.fixture
def make_engine() -> Iterator[MakeEngine]:
    """`make_engine(kind, disk_bytes=..., gpu_hook=True, nvidia_runtime=True, cdi=[uuids])`: an engine for one test, to
    stop, freeze, fill or kill; the words are those of `start_engine`."""
    with ExitStack() as stack:

        def make(kind: EngineKind, **options: Any) -> PrivateEngine:
            try:
                made = start_engine(kind, **options)
            except (EngineUnavailableError, EnclosureError) as error:
                pytest.skip(f"no private Docker Engine of kind {kind}: {error}")
            stack.callback(made.close)
            return made

        yield make


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A libnvidia-ml.so.1 that answers from a text file."""
    try:
        return fakenvml.build(tmp_path_factory.mktemp("nvml"))
    except fakenvml.GccMissingError as error:
        pytest.skip(str(error))


MakeRegistry = Callable[..., Registry]


@pytest.fixture
def make_registry(tmp_path: Path) -> Iterator[MakeRegistry]:
    """`make_registry(Options(auth="token", token_lifetime_s=2))`."""
    with ExitStack() as stack:

        def make(options: Options | None = None) -> Registry:
            try:
                made = start_registry(tmp_path / f"registry-{len(opened)}", options)
            except RegistryUnavailableError as error:
                pytest.skip(str(error))
            opened.append(made)
            stack.callback(made.close)
            return made

        opened: list[Registry] = []
        yield make


@pytest.fixture
def registry(make_registry: MakeRegistry) -> Registry:
    """An empty registry without authentication."""
    return make_registry()


@pytest.fixture
def registry3(make_registry: MakeRegistry) -> Registry:
    """An empty registry of distribution 3, which keeps what arrived of an upload that broke off."""
    return make_registry(Options(program=os.environ["REGISTRY3_BIN"]))


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """A private certificate authority and a server certificate for 127.0.0.1 and localhost."""
    return make_authority(tmp_path_factory.mktemp("authority"))


MakeFront = Callable[..., OllamaFront]


@pytest.fixture
def make_front() -> Iterator[MakeFront]:
    """`make_front(StoreSource(store), Manners(...), tls=authority.server_context())`: a stand-in for
    registry.ollama.ai; a client that shows its credentials to the blob host fails the test."""
    with ExitStack() as stack:

        def make(
            source: BlobSource, manners: Manners | None = None, *, tls: ssl.SSLContext | None = None
        ) -> OllamaFront:
            made = start_front(source, manners, tls=tls)
            stack.callback(made.close)
            fronts.append(made)
            return made

        fronts: list[OllamaFront] = []
        yield make
        violations = [each for front in fronts for each in front.violations]
    assert not violations


BASE_VERSION = "0.13.5"


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout of a base image that runs, with the stand-in in it, tagged with its version (0.13.5)."""
    layout = tmp_path_factory.mktemp("base") / "small"
    smallbase.assemble(layout, version=BASE_VERSION)
    return layout


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """A store, a base, and the digests that undisturbed builds of it have."""
    return Ground(tmp_path_factory.mktemp("ground"))


@pytest.fixture
def place(ground: Ground, registry: Registry, tmp_path: Path) -> Place:
    """A user's machine that has built nothing yet, impatient enough for tests, and a registry."""
    return Place(ground, Site(tmp_path / "site", {"APPLIANCE_PATIENCE": "8"}), registry)


@pytest.fixture
def nobodys_place(ground: Ground, registry: Registry) -> Iterator[Place]:
    """The machine of a user with no rights; outside pytest's own directory, which is root's alone."""
    if os.geteuid() != 0:
        pytest.skip("to be somebody else needs root")
    with tempfile.TemporaryDirectory(prefix="nobody-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        site = NobodysSite(directory / "site", {"APPLIANCE_PATIENCE": "8"})
        if subprocess.run([*site.rights, APPLIANCE, "--version"], capture_output=True, check=False).returncode != 0:
            pytest.skip(f"nobody but root can run {APPLIANCE}: use a Python outside of root's home")
        for path in (site.directory, site.home):
            os.chown(path, 65534, 65534)
        yield Place(ground.copied(directory), site, registry)


@pytest.fixture(scope="session")
def agent_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of wheels that `install-agent --make-wheels` makes."""
    made = tmp_path_factory.mktemp("wheels") / "bundle"
    make_bundle(made)
    return made


@pytest.fixture(scope="session")
def systemd_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SystemdHost]:
    """A host with systemd as process 1, no network, and an engine of its own."""
    try:
        private = start_engine("classic")
    except (EngineUnavailableError, EnclosureError) as error:
        pytest.skip(f"no private Docker Engine: {error}")
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o755)
    try:
        yield start_systemd_host(private, shared)
    finally:
        private.close()
