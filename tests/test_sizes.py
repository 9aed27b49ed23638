"""The house stays readable: sizes of modules, functions and calls."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import neuronshield

PACKAGE = Path(neuronshield.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
#: Tables of words, long because there are many.
TABLES = {"organism/lexicon.py"}
OWN = {
    node.name for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))
}


def test_a_module_has_at_most_400_lines():
    long = {
        str(path.relative_to(PACKAGE)): n
        for path in FILES
        if (n := len(path.read_text(encoding="utf-8").splitlines())) > 400
    }
    assert {name: n for name, n in long.items() if name not in TABLES} == {}


def test_a_function_has_at_most_60_lines_beside_its_docstring():
    long = {}
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                lines = (node.end_lineno or 0) - first.lineno + 1
                if lines > 60:
                    long[f"{path.relative_to(PACKAGE)}:{node.lineno} {node.name}"] = lines
    assert long == {}


def crowded() -> Iterator[str]:
    """Calls of the package's own functions and classes with more than three positional arguments."""
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and len(node.args) > 3:
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                if name in OWN and not any(isinstance(a, ast.Starred) for a in node.args):
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno} {name} with {len(node.args)}"


def test_a_call_has_at_most_three_positional_arguments():
    assert list(crowded()) == []
