"""The examples of README.md and docs/models.md, run: python benchmarks/example.py (two minutes on one core).

Writes benchmarks/results/example.json and doctor.json. The code is the text below and nothing else; what it prints is kept beside it.
`python docs/render.py` puts both into the pages.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path

RESULTS = Path(__file__).parent / "results"

CODE = """\
import neuronshield as ns
from neuronshield.run.plan import read_prompts

model = ns.load("organism")  # or "smollm2", a hub id, a folder, a transformers model with processor=
prompts = read_prompts(model, None, seed=0)  # as `neuronshield run`; or ns.PromptSet.from_jsonl("prompts.jsonl")
neurons = ns.contrast(ns.capture(model, prompts)).top(k=64)["en/text"]
proof = ns.verify(model, neurons, prompts, draws=60)
update = ns.masked_update(model, proof.verified, prompts.in_cells(["en/text", "it/text", "sw/text"]), steps=40, lr=0.02)
print(repr(proof), repr(update), sep="\\n")
shown = prompts.in_cells(["en/text", "sw/text", "sw/image"])
before, after = ns.evaluate(model, shown), ns.evaluate(update.model, shown)
for cell in before.cells():
    print(f"{cell!s:8}  selectivity {before.cell(cell)['selectivity']} -> {after.cell(cell)['selectivity']}")"""


def printed(code: str) -> str:
    """What the code prints, without progress bars."""
    out = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        exec(code, {"__name__": "example"})
    return out.getvalue().rstrip()


def keep(name: str, title: str, **content: str) -> None:
    """Write a result file."""
    source = {"commit": "of this file", "command": "python benchmarks/example.py", "machine": "2 CPU cores, no GPU"}
    data = {"title": title, "source": source, **content}
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(content["output"])


def main() -> None:
    checks = printed("import neuronshield as ns\nprint(ns.doctor(ns.load('organism')))")
    keep("doctor", "The organism examined", language="sh", code="neuronshield doctor organism", output=checks)
    keep("example", "The example of README.md", language="python", code=CODE, output=printed(CODE))


if __name__ == "__main__":
    main()
