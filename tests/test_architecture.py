"""The arrows between packages, the one door to each neighbour, and what the deciding modules may not do. Read from the syntax."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "appliance_image": ROOT / "images" / "appliance_image",
    "appliance_builder": ROOT / "builder" / "appliance_builder",
    "appliance_agent": ROOT / "agent" / "appliance_agent",
}
# package -> what it may import of ours. A new arrow is a decision: write it into DESIGN.md.
ARROWS = {
    "appliance_image": {"appliance_image"},
    "appliance_builder": {"appliance_builder", "appliance_image"},
    "appliance_agent": {"appliance_agent", "appliance_image"},
}
# library -> the modules of the builder that talk to it
DOORS = {
    "httpx": {"http"},
    "httpcore": {"http", "sockets"},
    "docker": {"engine", "engine_client", "credentials"},
    "rich": {"bars"},
    "click": {"cli"},  # and cli_*.py, and what lies in commands/
}
DECIDING = {
    "appliance_image": ("contract", "digest", "labels", "layer", "oci", "reference"),
    "appliance_builder": (
        "assemble",
        "finished",
        "gotemplate",
        "hybrid",
        "journal",
        "memory",
        "model",
        "plan",
        "quirks",
        "recipes",
        "think",
    ),
    "appliance_agent": (
        "access_log",
        "amounts",
        "catalogue",
        "check_facts",
        "check_render",
        "complaints",
        "container_json",
        "daemon_json",
        "due",
        "engine_json",
        "finding",
        "findings",
        "flow",
        "generated",
        "gpu_choice",
        "gpu_facts",
        "gpu_meters",
        "http_answer",
        "injection",
        "metrics",
        "metrics_gpu",
        "nvml_pace",
        "own_lines",
        "pull_progress",
        "scrape_format",
        "slot_plan",
        "sparkline",
        "status",
        "status_columns",
        "status_json",
        "status_table",
        "status_view",
        "table_layout",
        "table_rows",
        "terminal_text",
        "token_trend",
        "trend_columns",
        "trends",
        "web_config",
        "yaml_tree",
    ),
}
DOING = {
    "asyncio", "fcntl", "getpass", "glob", "http", "io", "locale", "logging", "mmap", "multiprocessing", "os",
    "platform", "pty", "random", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver",
    "sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib.request", "uuid",
}  # fmt: skip
TOUCHING = {
    "chmod", "exists", "expanduser", "glob", "home", "is_dir", "is_file", "iterdir", "mkdir", "open", "read_bytes",
    "read_text", "rename", "resolve", "rglob", "rmdir", "stat", "touch", "unlink", "write_bytes", "write_text",
}  # fmt: skip
STATEFUL = {
    "Condition", "ContextVar", "Counter", "Event", "Lock", "RLock", "Semaphore", "bytearray", "count", "defaultdict",
    "deque", "dict", "list", "local", "set",
}  # fmt: skip
MUTATING = {
    "add", "append", "appendleft", "clear", "discard", "extend", "insert", "pop", "popitem", "popleft", "remove",
    "setdefault", "sort", "update",
}  # fmt: skip
MODULES = sorted(path for folder in PACKAGES.values() for path in folder.rglob("*.py"))
BUILDER = [path for path in MODULES if PACKAGES["appliance_builder"] in path.parents]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def imports(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in the file; `from a import b` gives `a` and `a.b`, which may be a module."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno}: a relative import"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def package_of(path: Path) -> str:
    return next(name for name, folder in PACKAGES.items() if folder in path.parents)


def file_of(module: str) -> Path | None:
    package, _, rest = module.partition(".")
    if package not in PACKAGES or not rest:
        return None
    path = PACKAGES[package].joinpath(*rest.split(".")).with_suffix(".py")
    return path if path.is_file() else None


@cache
def reached(path: Path) -> frozenset[Path]:
    """The module and all of ours that it imports, directly or not."""
    found, waiting = {path}, [path]
    while waiting:
        for module in imports(waiting.pop()):
            target = file_of(module)
            if target and target not in found:
                found.add(target)
                waiting.append(target)
    return frozenset(found)


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_packages_import_each_other_only_along_the_arrows(path: Path) -> None:
    ours = {module.partition(".")[0] for module in imports(path)} & set(PACKAGES)

    assert ours <= ARROWS[package_of(path)]


@pytest.mark.parametrize("path", [p for p in MODULES if package_of(p) == "appliance_image"], ids=named)
def test_the_image_contract_needs_nothing_but_the_standard_library(path: Path) -> None:
    top = {module.partition(".")[0] for module in imports(path)}

    assert top <= set(sys.stdlib_module_names) | {"appliance_image"}


def test_the_agent_speaks_to_the_docker_library_through_one_door() -> None:
    agents = [path for path in MODULES if package_of(path) == "appliance_agent"]
    through = [path.stem for path in agents if "docker" in {module.partition(".")[0] for module in imports(path)}]

    assert through == ["docker_door"]


@pytest.mark.parametrize("path", BUILDER, ids=named)
def test_a_library_is_spoken_to_through_one_door(path: Path) -> None:
    top = {module.partition(".")[0] for module in imports(path)}
    command_line = path.stem.startswith("cli_") or path.parent.name == "commands"
    through = {library for library in DOORS if path.stem in DOORS[library] or (library == "click" and command_line)}

    assert top & set(DOORS) <= through


@pytest.mark.parametrize(
    "path",
    [PACKAGES[package] / f"{name}.py" for package, names in DECIDING.items() for name in names],
    ids=named,
)
def test_a_module_that_decides_reaches_none_that_does(path: Path) -> None:
    wrong = [
        f"{named(module)} imports {name}"
        for module in sorted(reached(path))
        for name in imports(module)
        if name in DOING or name.partition(".")[0] in DOING | set(DOORS)
    ]

    assert wrong == []


@pytest.mark.parametrize(
    "path",
    [PACKAGES[package] / f"{name}.py" for package, names in DECIDING.items() for name in names],
    ids=named,
)
def test_a_module_that_decides_touches_no_file_and_prints_nothing(path: Path) -> None:
    calls = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    plain = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    methods = {call.func.attr for call in calls if isinstance(call.func, ast.Attribute)}

    assert not plain & {"open", "print", "input", "exec", "eval", "__import__"}
    assert not methods & TOUCHING


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_the_first_line_of_a_module_says_what_it_knows(path: Path) -> None:
    if path.name == "__init__.py":
        assert path.read_text() == ""  # no logic in packages
        return
    first = tree(path).body[0]

    assert ast.get_docstring(tree(path)), "no docstring"
    assert first.lineno == 1
    assert path.read_text().splitlines()[0].startswith('"""')
    assert path.read_text()[3] not in "\n\\"


def _assigned(path: Path) -> Iterator[tuple[str, ast.expr]]:
    for node in tree(path).body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            yield node.target.id, node.value


def _is_state(value: ast.expr) -> bool:
    """An empty container waits to be filled; a lock, a counter or a copy made by a call is there to change."""
    if isinstance(value, ast.List | ast.Set):
        return not value.elts
    if isinstance(value, ast.Dict):
        return not value.keys
    called = value.func if isinstance(value, ast.Call) else None
    name = called.attr if isinstance(called, ast.Attribute) else called.id if isinstance(called, ast.Name) else ""
    return name in STATEFUL


def _changed(path: Path) -> Iterator[str]:
    """Names whose contents are changed somewhere in the file."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Global):
            yield from node.names
        if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            yield from [node.value.id] if isinstance(node.value, ast.Name) else []
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            yield node.target.id
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATING:
            yield from [node.func.value.id] if isinstance(node.func.value, ast.Name) else []


@pytest.mark.parametrize("path", [p for p in MODULES if package_of(p) != "appliance_agent"], ids=named)
def test_no_module_keeps_state(path: Path) -> None:
    names = dict(_assigned(path))

    assert [name for name, value in names.items() if _is_state(value)] == []
    assert sorted(set(_changed(path)) & {name for name in names if name.lstrip("_").isupper()}) == []
    assert [node.lineno for node in ast.walk(tree(path)) if isinstance(node, ast.Global)] == []


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_importing_a_module_does_nothing(path: Path) -> None:
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
    told = [
        f"line {node.lineno}: {ast.unparse(node)[:60]}"
        for node in tree(path).body
        if not isinstance(node, allowed) and not _is_docstring(node) and not _is_main(node)
    ]

    assert told == []


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _is_main(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("__name__ == '__main__'", "TYPE_CHECKING")


def test_a_build_into_an_engine_loads_no_client_of_registries() -> None:
    """A quarter of a second before the first byte moves; `plan` and `push` load it when they first ask a server."""
    program = "import sys, appliance_builder.cli, appliance_builder.engine_sink; print(*sys.modules)"

    loaded = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.split()

    assert "docker" in loaded
    assert not {"httpx", "httpcore", "rich"} & set(loaded)
