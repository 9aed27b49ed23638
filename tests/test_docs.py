"""What README and docs tell a reader exists and is true: commands, names, calls, files, columns, the rule, and every number."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

import neuronshield as ns
from neuronshield.cli import cli
from neuronshield.prove.verdict import RULE
from neuronshield.prove.verify import verify

pytest_plugins = ["finished_runs"]

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in
         [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}  # fmt: skip
FILES = {**PAGES, **{name: (ROOT / name).read_text(encoding="utf-8") for name in
                     ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")}}  # fmt: skip
README = PAGES["README.md"]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
BLOCKS = [(kind, body.strip("\n")) for text in PAGES.values() for kind, body in BLOCK.findall(text)]
PYTHON = [body for kind, body in BLOCKS if kind == "python"]


def prose(text: str) -> str:
    """A page without its code blocks."""
    return BLOCK.sub("", text)


def spans(text: str) -> list[str]:
    """What stands in backticks."""
    return [span.replace("\\|", "|") for span in re.findall(r"`([^`\n]+)`", prose(text))]


SPANS = [span for text in PAGES.values() for span in spans(text)]


def section(title: str, text: str = README) -> str:
    """What stands under a heading, up to the next of its level."""
    return text.split(f"\n## {title}\n")[1].split("\n## ", maxsplit=1)[0]


def renderer() -> Any:
    """docs/render.py as a module."""
    spec = importlib.util.spec_from_file_location("render", DOCS / "render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


# -- the README -----------------------------------------------------------------------------------------
def test_the_readme_fits_nine_kilobytes():
    assert len(README.encode()) <= 9 * 1024


def test_no_placeholder_is_left():
    assert [line for text in FILES.values() for line in text.splitlines() if "@@" in line or "TODO" in line] == []


def test_the_package_index_shows_this_readme():
    assert project()["readme"] == "README.md"
    assert README.startswith(f"# {project()['name']}\n")


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
    extras = set()
    for kind, body in BLOCK.findall(section("Start")):
        if kind == "sh":
            words = shlex.split(body)
            assert (ROOT / words[words.index("-c") + 1]).is_file()
            extras |= set(re.findall(r"\.\[(\w+)\]", body))
    assert extras == {"dev"}
    assert extras <= set(project()["optional-dependencies"])
    assert any(requirement.startswith("pytest") for requirement in project()["optional-dependencies"]["dev"])
    assert "neuronshield" in project()["scripts"]
    wanted = re.search(r"Python (\d\.\d+) or later", section("Start"))
    assert wanted is not None
    assert project()["requires-python"] == f">={wanted[1]}"


def test_the_readme_says_what_a_stranger_must_know():
    for title in ("Start", "In Python", "What a result looks like", "Models", "Limitations", "Responsible use"):
        assert section(title).strip()
    assert len(re.findall(r"^- ", section("Limitations"), re.M)) == 5
    assert "CITATION.cff" in README


def test_the_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", FILES["CHANGELOG.md"], re.M)
    assert newest is not None
    assert citation["version"] == newest[1]
    assert citation["license"] == project()["license"]
    assert citation["repository-code"] in project()["urls"].values()


# -- commands -------------------------------------------------------------------------------------------
def typed() -> Iterator[list[str]]:
    """The words after `neuronshield` of every command in a shell block or in backticks; a|b|c is three commands."""
    lines = [part for kind, body in BLOCKS if kind == "sh" for part in re.split(r"&&|\n", body)]
    for line in (re.split(r"\s>+\s", line)[0] for line in [*lines, *SPANS]):
        words = shlex.split(line) if line.count("'") % 2 == 0 else line.split()
        if words and Path(words[0]).name == "neuronshield" and len(words) > 1:
            for i in range(max(w.count("|") + 1 for w in words)):
                yield [w.split("|")[min(i, w.count("|"))] for w in words[1:]]


COMMANDS = sorted({" ".join(words) for words in typed()})


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_the_docs_name_parses(command: str):
    here: click.Command = cli
    words = command.split()
    above = click.Context(cli, **cli.context_settings)  # click keeps the help option of the first context of a command
    while isinstance(here, click.Group):
        name, words = words[0], words[1:]
        assert name in here.commands, f"no command {name!r}"
        here = here.commands[name]
        if isinstance(here, click.Group):
            above = click.Context(here, parent=above, info_name=name)
    parsed = here.make_context(here.name, words, parent=above)  # parses, does not run; a bad option or value raises
    assert "Usage:" in here.get_help(parsed)


def test_the_docs_name_every_command():
    names = {c.split()[0] for c in COMMANDS}
    assert names == set(cli.commands)
    group = cli.commands["organism"]
    assert isinstance(group, click.Group)
    assert {f"organism {name}" for name in group.commands} <= set(COMMANDS)
    fetchable = next(p.type for p in cli.commands["fetch"].params if p.name == "what")
    assert isinstance(fetchable, click.Choice)
    assert {f"fetch {what}" for what in fetchable.choices} <= set(COMMANDS)


def test_the_page_of_commands_names_every_command():
    assert set(cli.commands) <= {s.split()[1] for s in spans(PAGES["docs/cli.md"]) if s.startswith("neuronshield ")}


# -- Python ---------------------------------------------------------------------------------------------
CODE = [*PYTHON, *(s for s in SPANS if s.startswith("ns."))]


@pytest.mark.parametrize("path", sorted({p for code in CODE for p in re.findall(r"\bns((?:\.[A-Za-z_]\w*)+)", code)}))
def test_every_name_of_the_package_in_the_docs_exists(path: str):
    first, *rest = path.strip(".").split(".")
    assert first in ns.__all__
    value = getattr(ns, first)
    for name in rest:
        value = getattr(value, name)


@pytest.mark.parametrize(
    "path", sorted({s for s in SPANS if re.fullmatch(r"neuronshield(\.\w+)+", s) and not s.endswith(".json")})
)
def test_every_module_the_docs_name_exists(path: str):
    value: Any = importlib.import_module("neuronshield")
    for name in path.split(".")[1:]:
        if not hasattr(value, name):
            importlib.import_module(f"{value.__name__}.{name}")  # a module; else an error that names it
        value = getattr(value, name)


#: what the variables of the code in README and docs hold
HOLDS = {"half": ns.Intervention, "model": ns.Model, "prompts": ns.PromptSet, "stats": ns.Stats, "scores": ns.Scores, "shared": ns.NeuronSet,
         "proof": ns.Proof, "update": ns.Update, "before": ns.Evaluation, "after": ns.Evaluation, "result": ns.Evaluation}  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "name"),
    sorted({m for code in [*PYTHON, *SPANS] for m in re.findall(rf"(?<![\w./])({'|'.join(HOLDS)})\.([a-z_]+)\b(?![/.])", code)}
           - {("prompts", "jsonl"), ("prompts", "parquet"), ("result", "json")}),  # files
)  # fmt: skip
def test_every_attribute_in_the_docs_exists(variable: str, name: str):
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


CALLS = list({text: (text, *rest) for text, *rest in calls()}.values())


@pytest.mark.parametrize(("called", "positional", "keywords"), [c[1:] for c in CALLS], ids=[c[0] for c in CALLS])
def test_every_call_in_the_docs_fits_its_signature(called: Any, positional: list[None], keywords: dict[str, None]):
    inspect.signature(called).bind(*positional, **keywords)


def test_the_options_named_in_the_guide_exist():
    guide = PAGES["docs/guide.md"]
    for name in ("k", "fraction", "per_layer", "param_fraction"):
        assert f"`{name}=`" in guide
        assert name in inspect.signature(ns.Scores.top).parameters
    for name in ("from_jsonl", "from_parquet", "from_records", "from_dataset"):
        assert name in guide
        assert hasattr(ns.PromptSet, name)
    kinds, positions = (
        set(re.findall(r'"(\w+)"', part)) for part in re.findall(r"(?:a kind|positions) \((.*?)\)", guide)
    )
    from neuronshield.model.intervention import KINDS, POSITIONS

    assert kinds == set(KINDS)
    assert positions == set(POSITIONS)


READ = "prompts = read_prompts(model, None, seed=0)"
#: A fifth of the training steps of the guide.
FEWER_STEPS = {
    "steps=40": "steps=8", '"steps": 40, "snapshots": (10, 20)': '"steps": 8, "snapshots": (2, 4)',
    "update.at(10), update.at(20)": "update.at(2), update.at(4)", "[0, 10, 20, 40]": "[0, 2, 4, 8]",
}  # fmt: skip
#: Put after the first line above, it leaves the cells that nothing there asks for.
CELLS = ".in_cells(['en/text', 'it/text', 'sw/text', 'fr/text'])"
#: The same for the example of the README.
SHOWN = ".in_cells(['en/text', 'it/text', 'sw/text', 'sw/image'])"


@pytest.mark.slow
def test_the_guide_runs_from_top_to_bottom(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Every Python block of the guide in order, on fewer prompts of the organism, with fewer control sets and training steps."""
    from neuronshield.run import own_prompts

    whole = own_prompts.own_records
    monkeypatch.setattr(own_prompts, "own_records", lambda name, **how: whole(name, **{**how, "modalities": ["text"]}))
    monkeypatch.chdir(tmp_path)
    code = "\n".join(body for kind, body in BLOCK.findall(PAGES["docs/guide.md"]) if kind == "python")
    for told, less in {"draws=200": "draws=19", READ: READ + CELLS, **FEWER_STEPS}.items():
        assert told in code
        code = code.replace(told, less)
    exec(compile(code, "docs/guide.md", "exec"), {"__name__": "guide"})
    assert (tmp_path / "adapter" / "adapter_config.json").is_file()


@pytest.mark.slow
def test_the_example_of_the_readme_prints_what_it_says(monkeypatch: pytest.MonkeyPatch):
    """Lines and words are the same; numbers differ, as there are fewer control sets and prompts here."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    example = importlib.import_module("example")
    told = renderer().result("example")
    assert told["code"] == example.CODE
    numbers = re.compile(r"[-+]?\d+(?:\.\d+)?")
    code = re.sub(r"draws=\d+", "draws=19", example.CODE).replace(READ, READ + SHOWN).replace("steps=40", "steps=8")
    assert (code.count("draws=19"), code.count(SHOWN)) == (1, 1)
    assert numbers.sub("#", example.printed(code)) == numbers.sub("#", told["output"])


# -- prompts, files, anchors ----------------------------------------------------------------------------
def test_the_table_of_columns_is_the_columns_a_prompt_has():
    table = PAGES["docs/prompts.md"].split("| column | content |")[1].split("\n\n")[0]
    columns = [name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)]
    assert sorted(columns) == sorted(set(ns.Prompt.__dataclass_fields__) - {"extra"})


def linked(page: str) -> set[str]:
    """Relative links and pictures, and paths in backticks or commands that start in a folder of this repository."""
    text = FILES[page]
    folder = (ROOT / page).parent
    links = re.findall(r"\]\(([^)\s]+)\)", prose(text)) + re.findall(r"(?:src|href|srcset)=\"([^\"]+)\"", prose(text))
    found = set()
    for link in links:
        if not re.match(r"[a-z]+:|#", link):
            path = (folder / link.split("#")[0]).resolve()
            notebook = ROOT / "notebooks" / f"{path.stem}.ipynb"
            picture = ROOT / "assets" / path.name
            if path.parent == DOCS / "notebooks" and notebook.exists():
                continue  # a page made from the notebook
            if path.parent == DOCS / "assets" and picture.exists():
                continue  # a picture that the build copies
            found.add(str(path.resolve().relative_to(ROOT)))
    ours = "assets|benchmarks|docs|neuronshield|notebooks|tests"
    code = [body for kind, body in BLOCK.findall(text) if kind == "sh"]
    for words in [*spans(text), *code]:
        found |= {p for p in re.findall(rf"(?<![\w./-])(?:{ours})/[\w./-]*\w", words) if "*" not in words}
    return found - {"neuronshield/NAME", "neuronshield/cells", "neuronshield/mine"}  # a model and a task of inspect_ai


@pytest.mark.parametrize(("page", "path"), sorted((page, path) for page in FILES for path in linked(page)))
def test_every_file_the_docs_point_to_exists(page: str, path: str):
    assert (ROOT / path).exists()
    assert (ROOT / path).resolve().is_relative_to(ROOT)


def anchors(text: str) -> set[str]:
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.+)$", prose(text), re.M)}


def test_every_heading_the_docs_link_to_exists():
    for page, text in FILES.items():
        for link in re.findall(r"\]\(([^)\s]*#[^)\s]+)\)", prose(text)):
            target, anchor = link.split("#")
            if re.match(r"[a-z]+:", target) or target.endswith(".png"):
                continue
            path = (ROOT / page).parent / target if target else ROOT / page
            assert anchor in anchors(path.read_text(encoding="utf-8")), f"{page}: {link}"


def nav(entries: list[Any]) -> Iterator[str]:
    """The pages of the navigation."""
    for entry in entries:
        for target in entry.values() if isinstance(entry, dict) else [entry]:
            yield from nav(target) if isinstance(target, list) else [target]


def test_the_navigation_names_every_page_and_only_pages_that_exist():
    named = list(nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert len(named) == len(set(named))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    notebooks = {f"notebooks/{path.stem}.md" for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert set(named) == pages | notebooks


def test_the_front_page_of_the_reference_names_every_public_name():
    assert set(re.findall(r"`ns\.(\w+)`", PAGES["docs/api/index.md"])) == set(ns.__all__)


def test_the_reference_has_every_public_name():
    """The home of each public name, and of each public name of a public submodule, is on a page of the reference."""
    text = "\n".join(body for page, body in PAGES.items() if page.startswith("docs/api/"))
    shown = set(re.findall(r"^::: (\S+)", text, re.M))
    missing = set()
    for name in ns.__all__:
        value = getattr(ns, name)
        home = value.__name__ if inspect.ismodule(value) else getattr(value, "__module__", None)
        if home is not None and name != "__version__" and home not in shown:
            missing.add(home)
    assert missing == set()
    for module in shown:
        importlib.import_module(module)


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path: Path):
    pytest.importorskip("mkdocstrings")
    from mkdocs.commands.build import build
    from mkdocs.config import load_config

    build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(tmp_path), strict=True))
    text = "".join(p.read_text(encoding="utf-8") for p in tmp_path.rglob("*.html"))
    assert (
        re.findall(r"""<(?:script|link|img|iframe)[^>]+(?:src|href)=["']https?://(?!github\.com)[^"']+""", text) == []
    )


def test_the_page_on_results_json_has_every_key(finished: Path):
    page = PAGES["docs/results-json.md"]
    table = page.split("| key | holds |")[1].split("\n\n")[0]
    keys = {name for row in re.findall(r"^\| (`.*?) \|", table, re.M) for name in re.findall(r"`(\w+)`", row)}
    written = set(json.loads((finished / "results.json").read_text(encoding="utf-8")))
    assert keys == written


def test_every_section_of_results_json_is_described():
    from neuronshield.run import sections

    shown = set(re.findall(r"<!-- schema: \S+ (\w+) -->", PAGES["docs/results-json.md"]))
    assert {n for n in sections.__all__ if n.endswith(("Section", "Summary"))} <= shown


# -- numbers and the rule -------------------------------------------------------------------------------
RENDER = renderer()


@pytest.mark.parametrize("page", [str(p.relative_to(ROOT)) for p in RENDER.pages()])
def test_every_rendered_number_is_the_measured_one(page: str):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert RENDER.rendered(text) == text


def test_a_changed_result_is_noticed(monkeypatch: pytest.MonkeyPatch):
    data = RENDER.result("organism-shield")
    row = {**data["rows"][1], "refusal": [0.99, 0.98, 1.0]}
    monkeypatch.setattr(RENDER, "result", lambda _: {**data, "rows": [data["rows"][0], row, *data["rows"][2:]]})
    page = PAGES["docs/results/organism.md"]
    marked = page[page.index("<!-- table: organism-shield -->") :].split("<!-- /table -->")[0] + "<!-- /table -->"
    assert RENDER.rendered(marked) != marked


def test_every_result_says_where_it_was_measured_and_is_shown():
    text = "\n".join((ROOT / p.relative_to(ROOT)).read_text(encoding="utf-8") for p in RENDER.pages())
    shown = set(re.findall(r"<!-- (?:table|output): ([\w-]+)", text)) | set(re.findall(r"<!-- n: ([\w-]+)", text))
    results = {path.stem for path in RENDER.RESULTS.glob("*.json")}
    assert shown == results
    for name in results:
        source = RENDER.result(name)["source"]
        assert {"commit", "command", "machine"} <= set(source)


#: decimals in the text that are definitions or sizes, not measurements
TYPED = {"0.05", "0.10", "0.5", "3.6"}


@pytest.mark.parametrize("page", sorted(PAGES))
def test_no_measured_number_is_typed_by_hand(page: str):
    text = re.sub(r"<!-- (table|output|schema): .*?<!-- /\1 -->|<!-- n: .*?<!-- /n -->", "", PAGES[page], flags=re.S)
    text = re.sub(r"`[^`\n]+`|\]\([^)]*\)", "", prose(text))
    names = re.sub(r"(LLaVA|Qwen\d?|Llama|Apache|Python|Phi|version)[- ]\d(\.\d+)*", "", text)
    assert set(re.findall(r"\d+\.\d+", names)) <= TYPED


def test_the_rule_in_the_docs_is_the_rule_in_the_code():
    told = " ".join(section("Prove", PAGES["docs/method.md"]).split())
    assert f"at least {RULE.min_effect:.0%} of the clean logit difference".replace("%", " %") in told
    assert f"p must be at most {RULE.alpha}" in told
    assert f"benign shift is within {RULE.max_benign_shift:.0%}".replace("%", " %") in told
    assert f"unchanged within {100 * RULE.max_utility_change:.0f} points" in told
    assert f"by at least {RULE.material:.0%} of what the strongest".replace("%", " %") in told
    assert f"by at least {100 * RULE.material * RULE.min_effect:g} % of the clean logit difference" in told
    draws = inspect.signature(verify).parameters["draws"].default
    assert f"{draws} sets of each by default" in told
    reached = max(n for n in range(draws) if (1 + n) / (1 + draws) <= RULE.alpha)
    assert f"at most {reached} of {draws} sets of a kind may reach the effect" in told
    assert f"exceeds the share of benign ones by at least {RULE.min_refusal:.2f}" in told


# -- words ----------------------------------------------------------------------------------------------
#: words that the glossary of docs/design.md replaced, and the file parts in which they are names of the contract
RETIRED = {
    r"\btwins?\b": "matched pair",
    r"\bshares? of the gap\b": "normalised effect",
    r"\bthe gap\b": "clean logit difference",
    r"\bstands? in for\b|\bstand-ins?\b": "self-repair, backup neurons",
    r"\bdose curves?\b": "dose-response curve",
    r"\bopposing\b|\bopposers?\b": "anti-refusal neuron",
    r"\bcontrols? that could have won\b|\bcould have won\b": "matched control sets",
    r"\brivals?\b": "baselines",
    r"\bbought\b|\bwhat it cost\b|\bit buys\b": "change in safety, over-refusal and utility",
    r"\bby address\b": "by index order",
    r"\bsomeone who knows\b": "white-box attack",
    r"\b(refusal|compliance) openings?\b": "refusal prefixes",
    r"\bfloor and ceiling\b|\bits floor\b|\bits ceiling\b": "benign null, split-half reliability",
    r"\bknows of (some of )?the harm\b": "is active on harmful prompts",
}


def strings(path: Path) -> str:
    """Docstrings, messages and comments of a module."""
    text = path.read_text(encoding="utf-8")
    literals = [n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
    return "\n".join([*literals, *re.findall(r"#(.*)$", text, re.M)])


def notebook(path: Path) -> str:
    import json

    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text(encoding="utf-8"))["cells"])


WRITTEN = {
    **{page: text for page, text in FILES.items() if page != "CHANGELOG.md"},  # which says what a name was before
    **{str(p.relative_to(ROOT)): strings(p) for p in sorted((ROOT / "neuronshield").rglob("*.py"))},
    **{str(p.relative_to(ROOT)): strings(p) for p in sorted((ROOT / "benchmarks").glob("*.py"))},
    **{str(p.relative_to(ROOT)): notebook(p) for p in sorted((ROOT / "notebooks").glob("*.ipynb"))},
}


@pytest.mark.parametrize("where", sorted(WRITTEN))
def test_retired_words_are_not_used(where: str):
    found = {word: say for word, say in RETIRED.items() if re.search(word, WRITTEN[where], re.I)}
    assert found == {}


def test_the_check_of_words_finds_them():
    old = "Its floor and ceiling; the benign twin; a share of the gap; controls that could have won; it buys nothing."
    assert sum(bool(re.search(word, old, re.I)) for word in RETIRED) == 6
