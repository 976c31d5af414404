"""Reads from /proc, /sys and the disk what there is of NVIDIA: driver, libraries, toolkit, CDI specifications. Asks nobody.

`root` is the directory to look in as if it were /, so that the process root of dockerd, or a test's, can be looked at.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from appliance_agent.check_facts import CdiFile, DriverState, Program, Toolkit

CDI_DIRECTORIES: Final = ("/etc/cdi", "/var/run/cdi")
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NVIDIA = "0x10de"
_DISPLAY = "0x03"
_LIBRARY = "libnvidia-ml.so.1"
_LIBRARY_PLACES: Final = (
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/aarch64-linux-gnu",
    "usr/lib64",
    "usr/lib",
    "usr/lib/wsl/lib",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
)
_MODULE_VERSION = re.compile(r"Kernel Module(?: for \S+)?\s+(\d+(?:\.\d+)+)")
_CACHED_LIBRARY = re.compile(rb"(/[^\0]*/libnvidia-ml\.so\.1)\0")
_CDI_NAME = re.compile(r"""["']?\bname["']?\s*:\s*["']?([^"',}\s]+)""")
_CDI_DRIVER = re.compile(r"lib(?:cuda|nvidia-ml)\.so\.(\d+(?:\.\d+)+)")
_CDI_KIND = re.compile(r"""["']?\bkind["']?\s*:\s*["']?nvidia\.com/gpu\b""")
_CDI_MAX_BYTES: Final = 4 * 1024 * 1024


def driver_state(root: Path = Path("/"), *, release: str | None = None) -> DriverState:
    library = _library(root)
    modules = _text(root / "proc/modules")
    return DriverState(
        cards=_cards(root),
        module_version=_module_version(root),
        module_built=_module_built(root, release or os.uname().release),
        nouveau=any(line.startswith("nouveau ") for line in modules.splitlines()),
        library=str(library or ""),
        library_version=_library_version(library),
        uvm_node=(root / "dev/nvidia-uvm").exists(),
        persistenced=program("nvidia-persistenced", DEFAULT_PATH, root) is not None,
    )


def toolkit(root: Path = Path("/"), *, path: str = DEFAULT_PATH, cdi: Iterable[str] = ()) -> Toolkit:
    directories = tuple(cdi) or CDI_DIRECTORIES
    return Toolkit(
        ctk=program("nvidia-ctk", path, root),
        hook=program("nvidia-container-runtime-hook", path, root) or program("nvidia-container-toolkit", path, root),
        runtime=program("nvidia-container-runtime", path, root),
        cdi=tuple(_cdi_files(root, directories)),
        cdi_directories=directories,
    )


def program(name: str, path: str, root: Path = Path("/")) -> Program | None:
    for directory in path.split(":"):
        file = root / directory.lstrip("/") / name
        try:
            state = file.stat()
        except OSError:
            continue
        if directory.startswith("/") and state.st_mode & 0o111 and not file.is_dir():
            # Not the time of its content: a package carries that of the day when it was built.
            return Program(f"{directory.rstrip('/')}/{name}", state.st_ctime)
    return None


def _cards(root: Path) -> int:
    count = 0
    for device in _children(root / "sys/bus/pci/devices"):
        is_display = _text(device / "class").startswith(_DISPLAY)
        count += is_display and _text(device / "vendor").strip() == _NVIDIA
    return count


def _module_version(root: Path) -> str:
    match = _MODULE_VERSION.search(_text(root / "proc/driver/nvidia/version"))
    return match[1] if match else _text(root / "sys/module/nvidia/version").strip()


def _module_built(root: Path, release: str) -> bool | None:
    listing = _text(root / "lib/modules" / release / "modules.dep")
    return re.search(r"(^|/)nvidia(-current)?\.ko", listing, re.MULTILINE) is not None if listing else None


def _library(root: Path) -> Path | None:
    cached = _CACHED_LIBRARY.search(_bytes(root / "etc/ld.so.cache"))
    named = [root / os.fsdecode(cached[1]).lstrip("/")] if cached else []
    searched = [Path(place) for place in os.environ.get("LD_LIBRARY_PATH", "").split(":") if place]
    places = [
        *(place / _LIBRARY for place in searched),
        *named,
        *(root / place / _LIBRARY for place in _LIBRARY_PLACES),
    ]
    return next((place for place in places if place.exists()), None)


def _library_version(library: Path | None) -> str:
    version = library.resolve().name.removeprefix("libnvidia-ml.so.") if library else ""
    return version if "." in version else ""


def _cdi_files(root: Path, directories: Iterable[str]) -> Iterator[CdiFile]:
    for directory in directories:
        for file in _children(root / directory.lstrip("/")):
            if file.suffix in (".yaml", ".yml", ".json") and (found := _cdi_file(file, f"{directory}/{file.name}")):
                yield found


def _cdi_file(file: Path, shown: str) -> CdiFile | None:
    try:
        if file.stat().st_size > _CDI_MAX_BYTES:
            return CdiFile(shown, (), "", problem="is too large to be one")
        text = file.read_text(errors="replace")
    except PermissionError:
        return None  # an engine reads it as root, and we cannot say more
    except OSError as error:
        return CdiFile(shown, (), "", problem=f"cannot be read: {error.strerror}")
    if not _CDI_KIND.search(text):
        return None
    driver = _CDI_DRIVER.search(text)
    return CdiFile(shown, tuple(dict.fromkeys(_CDI_NAME.findall(text))), driver[1] if driver else "")


def _children(directory: Path) -> list[Path]:
    try:
        return sorted(directory.iterdir())
    except OSError:
        return []


def _text(file: Path) -> str:
    return _bytes(file).decode(errors="replace")


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
