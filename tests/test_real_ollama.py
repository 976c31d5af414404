"""Appliance images with a server in them, as strictly confined as can be: what a client gets to see.

The server is the stand-in, and with `OLLAMA_BIN` a real Ollama as well: then real inference runs.
"""

import contextlib
import hashlib
import http.client
import json
import os
import secrets
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from building import APPLIANCE, Site, ok
from engines import Engine, wait_until
from ollamastore import Config, StoredModel, lay_model
from registries import Registry
from scriptedgguf import ANSWER, JINJA, THINK, write_scripted_gguf
from smallbase import assemble
from thinktemplates import R1_NOW

from appliance_image.chat import Decoder, Done, Piece

CONFINED = ("--read-only", "--user", "65534:65534", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")
OLD, STANDIN = "0.12.4", "0.32.15"
LIBRARY = "registry.ollama.ai/library"
THINKS, PLAIN = "r1-think:tiny", "r1:tiny"
QUESTION = [{"role": "user", "content": "Why is the sky blue?"}]
HISTORY = [
    *({"role": "system", "content": "You are brief."}, *QUESTION),
    {"role": "assistant", "content": "Light scatters.", "thinking": "They ask about the sky."},
    {"role": "user", "content": "And at dusk?"},
]
CHATS = pytest.mark.parametrize("messages", [QUESTION, HISTORY], ids=["first turn", "system and history"])
RECIPE = f"""\
think = "patch"
template = '''{R1_NOW}'''
system = "Be kind."
context_length = 2048
[parameters]
num_predict = 3
temperature = 0.25
stop = ["<｜User｜>"]
"""


@dataclass(frozen=True, slots=True)
class Server:
    """What the base holds."""

    version: str
    program: Path | None  # None: the stand-in

    def base(self, layout: Path) -> list[str]:
        assemble(layout, version=self.version, ollama_bin=self.program)
        return ["--base", f"oci:{layout}", "--ollama-version", self.version]


@dataclass(frozen=True, slots=True)
class Said:
    pieces: tuple[Piece, ...]
    done: Done

    @property
    def thinking(self) -> str:
        return "".join(piece.thinking for piece in self.pieces)

    @property
    def content(self) -> str:
        return "".join(piece.content for piece in self.pieces)

    @property
    def both(self) -> tuple[str, str]:
        return self.thinking, self.content


@dataclass(frozen=True, slots=True)
class Container:
    engine: Engine
    id: str

    def get(self, path: str) -> object:
        answer = self.engine.http_get(self._port, path)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    def show(self, model: str) -> dict[str, object]:
        with self._post("/api/show", {"model": model}) as answer:
            document: dict[str, object] = json.load(answer)
        return document

    def chat(self, model: str, messages: Sequence[Mapping[str, str]], *, think: bool | None = None) -> Said:
        body = {"model": model, "messages": messages, **({} if think is None else {"think": think})}
        decoder, pieces, done = Decoder(), list[Piece](), list[Done]()
        with self._post("/api/chat", body) as answer:
            while chunk := answer.read1():
                for event in decoder.feed(chunk):
                    if isinstance(event, Done):
                        done.append(event)
                    else:
                        pieces.append(event)
        decoder.close()
        return Said(tuple(pieces), done[0])

    def wait(self) -> None:
        try:
            wait_until(self._answers, timeout_s=60, what="the server to answer")
        except TimeoutError as error:
            error.add_note(self.log())
            raise

    def log(self) -> str:
        ran = self.engine.run_cli("logs", self.id)
        return ran.stdout + ran.stderr

    def state(self, expression: str) -> str:
        return self.engine.run_cli("inspect", "--format", expression, self.id).stdout.strip()

    @property
    def _port(self) -> int:
        return self.engine.published_port(self.id, 11434)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            return self.engine.http_get(self._port).status == 200
        return False

    @contextlib.contextmanager
    def _post(self, path: str, body: object) -> Iterator[http.client.HTTPResponse]:
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1")) as connection:
            connection.sock = self.engine.connect(self._port, timeout_s=120)
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            assert answer.status == 200, answer.read()
            yield answer


class Works:
    """A builder's machine with one model in its store, and an engine to load into."""

    def __init__(self, directory: Path, engine: Engine, server: Server) -> None:
        self.site = Site(directory, {"DOCKER_HOST": engine.docker_host})
        self.engine = engine
        self.server = server
        self.base = server.base(directory / "base")

    def lay(self, *, jinja: str = JINJA) -> StoredModel:
        weights = self.site.directory / "scripted.gguf"
        write_scripted_gguf(weights, jinja=jinja)
        config = Config(model_type="160K", file_type="F16")
        return lay_model(self.site.store, PLAIN, {"model": weights, "template": R1_NOW}, config=config)

    @contextlib.contextmanager
    def loaded(self, model: str, *words: str) -> Iterator[str]:
        """The image of `model`, loaded under a name of its own."""
        with self.named() as image:
            ok(self.site.run("build", model, *self.base, "-t", image, "--load", *words))
            yield image

    @contextlib.contextmanager
    def named(self) -> Iterator[str]:
        """A name that the engine does not know, and will not keep."""
        image = f"real:{secrets.token_hex(6)}"
        yield image
        self.engine.run_cli("image", "rm", "-f", image)

    @property
    def stored(self) -> tuple[str, str]:
        return "--from-store", str(self.site.store)


@contextlib.contextmanager
def started(engine: Engine, image: str, *words: str) -> Iterator[Container]:
    words = ("run", "-d", *CONFINED, "-p", "127.0.0.1::11434", *words, image)
    container = Container(engine, engine.run_cli(*words).stdout.strip())
    try:
        container.wait()
        yield container
    finally:
        engine.run_cli("rm", "-f", "-v", container.id)


@pytest.fixture(scope="module", params=["stand-in", pytest.param("real", marks=pytest.mark.ollama)])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Server:
    if request.param == "stand-in":
        return Server(STANDIN, None)
    program = Path(os.environ["OLLAMA_BIN"])
    alone = {"PATH": os.environ["PATH"], "HOME": str(tmp_path_factory.mktemp("home")), "OLLAMA_HOST": "127.0.0.1:1"}
    said = subprocess.run([program, "--version"], env=alone, check=True, capture_output=True, text=True)
    return Server(said.stdout.split()[-1], program)


@pytest.fixture(scope="module")
def works(server: Server, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Works:
    return Works(tmp_path_factory.mktemp("works"), engine, server)


@pytest.fixture(scope="module")
def thinker(works: Works) -> Iterator[Container]:
    """The patched image, running."""
    works.lay()
    with works.loaded(THINKS, *works.stored) as image, started(works.engine, image) as container:
        yield container


def listed(container: Container) -> list[dict[str, object]]:
    document = container.get("/api/tags")
    assert isinstance(document, dict)
    models: list[dict[str, object]] = document["models"]
    return models


def thinks_in_every_answer(container: Container) -> bool:
    """Asked both ways, with and without a history; the API splits what it says."""
    chats = [
        container.chat(THINKS, messages, think=think) for messages in (QUESTION, HISTORY) for think in (None, True)
    ]
    return {said.both for said in chats} == {(THINK, ANSWER)}


def test_the_image_runs_its_own_server_read_only_as_nobody(thinker: Container, works: Works) -> None:
    changed = works.engine.run_cli("diff", thinker.id).stdout

    assert thinker.get("/api/version") == {"version": works.server.version}
    assert thinker.state("{{.HostConfig.ReadonlyRootfs}} {{.Config.User}}") == "true 65534:65534"
    assert "/dev/shm" not in changed
    assert "/models" not in changed


def test_a_read_only_root_keeps_no_part_of_the_server_from_its_work(thinker: Container) -> None:
    said = thinker.log().lower()

    assert "read-only" not in said
    assert "permission denied" not in said
    assert "failure during gpu discovery" not in said


def test_it_lists_exactly_the_one_model(thinker: Container, works: Works) -> None:
    manifest = works.site.directory / "manifest"
    works.engine.run_cli("cp", f"{thinker.id}:/models/manifests/{LIBRARY}/{THINKS.replace(':', '/')}", str(manifest))

    models = listed(thinker)

    assert [model["name"] for model in models] == [THINKS]
    assert models[0]["digest"] == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert "thinking" in str(thinker.show(THINKS)["capabilities"])


@CHATS
@pytest.mark.parametrize("think", [None, True], ids=["unset", "true"])
def test_it_thinks_in_every_answer(
    thinker: Container, messages: Sequence[Mapping[str, str]], think: bool | None
) -> None:
    said = thinker.chat(THINKS, messages, think=think)

    assert said.thinking == THINK
    assert said.content == ANSWER
    assert len(said.pieces) > 5
    assert not any(piece.thinking and piece.content for piece in said.pieces)
    assert said.done.reason == "stop"


@CHATS
def test_it_obeys_an_explicit_false(thinker: Container, messages: Sequence[Mapping[str, str]]) -> None:
    said = thinker.chat(THINKS, messages, think=False)

    assert said.both == ("", ANSWER)
    assert said.done.reason == "stop"


def test_earlier_thoughts_and_the_system_message_reach_the_model_as_the_template_says(thinker: Container) -> None:
    first, later = (thinker.chat(THINKS, messages).done.prompt_tokens for messages in (QUESTION, HISTORY))

    assert later > first


def test_its_health_check_passes_and_it_restarts(works: Works) -> None:
    works.lay()
    with (
        works.loaded(THINKS, *works.stored) as image,
        started(works.engine, image, "--health-interval", "1s") as container,
    ):
        assert container.chat(THINKS, QUESTION).both == (THINK, ANSWER)

        wait_until(lambda: healthy(container), timeout_s=30, what="the health check to pass")
        works.engine.run_cli("restart", container.id)
        container.wait()

        assert container.chat(THINKS, QUESTION).both == (THINK, ANSWER)
        wait_until(lambda: healthy(container), timeout_s=30, what="the health check to pass again")
        assert container.state("{{.Config.Healthcheck.Test}}") == "[CMD /bin/ollama list]"


def healthy(container: Container) -> bool:
    return container.state("{{.State.Health.Status}}") == "healthy"


def test_a_rebase_onto_this_server_thinks_as_a_build_on_it(works: Works, registry: Registry) -> None:
    works.lay()
    name = f"{registry.host}/ai/r1-think:tiny"
    old = Server(OLD, None).base(works.site.directory / f"old-{secrets.token_hex(4)}")
    ok(works.site.run("build", THINKS, *works.stored, *old, "-t", name, "--push"))

    with works.named() as image:
        ok(works.site.run("rebase", name, *works.base, "-t", image, "--load"))
        with started(works.engine, image) as container:
            assert container.get("/api/version") == {"version": works.server.version}
            assert thinks_in_every_answer(container)
            assert container.chat(THINKS, QUESTION, think=False).both == ("", ANSWER)


def test_an_unpatched_model_does_as_its_own_template_says(works: Works) -> None:
    works.lay(jinja="")
    with works.loaded(PLAIN, *works.stored) as image, started(works.engine, image) as container:
        unset, true, false = (container.chat(PLAIN, QUESTION, think=think) for think in (None, True, False))
        names = [model["name"] for model in listed(container)]

    assert names == [PLAIN]
    assert unset.both == true.both == (THINK, ANSWER)
    assert unset.done.prompt_tokens == true.done.prompt_tokens
    assert false.both == ("", ANSWER)
    assert false.done.prompt_tokens > unset.done.prompt_tokens


def test_a_gguf_file_with_a_recipe_gets_all_of_it(works: Works) -> None:
    recipe, weights = works.site.directory / "ours.toml", works.site.directory / "ours.gguf"
    recipe.write_text(RECIPE)
    write_scripted_gguf(weights)
    with (
        works.loaded("ours:1", "--recipe", str(recipe), "--from-gguf", str(weights)) as image,
        started(works.engine, image) as container,
    ):
        shown = container.show("ours:1")
        said = container.chat("ours:1", QUESTION)
        told = container.chat("ours:1", [{"role": "system", "content": "Be kind, and brief."}, *QUESTION])

    assert '{{ "<think>\\n" }}' in str(shown["template"])
    assert shown["system"] == "Be kind."
    assert ["num_predict", "3"] in [line.split() for line in str(shown["parameters"]).splitlines()]
    if works.server.program:  # the stand-in heeds the options of a request only
        assert said.both == ("Okay, the user", "")
        assert said.done.reason == "length"
    assert told.done.prompt_tokens - said.done.prompt_tokens == len(", and brief")


def test_the_smoke_test_of_the_builder_passes(works: Works) -> None:
    works.lay()
    layout = works.site.directory / f"layout-{secrets.token_hex(4)}"
    ok(works.site.run("build", THINKS, *works.stored, *works.base, "--output", f"oci:{layout}"))
    before = set(works.engine.run_cli("image", "ls", "-q").stdout.split())

    # From inside, because the container's port is published in the engine's network.
    cache = ("--cache", str(works.site.directory / "cache"))
    ran = works.engine.netns_exec([str(APPLIANCE), "verify", f"oci:{layout}", "--smoke", *cache])

    assert ran.returncode == 0, ran.stderr
    assert f"thinking: {THINK}" in ran.stderr
    assert f"answer: {ANSWER}" in ran.stderr
    assert set(works.engine.run_cli("image", "ls", "-q").stdout.split()) == before
