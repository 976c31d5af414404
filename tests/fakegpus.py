"""What NVIDIA's toolkit leaves on a host for a Docker Engine to find, without any GPU: hook, runtime, CDI specification.

`fakehook/` holds the two programs. CDI device nodes are /dev/null under the names that a driver would give them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PROGRAMS = Path(__file__).parent / "fakehook"
HOOK = "nvidia-container-runtime-hook"
RUNTIME = "nvidia-container-runtime"


@dataclass(frozen=True, slots=True)
class Toolkit:
    """`programs` comes first on the engine's PATH, `specifications` is where it looks for CDI devices."""

    programs: Path
    specifications: Path

    @classmethod
    def beside(cls, directory: Path) -> Toolkit:
        toolkit = cls(directory / "toolkit", directory / "cdi")
        toolkit.programs.mkdir()
        toolkit.specifications.mkdir()
        return toolkit

    def install_hook(self) -> None:
        """An engine that runs already goes on without it, as real ones do."""
        shutil.copy(_PROGRAMS / HOOK, self.programs / HOOK)

    def install_runtime(self) -> Path:
        return Path(shutil.copy(_PROGRAMS / RUNTIME, self.programs / RUNTIME))

    def limit(self, uuids: Sequence[str]) -> None:
        """From now on the hook knows these GPUs only."""
        (self.programs / "gpus").write_text("".join(f"{uuid}\n" for uuid in uuids))

    def fail(self, text: str) -> None:
        """Every further start through the hook fails with this text; "" ends that."""
        if text:
            (self.programs / "fail").write_text(text)
        else:
            (self.programs / "fail").unlink(missing_ok=True)

    def hook_calls(self) -> list[str]:
        """For each container the hook was run for: the devices asked for."""
        return _lines(self.programs / "hook.log")

    def runtime_calls(self) -> list[str]:
        return _lines(self.programs / "runtime.log")

    def write_cdi(self, uuids: Sequence[str]) -> None:
        """As `nvidia-ctk cdi generate` does: each GPU by its index and by its UUID, and all of them. None: no file."""
        file = self.specifications / "nvidia.yaml"
        if not uuids:
            file.unlink(missing_ok=True)
            return
        devices = [_device(name, [index]) for index, uuid in enumerate(uuids) for name in (str(index), uuid)]
        devices.append(_device("all", range(len(uuids))))
        common = {"env": ["NVIDIA_VISIBLE_DEVICES=void"], "deviceNodes": [_node("/dev/nvidiactl")]}
        whole = {"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu", "devices": devices, "containerEdits": common}
        file.write_text(json.dumps(whole))  # JSON is YAML


def _device(name: str, indexes: Sequence[int]) -> dict[str, object]:
    return {"name": name, "containerEdits": {"deviceNodes": [_node(f"/dev/nvidia{index}") for index in indexes]}}


def _node(path: str) -> dict[str, object]:
    return {"path": path, "hostPath": "/dev/null"}


def _lines(file: Path) -> list[str]:
    return file.read_text().splitlines() if file.exists() else []
