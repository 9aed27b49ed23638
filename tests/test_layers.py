"""Imports inside the package go down only: no part imports one above it, and no two modules import each other."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import neuronshield

PACKAGE = Path(neuronshield.__file__).parent
#: From the bottom up. A module belongs to the longest name that it starts with.
ORDER = ["core", "data", "organism", "graft", "figures", "model", "find", "prove", "shield", "systems", "check", "explorer", "protocols", "run",
         "handoff", "organism.build", "organism.control_build", "graft.build", "cli", "__init__"]  # fmt: skip


def modules() -> Iterator[tuple[str, Path]]:
    """(dotted name below the package, file)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts), path


NAMES = dict(modules())


def imports(name: str, path: Path) -> Iterator[tuple[str, int]]:
    """Every module of the package that this one imports, lazily or for types only too, with its line."""
    inside = [] if path.name == "__init__.py" and name == "__init__" else name.split(".")
    here = inside if path.name == "__init__.py" else inside[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (
                (a.name.removeprefix("neuronshield."), node.lineno)
                for a in node.names
                if a.name.startswith("neuronshield.")
            )
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level == 0 and (node.module or "").split(".")[0] != "neuronshield":
            continue
        base = here[: len(here) - node.level + 1] if node.level else []
        owner = [*base, *((node.module or "").removeprefix("neuronshield").strip(".").split("."))]
        target = ".".join(part for part in owner if part)
        for alias in node.names:
            deeper = f"{target}.{alias.name}".strip(".")
            yield (deeper if deeper in NAMES else target or "__init__"), node.lineno


GRAPH = {name: sorted(set(imports(name, path))) for name, path in NAMES.items()}


def level(name: str) -> int:
    """Where a module stands."""
    return ORDER.index(max((o for o in ORDER if name == o or name.startswith(f"{o}.")), key=len))


@pytest.mark.parametrize("name", list(NAMES))
def test_a_module_imports_only_from_its_own_part_and_from_parts_below(name: str):
    upward = [f"{name}:{line} imports {target}" for target, line in GRAPH[name] if level(target) > level(name)]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle():
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name in done:
            return
        for target, _ in GRAPH[name]:
            if target != name and target in GRAPH:
                visit(target, (*trail, name))
        done.add(name)

    for name in GRAPH:
        visit(name, ())


def test_the_check_sees_lazy_and_type_only_imports():
    assert ("data.fetch", True) in {(t, line > 40) for t, line in GRAPH["model.checkpoint"]}  # inside a function


def test_every_module_is_reached_under_its_own_name():
    for info in pkgutil.walk_packages(neuronshield.__path__, "neuronshield."):
        assert inspect.ismodule(importlib.import_module(info.name)), info.name
