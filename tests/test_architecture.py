"""Imports run one way, from the command line down to the errors, and no files import each other in a circle."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "xdoge"

ROOMS = (
    "_version",
    "errors",
    "_callable",
    "names",
    "io",
    "progress",
    "config",
    "distributed",
    "mixtures",
    "sampling",
    "export",
    "corpus",
    "models",
    "training",
    "fit",
    "laws",
    "baselines",
    "train",
    "eval",
    "analysis",
    "study",
    "cli",
    "__main__",
)
"""From the bottom to the top. A file imports from rooms further left and from its own, never from the right."""


def module_of(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(file: Path, modules: set[str]) -> set[str]:
    """Return the modules of the package that a file imports anywhere: in functions and for type checking too."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.partition(".")[0] == PACKAGE.name}
        elif isinstance(node, ast.ImportFrom) and node.level:
            pytest.fail(f"{file}:{node.lineno}: import by the full name, so that the direction can be read")
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] == PACKAGE.name:
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= below & modules or {node.module}
    return names


@pytest.fixture(scope="module")
def imports() -> dict[str, set[str]]:
    files = {module_of(file): file for file in PACKAGE.rglob("*.py")}
    return {module: imported(file, set(files)) - {module} for module, file in files.items()}


def room(module: str) -> str:
    return module.split(".")[1]


def test_no_import_runs_upwards(imports):
    upwards = [
        f"{module} imports {target}"
        for module, targets in imports.items()
        for target in targets
        if module != PACKAGE.name and (target == PACKAGE.name or ROOMS.index(room(target)) > ROOMS.index(room(module)))
    ]
    assert upwards == []


def test_no_files_import_each_other_in_a_circle(imports):
    try:
        list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_is_in_the_list(imports):
    assert {room(module) for module in imports if module != PACKAGE.name} <= set(ROOMS)


def test_no_file_name_is_used_in_three_rooms(imports):
    rooms: dict[str, set[str]] = {}
    for module in imports:
        if module.count(".") > 1:
            rooms.setdefault(module.rpartition(".")[2], set()).add(room(module))
    assert {name: places for name, places in rooms.items() if len(places) > 2} == {}
