"""Archives: one tar for docker, skopeo and us, the same on every machine, never under its name before it is whole."""

import gzip
import io
import json
import os
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest
from test_layout import multi_platform
from tinyimages import (
    Layer,
    MemoryPayload,
    SilentTransfer,
    base_layers,
    built,
    model_layer,
    outline,
    skopeo,
    small_disk,
    tar,
    weights_layer,
    write_all,
)

from appliance_builder import hybrid
from appliance_builder.archive_sink import ArchiveSink
from appliance_builder.layout import ImageStore, LayoutError, Location, open_archive
from appliance_builder.outfile import OutputError
from appliance_image.digest import Digest
from appliance_image.errors import ApplianceError
from appliance_image.oci import INDEX, LAYER_GZIP, LAYER_TAR, Descriptor, Index, Manifest
from appliance_image.reference import ImageReference

NAME = ImageReference.parse("registry.example.com/ai/tiny:1b")
LAYERS = [weights_layer(b"w" * 3_000_000), *base_layers(), model_layer("hello")]
WHOLE = built(LAYERS)
GIBIBYTE = 1 << 30


def written(path: Path, *, known: bool = True, name: ImageReference = NAME) -> Path:
    sink = ArchiveSink.to_file(path, name)
    write_all(sink, LAYERS, known=known)
    sink.commit(WHOLE)
    return path


def opened(path: Path, name: str | None = None) -> ImageStore:
    return open_archive(Location(path, name))


def piped(words: str, *, stdout: int = subprocess.PIPE) -> "subprocess.CompletedProcess[bytes]":
    """`words` in a program whose standard output is the archive."""
    script = f"""
        from test_archive import LAYERS, NAME, WHOLE
        from tinyimages import write_all
        from appliance_builder.archive_sink import ArchiveSink
        from appliance_image.errors import ApplianceError

        sink = ArchiveSink.to_stdout(NAME)
        assert sink.digests_first and sink.writes_stdout
        {words}
    """
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        check=False,
        stdout=stdout,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_what_was_written_is_read_back_in_place(tmp_path: Path) -> None:
    with opened(written(tmp_path / "tiny.tar")) as store:
        descriptor, body = store.manifest("1b")
        manifest = Manifest.parse(body)
        bodies = [b"".join(store.blob(layer).read()) for layer in manifest.layers]

        assert descriptor.digest == WHOLE.digest
        assert store.small_blob(manifest.config) == WHOLE.images[0].config
        assert bodies == [layer.body for layer in LAYERS]
        assert b"".join(store.blob(manifest.layers[0]).read(2_000_000)) == LAYERS[0].body[2_000_000:]


def test_the_bytes_are_the_same_whether_digests_were_known_before_or_not(tmp_path: Path) -> None:
    first = written(tmp_path / "first.tar").read_bytes()
    second = written(tmp_path / "second.tar", known=False).read_bytes()
    third = piped("write_all(sink, LAYERS); sink.commit(WHOLE)")

    assert first == second == third.stdout
    assert third.stderr == b""


def test_the_tar_is_a_docker_archive_as_well(tmp_path: Path) -> None:
    with tarfile.open(written(tmp_path / "tiny.tar", known=False)) as archive:
        names = archive.getnames()
        rows = json.load(archive.extractfile("manifest.json") or io.BytesIO())

    assert names[-3:] == ["oci-layout", "index.json", "manifest.json"]
    assert [row["RepoTags"] for row in rows] == [["registry.example.com/ai/tiny:1b"]]
    assert [f"blobs/sha256/{layer.digest.hex}" for layer in LAYERS] == rows[0]["Layers"]
    assert set(rows[0]["Layers"]) < set(names)


def test_skopeo_accepts_it(tmp_path: Path) -> None:
    path = written(tmp_path / "tiny.tar")

    skopeo("copy", "--preserve-digests", f"oci-archive:{path}", f"oci:{tmp_path}/copy:tag")
    skopeo("copy", f"docker-archive:{path}", f"dir:{tmp_path}/from-docker")

    assert skopeo("inspect", "--format={{.Digest}}", f"oci:{tmp_path}/copy:tag") == str(WHOLE.digest)
    assert skopeo("inspect", "--format={{.Digest}}", f"oci-archive:{path}:{NAME}") == str(WHOLE.digest)


def test_all_platforms_are_in_and_the_docker_table_names_the_first(tmp_path: Path) -> None:
    layers, whole = multi_platform()
    sink = ArchiveSink.to_file(tmp_path / "both.tar", NAME)
    write_all(sink, layers)
    sink.commit(whole)

    with opened(tmp_path / "both.tar") as store, tarfile.open(tmp_path / "both.tar") as archive:
        descriptor, body = store.manifest()
        rows = json.load(archive.extractfile("manifest.json") or io.BytesIO())

        assert descriptor == Descriptor(INDEX, whole.digest, len(body))
        assert [store.manifest(str(entry.digest))[0] for entry in Index.parse(body).manifests]
        assert [row["Config"] for row in rows] == [hybrid.blob_name(whole.images[0].manifest.config.digest)]


def test_the_same_image_is_not_written_twice(tmp_path: Path) -> None:
    path = written(tmp_path / "tiny.tar")
    newer = built(LAYERS, labels={"made-by": "a newer test"})

    assert ArchiveSink.to_file(path, NAME).finished(WHOLE) == str(path)
    assert ArchiveSink.to_file(path, NAME).finished(newer) is None
    assert ArchiveSink.to_file(path, ImageReference.parse("other:1")).finished(WHOLE) is None
    assert ArchiveSink.to_file(tmp_path / "other.tar", NAME).finished(WHOLE) is None


def test_a_layer_that_an_image_has_twice_is_written_once(tmp_path: Path) -> None:
    layers = [LAYERS[0], LAYERS[1], LAYERS[1]]
    sink = ArchiveSink.to_file(tmp_path / "twice.tar", NAME)
    write_all(sink, layers[:2])

    assert sink.has(outline(layers, layers[2]))

    sink.commit(built(layers))

    with opened(tmp_path / "twice.tar") as store:
        assert store.blob(LAYERS[1].descriptor).size == len(LAYERS[1].body)


def test_the_old_archive_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "tiny.tar"
    path.write_bytes(b"the old archive")
    sink = ArchiveSink.to_file(path, NAME)
    corrupt = MemoryPayload(LAYERS[0].body, None, error=ApplianceError("blob is damaged", hint="download again"))

    with pytest.raises(ApplianceError, match="blob is damaged"):
        sink.write(corrupt, LAYERS[0].media_type, SilentTransfer())
    unfinished = sorted(entry.name for entry in tmp_path.iterdir())
    sink.abort()
    sink.abort()

    assert len(unfinished) == 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.tar"]
    assert path.read_bytes() == b"the old archive"


def test_an_abort_after_the_commit_takes_nothing_away(tmp_path: Path) -> None:
    sink = ArchiveSink.to_file(tmp_path / "tiny.tar", NAME)
    write_all(sink, LAYERS)
    sink.commit(WHOLE)

    sink.abort()

    assert sink.finished(WHOLE) == f"{tmp_path}/tiny.tar"


def test_what_a_killed_run_left_is_swept_by_the_next(tmp_path: Path) -> None:
    left = tmp_path / ".tiny.tar.unfinished-0123456789ab"
    left.write_bytes(b"x" * 1000)
    other = tmp_path / ".other.tar.unfinished-0123456789ab"
    other.write_bytes(b"x" * 1000)

    written(tmp_path / "tiny.tar")

    assert {entry.name for entry in tmp_path.iterdir()} == {"tiny.tar", other.name}


def test_a_full_disk_is_said_with_the_place(tmp_path: Path) -> None:
    big = weights_layer(os.urandom(6_000_000))

    with small_disk(tmp_path / "small", 4_000_000) as disk:
        sink = ArchiveSink.to_file(disk / "tiny.tar", NAME)
        with pytest.raises(OutputError, match=r"100.0 MB needed, 4.0 MB free"):
            sink.preflight(100_000_000)
        with pytest.raises(OutputError, match=f"no space left in {disk} after") as full:
            sink.write(big.payload(), big.media_type, SilentTransfer())
        sink.abort()
        left = list(disk.iterdir())

    assert "df -h" in full.value.hint
    assert left == []


def test_places_where_no_file_can_be_are_refused_before_the_first_byte(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="is no file"):
        ArchiveSink.to_file(tmp_path, NAME).preflight(1)
    with pytest.raises(OutputError, match="no such directory") as missing:
        ArchiveSink.to_file(tmp_path / "new/tiny.tar", NAME).preflight(1)

    assert missing.value.hint == f"`mkdir -p {tmp_path}/new`"


def test_nothing_is_written_to_a_terminal() -> None:
    leader, follower = os.openpty()

    result = piped(
        "try: sink.preflight(1)\n        except ApplianceError as error: raise SystemExit(error.message)",
        stdout=follower,
    )
    for file in (leader, follower):
        os.close(file)

    assert result.returncode == 1
    assert result.stderr == b"not writing an archive to a terminal\n"


def test_a_reader_that_goes_away_is_an_error_with_words() -> None:
    reading, writing = os.pipe()
    os.close(reading)

    result = piped(
        "try: write_all(sink, LAYERS)\n        except ApplianceError as error: raise SystemExit(error.message)",
        stdout=writing,
    )
    os.close(writing)

    assert result.stderr == b"whoever read standard output stopped after 0 B\n"


@pytest.mark.parametrize("size", [0, 1, 512, 8 * GIBIBYTE - 1, 8 * GIBIBYTE, 40 * GIBIBYTE])
def test_a_header_keeps_its_length_when_the_name_is_put_in_later(size: int) -> None:
    headers = [hybrid.entry_header(hybrid.blob_name(Digest(digit * 64)), size) for digit in "0f"]
    with tarfile.open(fileobj=io.BytesIO(headers[1])) as archive:
        entry = archive.next()

    assert len(headers[0]) == len(headers[1])
    assert entry
    assert (entry.name, entry.size) == (f"blobs/sha256/{'f' * 64}", size)


def docker_save(layers: list[bytes], tag: str = "tiny:1") -> bytes:
    """As Docker 20.10 writes it: unpacked layers in directories, one that comes twice as a link."""
    config = built([Layer(layer) for layer in layers]).images[0].config
    first: dict[bytes, str] = {}
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:

        def add(name: str, content: bytes) -> None:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))

        for number, layer in enumerate(layers):
            if layer in first:
                link = tarfile.TarInfo(f"{number}/layer.tar")
                link.type, link.linkname = tarfile.SYMTYPE, f"../{first[layer]}"
                archive.addfile(link)
                continue
            first[layer] = f"{number}/layer.tar"
            add(first[layer], layer)
        names = [f"{number}/layer.tar" for number, _ in enumerate(layers)]
        add("config.json", config)
        add("manifest.json", json.dumps([{"Config": "config.json", "RepoTags": [tag], "Layers": names}]).encode())
    return out.getvalue()


def test_an_archive_of_an_old_engine_is_read_like_a_layout(tmp_path: Path) -> None:
    layers = [tar({"a": b"1" * 2_000_000}), tar({"b": b"2"}), tar({"b": b"2"})]
    (tmp_path / "saved.tar").write_bytes(docker_save(layers))

    with opened(tmp_path / "saved.tar") as store:
        descriptor, body = store.manifest()
        manifest = Manifest.parse(body)
        bodies = [b"".join(store.blob(layer).read()) for layer in manifest.layers]

        assert store.names == ("tiny:1",)
        assert descriptor == Descriptor(manifest.media_type, Digest.of(body), len(body))
        assert store.manifest(str(descriptor.digest)) == store.manifest("tiny:1") == store.manifest("1")
        assert [Digest.of(part) for part in bodies] == [layer.digest for layer in manifest.layers]
        assert [layer.media_type for layer in manifest.layers] == [LAYER_TAR] * 3
        assert Digest.of(store.small_blob(manifest.config)) == manifest.config.digest


def test_compressed_layers_in_a_docker_archive_keep_their_own_digest(tmp_path: Path) -> None:
    plain = tar({"a": b"1" * 2_000_000})
    packed = gzip.compress(plain)
    config = built([Layer(packed, LAYER_GZIP)]).images[0].config
    table = json.dumps([{"Config": "c", "RepoTags": None, "Layers": ["l"]}]).encode()
    (tmp_path / "saved.tar").write_bytes(tar({"l": packed, "c": config, "manifest.json": table}))

    with opened(tmp_path / "saved.tar") as store:
        (layer,) = Manifest.parse(store.manifest()[1]).layers

        assert layer == Descriptor(LAYER_GZIP, Digest.of(packed), len(packed))


@pytest.mark.parametrize(("pack", "hint"), [(gzip.compress, "gunzip -k"), (lambda body: b"BZh9" + body, "bunzip2")])
def test_a_compressed_archive_is_refused_with_the_command_that_helps(
    tmp_path: Path, pack: "type[bytes]", hint: str
) -> None:
    path = tmp_path / "tiny.tar.gz"
    path.write_bytes(pack(written(tmp_path / "tiny.tar").read_bytes()))

    with pytest.raises(LayoutError, match="is compressed") as refused:
        opened(path)

    assert refused.value.hint.startswith(f"`{hint}")


def read_whole(path: Path) -> None:
    with opened(path) as store:
        for layer in Manifest.parse(store.manifest()[1]).layers:
            store.blob(layer)


def test_an_archive_cut_before_its_last_table_is_never_taken_for_whole(tmp_path: Path) -> None:
    whole = written(tmp_path / "tiny.tar").read_bytes()
    with tarfile.open(tmp_path / "tiny.tar") as archive:
        index = archive.getmember("index.json")
    end = index.offset_data + index.size
    cut = tmp_path / "cut.tar"

    for size in [*range(0, end, 65_521), *range(end - 8000, end, 509), end - 1]:
        cut.write_bytes(whole[:size])
        with pytest.raises(LayoutError):
            read_whole(cut)


def test_what_is_no_archive_says_so(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no tar at all" * 1000)
    (tmp_path / "other.tar").write_bytes(tar({"file": b"content"}))

    for name, message in (("text", "not a whole tar"), ("other.tar", "no archive of images"), ("gone", "no such file")):
        with pytest.raises(LayoutError, match=message):
            opened(tmp_path / name)
    with pytest.raises(LayoutError) as directory:
        opened(tmp_path)

    assert directory.value.hint == f"try `oci:{tmp_path}`"


def test_several_threads_may_read_one_archive(tmp_path: Path) -> None:
    with opened(written(tmp_path / "tiny.tar")) as store:
        readings = [store.blob(LAYERS[0].descriptor).read(offset) for offset in (0, 1_000_000)]
        turns = [[next(reading) for reading in readings], [next(reading) for reading in readings]]

    assert turns[0][0] + turns[1][0] == LAYERS[0].body[: 2 << 20]
    assert turns[0][1] + turns[1][1] == LAYERS[0].body[1_000_000 : 1_000_000 + (2 << 20)]


def test_a_store_that_is_closed_gives_its_file_back(tmp_path: Path) -> None:
    path = written(tmp_path / "tiny.tar")

    def held() -> list[str]:
        return [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]

    with opened(path):
        assert held().count(str(path)) == 1

    assert held().count(str(path)) == 0
