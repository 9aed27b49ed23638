"""What the README tells a reader to type exists: its commands, options, names, columns and files."""

from __future__ import annotations

import ast
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

import neuronshield as ns
from neuronshield.cli import cli
from neuronshield.prove.verdict import RULE
from neuronshield.prove.verify import verify

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = [(kind, body.strip("\n")) for kind, body in BLOCK.findall(TEXT)]
PROSE = BLOCK.sub("", TEXT)
SPANS = [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", PROSE)]
PYTHON = [body for kind, body in BLOCKS if kind == "python"]


def section(title: str) -> str:
    """What stands under a heading, up to the next of its level."""
    return TEXT.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_no_placeholder_is_left():
    assert [line for line in TEXT.splitlines() if "@@" in line or "TODO" in line] == []


def test_the_package_index_shows_this_readme():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["readme"] == "README.md"
    assert TEXT.startswith(f"# {project['name']}\n")


# -- from a fresh clone ---------------------------------------------------------------------------------
def test_two_single_lines_set_up_and_run_and_set_up_and_test():
    commands = [body for kind, body in BLOCK.findall(section("Start")) if kind == "sh"]
    assert len(commands) == 2
    run, test = (c.strip("\n") for c in commands)
    for command in (run, test):
        assert "\n" not in command
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert run.endswith("&& .venv/bin/neuronshield run")
    assert test.endswith("&& .venv/bin/python -m pytest")


def test_what_the_two_lines_install_exists():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = set()
    for kind, body in BLOCK.findall(section("Start")):
        if kind == "sh":
            words = shlex.split(body)
            assert (ROOT / words[words.index("-c") + 1]).is_file()
            extras |= set(re.findall(r"\.\[(\w+)\]", body))
    assert extras == {"dev"}
    assert extras <= set(project["optional-dependencies"])
    assert any(requirement.startswith("pytest") for requirement in project["optional-dependencies"]["dev"])
    assert "neuronshield" in project["scripts"]
    wanted = re.search(r"Python (\d\.\d+) or later", section("Start"))
    assert wanted is not None
    assert project["requires-python"] == f">={wanted[1]}"


# -- commands -------------------------------------------------------------------------------------------
def typed() -> Iterator[list[str]]:
    """The words after `neuronshield` of every command in a shell block or in backticks; a|b|c is three commands."""
    lines = [part for kind, body in BLOCKS if kind == "sh" for part in re.split(r"&&|\n", body)]
    for line in [*lines, *SPANS]:
        words = shlex.split(line) if line.count("'") % 2 == 0 else line.split()
        if words and Path(words[0]).name == "neuronshield" and len(words) > 1:
            for i in range(max(w.count("|") + 1 for w in words)):
                yield [w.split("|")[min(i, w.count("|"))] for w in words[1:]]


COMMANDS = sorted({" ".join(words) for words in typed()})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_the_readme_names_parses(command: str):
    here: click.Command = cli
    words = command.split()
    context = None
    while isinstance(here, click.Group):
        name, words = words[0], words[1:]
        assert name in here.commands, f"no command {name!r}"
        here = here.commands[name]
        context = click.Context(here, parent=context, info_name=name)
    parsed = here.make_context(here.name, words)  # parses, does not run; a bad option or value raises
    assert "Usage:" in here.get_help(parsed)


def test_the_readme_names_every_command():
    names = {c.split()[0] for c in COMMANDS}
    assert names == set(cli.commands)
    group = cli.commands["organism"]
    assert isinstance(group, click.Group)
    assert {f"organism {name}" for name in group.commands} <= set(COMMANDS)
    fetchable = next(p.type for p in cli.commands["fetch"].params if p.name == "what")
    assert isinstance(fetchable, click.Choice)
    assert {f"fetch {what}" for what in fetchable.choices} <= set(COMMANDS)


# -- Python ---------------------------------------------------------------------------------------------
CODE = [*PYTHON, *(s for s in SPANS if s.startswith("ns."))]


@pytest.mark.parametrize("path", sorted({p for code in CODE for p in re.findall(r"\bns((?:\.[A-Za-z_]\w*)+)", code)}))
def test_every_name_of_the_package_in_the_readme_exists(path: str):
    first, *rest = path.strip(".").split(".")
    assert first in ns.__all__
    value = getattr(ns, first)
    for name in rest:
        value = getattr(value, name)


#: what the variables of the README's code hold
HOLDS = {"half": ns.Intervention, "model": ns.Model, "prompts": ns.PromptSet, "stats": ns.Stats, "scores": ns.Scores, "shared": ns.NeuronSet,
         "proof": ns.Proof, "update": ns.Update}  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "name"),
    sorted({m for code in [*PYTHON, *SPANS] for m in re.findall(rf"(?<![\w./])({'|'.join(HOLDS)})\.([a-z_]+)\b(?![/.])", code)}
           - {("prompts", "jsonl")}),  # a file
)  # fmt: skip
def test_every_attribute_in_the_readme_exists(variable: str, name: str):
    kind = HOLDS[variable]
    assert hasattr(kind, name) or name in getattr(kind, "__dataclass_fields__", {}) or name in kind.__annotations__


def calls() -> Iterator[tuple[str, Any, list[None], dict[str, None]]]:
    """Every call on the package or on one of those variables: its text, what is called, and its arguments."""
    for code in CODE:
        for node in ast.walk(ast.parse(code)):
            if not isinstance(node, ast.Call) or any(ast.unparse(a) == "..." for a in node.args):
                continue  # f(...) leaves the arguments to the reader
            owner, *names = ast.unparse(node.func).split(".")
            called: Any = ns if owner == "ns" else HOLDS.get(owner)
            if len(names) == 1 and owner in HOLDS and not inspect.ismethod(getattr(called, names[0], None)):
                called, itself = getattr(called, names[0], None), [None]
            else:
                itself = []
                for name in names:
                    called = getattr(called, name, None)
            if callable(called):
                keywords = {k.arg: None for k in node.keywords if k.arg}
                positional = [a for a in node.args if not isinstance(a, ast.Starred)]
                yield ast.unparse(node), called, itself + [None] * len(positional), keywords


CALLS = list(calls())


@pytest.mark.parametrize(("called", "positional", "keywords"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_every_call_in_the_readme_fits_its_signature(called: Any, positional: list[None], keywords: dict[str, None]):
    inspect.signature(called).bind(*positional, **keywords)


def test_the_options_named_in_comments_exist():
    assert {"k", "fraction", "per_layer"} <= set(inspect.signature(ns.Scores.top).parameters)
    for name in ("from_parquet", "from_records", "from_dataset"):
        assert name in TEXT
        assert hasattr(ns.PromptSet, name)


# -- prompts, files, numbers ----------------------------------------------------------------------------
def test_the_table_of_columns_is_the_columns_a_prompt_has():
    rows = re.findall(r"^\| (`.*?) \|", section("Your model, your prompts"), re.M)
    columns = [name for row in rows for name in re.findall(r"`(\w+)`", row) if not row.startswith("`neuronshield")]
    assert sorted(columns) == sorted(set(ns.Prompt.__dataclass_fields__) - {"extra"})


def linked() -> set[str]:
    """Relative links and pictures, and paths in backticks or commands that start in a folder of this repository."""
    links = re.findall(r"\]\(([^)\s]+)\)", PROSE) + re.findall(r"(?:src|href)=\"([^\"]+)\"", PROSE)
    found = {link.split("#")[0] for link in links if not re.match(r"[a-z]+:|#", link)}
    ours = "assets|benchmarks|neuronshield|notebooks|tests"
    for text in [*SPANS, *(body for kind, body in BLOCKS if kind == "sh")]:
        found |= set(re.findall(rf"(?<![\w./-])(?:{ours})/[\w./-]*\w", text))
    return found


@pytest.mark.parametrize("path", sorted(linked()))
def test_every_file_the_readme_points_to_exists(path: str):
    assert (ROOT / path).exists()
    assert (ROOT / path).resolve().is_relative_to(ROOT)


def test_every_heading_the_readme_links_to_exists():
    anchors = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", PROSE, re.M)}
    assert set(re.findall(r"\]\(#([^)]+)\)", PROSE)) <= anchors


def test_the_rule_in_the_readme_is_the_rule_in_the_code():
    told = " ".join(section("How a verdict is reached").split())
    assert f"at least {RULE['min_effect']:.0%} of the gap".replace("%", " %") in told
    assert f"must be at most {RULE['alpha']}" in told
    assert f"benign shift within {RULE['max_benign_shift']:.0%}".replace("%", " %") in told
    assert f"unchanged within {100 * RULE['max_utility_change']:.0f} points" in told
    assert f"by at least {RULE['material']:.0%} of what the strongest".replace("%", " %") in told
    assert f"{inspect.signature(verify).parameters['draws'].default} random sets" in told
