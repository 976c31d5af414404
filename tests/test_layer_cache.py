"""What earlier builds learnt survives a kill, a damaged file and two builds at once; losing it costs time only."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance_builder.layer_cache import LayerCache
from appliance_image.contract import LAYOUT
from appliance_image.digest import Digest
from appliance_image.layer import Blob

ONE, TWO = (Blob(Digest.of(text), len(text)) for text in (b"one", b"twotwo"))
LAYER, OTHER = Digest.of(b"layer"), Digest.of(b"other layer")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "layers.jsonl"


def test_a_layer_is_found_by_its_blobs_in_their_order(path: Path) -> None:
    LayerCache(path).learn_layer([ONE, TWO], LAYER)

    assert LayerCache(path).layer([ONE, TWO]) == LAYER
    assert LayerCache(path).layer([TWO, ONE]) is None
    assert LayerCache(path).layer([ONE]) is None


def test_nothing_is_known_where_no_file_is_and_asking_makes_none(path: Path) -> None:
    cache = LayerCache(path)

    assert cache.layer([ONE]) is None
    assert cache.repositories(LAYER, host="r.lan") == []
    assert not path.parent.exists()


def test_what_was_forgotten_can_be_learnt_again(path: Path) -> None:
    cache = LayerCache(path)
    cache.learn_layer([ONE], LAYER)
    cache.forget_layer([ONE])
    forgotten = cache.layer([ONE])
    cache.learn_layer([ONE], OTHER)

    assert forgotten is None
    assert cache.layer([ONE]) == OTHER


def test_learning_the_same_again_does_not_grow_the_file(path: Path) -> None:
    cache = LayerCache(path)
    cache.learn_layer([ONE], LAYER)
    cache.learn_repository(LAYER, host="r.lan", repository="ai/x")
    size = path.stat().st_size
    for _ in range(3):
        cache.learn_layer([ONE], LAYER)
        cache.learn_repository(LAYER, host="r.lan", repository="ai/x")

    assert path.stat().st_size == size


def test_a_layer_of_another_layout_version_is_not_ours(path: Path) -> None:
    LayerCache(path).learn_layer([ONE], LAYER)
    path.write_text(path.read_text().replace(f'"layout":{LAYOUT}', f'"layout":{LAYOUT + 1}'))

    assert LayerCache(path).layer([ONE]) is None


def test_repositories_of_one_registry_come_latest_first_and_once(path: Path) -> None:
    cache = LayerCache(path)
    for host, repository in [("r.lan", "a"), ("r.lan", "b"), ("r.lan.other", "c"), ("r.lan", "a")]:
        cache.learn_repository(LAYER, host=host, repository=repository)
    cache.learn_repository(OTHER, host="r.lan", repository="d")

    assert cache.repositories(LAYER, host="r.lan") == ["a", "b"]
    assert cache.repositories(LAYER, host="lan") == []


def test_a_torn_last_line_costs_itself_only(path: Path) -> None:
    cache = LayerCache(path)
    cache.learn_layer([ONE], LAYER)
    whole = path.read_bytes()
    cache.learn_layer([TWO], OTHER)
    second = path.read_bytes()[len(whole) :]
    for length in range(len(second) - 1):
        path.write_bytes(whole + second[:length])
        if length < len(second) - 2:
            assert cache.layer([TWO]) is None, second[:length]
        cache.learn_layer([TWO], OTHER)

        assert cache.layer([ONE]) == LAYER
        assert cache.layer([TWO]) == OTHER


@pytest.mark.parametrize("layer", ["sha256:abc", "", 7, ["sha256:abc"], {}])
def test_a_record_with_a_damaged_digest_is_as_good_as_none(path: Path, layer: object) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"layout": LAYOUT, "blobs": [str(ONE.digest)], "layer": layer}) + "\n")

    assert LayerCache(path).layer([ONE]) is None


@given(st.binary(max_size=200))
def test_any_bytes_before_it_do_not_hide_what_is_learnt(
    tmp_path_factory: pytest.TempPathFactory, garbage: bytes
) -> None:
    path = tmp_path_factory.mktemp("cache") / "layers.jsonl"
    path.write_bytes(garbage)
    LayerCache(path).learn_layer([ONE], LAYER)

    assert LayerCache(path).layer([ONE]) == LAYER


_WRITER = """
import sys
from pathlib import Path
from appliance_builder.layer_cache import LayerCache
from appliance_image.digest import Digest
from appliance_image.layer import Blob

cache, who = LayerCache(Path(sys.argv[1])), sys.argv[2]
sys.stdin.readline()
for index in range(60):
    blob = Blob(Digest.of(f"{who} {index}".encode()), index)
    cache.learn_layer([blob], Digest.of(f"layer {who} {index}".encode()))
    cache.learn_repository(Digest.of(f"layer {who} {index}".encode()), host="r.lan", repository=f"{who}/{index}")
"""


def test_two_builds_at_once_lose_nothing_of_each_other(path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(path), who], stdin=subprocess.PIPE) for who in ("a", "b")
    ]
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate()
    cache = LayerCache(path)

    assert [writer.returncode for writer in writers] == [0, 0]
    assert all(json.loads(line) for line in path.read_bytes().splitlines() if line)
    for who in ("a", "b"):
        for index in range(60):
            layer = Digest.of(f"layer {who} {index}".encode())

            assert cache.layer([Blob(Digest.of(f"{who} {index}".encode()), index)]) == layer
            assert cache.repositories(layer, host="r.lan") == [f"{who}/{index}"]
