"""Which files of this machine a program needs to run in an empty root: its libraries, and for Python its modules."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_LDD = re.compile(r"(?:^|=>)\s*(/\S+) \(0x")
_NO_SERVER_NEEDS = {
    *("test", "tests", "idlelib", "tkinter", "turtledemo", "lib2to3", "ensurepip", "distutils", "unittest"),
    *("site-packages", "dist-packages", "pydoc_data", "venv", "curses", "dbm", "sqlite3", "xmlrpc", "wsgiref"),
    *("__pycache__", "lib-dynload", "msilib"),
}
_NO_SERVER_NEEDS_MODULES = re.compile(
    r"^(_test|_ctypes_test|_xxtestfuzz|xx|_tkinter|_sqlite3|_dbm|_gdbm|_curses|readline)"
)
_ASK = """
import http.server, json, hashlib, os, socketserver, sys, sysconfig
print(json.dumps([os.path.realpath(sys.executable), sysconfig.get_path("stdlib"),
                  [p for p in sys.path if p.endswith("lib-dynload")]]))
"""


class HostFilesError(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Python:
    program: Path
    modules: Path
    extensions: Path | None


def shared_libraries(programs: Iterable[Path]) -> set[Path]:
    """What the loader maps for these programs and libraries, the loader itself included."""
    found: set[Path] = set()
    for program in programs:
        # A library that is not found by itself is found by the program that loads it, so only what is found counts.
        listing = subprocess.run(["ldd", str(program)], check=False, capture_output=True, text=True).stdout
        found |= {Path(match[1]) for line in listing.splitlines() if (match := _LDD.search(line))}
    return found


def host_python() -> Python:
    """The distribution's interpreter, or the one that runs the tests."""
    for program in ("/usr/bin/python3", getattr(sys, "_base_executable", sys.executable), shutil.which("python3")):
        answer = subprocess.run([str(program), "-I", "-c", _ASK], check=False, capture_output=True, text=True)
        if answer.returncode == 0:
            executable, modules, extensions = json.loads(answer.stdout)
            return Python(Path(executable), Path(modules), Path(extensions[0]) if extensions else None)
    raise HostFilesError("no Python with a standard library found: install python3")


def python_files(python: Python) -> set[Path]:
    found = {python.program}
    for top, folders, names in os.walk(python.modules):
        folders[:] = [name for name in folders if name not in _NO_SERVER_NEEDS and not name.startswith("config-")]
        found |= {Path(top, name) for name in names if name.endswith(".py") and Path(top, name).is_file()}
    if python.extensions:
        extensions = python.extensions.glob("*.so")
        found |= {path for path in extensions if not _NO_SERVER_NEEDS_MODULES.match(path.name)}
    return found
