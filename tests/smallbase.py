"""A small base image that runs like ollama/ollama, made from this machine's own files: no network, no Docker.

    assemble(Path("base"), version="0.13.5", platforms=("linux/amd64", "linux/arm64"))

writes an OCI image layout. `/bin/ollama` in it is the stand-in of tests/standin under this machine's Python, or the
real program named by `ollama_bin` with its libraries. Layers, lowest first: system, runtime, Ollama; another `version`
changes only the last one. The bytes depend on this machine's files and the arguments alone.
"""

import functools
import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from hostfiles import host_python, python_files, shared_libraries

STANDIN = Path(__file__).parent / "standin"
TAG = "org.opencontainers.image.ref.name"
MADE = "2024-01-01T00:00:00Z"  # in every image of the tests: on a desktop they are told from the user's by it
_MTIME_S = 1_704_067_200
_MERGED = ("bin", "lib", "lib64", "sbin")
_INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
_CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
_LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"
_PASSWD = b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"


@dataclass(frozen=True, slots=True)
class File:
    data: bytes
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Link:
    target: str


@dataclass(frozen=True, slots=True)
class Folder:
    mode: int


Tree = Mapping[str, File | Link | Folder]


@dataclass(frozen=True, slots=True)
class Layer:
    packed: bytes
    unpacked_digest: str


def assemble(
    directory: Path,
    *,
    version: str,
    platforms: Sequence[str] = ("linux/amd64",),
    ollama_bin: Path | None = None,
) -> None:
    """Write the layout; several platforms share all bytes and differ in their label, as one index."""
    layers = _real_layers(ollama_bin) if ollama_bin else _standin_layers(version)
    (directory / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    layer_descriptors = [_write(directory, layer.packed, _LAYER_TYPE) for layer in layers]
    manifests = []
    for platform in platforms:
        system, _, architecture = platform.partition("/")
        config = _configuration(layers, version=version, system=system, architecture=architecture)
        parts = {"config": _write_json(directory, config, _CONFIG_TYPE), "layers": layer_descriptors}
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST_TYPE, **parts}
        place = {"platform": {"architecture": architecture, "os": system}}
        manifests.append(_write_json(directory, manifest, _MANIFEST_TYPE) | place)
    named = manifests[0]
    if len(manifests) > 1:
        named = _write_json(directory, _index(manifests), _INDEX_TYPE)
    (directory / "index.json").write_bytes(_json(_index([named | {"annotations": {TAG: version}}])))
    (directory / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def push(layout: Path, reference: str, *, version: str) -> None:
    """Into a plain-HTTP registry, every platform, bytes as they are."""
    words = ["--all", "--preserve-digests", "--dest-tls-verify=false"]
    _skopeo("copy", *words, f"oci:{layout}:{version}", f"docker://{reference}")


def archive(layout: Path, file: Path, reference: str, *, version: str) -> None:
    """What `docker load` takes, for this machine's platform."""
    _skopeo("copy", f"oci:{layout}:{version}", f"docker-archive:{file}:{reference}")


def _skopeo(*words: str) -> None:
    result = subprocess.run(["skopeo", *words], check=False, capture_output=True, text=True)
    if result.returncode != 0:
        raise RuntimeError(f"skopeo {' '.join(words)}: {result.stderr}")


def _standin_layers(version: str) -> list[Layer]:
    return [*_python_layers(), _layer(_standin_tree(version))]


@functools.cache
def _python_layers() -> tuple[Layer, Layer]:
    python = host_python()
    files = python_files(python)
    libraries = shared_libraries(path for path in files if path.suffix == ".so" or path == python.program)
    return _layer(_system_tree() | _copies(libraries)), _layer(_copies(files - libraries))


def _standin_tree(version: str) -> Tree:
    home = "usr/lib/ollama-standin"
    start = (
        f"#!{host_python().program} -IBS\n"
        "import sys\n"
        f'sys.path.insert(0, "/{home}")\n'
        "import ollama_standin\n"
        "sys.exit(ollama_standin.main(sys.argv[1:]))\n"
    )
    tree: dict[str, File | Link | Folder] = {
        f"{home}/{path.name}": File(path.read_bytes()) for path in sorted(STANDIN.glob("*.py"))
    }
    return tree | {f"{home}/VERSION": File(f"{version}\n".encode()), "usr/bin/ollama": File(start.encode(), 0o755)}


def _real_layers(program: Path) -> list[Layer]:
    """The program, `../lib/ollama` beside it as in a release, and the libraries that both need."""
    home = program.resolve().parent.parent / "lib/ollama"
    # Its folders hold gigabytes for GPUs; what serves a CPU lies at the top.
    parts = {path for path in home.iterdir() if path.is_file()} if home.is_dir() else set()
    runtime: dict[str, File | Link | Folder] = {}
    for path in parts:
        runtime[f"usr/lib/ollama/{path.relative_to(home)}"] = File(path.read_bytes(), path.stat().st_mode & 0o755)
    libraries = {path for path in shared_libraries({program, *parts}) if not path.resolve().is_relative_to(home)}
    top = File(program.read_bytes(), 0o755)
    return [_layer(_system_tree() | _copies(libraries)), _layer(runtime), _layer({"usr/bin/ollama": top})]


def _system_tree() -> dict[str, File | Link | Folder]:
    return {
        **{name: Link(f"usr/{name}") for name in _MERGED},
        **{f"usr/{name}": Folder(0o755) for name in _MERGED},
        "etc/passwd": File(_PASSWD),
        "etc/group": File(_GROUP),
        "root": Folder(0o700),
        "tmp": Folder(0o1777),
    }


def _copies(paths: set[Path]) -> dict[str, File | Link | Folder]:
    return {_merged(path): File(path.read_bytes(), path.stat().st_mode & 0o755) for path in paths}


def _merged(path: Path) -> str:
    """Where the file lies when /bin, /lib and so on are links into /usr."""
    inside = str(path).lstrip("/")
    return f"usr/{inside}" if inside.partition("/")[0] in _MERGED else inside


def _layer(tree: Tree) -> Layer:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive_file:
        for name, entry in sorted((_with_parents(tree)).items()):
            archive_file.addfile(*_member(name, entry))
    plain = buffer.getvalue()
    return Layer(gzip.compress(plain, 6, mtime=0), f"sha256:{hashlib.sha256(plain).hexdigest()}")


def _with_parents(tree: Tree) -> dict[str, File | Link | Folder]:
    whole: dict[str, File | Link | Folder] = {}
    for name in tree:
        for parent in list(PurePosixPath(name).parents)[:-1]:
            whole[str(parent)] = Folder(0o755)
    return whole | dict(tree)


def _member(name: str, entry: File | Link | Folder) -> tuple[tarfile.TarInfo, io.BytesIO | None]:
    info = tarfile.TarInfo(name)
    info.mtime = _MTIME_S
    match entry:
        case File(data, mode):
            info.size, info.mode = len(data), mode
            return info, io.BytesIO(data)
        case Link(target):
            info.type, info.linkname, info.mode = tarfile.SYMTYPE, target, 0o777
        case Folder(mode):
            info.type, info.mode = tarfile.DIRTYPE, mode
    return info, None


def _configuration(layers: Sequence[Layer], *, version: str, system: str, architecture: str) -> dict[str, object]:
    environment = [
        "PATH=/usr/local/nvidia/bin:/usr/local/cuda/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "LD_LIBRARY_PATH=/usr/local/nvidia/lib:/usr/local/nvidia/lib64",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
        "NVIDIA_VISIBLE_DEVICES=all",
        "OLLAMA_HOST=0.0.0.0:11434",
        f"STANDIN_VERSION={version}",
    ]
    return {
        "created": MADE,
        "architecture": architecture,
        "os": system,
        "config": {
            "ExposedPorts": {"11434/tcp": {}},
            "Env": environment,
            "Entrypoint": ["/bin/ollama"],
            "Cmd": ["serve"],
            "Labels": {"org.opencontainers.image.version": version},
        },
        "rootfs": {"type": "layers", "diff_ids": [layer.unpacked_digest for layer in layers]},
        "history": [
            *({"created": MADE, "created_by": "COPY . / # test base"} for _ in layers),
            {"created": MADE, "created_by": 'ENTRYPOINT ["/bin/ollama"]', "empty_layer": True},
        ],
    }


def _index(manifests: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {"schemaVersion": 2, "mediaType": _INDEX_TYPE, "manifests": list(manifests)}


def _write_json(directory: Path, value: Mapping[str, object], kind: str) -> dict[str, object]:
    return _write(directory, _json(value), kind)


def _write(directory: Path, data: bytes, kind: str) -> dict[str, object]:
    name = hashlib.sha256(data).hexdigest()
    (directory / "blobs/sha256" / name).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{name}", "size": len(data)}


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
