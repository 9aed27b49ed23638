"""The example of README.md, run: python benchmarks/example.py writes benchmarks/results/example.json (half a minute on two cores).

The code is the text below and nothing else; what it prints is kept beside it. `python docs/render.py` puts both into README.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from pathlib import Path

OUT = Path(__file__).parent / "results" / "example.json"

CODE = """\
import neuronshield as ns
from neuronshield import organism

model = ns.load("organism")  # or "smollm2", a hub id, a folder, a transformers model with processor=
prompts = ns.PromptSet.from_records(organism.records(languages=["en", "it", "sw"], max_pairs=32))
neurons = ns.contrast(ns.capture(model, prompts)).top(k=64)["en/text"]
proof = ns.verify(model, neurons, prompts, draws=50)
update = ns.masked_update(model, proof.verified, prompts.in_cells(["en/text", "it/text", "sw/text"]), steps=40, lr=0.02)
print(repr(proof), repr(update), sep="\\n")
before, after = ns.evaluate(model, prompts), ns.evaluate(update.model, prompts)
for cell in ("en/text", "sw/text", "sw/image"):
    print(f"{cell:8}  selectivity {before.cell(cell)['selectivity']} -> {after.cell(cell)['selectivity']}")"""


def printed(code: str) -> str:
    """What the code prints, without progress bars."""
    out = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        exec(code, {"__name__": "example"})
    return out.getvalue().rstrip()


def main() -> None:
    source = {"commit": "HEAD", "command": "python benchmarks/example.py", "machine": "2 CPU cores, no GPU"}
    data = {"title": "The example of README.md", "source": source, "code": CODE, "output": printed(CODE)}
    OUT.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(data["output"])


if __name__ == "__main__":
    main()
