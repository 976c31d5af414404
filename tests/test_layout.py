"""OCI layouts on disk: what is written can be read, by us and by skopeo; nothing half-done ever has a name."""

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tinyimages import (
    AMD64,
    ARM64,
    Layer,
    MemoryPayload,
    SilentTransfer,
    base_layers,
    built,
    image,
    model_layer,
    outline,
    skopeo,
    small_disk,
    weights_layer,
    write_all,
)

from appliance_builder.built import Built
from appliance_builder.layout import ImageStore, LayoutError, Location, open_layout
from appliance_builder.layout_sink import LayoutSink
from appliance_builder.outfile import OutputError
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.oci import INDEX, MANIFEST, Descriptor, Index, Manifest
from appliance_image.reference import ImageReference

NAME = ImageReference.parse("registry.example.com/ai/tiny:1b")
OTHER = ImageReference.parse("registry.example.com/ai/other:1b")
LAYERS = [weights_layer(b"w" * 3_000_000), *base_layers(), model_layer("hello")]
WHOLE = built(LAYERS)


def multi_platform() -> tuple[list[Layer], Built]:
    weights, model = weights_layer(b"w" * 1000), model_layer("hello")
    both = {where: [weights, *base_layers(where), model] for where in (AMD64, ARM64)}
    images = tuple(image(layers, where) for where, layers in both.items())
    index = Index(tuple(one.descriptor for one in images)).render()
    return list(dict.fromkeys([*both[AMD64], *both[ARM64]])), Built(images, index)


def written(directory: Path, name: ImageReference = NAME, whole: Built = WHOLE, layers: list[Layer] = LAYERS) -> Path:
    sink = LayoutSink(directory, name)
    write_all(sink, layers)
    sink.commit(whole)
    return directory


def opened(directory: Path, name: str | None = None) -> ImageStore:
    return open_layout(Location(directory, name))


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def damage(path: Path) -> None:
    body = path.read_bytes()
    path.write_bytes(body[:-1] + bytes([body[-1] ^ 1]))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    store = opened(written(tmp_path / "layout"))

    descriptor, body = store.manifest()
    manifest = Manifest.parse(body)

    assert descriptor == Descriptor(MANIFEST, WHOLE.digest, len(body))
    assert store.small_blob(manifest.config) == WHOLE.images[0].config
    assert [b"".join(store.blob(layer).read()) for layer in manifest.layers] == [layer.body for layer in LAYERS]
    assert b"".join(store.blob(manifest.layers[0]).read(2_000_000)) == LAYERS[0].body[2_000_000:]
    assert store.names == ("registry.example.com/ai/tiny:1b",)


@pytest.mark.parametrize("wanted", ["1b", "registry.example.com/ai/tiny:1b", str(WHOLE.digest), "", None])
def test_an_image_answers_to_its_tag_its_name_and_its_digest(tmp_path: Path, wanted: str | None) -> None:
    store = opened(written(tmp_path / "layout"))

    assert store.manifest(wanted)[0].digest == WHOLE.digest


def test_skopeo_reads_what_was_written_and_the_other_way_round(tmp_path: Path) -> None:
    written(tmp_path / "ours")

    skopeo("copy", "--preserve-digests", f"oci:{tmp_path}/ours", f"oci:{tmp_path}/theirs:tag")

    assert opened(tmp_path / "theirs").manifest("tag")[0].digest == WHOLE.digest
    assert opened(tmp_path / "theirs", "tag").manifest()[0].digest == WHOLE.digest
    assert skopeo("inspect", "--format={{.Digest}}", f"oci:{tmp_path}/ours:{NAME}") == str(WHOLE.digest)


def test_all_platforms_lie_below_one_index(tmp_path: Path) -> None:
    layers, whole = multi_platform()
    store = opened(written(tmp_path / "layout", whole=whole, layers=layers))

    descriptor, body = store.manifest()
    entries = Index.parse(body).manifests
    manifests = [store.manifest(str(entry.digest)) for entry in entries]

    assert (descriptor.media_type, descriptor.digest) == (INDEX, whole.digest)
    assert [entry.platform for entry in entries] == [AMD64, ARM64]
    assert [found.digest for found, _ in manifests] == [one.descriptor.digest for one in whole.images]
    assert {found.media_type for found, _ in manifests} == {MANIFEST}


def test_platforms_listed_without_an_index_of_their_own_are_one_image(tmp_path: Path) -> None:
    layers, whole = multi_platform()
    written(tmp_path / "layout", whole=whole, layers=layers)
    entries = [one.descriptor.json for one in whole.images]
    (tmp_path / "layout/index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": entries}))

    descriptor, body = opened(tmp_path / "layout").manifest()

    assert descriptor == Descriptor(INDEX, Digest.of(body), len(body))
    assert [entry.digest for entry in Index.parse(body).manifests] == [one.descriptor.digest for one in whole.images]


def test_other_images_of_a_layout_stay_and_the_same_name_is_replaced(tmp_path: Path) -> None:
    newer = built(LAYERS, labels={"made-by": "a newer test"})
    written(tmp_path / "layout")
    written(tmp_path / "layout", OTHER)
    written(tmp_path / "layout", whole=newer)
    store = opened(tmp_path / "layout")

    assert set(store.names) == {"registry.example.com/ai/tiny:1b", "registry.example.com/ai/other:1b"}
    assert store.manifest("registry.example.com/ai/tiny:1b")[0].digest == newer.digest
    assert store.manifest("registry.example.com/ai/other:1b")[0].digest == WHOLE.digest


def test_what_others_wrote_into_index_json_stays(tmp_path: Path) -> None:
    directory = written(tmp_path / "layout", OTHER)
    index = json.loads((directory / "index.json").read_bytes())
    index["annotations"] = {"kept": "yes"}
    index["manifests"][0]["artifactType"] = "application/example"
    (directory / "index.json").write_text(json.dumps(index))

    written(directory)
    after = json.loads((directory / "index.json").read_bytes())

    assert after["annotations"] == {"kept": "yes"}
    assert [entry.get("artifactType") for entry in after["manifests"]] == ["application/example", None]


def test_a_reference_name_of_the_users_own_is_what_skopeo_asks_for(tmp_path: Path) -> None:
    sink = LayoutSink(tmp_path / "layout", NAME, ref_name="v1")
    write_all(sink, LAYERS)
    sink.commit(WHOLE)

    assert skopeo("inspect", "--format={{.Digest}}", f"oci:{tmp_path}/layout:v1") == str(WHOLE.digest)
    assert opened(tmp_path / "layout", "v1").manifest()[0].digest == WHOLE.digest


def test_a_second_run_needs_no_bytes_and_changes_nothing(tmp_path: Path) -> None:
    directory = written(tmp_path / "layout")
    before = {name: (directory / name).stat().st_mtime_ns for name in files(directory) if "blobs" in name}
    sink = LayoutSink(directory, NAME)

    assert all(sink.has(outline(LAYERS, layer)) for layer in LAYERS)
    assert sink.finished(WHOLE) == sink.commit(WHOLE) == str(directory)
    assert {name for name in before if (directory / name).stat().st_mtime_ns == before[name]} >= {
        f"blobs/sha256/{layer.digest.hex}" for layer in LAYERS
    }


@pytest.mark.parametrize("missing", ["layer", "config", "manifest", "name"])
def test_an_image_that_lacks_anything_is_not_finished(tmp_path: Path, missing: str) -> None:
    directory = written(tmp_path / "layout")
    digests = {
        "layer": LAYERS[1].digest,
        "config": WHOLE.images[0].manifest.config.digest,
        "manifest": WHOLE.digest,
    }
    if missing == "name":
        (directory / "index.json").write_bytes(Index(()).render())
    else:
        (directory / f"blobs/sha256/{digests[missing].hex}").unlink()

    assert LayoutSink(directory, NAME).finished(WHOLE) is None
    assert LayoutSink(tmp_path / "nowhere", NAME).finished(WHOLE) is None


def test_a_blob_of_the_wrong_size_is_written_again(tmp_path: Path) -> None:
    directory = written(tmp_path / "layout")
    blob = directory / f"blobs/sha256/{LAYERS[0].digest.hex}"
    os.truncate(blob, 1000)
    sink = LayoutSink(directory, NAME)

    assert not sink.has(outline(LAYERS, LAYERS[0]))

    sink.write(LAYERS[0].payload(), LAYERS[0].media_type, SilentTransfer())

    assert blob.read_bytes() == LAYERS[0].body


def test_a_corrupt_payload_leaves_no_blob_and_no_name(tmp_path: Path) -> None:
    sink = LayoutSink(tmp_path, NAME)
    payload = MemoryPayload(LAYERS[0].body, None, error=ApplianceError("blob is damaged", hint="download again"))

    with pytest.raises(ApplianceError, match="blob is damaged"):
        sink.write(payload, LAYERS[0].media_type, SilentTransfer())
    sink.abort()

    assert files(tmp_path) == {"oci-layout", "index.json"}
    assert opened(tmp_path).names == ()


def test_a_killed_writer_leaves_no_bad_name_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    script = f"""
        import sys, time
        from pathlib import Path
        from tinyimages import MemoryPayload, SilentTransfer
        from appliance_builder.layout_sink import LayoutSink
        from appliance_image.reference import ImageReference

        class Endless(MemoryPayload):
            def read(self, offset=0):
                yield b"x" * 1_000_000
                print("writing", flush=True)
                time.sleep(600)

        sink = LayoutSink(Path({str(tmp_path)!r}), ImageReference.parse("x:1"))
        sink.write(Endless(b"x" * 2_000_000, None), "", SilentTransfer())
    """
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    ) as writer:
        assert writer.stdout
        writer.stdout.readline()
        other_run = LayoutSink(tmp_path, OTHER)
        other_run.write(LAYERS[1].payload(), LAYERS[1].media_type, SilentTransfer())
        while_writing = [name for name in files(tmp_path) if "unfinished" in name]
        writer.send_signal(signal.SIGKILL)
    left = files(tmp_path)

    written(tmp_path)

    assert len(while_writing) == 1
    assert left == {"oci-layout", "index.json", f"blobs/sha256/{LAYERS[1].digest.hex}", *while_writing}
    assert not [name for name in files(tmp_path) if "unfinished" in name]
    assert opened(tmp_path).manifest()[0].digest == WHOLE.digest


def test_a_file_that_another_run_sweeps_while_it_is_made_is_made_anew(tmp_path: Path) -> None:
    """Between its making and its lock it looks like what a dead run left."""
    script = f"""
        import fcntl, os, sys
        from pathlib import Path
        from appliance_builder.outfile import UnfinishedFile

        swept = []

        def sweep_begins(event, words):
            if event == "fcntl.flock" and not swept:
                swept.append(os.readlink(f"/proc/self/fd/{{words[0]}}"))
                swept.append(os.open(swept[0], os.O_RDWR))
                fcntl.flock(swept[1], fcntl.LOCK_EX | fcntl.LOCK_NB)

        sys.addaudithook(sweep_begins)
        directory = Path({str(tmp_path)!r})
        file = UnfinishedFile(directory, ".unfinished-")
        os.unlink(swept[0])
        file.write(b"whole")
        file.finish(directory / "name")
    """
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])

    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], env={**os.environ, "PYTHONPATH": path}, check=True)

    assert (tmp_path / "name").read_bytes() == b"whole"
    assert files(tmp_path) == {"name"}


def test_a_full_disk_is_said_with_the_place_and_leaves_nothing_half_done(tmp_path: Path) -> None:
    big = weights_layer(os.urandom(6_000_000))

    with small_disk(tmp_path / "small", 4_000_000) as disk:
        sink = LayoutSink(disk / "layout", NAME)
        with pytest.raises(OutputError) as excluded:
            sink.preflight(100_000_000)
        with pytest.raises(OutputError) as full:
            sink.write(big.payload(), big.media_type, SilentTransfer())
        sink.abort()
        left = files(disk / "layout")

    assert "100.0 MB needed" in excluded.value.message
    assert full.value.message.startswith(f"no space left in {disk}/layout after")
    assert "df -h" in full.value.hint
    assert isinstance(full.value.__cause__, OSError)
    assert full.value.__cause__.errno == errno.ENOSPC
    assert left == {"oci-layout", "index.json"}


def test_a_directory_with_other_things_in_it_is_refused_before_the_first_byte(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")

    with pytest.raises(OutputError, match="is not empty, and no OCI image layout"):
        LayoutSink(tmp_path, NAME).preflight(1)
    with pytest.raises(OutputError, match="not a directory"):
        LayoutSink(tmp_path / "thesis.tex", NAME).preflight(1)


def test_a_damaged_small_blob_is_not_believed(tmp_path: Path) -> None:
    store = opened(written(tmp_path))
    config = WHOLE.images[0].manifest.config
    damage(tmp_path / f"blobs/sha256/{config.digest.hex}")
    damage(tmp_path / f"blobs/sha256/{WHOLE.digest.hex}")

    with pytest.raises(LayoutError, match=f"blob {config.digest} in .* is damaged"):
        store.small_blob(config)
    with pytest.raises(LayoutError, match=f"manifest {WHOLE.digest} in .* is damaged"):
        store.manifest()


def test_missing_and_short_blobs_are_found_before_they_are_read(tmp_path: Path) -> None:
    store = opened(written(tmp_path))
    (tmp_path / f"blobs/sha256/{LAYERS[1].digest.hex}").unlink()
    os.truncate(tmp_path / f"blobs/sha256/{LAYERS[0].digest.hex}", 1000)

    with pytest.raises(LayoutError, match=r"blob .* has 1000 bytes, not"):
        store.blob(LAYERS[0].descriptor)
    with pytest.raises(LayoutError, match=r"blob .* missing"):
        store.blob(LAYERS[1].descriptor)


def test_a_blob_cut_while_it_is_read_is_no_end(tmp_path: Path) -> None:
    content = opened(written(tmp_path)).blob(LAYERS[0].descriptor)
    reading = content.read()
    next(reading)
    os.truncate(tmp_path / f"blobs/sha256/{LAYERS[0].digest.hex}", 1_500_000)

    with pytest.raises(LayoutError, match="ended at byte 1500000"):
        list(reading)


def test_what_is_no_layout_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")

    with pytest.raises(LayoutError, match="is not an OCI image layout"):
        opened(tmp_path / "empty")
    with pytest.raises(LayoutError, match="is not an OCI image layout"):
        opened(tmp_path / "nothing")
    with pytest.raises(LayoutError) as file:
        opened(tmp_path / "file")

    assert file.value.hint == f"try `oci-archive:{tmp_path}/file`"


def test_an_unclear_or_unknown_name_lists_the_names_there_are(tmp_path: Path) -> None:
    written(tmp_path)
    written(tmp_path, OTHER, built(LAYERS, labels={"other": "yes"}))
    store = opened(tmp_path)

    for wanted, message in ((None, "there are 2 images"), ("1b", "`1b` names 2 images"), ("9b", "no image `9b`")):
        with pytest.raises(LayoutError, match=message) as unclear:
            store.manifest(wanted)

        assert "registry.example.com/ai/tiny:1b, registry.example.com/ai/other:1b" in unclear.value.hint


@pytest.mark.parametrize(
    ("text", "path", "name"),
    [
        ("there", "there", None),
        ("there:1b", "there", "1b"),
        ("there:host.example:5000/x:1b", "there", "host.example:5000/x:1b"),
        ("with:colon", "with:colon", None),
        ("with:colon:1b", "with:colon", "1b"),
        ("new", "new", None),
        ("new:1b", "new", "1b"),
    ],
)
def test_a_location_is_a_path_and_perhaps_a_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, path: str, name: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    for directory in ("there", "with:colon"):
        Path(directory).mkdir()

    assert Location.parse(text) == Location(Path(path), name)
