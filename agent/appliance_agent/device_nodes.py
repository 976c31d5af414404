"""The device nodes of NVIDIA GPUs on this host: those that exist, for containers that get them one by one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from appliance_agent.gpus import Gpu

_COMMON: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
_MINORS: Final = "proc/driver/nvidia-caps/mig-minors"


def device_nodes(gpus: Sequence[Gpu], *, root: Path = Path("/")) -> tuple[str, ...]:
    """Absolute paths; none for no GPU. MIG devices also need the nodes of their instances."""
    if not gpus:
        return ()
    names = [f"nvidia{gpu.minor}" for gpu in gpus if gpu.minor is not None]
    names += [*_COMMON, *(name for gpu in gpus if gpu.is_mig for name in _capabilities(gpu, root))]
    return tuple(f"/dev/{name}" for name in dict.fromkeys(names) if (root / "dev" / name).exists())


def _capabilities(gpu: Gpu, root: Path) -> list[str]:
    try:
        text = (root / _MINORS).read_text()
    except OSError:
        return []
    instance = f"gpu{gpu.minor}/gi{gpu.gpu_instance}"
    wanted = (f"{instance}/access", f"{instance}/ci{gpu.compute_instance}/access")
    minors = {match[1]: match[2] for match in re.finditer(r"^(\S+) (\d+)$", text, re.MULTILINE)}
    return [f"nvidia-caps/nvidia-cap{minors[name]}" for name in wanted if name in minors]
