"""The stand-in's image inside an engine, loaded once for each engine."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import smallbase
from engines import Engine
from hostfiles import host_python


def load_standin(engine: Engine, layout: Path, *, version: str, reference: str = "test/ollama:standin") -> str:
    """The image's id; `layout` is that of the fixture `small_base`, whose version is conftest.BASE_VERSION."""
    found = engine.run_cli("image", "inspect", "--format={{.Id}}", reference, check=False)
    if found.returncode == 0:
        return found.stdout.strip()
    with tempfile.TemporaryDirectory(prefix="image-") as directory:
        archive = Path(directory) / "image.tar"
        smallbase.archive(layout, archive, reference, version=version)
        engine.run_cli("load", "-i", str(archive))
    return engine.run_cli("image", "inspect", "--format={{.Id}}", reference).stdout.strip()


def python_inside(engine: Engine, image: str, program: str, *options: str, check: bool = True) -> str:
    """What a Python program prints in a container of the stand-in's image; with `check` off, also what went wrong."""
    words = ["run", "--rm", "--network=none", *options, "--entrypoint", str(host_python().program)]
    ran = engine.run_cli(*words, image, "-c", program, check=check)
    return ran.stdout if check else ran.stdout + ran.stderr


def python_with(engine: Engine, image: str, program: str, host: Mapping[str, object]) -> str:
    """The same by the API, which knows more than an old `docker` command; `host` is a HostConfig."""
    words = {"Image": image, "Entrypoint": [str(host_python().program), "-c", program], "Cmd": []}
    with closing(docker.APIClient(engine.docker_host, version="auto")) as typed:
        client: Any = typed  # the stubs do not know every call
        made = client.create_container_from_config({**words, "HostConfig": {"NetworkMode": "none", **host}})
        try:
            client.start(made["Id"])
            client.wait(made["Id"])
            return str(client.logs(made["Id"]).decode())
        finally:
            client.remove_container(made["Id"], force=True)
