"""The stand-in for Ollama against recordings of real servers, and against a real server where there is one."""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
from answermask import essence, mask
from scriptedstore import lay_broken_models, lay_scripted_models
from standinserver import Answer, OllamaServer

RECORDINGS = Path(__file__).parent / "recordings"
BROKEN = ("blobless", "truncated", "notjson")
SETTINGS = {
    "OLLAMA_NOPRUNE": "1",
    "OLLAMA_NO_CLOUD": "1",
    "OLLAMA_KEEP_ALIVE": "-1",
    "OLLAMA_NUM_PARALLEL": "1",
    "OLLAMA_MAX_LOADED_MODELS": "1",
    "OLLAMA_CONTEXT_LENGTH": "4096",
}
QUICK = {"STANDIN_LOAD_S": "0.01", "STANDIN_TOKEN_S": "0.001"}


@dataclass(frozen=True, slots=True)
class Recording:
    version: str  # with "-jinja" behind it if the server ran without OLLAMA_GO_TEMPLATE
    name: str
    method: str
    path: str
    host: str
    body: str | None
    status: int
    media_type: str
    framing: str
    answer: str | tuple[str, ...]

    @property
    def wants_broken_models(self) -> bool:
        return any(name in (self.body or "") for name in BROKEN)


def load_recordings() -> list[Recording]:
    """A row with `as` had the same answer as the row it names."""
    rows: dict[str, Mapping[str, object]] = {}
    for file in sorted(RECORDINGS.glob("*.json")):
        rows |= {f"{file.stem}/{row['name']}": row for row in json.loads(file.read_text("utf-8"))}
    return [_recording(key, row, rows.get(str(row.get("as")), row)) for key, row in rows.items()]


def _recording(key: str, row: Mapping[str, object], answered: Mapping[str, object]) -> Recording:
    answer = answered["answer"]
    return Recording(
        version=key.partition("/")[0],
        name=str(row["name"]),
        method=str(row["method"]),
        path=str(row["path"]),
        host=str(row.get("host", "")),
        body=None if row.get("body") is None else str(row["body"]),
        status=int(str(answered["status"])),
        media_type=str(answered["type"]),
        framing=str(answered["framing"]),
        answer=tuple(map(str, answer)) if isinstance(answer, list) else str(answer),
    )


ALL = load_recordings()


@dataclass(frozen=True, slots=True)
class Pair:
    """A server with models as they should be, and one with broken models."""

    sound: OllamaServer
    broken: OllamaServer

    def replay(self, recording: Recording) -> Answer:
        server = self.broken if recording.wants_broken_models else self.sound
        if recording.name == "ps-loaded":
            server.ask("POST", "/api/generate", {"model": "deepseek-r1:32b"})
        return server.ask(recording.method, recording.path, recording.body, host=recording.host)

    def masked(self, recording: Recording, answer: Answer, *, old: bool) -> str | tuple[str, ...]:
        store = str((self.broken if recording.wants_broken_models else self.sound).store)
        if not isinstance(recording.answer, tuple):
            return essence(recording.path, answer.text, store=store, old=old) if answer.text else ""
        chunks = answer.chunks[-1:] if "tiny" in (recording.body or "") else answer.chunks  # random text before
        return tuple(mask(chunk, store=store, old=old) for chunk in chunks)


@pytest.fixture(scope="module")
def standin_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pair]]:
    """Stand-ins by version, each started once."""
    with ExitStack() as stack:
        started: dict[str, Pair] = {}

        def start(version: str) -> Pair:
            if version not in started:
                started[version] = _start(stack, tmp_path_factory.mktemp("standin"), version)
            return started[version]

        yield start


def _start(stack: ExitStack, work: Path, version: str) -> Pair:
    lay_scripted_models(work / "sound", work / "files", newest=version.startswith("0.33"))
    lay_broken_models(work / "broken", work / "files")
    go_template = {} if version.endswith("-jinja") else {"OLLAMA_GO_TEMPLATE": "1"}
    environment = {**SETTINGS, **QUICK, **go_template, "STANDIN_VERSION": version.removesuffix("-jinja")}
    stores = (work / "sound", work / "broken")
    return Pair(*(stack.enter_context(OllamaServer(store, work / "home", environment)) for store in stores))


@pytest.mark.parametrize("recording", [pytest.param(row, id=f"{row.version}-{row.name}") for row in ALL])
def test_the_standin_answers_as_recorded(standin_of: Callable[[str], Pair], recording: Recording) -> None:
    standin = standin_of(recording.version)
    answer = standin.replay(recording)

    assert (answer.status, answer.headers.get("content-type", "")) == (recording.status, recording.media_type)
    assert standin.masked(recording, answer, old=recording.version == "0.5.11") == recording.answer
    assert answer.framing == recording.framing
    assert answer.complete


def test_no_header_names_the_software_and_every_answer_is_dated(standin_of: Callable[[str], Pair]) -> None:
    answer = standin_of("0.13.5").sound.ask("GET", "/api/version")

    assert set(answer.headers) == {"content-type", "date", "content-length"}


def test_nothing_is_loaded_before_the_first_request(tmp_path: Path) -> None:
    lay_scripted_models(tmp_path / "store", tmp_path)
    with OllamaServer(tmp_path / "store", tmp_path / "home") as server:
        answer = server.ask("GET", "/api/ps")

    assert answer.text == '{"models":[]}'


# --- against a real server -------------------------------------------------------------------------------------------

LIVE = [row for row in ALL if row.version == "0.13.5" and "tiny" not in (row.body or "")]


@pytest.fixture(scope="module")
def real_and_standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pair, Pair]]:
    work = tmp_path_factory.mktemp("real")
    program = os.environ["OLLAMA_BIN"]
    lay_scripted_models(work / "sound", work / "files")
    lay_broken_models(work / "broken", work / "files")
    environment = {**SETTINGS, "OLLAMA_GO_TEMPLATE": "1"}
    with (
        OllamaServer(work / "sound", work / "home", environment, (program,)) as real,
        OllamaServer(work / "broken", work / "home", environment, (program,)) as real_broken,
    ):
        version = str(json.loads(real.ask("GET", "/api/version").text)["version"])
        environment = {**environment, **QUICK, "STANDIN_VERSION": version}
        with (
            OllamaServer(work / "sound", work / "home", environment) as standin,
            OllamaServer(work / "broken", work / "home", environment) as standin_broken,
        ):
            yield Pair(real, real_broken), Pair(standin, standin_broken)


@pytest.mark.ollama
def test_the_standin_answers_as_the_real_server_does_now(real_and_standin: tuple[Pair, Pair]) -> None:
    real, standin = ({row.name: _facts(pair, row) for row in LIVE} for pair in real_and_standin)

    assert standin == real


def _facts(pair: Pair, recording: Recording) -> tuple[object, ...]:
    answer = pair.replay(recording)
    kind = (answer.status, answer.headers.get("content-type"), answer.framing)
    return (*kind, pair.masked(recording, answer, old=False))


@pytest.mark.ollama
def test_the_client_commands_print_what_the_real_ones_print(real_and_standin: tuple[Pair, Pair]) -> None:
    printed = []
    for pair in real_and_standin:
        pair.sound.ask("POST", "/api/generate", {"model": "deepseek-r1:32b"})
        results = [pair.sound.run(*words) for words in (("list",), ("ps",), ("--version",))]
        printed.append([(result.returncode, _columns(result.stdout)) for result in results])
    real, standin = printed

    assert standin == real


def _columns(table: str) -> list[list[str]]:
    """Rows of cells, in one order, without sizes and ages."""
    rows = sorted(line.split() for line in table.splitlines())
    return [[cell for cell in row if not cell[0].isdigit()] for row in rows]
