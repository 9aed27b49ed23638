"""Writes the measured numbers into README.md and docs/ from benchmarks/results/*.json.

    python docs/render.py              rewrites the marked parts of README.md and docs/**/*.md
    python docs/render.py --check      changes nothing; exit status 1 if a marked part differs from its result file
    python docs/render.py --families   measures families.json again (tests/families.py), then rewrites

These parts are marked:

    <!-- table: NAME; columns: a | b; rows: x | y -->    a table of NAME.json, and where it was measured
    <!-- /table -->
    <!-- n: NAME.key -->0.05<!-- /n -->                  one of the "numbers" of NAME.json
    <!-- n: NAME[row].column -->0.05<!-- /n -->          one cell of its table; [row] is the first column's value
    <!-- output: NAME -->                                code and what it printed, from NAME.json
    <!-- /output -->
    <!-- schema: neuronshield/run/sections.py Name -->   the fields of a result or of the settings, from the source of its dataclass
    <!-- /schema -->

A result file holds "title", "source" (commit, command, machine), and "numbers" or "columns" and "rows", or "code" and "output". A value
is a number, a list of numbers or a text; "format" is a Python format string over it. A missing value is shown as n/a.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TABLE = re.compile(r"<!-- table: ([^\n]*?) -->\n.*?<!-- /table -->", re.S)
NUMBER = re.compile(r"<!-- n: ([\w-]+)(?:\[([^\]\n]+)\])?\.(\w+) -->[^<]*<!-- /n -->")
SCHEMA = re.compile(r"<!-- schema: (\S+) (\w+) -->\n.*?<!-- /schema -->", re.S)
OUTPUT = re.compile(r"<!-- output: ([\w-]+) -->\n.*?<!-- /output -->", re.S)


def pages() -> list[Path]:
    """Every file that holds rendered parts."""
    return [ROOT / "README.md", ROOT / "benchmarks" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@cache
def result(name: str) -> dict[str, Any]:
    """A result file, read."""
    path = RESULTS / f"{name}.json"
    if not path.is_file():
        raise SystemExit(f"{path.relative_to(ROOT)}: no such result; see {RESULTS.relative_to(ROOT)}")
    return json.loads(path.read_text(encoding="utf-8"))


def shown(value: Any, form: str = "{}") -> str:
    """A value as text."""
    if value is None:
        return "n/a"
    if isinstance(value, str):
        return value
    return form.format(*value) if isinstance(value, list) else form.format(value)


def whole(value: Any, form: str) -> str:
    """A value as text that is not broken across lines."""
    return shown(value, form).replace(" ", "\u00a0") if isinstance(value, list) else shown(value, form)


def split(text: str) -> list[str]:
    return [part.strip() for part in text.split("|")]


def table(spec: str) -> str:
    """The Markdown table of a marker, and a line on where it was measured."""
    name, *options = (part.strip() for part in spec.split(";"))
    choice = {key.strip(): split(value) for key, value in (option.split(":", 1) for option in options)}
    data = result(name)
    columns = {c: data["columns"][c] for c in choice.get("columns", data["columns"])}
    first = next(iter(data["columns"]))
    rows = data["rows"]
    if "rows" in choice:
        by_name = {row[first]: row for row in rows}
        rows = [by_name[wanted] for wanted in choice["rows"]]
    lines = [[c["title"] for c in columns.values()], ["---"] * len(columns)]
    for row in rows:
        cells = ["" if row[c] is None else whole(row[c], about.get("format", "{}")) for c, about in columns.items()]
        if row.get("emphasis"):
            cells[0] = f"**{cells[0]}**"
        lines.append(cells)
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{body}\n\n{origin(data)}"


def origin(data: dict[str, Any]) -> str:
    """Where a result was measured, as a line of small print."""
    source = data["source"]
    settings = f" {source['settings'][:1].upper()}{source['settings'][1:]}." if "settings" in source else ""
    again = f" (repeated at {source['repeated']}, with the same result)" if "repeated" in source else ""
    return f"*{data['title']}.{settings} Commit {source['commit']}{again}, `{source['command']}`, {source['machine']}.*"


def number(name: str, row: str | None, key: str) -> str:
    """One number of a result file."""
    data = result(name)
    if row is None:
        found = data["numbers"][key]
        return shown(found["value"], found.get("format", "{}"))
    first = next(iter(data["columns"]))
    match = next(r for r in data["rows"] if r[first] == row)
    return shown(match[key], data["columns"][key].get("format", "{}"))


def output(name: str) -> str:
    """Code and what it printed."""
    data = result(name)
    return f"```{data['language']}\n{data['code']}\n```\n\n```text\n{data['output']}\n```"


def schema(path: str, name: str) -> str:
    """The fields of a dataclass with what JSON holds for each and what its docstring says."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    node = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == name)
    document = ast.get_docstring(node) or ""
    said: dict[str, str] = {}
    for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", document, re.M):
        said |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    fields = [n for n in node.body if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Name)]
    said |= {ast.unparse(f.target): text for f in fields if (text := option_text(f)) is not None}
    lines = [["key", "JSON", *(["meaning"] if said else [])]]
    lines.append(["---"] * len(lines[0]))
    for field in fields:
        key = ast.unparse(field.target)
        lines.append([f"`{key}`", json_type(field.annotation), *([said.get(key, "")] if said else [])])
    body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    return f"{document.splitlines()[0]}\n\n{body}"


def option_text(field: ast.AnnAssign) -> str | None:
    """The help text of a setting, which is the first argument of its `_option`."""
    call = field.value
    if not isinstance(call, ast.Call) or not call.args or not isinstance(call.args[0], ast.Constant):
        return None
    default = call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else None
    return f"{call.args[0].value}{'' if default in (None, False) else f' Default: {default}.'}"


def json_type(node: ast.expr) -> str:
    """What JSON holds for an annotation, in words."""
    plain = {"str": "text", "int": "number", "float": "number", "bool": "true or false", "None": "null", "Any": "any",
             "Interval": "[value, low, high]", "Spread": "[mean, low, high]", "NeuronSet": "{members: list of [layer, index], n_layers, d_mlp, provenance}"}  # fmt: skip
    if isinstance(node, ast.BinOp):
        return f"{json_type(node.left)} or {json_type(node.right)}"
    if isinstance(node, ast.Subscript):
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if ast.unparse(node.value) in ("dict", "Mapping"):
            return f"{{name: {json_type(inner[1])}}}"
        return f"list of {json_type(inner[0])}"
    return plain.get(ast.unparse(node), ast.unparse(node))


def rendered(text: str) -> str:
    """A page with every marked part written again."""
    text = TABLE.sub(lambda m: f"<!-- table: {m[1]} -->\n\n{table(m[1])}\n\n<!-- /table -->", text)
    text = SCHEMA.sub(lambda m: f"<!-- schema: {m[1]} {m[2]} -->\n\n{schema(m[1], m[2])}\n\n<!-- /schema -->", text)
    text = OUTPUT.sub(lambda m: f"<!-- output: {m[1]} -->\n\n{output(m[1])}\n\n<!-- /output -->", text)
    return NUMBER.sub(
        lambda m: f"{m[0][: m[0].index('-->') + 3]}{number(m[1], m[2], m[3])}<!-- /n -->",
        text,
    )


def measure_families() -> None:
    """Remake families.json from tests/families.py."""
    sys.path.insert(0, str(ROOT / "tests"))
    import families

    path = RESULTS / "families.json"
    data = result("families")
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    data["source"]["commit"] = commit.stdout.strip()
    data["columns"] = {name: {"title": name} for name in families.HEAD}
    data["rows"] = [dict(zip(families.HEAD, line)) for line in families.table()]
    head = json.dumps({k: v for k, v in data.items() if k != "rows"}, ensure_ascii=False, indent=1)[:-2]
    rows = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in data["rows"])
    path.write_text(f'{head},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--families", action="store_true")
    args = parser.parse_args()
    if args.families:
        measure_families()
        result.cache_clear()
    stale = []
    for path in pages():
        if not path.is_file():
            continue
        before = path.read_text(encoding="utf-8")
        after = rendered(before)
        if after != before:
            stale.append(str(path.relative_to(ROOT)))
            if not args.check:
                path.write_text(after, encoding="utf-8")
    if stale:
        print(f"{'differs from benchmarks/results' if args.check else 'written'}: {', '.join(stale)}")
    sys.exit(1 if args.check and stale else 0)


if __name__ == "__main__":
    main()
