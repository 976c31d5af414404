"""What registries are known to do differently, as a table: limits, ways to upload, mounts. Decides only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from fnmatch import fnmatchcase
from typing import Final

_MIB: Final = 1024 * 1024
_GB: Final = 1000**3
_TENTH: Final = _GB // 10
# 10,000 parts of 10 MiB: what a distribution on S3, and so Harbor, takes with its defaults (distribution#4572).
_S3_DEFAULT_BYTES: Final = 10_000 * 10 * _MIB
_DOUBTED_BYTES: Final = 100 * _GB
DOUBT_HINT: Final = (
    "where it stores on S3, set `chunksize` and `multipartcopychunksize` to 134217728 (128 MiB) in its configuration"
)


class Mode(Enum):
    """How the bytes of one blob reach a registry."""

    STREAM = "one PATCH with its length"
    UNSIZED = "one PATCH in chunked transfer encoding"
    CHUNKED = "many PATCHes"
    WHOLE = "one PUT"  # only where the digest is known before


@dataclass(frozen=True, slots=True)
class Quirks:
    hosts: tuple[str, ...]
    title: str
    note: str
    layer_max_bytes: int | None = None
    layers_max: int | None = None
    mode: Mode = Mode.STREAM
    mode_known: Mode = Mode.STREAM  # where the digest is known before the first byte
    chunk_bytes: int | None = None
    resumable: bool = True
    mount: bool = True

    def mode_for(self, *, digest_known: bool) -> Mode:
        return self.mode_known if digest_known else self.mode


TABLE: Final = (
    Quirks(
        ("ghcr.io", "*.ghcr.io"),
        "GitHub",
        "10 GB a layer and 10 minutes an upload (GitHub docs); a PATCH of more than 4 MiB with a length is refused "
        "with 416 (seen by kitops)",
        layer_max_bytes=10 * _GB,
        mode=Mode.UNSIZED,
        mode_known=Mode.WHOLE,
        resumable=False,
    ),
    Quirks(
        ("public.ecr.aws",),
        "Amazon ECR Public",
        "10,000 MiB a layer (AWS quotas); uploads as in ECR",
        layer_max_bytes=10_000 * _MIB,
        mode=Mode.UNSIZED,
        mode_known=Mode.WHOLE,
        resumable=False,
    ),
    Quirks(
        ("*.dkr.ecr.*.amazonaws.com", "*.dkr.ecr.*.amazonaws.com.cn", "*.dkr-ecr.*.on.aws"),
        "Amazon ECR",
        "52,000 MiB a layer (AWS quotas); answers 201 to the first PATCH and refuses others (kitops, regclient); "
        "no second start in a session (apple/containerization#790)",
        layer_max_bytes=52_000 * _MIB,
        mode=Mode.UNSIZED,
        mode_known=Mode.WHOLE,
        resumable=False,
    ),
    Quirks(
        ("gcr.io", "*.gcr.io", "*.pkg.dev"),
        "Google",
        "no upload in several parts (kitops)",
        mode=Mode.UNSIZED,
        mode_known=Mode.WHOLE,
        resumable=False,
    ),
    Quirks(
        ("*.azurecr.io",),
        "Azure",
        "200 GiB a layer (ACR service tiers); an interrupted upload in parts cannot be resumed "
        "(azure-sdk-for-python#29738)",
        layer_max_bytes=200 * 1024 * _MIB,
        resumable=False,
    ),
    Quirks(("docker.io",), "Docker Hub", "no layer limit is documented; old reports of failures from 7 GB on"),
    Quirks(
        ("quay.io", "*.quay.io"),
        "Quay",
        "20 GB a layer (Quay's configuration, MAXIMUM_LAYER_SIZE); a mount needs its source repository, which is "
        "always named here",
        layer_max_bytes=20 * _GB,
    ),
    Quirks(
        ("swr.*.myhuaweicloud.com", "*.myhuaweicloud.com", "*.myhuaweicloud.eu"),
        "Huawei Cloud SWR",
        "10 GB a layer, 20 layers an image (SWR docs)",
        layer_max_bytes=10 * _GB,
        layers_max=20,
    ),
    Quirks(
        ("*.jfrog.io", "artifactory.*"),
        "Artifactory",
        "refuses mounts; equal blobs are shared after the manifest",
        mount=False,
    ),
    Quirks(
        ("harbor.*", "*.goharbor.io"),
        "Harbor",
        "no limit of its own, but that of its storage; the nginx before it needs `client_max_body_size 0` and long time-outs; slow commits "
        "with S3 (harbor#15719)",
    ),
    Quirks(
        ("registry.cloudflare.com",),
        "Cloudflare",
        "no request beyond 100 MB (Cloudflare docs)",
        mode=Mode.CHUNKED,
        mode_known=Mode.CHUNKED,
        chunk_bytes=90 * _MIB,
    ),
)
_COMMON: Final = Quirks(("*",), "", "as the distribution specification says")


def quirks_for(host: str, *, chunk_bytes: int | None = None) -> Quirks:
    """`chunk_bytes` is the user's word and wins over the table."""
    name = host.partition(":")[0].lower() if not host.startswith("[") else host
    found = next((row for row in TABLE if any(fnmatchcase(name, pattern) for pattern in row.hosts)), _COMMON)
    if chunk_bytes is None:
        return found
    return replace(found, mode=Mode.CHUNKED, mode_known=Mode.CHUNKED, chunk_bytes=chunk_bytes)


def limit_problems(host: str, layer_sizes: Sequence[int]) -> list[str]:
    """One sentence for each known limit that an image would break, before anything is sent."""
    quirks = quirks_for(host)
    problems: list[str] = []
    if quirks.layers_max is not None and len(layer_sizes) > quirks.layers_max:
        problems.append(f"{host} ({quirks.title}) takes {quirks.layers_max} layers, the image has {len(layer_sizes)}")
    largest = max(layer_sizes, default=0)
    if quirks.layer_max_bytes is not None and largest > quirks.layer_max_bytes:
        problems.append(
            f"{host} ({quirks.title}) takes layers of up to {_gigabytes(quirks.layer_max_bytes // _TENTH)}, "
            f"the largest has {_gigabytes(-(-largest // _TENTH))}"
        )
    return problems


def limit_doubt(host: str, layer_sizes: Sequence[int]) -> str | None:
    """What may stop layers that no known limit stops; in one sentence, before anything is sent."""
    largest = max(layer_sizes, default=0)
    if quirks_for(host).layer_max_bytes is not None or largest < _DOUBTED_BYTES:
        return None
    return (
        f"{host} gets a layer of {_gigabytes(-(-largest // _TENTH))}; many registries that store on S3 end layers at "
        f"{_gigabytes(_S3_DEFAULT_BYTES // _TENTH)}"
    )


def _gigabytes(tenths: int) -> str:
    return f"{tenths // 10}.{tenths % 10} GB"
