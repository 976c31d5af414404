"""What the agent sees of real engines: containers, obstacles, the image, and the engine's own comings and goings."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from agentengine import AgentSite, Wakes, agent_site, shim_of
from conftest import CDI_GPUS, MakeEngine
from engines import Engine, EngineKind, PrivateEngine, wait_until
from heldengine import held_engine

from appliance_agent.config import Config
from appliance_agent.config import Engine as EngineConfig
from appliance_agent.containers import EngineFacts, EngineSeen, Obstacle
from appliance_agent.engine_settings import EngineSettings
from appliance_agent.engine_socket import EngineError
from appliance_agent.engine_source import DockerSource
from appliance_agent.spec import LABEL_MANAGED, LABEL_SLOT

KINDS: tuple[EngineKind, ...] = ("classic", "containerd")


@pytest.fixture
def site(engine: Engine, small_base: Path) -> Iterator[AgentSite]:
    with agent_site(engine, small_base) as made:
        yield made


def up(seen: EngineSeen) -> bool:
    return seen.up


def down(seen: EngineSeen) -> bool:
    return not seen.up


def test_facts_are_the_engines_own_words(site: AgentSite) -> None:
    facts = site.seen().facts

    assert facts
    assert facts.version == site.engine.version
    assert facts.api_version >= (1, 41)
    assert "runc" in facts.runtimes
    assert facts.cgroup_driver == "cgroupfs"
    assert isinstance(site.engine, PrivateEngine)
    assert facts.root == str(site.engine.data_root)
    assert site.seen().epoch == 0


def test_the_cdi_devices_are_known_from_the_engine_or_where_it_does_not_tell_from_its_directories(
    cdi_engine: PrivateEngine, small_base: Path
) -> None:
    with agent_site(cdi_engine, small_base) as site:
        facts = site.seen().facts

    assert facts
    told, read = (facts.devices, facts.specified) if facts.api_version >= (1, 50) else (facts.specified, facts.devices)
    assert {f"nvidia.com/gpu={uuid}" for uuid in CDI_GPUS} <= set(told)
    assert read == ()
    assert facts.cdi_directories == (str(cdi_engine.toolkit.specifications),)
    assert "nvidia" in facts.runtimes


def test_an_engine_that_is_slow_to_tell_its_settings_is_up_all_the_same(
    engine: Engine, small_base: Path, socket_directory: Path
) -> None:
    """`/info` takes 20 s where a Swarm has lost its quorum."""
    with (
        held_engine(engine.socket, socket_directory / "held", what="/info") as held,
        agent_site(engine, small_base, path=held.socket) as site,
    ):
        assert held.asked.wait(60)
        made = site.create()
        site.engine.run_cli("kill", made.container_id)
        slow = site.until(lambda seen: [each.status for each in seen.containers] == ["exited"], "the end", timeout_s=60)
        held.go.set()
        told = site.until(lambda seen: seen.facts is not None, "the settings", timeout_s=60)

    assert slow.up
    assert slow.facts is None
    assert told.facts
    assert told.facts.version == engine.version
    assert told.epoch == 0


def test_settings_that_do_not_come_are_asked_for_again(engine: Engine, socket_directory: Path) -> None:
    with held_engine(engine.socket, socket_directory / "held", what="/info") as held:
        settings = EngineSettings(str(held.socket), "1.41")
        settings.ask(0.0)
        assert settings.take(0.0) is None
        assert held.asked.wait(60)

        with pytest.raises(EngineError, match=r"has not answered .*`docker info` for 60 s"):
            settings.take(60.0)

        given_up, held_back = settings.sockets, settings.take(61.0)
        held.go.set()
        settings.ask(62.0)
        facts: list[EngineFacts] = []

        def is_told() -> bool:
            facts.extend(filter(None, (settings.take(62.0),)))
            return bool(facts)

        wait_until(is_told, timeout_s=60, what="the second answer")

    assert (given_up, held_back) == ([], None)
    assert facts[0].version == engine.version


def test_an_engine_that_refuses_to_tell_its_settings_is_quoted(engine: Engine) -> None:
    settings = EngineSettings(str(engine.socket), "9.99")
    settings.ask(0.0)
    said: list[EngineError] = []

    def is_refused() -> bool:
        try:
            settings.take(0.0)
        except EngineError as error:
            said.append(error)
        return bool(said)

    wait_until(is_refused, timeout_s=60, what="the refusal")

    assert "client version 9.99 is too new" in said[0].message
    assert said[0].status == 400
    assert settings.sockets == []


def test_a_crash_is_seen_with_its_exit_code_and_wakes_the_loop(site: AgentSite) -> None:
    made = site.create()
    site.wakes.event.clear()

    site.engine.run_cli("kill", "--signal=KILL", made.container_id)
    assert site.wakes.event.wait(10)
    site.until(lambda seen: seen.containers[0].status == "exited", "the end")

    seen = site.container(made.container_id)
    assert seen
    assert (seen.exit_code, seen.pid, seen.oom_killed) == (137, 0, False)
    assert seen.finished_at_s > seen.started_at_s > 0


def test_containers_that_were_there_before_are_found_at_the_start(site: AgentSite) -> None:
    made = [site.create(site.spec(index)).container_id for index in range(3)]

    source = DockerSource(site.config, Wakes()).start()
    try:
        wait_until(lambda: source.seen().up, timeout_s=10, what="the engine")
        found = source.seen().containers
    finally:
        source.close()

    assert [each.id for each in found] == made
    assert [each.slot for each in found] == [0, 1, 2]
    assert source.seen().epoch == 0


def test_a_container_with_our_label_under_another_name_is_listed(site: AgentSite) -> None:
    prefix = site.config.container.name_prefix
    labels = ("--label", f"{LABEL_MANAGED}={prefix}", "--label", f"{LABEL_SLOT}=7")
    site.engine.run_cli("create", "--name", f"{prefix}-left-over", *labels, site.image_id)
    nameless = ("--label", f"{LABEL_MANAGED}={prefix}")
    site.engine.run_cli("create", "--name", f"{prefix}-odd", *nameless, site.image_id)

    seen = site.until(lambda seen: len(seen.containers) == 2, "both")

    assert [(each.slot, each.name, each.status) for each in seen.containers] == [
        (-1, f"{prefix}-odd", "created"),
        (7, f"{prefix}-left-over", "created"),
    ]


def test_other_agents_containers_and_strangers_are_not_listed(site: AgentSite) -> None:
    prefix = site.config.container.name_prefix
    site.engine.run_cli("create", "--name", f"{prefix}-x", "--label", f"{LABEL_MANAGED}=another", site.image_id)
    made = site.create()

    assert [each.id for each in site.seen().containers] == [made.container_id]


def test_a_container_that_is_renamed_or_paused_is_seen_to_be(site: AgentSite) -> None:
    made = site.create()
    other = f"{site.config.container.name_prefix}-other"

    site.engine.run_cli("rename", made.container_id, other)
    site.engine.run_cli("pause", made.container_id)
    seen = site.until(lambda seen: seen.containers[0].status == "paused", "the pause")
    site.engine.run_cli("unpause", made.container_id)
    site.until(lambda seen: seen.containers[0].status == "running", "the end of the pause")

    assert seen.containers[0].name == other


def test_obstacles_are_named_as_soon_as_they_matter(site: AgentSite) -> None:
    plan, prefix = site.plan(), site.config.container.name_prefix
    site.engine.run_cli("create", "--name", plan.name, site.image_id)
    words = ("-p", f"127.0.0.1:{plan.port + 1}:11434", site.image_id)
    site.engine.run_cli("run", "-d", "--name", f"{prefix}-taker", *words)

    site.source.expect((plan, site.plan(1)))
    seen = site.until(lambda seen: len(seen.obstacles) == 2, "the obstacles")
    site.engine.run_cli("rm", "-f", plan.name, f"{prefix}-taker")
    site.until(lambda seen: not seen.obstacles, "the way to be free")

    assert seen.obstacles == (
        Obstacle(0, plan.name, f"name {plan.name}"),
        Obstacle(1, f"{prefix}-taker", f"port {plan.port + 1}"),
    )


@pytest.mark.parametrize(
    ("words", "left"),
    [
        (("rm", "-f", "{prefix}-name"), ["port"]),
        (("rename", "{prefix}-name", "{prefix}-other"), ["port"]),
        (("kill", "{prefix}-port"), ["name"]),
        (("rm", "-f", "{prefix}-port"), ["name"]),
    ],
    ids=lambda given: given[0],
)
def test_a_name_or_a_port_that_somebody_gives_back_is_seen_long_before_the_next_listing(
    site: AgentSite, words: tuple[str, ...], left: list[str]
) -> None:
    prefix = site.config.container.name_prefix
    plans = (replace(site.plan(), name=f"{prefix}-name"), site.plan(1))
    site.engine.run_cli("create", "--name", f"{prefix}-name", site.image_id)
    published = f"127.0.0.1:{plans[1].port}:11434"
    site.engine.run_cli("run", "-d", "--name", f"{prefix}-port", "-p", published, site.image_id)
    site.source.expect(plans)
    site.until(lambda seen: len(seen.obstacles) == 2, "the obstacles")

    site.engine.run_cli(*(word.format(prefix=prefix) for word in words))
    seen = site.until(lambda seen: len(seen.obstacles) == 1, "one to be gone", timeout_s=8)

    assert [each.what.partition(" ")[0] for each in seen.obstacles] == left


def test_our_own_containers_are_no_obstacles(site: AgentSite) -> None:
    site.source.expect((site.plan(),))
    site.create()
    before = site.seen().at_s

    site.source.look()
    seen = site.until(lambda seen: seen.at_s > before, "another look")

    assert seen.obstacles == ()


def test_a_failed_creation_shows_the_obstacle_at_once(site: AgentSite) -> None:
    site.source.expect((site.plan(),))
    before = site.seen().at_s
    site.until(lambda seen: seen.at_s >= before, "a look")
    site.engine.run_cli("create", "--name", site.plan().name, site.image_id)

    site.create()

    seen = site.until(lambda seen: bool(seen.obstacles), "the obstacle", timeout_s=5)
    assert seen.obstacles[0].what == f"name {site.plan().name}"


def test_the_image_is_seen_without_labels_of_ours(site: AgentSite) -> None:
    site.source.want_image("test/ollama:standin")
    seen = site.until(lambda seen: seen.image is not None, "the image")

    assert seen.image
    assert seen.image.id == site.image_id
    assert seen.image.labels is None
    assert seen.image.problem == ""
    assert seen.image.size_bytes > 1_000_000


def test_an_image_that_is_absent_is_seen_to_be_and_looked_for_again(site: AgentSite) -> None:
    name = f"test/{site.config.container.name_prefix}:1"
    site.source.want_image(name)
    absent = site.until(lambda seen: seen.image is not None, "an answer").image
    site.engine.run_cli("tag", site.image_id, name)
    site.source.want_image(name)
    there = site.until(lambda seen: seen.image is not None and seen.image.id != "", "the image").image
    site.engine.run_cli("rmi", name)

    assert absent
    assert (absent.reference, absent.id, absent.labels) == (name, "", None)
    assert there
    assert there.id == site.image_id


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["stopped", "killed"])
def test_an_engine_that_ended_is_away_and_its_next_life_is_another_epoch(
    make_engine: MakeEngine, small_base: Path, kind: EngineKind, how: signal.Signals
) -> None:
    engine = make_engine(kind)
    with agent_site(engine, small_base) as site:
        made = site.create()
        history: list[tuple[bool, int, str]] = []
        remember(site, history)

        engine.stop(how=how)
        away = site.until(down, "the end of the engine", timeout_s=10)
        engine.start()
        back = site.until(up, "the engine again")
        again = site.create(site.spec(1))

        assert away.containers[0].id == made.container_id
        assert away.containers[0].status == "running"  # as last seen: it is not the container that failed
        assert "docker" in away.because.lower()
        assert back.epoch == 1
        assert back.containers[0].id == made.container_id
        assert again.ok
        assert all(status == "running" for alive, epoch, status in history if epoch == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_whose_socket_systemd_holds_is_away_all_the_same(
    make_engine: MakeEngine, small_base: Path, kind: EngineKind
) -> None:
    """Connections are still taken then, and wait for the engine's next life."""
    engine = make_engine(kind, activated=True)
    with agent_site(engine, small_base, timeout_s=4) as site:
        made = site.create()
        history: list[tuple[bool, int, str]] = []
        remember(site, history)

        engine.stop()
        away = site.until(down, "the end of the engine", timeout_s=10)
        engine.start()
        back = site.until(up, "the engine again")
        with engine.frozen():
            site.until(down, "the engine to be given up", timeout_s=15)
        thawed = site.until(up, "the thaw")

        assert away.containers[0].status == "running"
        assert back.containers[0].id == made.container_id
        assert (back.epoch, thawed.epoch) == (1, 1)
        assert all(status == "running" for alive, epoch, status in history if epoch == 0)


def remember(site: AgentSite, history: list[tuple[bool, int, str]]) -> None:
    """Every state that the loop could have seen."""
    publish = site.source.board.publish

    def publish_and_remember(**changes: object) -> None:
        publish(**changes)
        seen = site.seen()
        history.extend((seen.up, seen.epoch, each.status) for each in seen.containers)

    site.source.board.publish = publish_and_remember  # type: ignore[method-assign]


@pytest.mark.parametrize("kind", KINDS)
def test_a_frozen_engine_is_down_within_the_deadline_and_the_same_when_it_thaws(
    make_engine: MakeEngine, small_base: Path, kind: EngineKind
) -> None:
    engine = make_engine(kind)
    with agent_site(engine, small_base, timeout_s=2) as site:
        made = site.create()
        with engine.frozen():
            frozen = site.until(down, "the engine to be given up", timeout_s=10)
            site.until(lambda seen: seen.because != frozen.because, "the time to be told anew", timeout_s=10)
        thawed = site.until(up, "the thaw")

        assert frozen.because.startswith("the Docker Engine has not answered for ")
        assert frozen.containers[0].id == made.container_id
        assert thawed.epoch == 0
        assert thawed.because == ""
        assert thawed.containers == frozen.containers
        site.engine.run_cli("kill", made.container_id)
        site.until(lambda seen: seen.containers[0].status == "exited", "events again", timeout_s=5)


def test_an_engine_that_dies_frozen_is_another_one_afterwards(make_engine: MakeEngine, small_base: Path) -> None:
    engine = make_engine("classic")
    with agent_site(engine, small_base, timeout_s=2) as site:
        site.create()
        engine.freeze()
        site.until(down, "the engine to be given up", timeout_s=10)
        engine.stop(how=signal.SIGKILL)
        engine.start()
        seen = site.until(up, "the engine again")

        assert seen.epoch == 1


def test_what_happened_while_the_engine_was_frozen_is_seen_afterwards(
    make_engine: MakeEngine, small_base: Path
) -> None:
    engine = make_engine("classic")
    with agent_site(engine, small_base, timeout_s=2) as site:
        made = site.create()
        seen = site.container(made.container_id)
        assert seen
        with engine.frozen():
            site.until(down, "the engine to be given up", timeout_s=10)
            kill = ["sh", "-c", f"kill -KILL {seen.pid}"]
            subprocess.run(engine.command_inside(kill, network_only=False), check=True)
        after = site.until(lambda seen: seen.up and seen.containers[0].status == "exited", "the end", timeout_s=10)

        assert after.containers[0].exit_code == 137
        assert after.epoch == 0


@pytest.fixture
def socket_directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="engine-") as name:
        yield Path(name)


def watched(path: Path, *, timeout_s: float = 1) -> DockerSource:
    return DockerSource(Config(image="x", engine=EngineConfig(str(path), timeout_s=timeout_s)), Wakes()).start()


def because(path: Path) -> str:
    source = watched(path)
    try:
        wait_until(lambda: source.seen().since_s > 0, timeout_s=10, what="a judgement")
        assert not source.seen().up
        return source.seen().because
    finally:
        source.close()


def test_no_socket_is_told(socket_directory: Path) -> None:
    path = socket_directory / "none"

    assert because(path) == f"no Docker Engine here: there is no socket {path}: `systemctl start docker`"


def test_a_socket_where_nobody_listens_is_told(socket_directory: Path) -> None:
    path = socket_directory / "dead"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))

        assert because(path) == f"no Docker Engine listens at {path}: `systemctl start docker`"


def test_a_socket_without_permission_names_the_group(make_engine: MakeEngine) -> None:
    engine = make_engine("classic")
    engine.socket.chmod(0o600)
    os.seteuid(65534)
    try:
        text = because(engine.socket)
    finally:
        os.seteuid(0)

    assert text.startswith(f"no permission for the Docker Engine's socket {engine.socket}")
    assert "usermod -aG docker" in text


def silent_s(seen: EngineSeen) -> int:
    """For how long it is said to be; not every second is told on a busy machine."""
    told = re.search(r"has not answered for (\d+) s", seen.because)
    return int(told[1]) if told else 0


def test_a_listener_that_never_answers_is_silent_and_gets_one_question(socket_directory: Path) -> None:
    path = socket_directory / "silent"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        source = watched(path)
        try:
            wait_until(lambda: silent_s(source.seen()) >= 3, timeout_s=20, what="three seconds")
        finally:
            source.close()
        listener.settimeout(0)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_listener_with_a_full_queue_is_silent(socket_directory: Path) -> None:
    path = socket_directory / "full"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        first.connect(str(path))

        assert because(path).startswith("the Docker Engine has not answered for ")


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n", b""])
def test_what_is_no_engine_is_never_up(socket_directory: Path, answer: bytes) -> None:
    path = socket_directory / "odd"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection, contextlib.suppress(OSError):  # the source may have closed it
                    connection.recv(4096)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        source = watched(path)
        try:
            wait_until(
                lambda: source.seen().because != "the Docker Engine was not asked yet", timeout_s=10, what="words"
            )
            seen = source.seen()
        finally:
            source.close()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

    assert not seen.up


def test_closing_at_once_and_twice_is_clean(site: AgentSite) -> None:
    source = DockerSource(site.config, Wakes()).start()
    source.close()
    source.close()
    never_started = DockerSource(site.config, Wakes())
    never_started.close()


def test_a_container_whose_lock_is_held_does_not_hide_the_others(engine: Engine, small_base: Path) -> None:
    """As when its start hangs in a hook for a dead GPU."""
    with agent_site(engine, small_base) as site:
        made, other = site.create(), site.create(site.spec(1))
        shim = shim_of(made.container_id)
        os.kill(shim, signal.SIGSTOP)
        try:
            killer = threading.Thread(target=lambda: engine.run_cli("kill", made.container_id, check=False))
            killer.start()
            site.engine.run_cli("rename", other.container_id, f"{site.plan(1).name}-x")
            site.until(lambda seen: any(each.name.endswith("-x") for each in seen.containers), "the other's new name")
            assert site.seen().up
            assert site.container(made.container_id)
        finally:
            os.kill(shim, signal.SIGCONT)
            killer.join()
        site.until(
            lambda seen: any(each.id == made.container_id and each.status == "exited" for each in seen.containers),
            "its end",
        )


def test_a_quiet_engine_leaves_the_loop_asleep(site: AgentSite) -> None:
    site.create()
    at_s, wakes = site.seen().at_s, site.wakes.count
    site.until(lambda seen: seen.at_s > at_s, "the next listing", timeout_s=15)

    assert site.wakes.count == wakes


def test_a_new_address_is_looked_at_with_the_obstacles(site: AgentSite) -> None:
    plan, prefix = site.plan(), site.config.container.name_prefix
    site.engine.run_cli("run", "-d", "--name", f"{prefix}-taker", "-p", f"127.0.0.2:{plan.port}:11434", site.image_id)
    site.source.expect((plan,))
    before = site.seen().at_s
    quiet = site.until(lambda seen: seen.at_s > before, "a look")

    site.source.configure(replace(site.config, address="0.0.0.0"))
    seen = site.until(lambda seen: bool(seen.obstacles), "the obstacle")

    assert quiet.obstacles == ()
    assert seen.obstacles[0].what == f"port {plan.port}"
