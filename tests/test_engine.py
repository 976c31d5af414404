"""Real Docker Engines of both kinds: what is loaded starts, what failed has no name, what is there is not sent again."""

import json
import os
import secrets
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import MakeEngine
from countedsocket import CountedSocket
from engines import Engine as AnyEngine
from engines import EngineKind, PrivateEngine, wait_until
from tinyimages import (
    AMD64,
    ARM64,
    HERE,
    Layer,
    MemoryPayload,
    QuietReporter,
    SilentTransfer,
    base_layers,
    built,
    image,
    model_layer,
    outline,
    small_disk,
    weights_layer,
    write_all,
)

from appliance_builder.archive_sink import ArchiveSink
from appliance_builder.built import Built
from appliance_builder.engine import Engine, EngineError, Store, layer_chain
from appliance_builder.engine_disk import ImageRoots, containerd_roots, fullest_disk
from appliance_builder.engine_load import Silence
from appliance_builder.engine_sink import EngineSink
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.oci import CONFIG, Descriptor, ImageConfig, Index, Manifest, Platform
from appliance_image.reference import ImageReference

MEBIBYTE = 1 << 20
OTHER_PLATFORM = ARM64 if HERE == AMD64 else AMD64
KINDS: tuple[EngineKind, ...] = ("classic", "containerd")
IMPATIENT = Silence(ask_after_s=0.5, answer_within_s=0.5, unanswered_max=2)


@pytest.fixture
def name() -> ImageReference:
    """A name of its own for each test: engines live as long as the session."""
    return ImageReference.parse(f"registry.example.com/ai/tiny-{secrets.token_hex(4)}:1b")


@pytest.fixture
def ours(engine: AnyEngine) -> Iterator[Engine]:
    with connected(engine) as client:
        yield client


@contextmanager
def connected(engine: AnyEngine | CountedSocket) -> Iterator[Engine]:
    with Engine.connect({"DOCKER_HOST": engine.docker_host}) as client:
        yield client


@contextmanager
def counted(engine: AnyEngine) -> Iterator[CountedSocket]:
    with tempfile.TemporaryDirectory(prefix="engine-") as directory:  # sockets have short names
        relay = CountedSocket(Path(directory) / "socket", engine.socket)
        try:
            yield relay
        finally:
            relay.close()


def fresh(size: int = 3_000_000, *, version: str = "1", template: str = "hello") -> list[Layer]:
    """An image that no engine has seen."""
    return [weights_layer(os.urandom(size)), *base_layers(version=version), model_layer(template)]


def sink_for(engine: Engine, name: ImageReference, *, silence: Silence | None = None) -> EngineSink:
    return EngineSink(engine, name, QuietReporter(), silence=silence)


def load(engine: Engine, name: ImageReference, layers: list[Layer], *, known: bool = True) -> str:
    sink = sink_for(engine, name)
    write_all(sink, layers, known=known)
    return sink.commit(built(layers))


def run(engine: AnyEngine, image_name: str, path: str) -> str:
    words = ("run", "--rm", "--network=none", "--pull=never", image_name, path)
    return engine.run_cli(*words).stdout


def listed(engine: AnyEngine) -> set[str]:
    """Every image that the engine would show, also those without a name."""
    return set(
        engine.run_cli("image", "ls", "--all", "--no-trunc", "--format={{.ID}} {{.Repository}}").stdout.split("\n")
    )


@pytest.mark.parametrize("known", [True, False], ids=["digests known", "digests earned"])
def test_an_image_is_loaded_and_starts(engine: AnyEngine, ours: Engine, name: ImageReference, known: bool) -> None:
    layers = fresh()

    line = load(ours, name, layers, known=known)
    loaded = ours.image(str(name))

    assert loaded
    assert loaded.diff_ids == tuple(layer.diff_id for layer in layers)
    assert loaded.labels == {"made-by": "test"}
    assert run(engine, str(name), "/models/template") == "hello"
    assert run(engine, line, "/etc/version") == "1"


def test_the_line_for_stdout_names_the_image_for_good(engine: AnyEngine, ours: Engine, name: ImageReference) -> None:
    layers = fresh()
    whole = built(layers)

    line = load(ours, name, layers)

    assert line == (
        str(whole.images[0].manifest.config.digest) if engine.kind == "classic" else f"{name.name}@{whole.digest}"
    )


def test_what_the_engine_is_comes_from_its_own_words(engine: AnyEngine, ours: Engine) -> None:
    assert ours.facts.store is {"classic": Store.CLASSIC, "containerd": Store.CONTAINERD}[engine.kind]
    assert ours.facts.version == engine.version
    assert ours.facts.platform == HERE
    assert ours.facts.is_local
    if isinstance(engine, PrivateEngine):
        assert ours.facts.data_root == engine.data_root
    assert free_bytes(ours) > 0


def free_bytes(engine: Engine) -> int:
    disk = engine.disk()
    assert disk
    return disk.free_bytes


def test_a_finished_image_is_known_by_its_name(ours: Engine, name: ImageReference) -> None:
    layers = fresh()
    sink = sink_for(ours, name)

    assert sink.finished(built(layers)) is None

    line = load(ours, name, layers)

    assert sink.finished(built(layers)) == line
    assert sink.finished(built(layers, labels={"other": "labels"})) is None
    assert sink_for(ours, replace(name, tag="2b")).finished(built(layers)) is None


def test_an_image_that_somebody_loaded_broken_is_not_taken_for_finished(
    engine: AnyEngine, ours: Engine, name: ImageReference, tmp_path: Path
) -> None:
    layers = fresh()
    sink = ArchiveSink.to_file(tmp_path / "broken.tar", name)
    write_all(sink, layers[1:])
    sink.commit(built(layers))
    engine.run_cli("load", "-i", str(tmp_path / "broken.tar"), check=False)

    assert sink_for(ours, name).finished(built(layers)) is None

    line = load(ours, name, layers)

    assert sink_for(ours, name).finished(built(layers)) == line
    assert run(engine, str(name), "/models/template") == "hello"


def change(what: str, layers: list[Layer]) -> list[Layer]:
    weights, *_, template = layers
    if what == "new base":
        return [weights, *base_layers(version=secrets.token_hex(4)), template]
    if what == "think variant":
        return [*layers[:-1], model_layer(f"think {secrets.token_hex(4)}")]
    return layers


@pytest.mark.parametrize(("what", "moved"), [("second load", []), ("new base", [2, 3]), ("think variant", [3])])
def test_a_classic_engine_is_not_sent_what_it_has(
    classic_engine: AnyEngine, name: ImageReference, what: str, moved: list[int]
) -> None:
    layers = fresh()
    with connected(classic_engine) as first:
        load(first, name, layers)
    again = change(what, layers)

    with counted(classic_engine) as relay, connected(relay) as ours:
        sink = sink_for(ours, name)
        sent = write_all(sink, again)
        sink.commit(built(again))
        sent_bytes = relay.sent_bytes

    assert sent == [again[number] for number in moved]
    assert sent_bytes < 40_000
    assert run(classic_engine, str(name), "/models/template") == run_text(again[-1])
    assert run(classic_engine, str(name), "/etc/version") != ""


def run_text(layer: Layer) -> str:
    return layer.body[512:].split(b"\0", 1)[0].decode()


def test_a_containerd_store_is_sent_everything(containerd_engine: AnyEngine, name: ImageReference) -> None:
    layers = fresh()
    with counted(containerd_engine) as relay, connected(relay) as ours:
        load(ours, name, layers)
        sink = sink_for(ours, name)
        before = relay.sent_bytes
        sent = write_all(sink, layers)
        sink.commit(built(layers))

        assert sent == layers
        assert relay.sent_bytes - before > 3_000_000


def test_a_containerd_store_with_room_is_not_asked_what_it_has(
    containerd_engine: AnyEngine, name: ImageReference
) -> None:
    """With many large images that takes it minutes."""
    layers = fresh()
    with counted(containerd_engine) as relay, connected(relay) as ours:
        sink = sink_for(ours, name)
        before = relay.sent_bytes
        missing = [sink.has(outline(layers, layer)) for layer in layers]
        sink.preflight(len(layers[0].body))

        assert relay.sent_bytes == before
        assert not any(missing)


@pytest.mark.parametrize("status", [404, 500])
def test_of_an_image_that_the_engine_cannot_tell_of_nothing_is_taken(status: int) -> None:
    sound, broken, layers = "1" * 64, "2" * 64, [f"sha256:{'3' * 64}", f"sha256:{'4' * 64}"]
    answers: dict[str, tuple[int, object]] = {
        f"/images/sha256%3A{sound}/": (200, {"Id": f"sha256:{sound}", "RootFS": {"Layers": layers}}),
        f"/images/sha256%3A{broken}/": (status, {"message": "layer does not exist"}),
        "/images/json": (200, [{"Id": f"sha256:{broken}"}, {"Id": f"sha256:{sound}"}]),
    }
    with fake_engine(version_answer("1.41") | answers) as host, Engine.connect({"DOCKER_HOST": host}) as engine:
        found = engine.chains()

    assert found == {layer_chain([Digest("3" * 64)]), layer_chain([Digest("3" * 64), Digest("4" * 64)])}


def test_a_second_load_leaves_nothing_beside_the_image(engine: AnyEngine, ours: Engine, name: ImageReference) -> None:
    layers = fresh()
    load(ours, name, layers)
    once = listed(engine)

    load(ours, name, layers)

    assert listed(engine) == once


def test_a_layer_that_lies_on_other_layers_is_another_layer(classic_engine: AnyEngine, name: ImageReference) -> None:
    with connected(classic_engine) as ours:
        layers = fresh()
        load(ours, name, layers)
        upside_down = [layers[1], layers[0]]
        sink = sink_for(ours, name)

        assert sink.has(outline(layers, layers[1]))
        assert not sink.has(outline(upside_down, layers[1]))
        assert not sink.has(outline(upside_down, layers[0]))
        assert not sink.has(replace(outline(layers, layers[1]), diff_ids=()))


def test_a_layer_that_an_image_has_twice_is_sent_once(engine: AnyEngine, ours: Engine, name: ImageReference) -> None:
    weights, *others = fresh()
    layers = [weights, *others, others[0]]
    sink = sink_for(ours, name)
    write_all(sink, layers[:-1])

    assert sink.has(outline(layers, layers[0]))

    sink.commit(built(layers))

    assert run(engine, str(name), "/models/template") == "hello"


def test_only_the_engines_own_platform_is_loaded(engine: AnyEngine, ours: Engine, name: ImageReference) -> None:
    shared, mine, foreign = fresh()[0], base_layers(HERE), base_layers(OTHER_PLATFORM, version="foreign")
    images = (image([shared, *foreign], OTHER_PLATFORM), image([shared, *mine], HERE))
    whole = Built(images, Index(tuple(one.descriptor for one in images)).render())
    sink = sink_for(ours, name)

    assert all(sink.has(outline([shared, *foreign], layer, OTHER_PLATFORM)) for layer in foreign)

    for layer in (shared, *mine):
        sink.write(layer.payload(), layer.media_type, SilentTransfer())
    sink.commit(whole)

    assert run(engine, str(name), "/etc/version") == "1"


def test_an_image_without_the_engines_platform_is_refused_with_the_flag_to_add(
    ours: Engine, name: ImageReference
) -> None:
    sink = sink_for(ours, name)

    with pytest.raises(EngineError, match=f"runs {HERE}, and there is no image") as refused:
        sink.commit(Built((image(fresh(1000), OTHER_PLATFORM),)))

    assert refused.value.hint == f"add `--platform {HERE}`"


class Failure:
    """Ways in which a load goes wrong, each on a sink whose name is taken by an older image."""

    @staticmethod
    def corrupt_blob(sink: EngineSink, layers: list[Layer]) -> None:
        payload = MemoryPayload(layers[0].body, None, error=ApplianceError("blob is damaged", hint="download again"))
        sink.write(payload, layers[0].media_type, SilentTransfer())

    @staticmethod
    def layer_that_was_believed_there(sink: EngineSink, layers: list[Layer]) -> None:
        write_all(sink, layers[1:])
        sink.commit(built(layers))

    @staticmethod
    def no_tar_at_all(sink: EngineSink, layers: list[Layer]) -> None:
        broken = [Layer(b"\x1f\x8b" + os.urandom(100_000)), *layers[1:]]
        write_all(sink, broken)
        sink.commit(built(broken))

    @staticmethod
    def wrong_diff_id(sink: EngineSink, layers: list[Layer]) -> None:
        made = built(layers).images[0]
        config = made.config.replace(layers[0].diff_id.hex.encode(), b"1" * 64)
        manifest = replace(made.manifest, config=Descriptor(CONFIG, Digest.of(config), len(config)))
        diff_ids = ImageConfig.parse(config).diff_ids
        write_all(sink, layers)
        sink.commit(Built((replace(made, config=config, manifest=manifest, diff_ids=diff_ids),)))

    @staticmethod
    def interrupt(sink: EngineSink, layers: list[Layer]) -> None:
        sink.write(layers[0].payload(), layers[0].media_type, SilentTransfer())
        raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("fail", "error"),
    [
        (Failure.corrupt_blob, ApplianceError),
        (Failure.layer_that_was_believed_there, EngineError),
        (Failure.no_tar_at_all, EngineError),
        (Failure.wrong_diff_id, EngineError),
        (Failure.interrupt, KeyboardInterrupt),
    ],
)
def test_after_a_failure_the_name_is_the_old_images_and_no_other_image_is_there(
    engine: AnyEngine,
    ours: Engine,
    name: ImageReference,
    fail: Callable[[EngineSink, list[Layer]], None],
    error: type[BaseException],
) -> None:
    load(ours, name, fresh(1000, template="the old image"))
    before = listed(engine)
    sink = sink_for(ours, name)

    with pytest.raises(error):
        fail(sink, fresh())
    sink.abort()

    assert run(engine, str(name), "/models/template") == "the old image"
    assert listed(engine) == before


def test_a_load_after_a_broken_one_is_whole(engine: AnyEngine, ours: Engine, name: ImageReference) -> None:
    """containerd keeps the beginning of a blob that broke off, and would go on from there under the same name."""
    for known in (True, False):
        broken, layers = fresh(20 * MEBIBYTE), fresh(20 * MEBIBYTE)
        sink = sink_for(ours, name)
        with pytest.raises(ApplianceError):
            Failure.corrupt_blob(sink, broken)
        sink.abort()

        load(ours, name, broken if known else layers, known=known)

        assert run(engine, str(name), "/models/template") == "hello"


def test_an_abort_after_the_commit_takes_nothing_away(engine: AnyEngine, ours: Engine, name: ImageReference) -> None:
    layers = fresh(1000)
    sink = sink_for(ours, name)
    write_all(sink, layers)
    sink.commit(built(layers))

    sink.abort()

    assert run(engine, str(name), "/models/template") == "hello"


class Feeder:
    """Writes an endless layer from a thread, as the one pass does, until the sink raises."""

    def __init__(self, sink: EngineSink) -> None:
        self.error: BaseException | None = None
        self.transfer = SilentTransfer()
        self._sink = sink
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._sink.write(Endless(), "", self.transfer)
        except BaseException as error:  # noqa: BLE001  # told to the test
            self.error = error

    def wait(self) -> BaseException | None:
        self._thread.join(timeout=60)
        assert not self._thread.is_alive()
        return self.error


class Endless(MemoryPayload):
    def __init__(self) -> None:
        super().__init__(b"", None)
        self.size = 1 << 40

    def read(self, offset: int = 0) -> Iterator[bytes]:
        while True:
            yield b"\xff" * MEBIBYTE
            time.sleep(0.01)  # a source that would fill the disk otherwise


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_dies_in_mid_load_is_an_error_and_a_second_run_succeeds(
    make_engine: MakeEngine, kind: EngineKind, name: ImageReference
) -> None:
    engine = make_engine(kind)
    with connected(engine) as ours:
        sink = sink_for(ours, name)
        feeder = Feeder(sink)
        wait_until(lambda: feeder.transfer.done > 20 * MEBIBYTE, timeout_s=60, what="20 MiB in the engine")
        engine.stop(how=signal.SIGKILL)
        error = feeder.wait()
        sink.abort()

    engine.start()
    with connected(engine) as ours:
        after = ours.image(str(name))
        load(ours, name, fresh())

    assert isinstance(error, EngineError)
    assert "went away" in error.message
    assert "systemctl start docker" in error.hint
    assert after is None
    assert run(engine, str(name), "/models/template") == "hello"


@pytest.mark.parametrize("kind", KINDS)
def test_an_engine_that_freezes_is_an_error_and_leaves_no_name(
    make_engine: MakeEngine, kind: EngineKind, name: ImageReference
) -> None:
    engine = make_engine(kind)
    with connected(engine) as ours:
        sink = sink_for(ours, name, silence=IMPATIENT)
        feeder = Feeder(sink)
        wait_until(lambda: feeder.transfer.done > 20 * MEBIBYTE, timeout_s=60, what="20 MiB in the engine")
        with engine.frozen():
            error = feeder.wait()
        sink.abort()
        after = ours.image(str(name))
        left = listed(engine)

    assert isinstance(error, EngineError)
    assert "stopped answering" in error.message
    assert "the engine does not answer" in feeder.transfer.notes
    assert after is None
    assert left == {""}


def test_an_interruption_is_not_held_up_by_a_frozen_engine(make_engine: MakeEngine, name: ImageReference) -> None:
    """With the patience of this sink the test would end by its time limit."""
    engine = make_engine("classic")
    layers = fresh()

    def freeze_and_interrupt() -> None:
        engine.freeze()
        raise KeyboardInterrupt

    class Interrupted(QuietReporter):
        @contextmanager
        def transfer(self, name: str, *, size: int) -> Iterator[SilentTransfer]:
            freeze_and_interrupt()
            yield SilentTransfer()

    with connected(engine) as ours:
        sink = EngineSink(ours, name, Interrupted(), silence=Silence(answer_within_s=3600))
        write_all(sink, layers)
        with pytest.raises(KeyboardInterrupt):
            sink.commit(built(layers))
        sink.abort()
        engine.thaw()

        assert ours.image(str(name)) is None


def test_an_engine_that_freezes_for_a_while_is_waited_for(make_engine: MakeEngine, name: ImageReference) -> None:
    engine = make_engine("classic")
    layers = fresh(40 * MEBIBYTE)
    with connected(engine) as ours:
        sink = sink_for(ours, name, silence=replace(IMPATIENT, unanswered_max=100))
        transfer = SilentTransfer()
        with engine.frozen():
            thread = threading.Thread(target=sink.write, args=(layers[0].payload(), "", transfer))
            thread.start()
            wait_until(lambda: "the engine does not answer" in transfer.notes, timeout_s=60, what="the note")
        thread.join()
        write_all(sink, layers[1:])
        sink.commit(built(layers))

    assert run(engine, str(name), "/models/template") == "hello"


@pytest.mark.parametrize("kind", KINDS)
def test_a_disk_that_fills_up_is_said_with_the_place_and_the_size(
    make_engine: MakeEngine, kind: EngineKind, name: ImageReference
) -> None:
    engine = make_engine(kind, disk_bytes=96 * MEBIBYTE)
    layers = fresh(60 * MEBIBYTE)
    with connected(engine) as ours:
        sink = sink_for(ours, name)
        with pytest.raises(EngineError) as full:
            load_with(sink, layers)
        sink.abort()
        after = listed(engine)
        load(ours, name, fresh(1000))

    assert "no space left on device" in full.value.message
    assert f"make room in {engine.data_root}" in full.value.hint
    assert "62.9 MB of this image twice" in full.value.hint
    assert after == {""}


def load_with(sink: EngineSink, layers: list[Layer]) -> None:
    write_all(sink, layers)
    sink.commit(built(layers))


def test_a_disk_that_cannot_hold_it_twice_is_refused_before_the_first_byte(
    classic_engine: AnyEngine, name: ImageReference
) -> None:
    with connected(classic_engine) as ours:
        free = free_bytes(ours)
        sink = sink_for(ours, name)

        sink.preflight(free // 3)
        with pytest.raises(EngineError, match="not enough disk for the Docker Engine in") as refused:
            sink.preflight(free)

    assert "twice" in refused.value.hint


def test_a_disk_that_may_be_another_is_no_reason_to_refuse(containerd_engine: AnyEngine, name: ImageReference) -> None:
    """Docker 26 does not tell which containerd it has."""
    reporter = QuietReporter()
    with connected(containerd_engine) as ours:
        free = free_bytes(ours)
        sink = EngineSink(ours, name, reporter)

        sink.preflight(free // 3)
        assert reporter.warnings == []
        sink.preflight(free)

    assert len(reporter.warnings) == 1
    assert "if the Docker Engine's images go there" in reporter.warnings[0]


@pytest.mark.parametrize(
    ("address", "configuration", "paths", "sure"),
    [
        ("/run/docker/containerd/containerd.sock", None, ["/data/docker"], True),
        ("/run/user/1000/docker/containerd/containerd.sock", None, ["/data/docker"], True),
        ("/run/containerd/containerd.sock", b"", ["/var/lib/containerd"], True),
        ("/run/containerd/containerd.sock", b"version = 2", ["/var/lib/containerd"], True),
        ("/run/containerd/containerd.sock", b'root = "/data/containerd"', ["/data/containerd"], True),
        ("/run/containerd/containerd.sock", b'imports = ["/etc/x.toml"]', ["/var/lib/containerd"], False),
        ("/run/containerd/containerd.sock", b"version = ", ["/var/lib/containerd"], False),
        ("/run/containerd/containerd.sock", b"\xff", ["/var/lib/containerd"], False),
        ("/run/containerd/containerd.sock", None, ["/var/lib/containerd"], False),
        ("/run/k3s/containerd/containerd.sock", b"", ["/data/docker", "/var/lib/containerd"], False),
        (None, b'root = "/data/containerd"', ["/data/docker", "/data/containerd"], False),
    ],
)
def test_where_images_go_follows_from_the_containerd_that_an_engine_has(
    address: str | None, configuration: bytes | None, paths: list[str], sure: bool
) -> None:
    roots = containerd_roots(Path("/data/docker"), address, configuration)

    assert roots == ImageRoots(tuple(map(Path, paths)), sure)


def test_of_the_disks_that_it_may_be_the_fullest_counts(tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", 16 * MEBIBYTE) as small:
        disk = fullest_disk(ImageRoots((tmp_path, small, tmp_path / "none"), sure=False))

    assert disk
    assert (disk.place, disk.sure) == (small, False)
    assert disk.free_bytes <= 16 * MEBIBYTE


def test_a_disk_that_is_too_small_is_found_by_the_word_of_the_engine(name: ImageReference, tmp_path: Path) -> None:
    told: dict[str, object] = {
        "DriverStatus": [["driver-type", "io.containerd.snapshotter.v1"]],
        "Name": socket.gethostname(),
        "DockerRootDir": str(tmp_path),
        "Containerd": {"Address": "/run/docker/containerd/containerd.sock"},
    }
    answers = version_answer("1.52") | {"/info": (200, told)}

    with (
        fake_engine(answers) as host,
        Engine.connect({"DOCKER_HOST": host}) as ours,
        pytest.raises(EngineError, match=f"not enough disk for the Docker Engine in {tmp_path}"),
    ):
        sink_for(ours, name).preflight(free_bytes(ours))


def test_what_a_containerd_store_most_likely_has_takes_no_room_twice(
    containerd_engine: AnyEngine, name: ImageReference
) -> None:
    layers = fresh()
    with connected(containerd_engine) as ours:
        load(ours, name, layers)
        free = free_bytes(ours)
        reporter = QuietReporter()
        sink = EngineSink(ours, name, reporter)
        there = outline(layers, layers[0])
        huge = replace(there, descriptor=replace(there.descriptor, size=free * 2 // 3))

        assert not sink.has(huge)

        sink.preflight(free * 2 // 3)

    assert reporter.warnings == []


def test_an_archive_of_ours_is_loaded_by_the_docker_command(
    engine: AnyEngine, name: ImageReference, tmp_path: Path
) -> None:
    layers = fresh()
    sink = ArchiveSink.to_file(tmp_path / "tiny.tar", name)
    write_all(sink, layers, known=False)
    sink.commit(built(layers))

    said = engine.run_cli("load", "-i", str(tmp_path / "tiny.tar")).stdout

    assert said.strip() == f"Loaded image: {name}"
    assert run(engine, str(name), "/models/template") == "hello"
    with connected(engine) as ours:
        assert sink_for(ours, name).finished(built(layers))


def test_an_image_of_the_engine_can_be_a_base(ours: Engine, name: ImageReference, tmp_path: Path) -> None:
    layers = fresh()
    load(ours, name, layers)

    with ours.export(str(name), spool=tmp_path / "spool") as store:
        manifest = Manifest.parse(store.manifest()[1])
        config = store.small_blob(manifest.config)
        bodies = [b"".join(store.blob(layer).read()) for layer in manifest.layers]
        spooled = list((tmp_path / "spool").iterdir())

    assert spooled == []
    assert config == built(layers).images[0].config
    assert [Digest.of(body) for body in bodies] == [layer.digest for layer in manifest.layers]
    assert manifest.layers[0].digest == layers[0].digest
    assert len(manifest.layers) == len(layers)


def test_an_image_that_is_not_in_the_engine_cannot_be_a_base(ours: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no image `nothing:here` in the Docker Engine") as missing:
        ours.export("nothing:here", spool=tmp_path)

    assert missing.value.hint.startswith("`docker pull nothing:here`")
    assert ours.image("nothing:here") is None


def test_chains_of_layers_are_those_of_the_image_specification() -> None:
    """The example of image-spec's config.md, as a rule: ChainID(A|B) = sha256("ChainID(A) B")."""
    first, second, third = (Digest(digit * 64) for digit in "123")

    two = Digest.of(f"sha256:{first.hex} sha256:{second.hex}".encode())

    assert layer_chain([first]) == first
    assert layer_chain([first, second]) == two
    assert layer_chain([first, second, third]) == Digest.of(f"sha256:{two.hex} sha256:{third.hex}".encode())


@contextmanager
def fake_engine(answers: dict[str, tuple[int, object]]) -> Iterator[str]:
    """A socket that answers whatever begins with a path; everything else is 404."""
    with tempfile.TemporaryDirectory(prefix="engine-") as directory, socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{directory}/socket")
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    path = connection.recv(65536).partition(b" ")[2].partition(b" ")[0].decode()
                    if not path:
                        continue  # somebody looked whether anybody listens
                    found = [answer for name, answer in answers.items() if name in path]
                    status, body = found[0] if found else (404, {"message": "no such thing"})
                    text = json.dumps(body).encode()
                    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(text)}\r\nConnection: close\r\n\r\n"
                    connection.sendall(head.encode() + text)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"unix://{directory}/socket"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def version_answer(api: str, *, name: str = "Engine") -> dict[str, tuple[int, object]]:
    version = {"Version": "0", "ApiVersion": api, "Os": "linux", "Arch": "amd64", "Components": [{"Name": name}]}
    return {"/version": (200, version), "/info": (200, {"DriverStatus": [], "Name": "elsewhere"})}


def test_an_engine_that_is_too_old_is_refused() -> None:
    with (
        fake_engine(version_answer("1.40")) as host,
        pytest.raises(EngineError, match=r"too old: API 1\.40") as refused,
    ):
        Engine.connect({"DOCKER_HOST": host})

    assert "20.10" in refused.value.hint


def test_another_program_that_speaks_docker_is_no_classic_engine_and_nothing_is_known_of_its_disk() -> None:
    answers = version_answer("1.41", name="Podman Engine")
    with fake_engine(answers) as host, Engine.connect({"DOCKER_HOST": host}) as engine:
        found = engine.facts, engine.disk()

    assert found[0].store is Store.OTHER
    assert found[0].platform == Platform("linux", "amd64")
    assert found[1] is None


@pytest.mark.skipif(os.geteuid() != 0, reason="to be somebody else needs root")
def test_of_a_data_root_that_is_not_for_this_user_to_see_nothing_is_known(tmp_path: Path) -> None:
    """As with userns-remap, whose data root lies below a directory of root's."""
    root = tmp_path / "docker"
    (root / "100000.100000").mkdir(parents=True)
    root.chmod(0o710)
    answers = version_answer("1.41")
    info: dict[str, object] = {
        "DriverStatus": [],
        "Name": socket.gethostname(),
        "DockerRootDir": str(root / "100000.100000"),
    }
    with fake_engine(answers | {"/info": (200, info)}) as host:
        place = Path(host.removeprefix("unix://"))
        place.parent.chmod(0o711)
        place.chmod(0o666)
        os.seteuid(65534)
        try:
            with Engine.connect({"DOCKER_HOST": host}) as engine:
                found = engine.facts.is_local, engine.disk()
        finally:
            os.seteuid(0)

    assert found == (False, None)


def test_an_answer_is_judged_by_its_status() -> None:
    broken = {"message": "No such image, says the text, but the status says otherwise"}
    answers = {**version_answer("1.41"), "/images/": (500, broken)}

    with (
        fake_engine(answers) as host,
        Engine.connect({"DOCKER_HOST": host}) as engine,
        pytest.raises(EngineError, match="answered 500: No such image") as failed,
    ):
        engine.image("x")

    assert failed.value.status == 500


def test_an_engine_that_cannot_be_reached_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as dead, tempfile.TemporaryDirectory(prefix="engine-") as directory:
        dead.bind(f"{directory}/dead")
        cases = {
            f"unix://{tmp_path}/none": ("no Docker Engine here: no socket", "sudo systemctl start docker"),
            f"unix://{directory}/dead": ("no Docker Engine listens at", "sudo systemctl start docker"),
            "tcp://127.0.0.1:1": ("cannot be reached", "check DOCKER_HOST"),
        }
        for host, (message, hint) in cases.items():
            with pytest.raises(EngineError, match=message) as unreachable:
                Engine.connect({"DOCKER_HOST": host})

            assert hint in unreachable.value.hint
            assert "--output oci-archive:FILE" in unreachable.value.hint


def test_a_socket_without_permission_names_the_group(make_engine: MakeEngine) -> None:
    engine = make_engine("classic")
    os.chmod(engine.socket, 0o600)  # noqa: PTH101  # as root owns it
    os.seteuid(65534)
    try:
        with pytest.raises(EngineError, match="no permission for the Docker Engine's socket") as refused:
            Engine.connect({"DOCKER_HOST": engine.docker_host})
    finally:
        os.seteuid(0)

    assert refused.value.hint == "`sudo usermod -aG docker $USER`, then log in again"


def test_a_docker_context_is_followed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: AnyEngine) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    make_context(tmp_path, "far", engine.docker_host)
    (tmp_path / "config.json").write_text(json.dumps({"currentContext": "far"}))

    with Engine.connect({}) as ours:
        followed = ours.facts.version
    with pytest.raises(EngineError, match="no docker context `gone`"):
        Engine.connect({"DOCKER_CONTEXT": "gone"})

    assert followed == engine.version


def make_context(config: Path, name: str, host: str) -> None:
    """As `docker context create` leaves it."""
    place = config / "contexts/meta" / Digest.of(name.encode()).hex
    place.mkdir(parents=True)
    node = {"Name": name, "Metadata": {}, "Endpoints": {"docker": {"Host": host, "SkipTLSVerify": False}}}
    (place / "meta.json").write_text(json.dumps(node))
