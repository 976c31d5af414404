"""Which GPUs the demo has: this machine's, ones that a file describes, or none; and why, in words."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import fakenvml
from agentgraphics import Graphics
from engines import Engine, PrivateEngine
from fakenvml import FakeGpu, World

MOST = 2
_TOOLKIT = ("nvidia-ctk", "nvidia-container-runtime-hook")
_GPU = re.compile(r"^GPU \d+: .*\(UUID: (GPU-[^)]+)\)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Gpus:
    wanted: str  # the configuration's `gpus`, as TOML
    real: str = ""  # what a person should know of them, each a part of a sentence
    simulated: str = ""
    advice: str = ""  # how there would be some
    environment: Mapping[str, str] = field(default_factory=dict[str, str])  # shows them to the agent
    graphics: Graphics | None = None

    @property
    def has_some(self) -> bool:
        return bool(self.real or self.simulated)


def real_uuids() -> list[str]:
    """Of the first GPUs, if this machine has a driver and what hands GPUs to containers."""
    if shutil.which("nvidia-smi") is None or not any(map(shutil.which, _TOOLKIT)):
        return []
    said = subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, text=True, timeout=60)
    return _GPU.findall(said.stdout)[:MOST]


def choose(engine: Engine, uuids: list[str], work: Path, *, prefix: str) -> Gpus:
    if isinstance(engine, PrivateEngine):
        # It has process ids of its own, and the driver's are the machine's: nobody could tell who computes where.
        return _simulated(engine, work, prefix, advice="your own GPUs are used when Docker runs" if uuids else "")
    if uuids:
        names = ", ".join(f'"{uuid}"' for uuid in uuids)
        return Gpus(f"[{names}]", real=f"{len(uuids)} of this machine's GPUs")
    return Gpus('"none"', advice="one slot on the CPU: your engine has no GPUs; as root the demo simulates two")


def _simulated(engine: PrivateEngine, work: Path, prefix: str, *, advice: str) -> Gpus:
    """The agent reads them through a library with the names of NVIDIA's, and that has to be compiled."""
    try:
        library = fakenvml.build(work)
    except fakenvml.GccMissingError:
        hint = "`apt-get install gcc libc6-dev` gives two simulated GPUs"
        return Gpus('"none"', advice=f"one slot on the CPU, because there is no gcc: {hint}")
    cards = [FakeGpu(f"GPU-{index:08d}-0000-4000-8000-000000000000", name="H100 (simulated)") for index in range(MOST)]
    return Gpus(
        '"all"',
        simulated=f"{MOST} GPUs (a file speaks for NVIDIA's driver)",
        advice=advice,
        environment=fakenvml.environment(library, work / "gpus"),
        graphics=Graphics(engine, World(cards), work / "gpus", prefix=prefix),
    )
