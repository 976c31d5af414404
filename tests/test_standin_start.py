"""How the stand-in starts, what it does to its store, its client commands, its logs, and how it stops."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ollamastore import blob_path
from scriptedstore import lay_scripted_models
from standinserver import PROGRAM, OllamaServer, StartError, chat, lines_with, wait_for

MODEL = "deepseek-r1:32b"
HI = [{"role": "user", "content": "hi"}]
QUICK = {"STANDIN_LOAD_S": "0.01", "STANDIN_TOKEN_S": "0.001"}
# Root may write anywhere; without capabilities it may not.
UNPRIVILEGED = ("setpriv", "--bounding-set=-all") if os.geteuid() == 0 else ()


@pytest.fixture
def store(tmp_path: Path) -> Path:
    lay_scripted_models(tmp_path / "store", tmp_path / "files")
    return tmp_path / "store"


def server_on(store: Path, **environment: str) -> OllamaServer:
    return OllamaServer(store, store.parent / "home", {**QUICK, **environment})


# --- the store -------------------------------------------------------------------------------------------------------


def test_a_start_prunes_what_no_manifest_names(store: Path) -> None:
    stray = [store / "blobs" / f"sha256-{'0' * 64}", store / "blobs" / f"sha256-{'1' * 64}-partial"]
    for path in stray:
        path.write_text("left over")
    empty = store / "manifests" / "registry.ollama.ai" / "nobody"
    empty.mkdir()
    blobs = len(list((store / "blobs").iterdir()))
    with server_on(store):
        pass

    assert not any(path.exists() for path in [*stray, empty])
    assert len(list((store / "blobs").iterdir())) == blobs - 2


def test_the_newest_spare_young_blobs(store: Path) -> None:
    stray = store / "blobs" / f"sha256-{'0' * 64}"
    stray.write_text("left over")
    with server_on(store, STANDIN_VERSION="0.33.0-rc2"):
        assert stray.exists()
    os.utime(stray, (0, 0))
    with server_on(store, STANDIN_VERSION="0.33.0-rc2"):
        assert not stray.exists()


def test_noprune_leaves_the_store_alone(store: Path) -> None:
    stray = store / "blobs" / f"sha256-{'0' * 64}"
    stray.write_text("left over")
    with server_on(store, OLLAMA_NOPRUNE="1"):
        pass

    assert stray.exists()


@pytest.fixture
def read_only(store: Path) -> Iterator[Path]:
    directories = [path for path in [store, *store.rglob("*")] if path.is_dir()]
    for path in directories:
        path.chmod(0o555)
    yield store
    for path in directories:
        path.chmod(0o755)


def test_a_read_only_store_serves(read_only: Path) -> None:
    server = server_on(read_only)
    server.command = (*UNPRIVILEGED, *server.command)
    with server:
        answer = server.ask("POST", "/api/chat", {"model": MODEL, "messages": HI, "stream": False})

    assert answer.status == 200


def test_a_read_only_store_with_an_empty_directory_refuses_to_start_unless_noprune(read_only: Path) -> None:
    hosts = read_only / "manifests" / "registry.ollama.ai"
    hosts.chmod(0o755)
    (hosts / "nobody").mkdir(mode=0o555)
    hosts.chmod(0o555)
    refused, started = server_on(read_only), server_on(read_only, OLLAMA_NOPRUNE="1")
    refused.command = started.command = (*UNPRIVILEGED, *refused.command)

    with pytest.raises(StartError, match=f"Error: remove {hosts}/nobody: permission denied"):
        refused.__enter__()
    with started:
        assert started.ask("GET", "/").status == 200
    hosts.chmod(0o755)
    (hosts / "nobody").chmod(0o755)


def test_a_manifest_that_is_no_json_stops_the_pruning_only(store: Path) -> None:
    stray = store / "blobs" / f"sha256-{'0' * 64}"
    stray.write_text("left over")
    bad = store / "manifests" / "registry.ollama.ai" / "library" / "bad" / "1"
    bad.parent.mkdir()
    bad.write_text("{")
    with server_on(store) as server:
        names = server.ask("GET", "/api/tags").text

    assert stray.exists()
    assert lines_with(server.stderr, "corrupt manifests detected, skipping prune operation")
    assert '"bad:1"' not in names
    assert MODEL in names


def test_a_blob_that_goes_while_the_server_runs_is_missed(store: Path) -> None:
    with server_on(store, OLLAMA_NOPRUNE="1") as server:
        weights = max((store / "blobs").iterdir(), key=lambda path: path.stat().st_size)
        weights.rename(blob_path(store, f"sha256:{'2' * 64}"))
        answer = server.ask("POST", "/api/chat", {"model": MODEL, "messages": HI})

    assert (answer.status, answer.text) == (400, f'{{"error":"\\"{MODEL}\\" does not support chat"}}')


# --- home, signals, commands, logs -----------------------------------------------------------------------------------


def test_a_start_leaves_a_key_in_a_home_that_need_not_be_there(store: Path, tmp_path: Path) -> None:
    server = OllamaServer(store, tmp_path / "deep" / "home", QUICK)
    with server:
        key = server.home / ".ollama" / "id_ed25519"
        mode = key.stat().st_mode & 0o777
        first = key.read_text()
    with server:
        pass

    assert mode == 0o600
    assert key.read_text() == first
    assert len(lines_with(server.stdout, "Generating new private key")) == 1


def test_a_home_that_cannot_be_written_refuses_to_start(store: Path, tmp_path: Path) -> None:
    (tmp_path / "home" / ".ollama").parent.mkdir()
    (tmp_path / "home" / ".ollama").write_text("no directory")

    with pytest.raises(StartError, match=r"Error: could not create directory mkdir .*/home/.ollama: "):
        server_on(store).__enter__()


def test_sigterm_ends_it_at_once_even_in_mid_stream(store: Path) -> None:
    with server_on(store) as server:
        with server.connection("POST", "/api/chat", {"model": "tiny:latest", "messages": HI}) as (stream, _):
            stream.readline()
            begun_s = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            code = server.process.wait(20)
        took_s = time.monotonic() - begun_s

    assert code == 0
    assert took_s < 5  # the stream has no end


def test_list_ps_and_version_speak_to_the_server(store: Path) -> None:
    with server_on(store, OLLAMA_KEEP_ALIVE="-1") as server:
        server.ask("POST", "/api/generate", {"model": MODEL})
        listed, running, version = server.run("list"), server.run("ps"), server.run("--version")

    assert [result.returncode for result in (listed, running, version)] == [0, 0, 0]
    assert listed.stdout.splitlines()[0].split() == ["NAME", "ID", "SIZE", "MODIFIED"]
    assert len(listed.stdout.splitlines()) == 4
    assert re.search(rf"{MODEL} +[0-9a-f]{{12}} +2.4 MB +100% CPU +4096 +Forever", running.stdout)
    assert version.stdout == "ollama version is 0.13.5\n"


def test_a_health_check_fails_where_nobody_listens() -> None:
    result = subprocess.run(
        [sys.executable, str(PROGRAM), "list"],
        env={"OLLAMA_HOST": "127.0.0.1:1", "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert result.returncode == 1
    text = "ollama server not responding - could not connect to ollama server, run 'ollama serve' to start it"
    assert result.stderr == f"Error: {text}\n"


@pytest.mark.parametrize(("version", "timed"), [("0.5.11", False), ("0.13.5", False), ("0.33.0-rc2", True)])
def test_each_request_leaves_the_lines_of_the_version(store: Path, version: str, *, timed: bool) -> None:
    with server_on(store, STANDIN_VERSION=version, OLLAMA_GO_TEMPLATE="1") as server:
        for _ in range(2):
            chat(server)
        wait_for(lambda: len(lines_with(server.stdout, "/api/chat")) == 2)

    access = r"^\[GIN\] \d{4}/\d\d/\d\d - \d\d:\d\d:\d\d \| 200 \| +[\d.]+m?s \| +127\.0\.0\.1 \| POST +\"/api/chat\"$"
    assert len(lines_with(server.stdout, access)) == 2
    timing = r"^slot print_timing: id  0 \| task \d+ \| +eval time = +[\d.]+ ms / +16 tokens \("
    assert len(lines_with(server.stderr, timing)) == (2 if timed else 0)
    assert len(lines_with(server.stderr, 'msg="template selection".* selected=go_template')) == timed
    slog = lines_with(server.stderr, r'^time=\S+Z level=INFO source=\S+ msg="server config"')
    assert len(slog) == (version != "0.5.11")
