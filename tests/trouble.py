"""What tests of whole builds under faults share: the ground they stand on, a job, and what must be true however it ends.

A job ends in success or in exit 1 with one sentence and one hint; its name points at the right image, at the one
it pointed at before, or at nothing; and the same command, undisturbed, succeeds.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from building import APPLIANCE, MIB, OLLAMA, TEMPLATE, Ran, Site, failed, ok
from ollamafront import OllamaFront
from ollamastore import Config, Source, StoredModel, lay_model
from registries import PASSWORD, USER, Registry
from tinygguf import write_tiny_gguf
from tinyimages import HERE, Layer, base_layers

from appliance_builder import commands
from appliance_builder.request import Options
from appliance_image.oci import CONFIG, INDEX, MANIFEST, render_json

SMALL, LARGE, OTHER = "r1:tiny", "r1:large", "r1:other"
_PAD_BYTES = {SMALL: 300_000, LARGE: 50 * MIB, OTHER: 200_000}
SEGMENT_BYTES = 16 * MIB
CHUNK_BYTES = MIB
PAGE = b"<!DOCTYPE html><html><title>Please log in</title></html>"
HTML = {"Content-Type": "text/html; charset=utf-8"}
_SECRETS = ("Traceback", PASSWORD, "X-Amz-", "_state=", "Bearer ", "Basic ")
_REPOSITORIES, _BLOBS = "docker/registry/v2/repositories", "docker/registry/v2/blobs/sha256"


class Ground:
    """Laid once for all tests: a store with three models, a base of a few hundred bytes, the digests of undisturbed builds."""

    def __init__(self, directory: Path) -> None:
        self.store = directory / "store"
        self.models = {name: _lay(self.store, name) for name in _PAD_BYTES}
        self.base = directory / "base"
        _write_base(self.base)
        self._site = Site(directory / "site")
        self._digests: dict[str, str] = {}

    def words(self, model: str = SMALL) -> tuple[str, ...]:
        return ("build", model, "--base", f"oci:{self.base}", "--ollama-version", OLLAMA)

    def digest(self, model: str = SMALL) -> str:
        """Of the image that an undisturbed build makes."""
        if model not in self._digests:
            layout = self._site.directory / model.replace(":", "-")
            words = ("--from-store", str(self.store), "-t", "x:1", "--output", f"oci:{layout}")
            ok(self._site.run(*self.words(model), *words))
            found = named_in_layout(layout)
            assert found
            self._digests[model] = found
        return self._digests[model]

    def copied(self, directory: Path) -> Ground:
        """Where somebody else can read it."""
        twin = copy.copy(self)
        twin.store, twin.base = directory / "store", directory / "base"
        for old, new in ((self.store, twin.store), (self.base, twin.base)):
            shutil.copytree(old, new, copy_function=os.link)
        return twin

    def weights(self, model: str = SMALL) -> str:
        """Digest of the blob."""
        return next(layer.digest for layer in self.models[model].layers if layer.kind == "model")

    def weights_bytes(self, model: str = SMALL) -> int:
        return next(layer.size for layer in self.models[model].layers if layer.kind == "model")


@dataclass(frozen=True)
class Job:
    """One build as a user asks for it. `named` tells what its target's name points at, and is not the product's own."""

    site: Site
    words: tuple[str, ...]
    target: str
    digest: str
    named: Callable[[], str | None]

    def run(self, *more: str, environment: Mapping[str, str] | None = None) -> Ran:
        return self.site.run(*self.words, *more, environment=environment, timeout_s=120)

    def impatient(self) -> Job:
        """For faults that last."""
        return replace(self, site=Site(self.site.directory, {"APPLIANCE_PATIENCE": "1"}))

    def start(self) -> Running:
        return Running(self.site, self.words)

    def succeeds(self, *more: str) -> Ran:
        ran = self.run(*more)
        assert self.sound(ran), f"{ran.out}\n{ran.err}"
        return ran

    def fails(self, *, before: str | None = None) -> tuple[str, str]:
        """What was said."""
        ran = self.run()
        assert not self.sound(ran, before=before), f"a success: {ran.err}"
        return failed(ran)

    def sound(self, ran: Ran, *, before: str | None = None) -> bool:
        """Whether it succeeded, if it ended as every build must; `before` is the digest that the name may still have."""
        for secret in _SECRETS:
            assert secret not in ran.out + ran.err, ran.err
        now = self.named()
        if ran.status == 0:
            assert now == self.digest, f"{now}\n{ran.err}"
            assert len(ran.lines) == 1, ran.out
            self.verify()
            return True
        message, hint = failed(ran)
        assert ran.err.count("error: ") == 1, ran.err
        assert len(re.findall("^hint: ", ran.err, re.MULTILINE)) == 1, ran.err
        assert ran.err.endswith(f"error: {message}\nhint: {hint}\n"), ran.err
        assert not message.endswith("."), message
        assert len(message) < 400, message
        assert ran.out == ""
        assert now in (None, before)
        return False

    def verify(self) -> None:
        """As `appliance verify` does."""
        cache = self.site.directory / "verify-cache"
        commands.verify(self.target, None, Options(cache=cache), question=None, gpus=False)


class NobodysSite(Site):
    """The machine of a user without any rights but to its own directory."""

    rights = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")

    def run(self, *words: str, environment: Mapping[str, str] | None = None, timeout_s: float = 300) -> Ran:
        done = subprocess.run(
            [*self.rights, str(APPLIANCE), *words],
            env={**self.environment, **(environment or {})},
            cwd=self.directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        return Ran(done.returncode, done.stdout, done.stderr)


class Running:
    """A build under way in a process group of its own."""

    def __init__(self, site: Site, words: tuple[str, ...]) -> None:
        # A test run in the background ignores Ctrl-C, and so would its children.
        command = ["env", "--default-signal=INT,TERM", str(APPLIANCE), *words]
        self._process = subprocess.Popen(
            command,
            env=site.environment,
            cwd=site.directory,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def kill(self, how: signal.Signals = signal.SIGKILL) -> Ran:
        os.killpg(self._process.pid, how)
        return self.wait()

    def wait(self, *, timeout_s: float = 120) -> Ran:
        try:
            out, err = self._process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            out, err = self._process.communicate()
            raise AssertionError(f"still running after {timeout_s:g} s\n{out}\n{err}") from None
        return Ran(self._process.returncode, out, err)


@dataclass(frozen=True)
class Place:
    """A user's machine on the ground, and the registry that is pushed to."""

    ground: Ground
    site: Site
    registry: Registry | None = None

    def push(self, *source: str, model: str = SMALL, name: str = "ai/r1:tiny") -> Job:
        assert self.registry
        registry, target = self.registry, f"{self.registry.host}/{name}"
        words = (*self.ground.words(model), *source, "-t", target, "--push")
        return Job(self.site, words, target, self.ground.digest(model), lambda: named_in_registry(registry, name))

    def push_stored(self, model: str = SMALL, *, name: str = "ai/r1:tiny") -> Job:
        return self.push("--from-store", str(self.ground.store), model=model, name=name)

    def push_downloaded(self, front: OllamaFront, model: str = SMALL, *, name: str = "ai/r1:tiny") -> Job:
        return self.push("--models-registry", front.url, model=model, name=name)

    def write(self, output: str, *source: str, model: str = SMALL) -> Job:
        """`output` is oci:DIR or oci-archive:FILE."""
        scheme, _, path = output.partition(":")
        words = (*self.ground.words(model), *source, "-t", "x:1", "--output", output)
        look = named_in_layout if scheme == "oci" else named_in_archive
        return Job(self.site, words, output, self.ground.digest(model), lambda: look(Path(path)))


def weights_path(ground: Ground, model: str = SMALL) -> str:
    """As the storage behind a registry of models is asked for them."""
    return ground.weights(model).replace(":", "%3A")


def log_in(site: Site, host: str, *, password: str = PASSWORD) -> None:
    """As `docker login` leaves it."""
    login = base64.b64encode(f"{USER}:{password}".encode()).decode()
    file = site.home / ".docker/config.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"auths": {host: {"auth": login}}}))


def named_in_registry(registry: Registry, name: str) -> str | None:
    """Read from the registry's disk, with everything that the manifest needs."""
    repository, _, tag = name.rpartition(":")
    place = registry.files / _REPOSITORIES / repository
    link = place / f"_manifests/tags/{tag}/current/link"
    if not link.exists():
        return None

    def blob(digest: str) -> bytes:
        text = digest.removeprefix("sha256:")
        return (registry.files / _BLOBS / text[:2] / text / "data").read_bytes()

    digest = link.read_text()
    manifest = _whole(digest, blob)
    for layer in (manifest["config"], *manifest["layers"]):
        assert (place / "_layers/sha256" / layer["digest"].removeprefix("sha256:") / "link").exists()
    return digest


def named_in_layout(directory: Path) -> str | None:
    if not (directory / "index.json").exists():
        return None

    def blob(digest: str) -> bytes:
        return (directory / "blobs" / digest.replace(":", "/")).read_bytes()

    return _only((directory / "index.json").read_bytes(), blob)


def named_in_archive(file: Path) -> str | None:
    if not file.exists():
        return None
    with tarfile.open(file) as archive:

        def entry(name: str) -> bytes:
            found = archive.extractfile(name)
            assert found
            return found.read()

        return _only(entry("index.json"), lambda digest: entry(f"blobs/{digest.replace(':', '/')}"))


def _only(index: bytes, blob: Callable[[str], bytes]) -> str | None:
    named = json.loads(index)["manifests"]
    assert len(named) <= 1
    for entry in named:
        _whole(entry["digest"], blob)
    return named[0]["digest"] if named else None


def _whole(digest: str, blob: Callable[[str], bytes]) -> dict[str, Any]:
    """The manifest; every blob that it names is there and has its digest."""

    def checked(digest: str) -> bytes:
        body = blob(digest)
        assert f"sha256:{hashlib.sha256(body).hexdigest()}" == digest
        return body

    manifest = cast("dict[str, Any]", json.loads(checked(digest)))
    for part in (manifest["config"], *manifest["layers"]):
        assert len(checked(part["digest"])) == part["size"]
    return manifest


def _lay(store: Path, name: str) -> StoredModel:
    weights = store.with_name("weights.gguf")
    write_tiny_gguf(weights, pad_bytes=_PAD_BYTES[name], seed=list(_PAD_BYTES).index(name))
    layers: dict[str, Source | Sequence[Source]] = {
        "model": weights,
        "template": TEMPLATE,
        "params": {"stop": ["<｜User｜>"]},
        "license": "as you like\n",
    }
    try:
        return lay_model(store, name, layers, config=Config(model_type="158K", file_type="F16"))
    finally:
        weights.unlink()


def _write_base(directory: Path) -> None:
    layers: list[Layer] = base_layers()
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)

    def write(body: bytes, media_type: str) -> dict[str, object]:
        digest = hashlib.sha256(body).hexdigest()
        (blobs / digest).write_bytes(body)
        return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(body)}

    config = {
        "architecture": HERE.architecture,
        "os": HERE.os,
        "config": {"Entrypoint": ["/bin/ollama"], "Cmd": ["serve"], "Env": ["OLLAMA_HOST=0.0.0.0:11434"]},
        "rootfs": {"type": "layers", "diff_ids": [str(layer.diff_id) for layer in layers]},
        "history": [{"created_by": "a test"} for _ in layers],
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": write(render_json(config), CONFIG),
        "layers": [write(layer.body, layer.media_type) for layer in layers],
    }
    entry = write(render_json(manifest), MANIFEST)
    index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [entry]}
    (directory / "index.json").write_bytes(render_json(index))
    (directory / "oci-layout").write_bytes(render_json({"imageLayoutVersion": "1.0.0"}))
