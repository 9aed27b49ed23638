"""Does lm-eval read a merged shield as `ns.generate` does? On the organism: python benchmarks/lm_eval_task.py (some minutes on one core).

Two local tasks of lm-eval are written, one with text and one with pictures. A document is a "test" prompt of the organism, and its
target is what `ns.generate` answers with the shielded model. `lm_eval run --model hf-multimodal` is started on the merged folder and on the base model:
exact match is 1 if it gives the answers that are given here.

Writes benchmarks/results/lm-eval.json. Needs `pip install lm_eval`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image, Sequence as ListOf, Value  # isort: skip
from result_files import one_thread, write_result
from served import CELLS, TOKENS, shield

import neuronshield as ns
from neuronshield import organism

TASKS = {
    "requests": [c for c in CELLS if c.endswith("/text")],
    "pictures": [c for c in CELLS if not c.endswith("/text")],
}
YAML = """\
task: neuronshield_{name}
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {name}.parquet
test_split: test
output_type: generate_until
doc_to_text: "{text}"
doc_to_target: answer
{more}generation_kwargs:
  until: ["</s>"]
  do_sample: false
  max_gen_toks: {tokens}
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""


def write_tasks(folder: Path, model: ns.Model, prompts: ns.PromptSet) -> dict[str, int]:
    """How many documents each task has; its YAML and its documents are in the folder."""
    counts = {}
    for name, cells in TASKS.items():
        rows = list(prompts.for_step("test").in_cells(cells))
        answers = ns.generate(model, rows, max_new_tokens=TOKENS)
        pictured = name == "pictures"
        documents: dict[str, Any] = {"prompt": [p.prompt for p in rows], "answer": answers}
        features: dict[str, Any] = {"prompt": Value("string"), "answer": Value("string")}
        if pictured:
            documents["images"], features["images"] = [list(p.images) for p in rows], ListOf(Image())
        Dataset.from_dict(documents, features=Features(features)).to_parquet(folder / f"{name}.parquet")
        words = ("<image>" if pictured else "") + "{{prompt}}"
        more = "doc_to_image: images\n" if pictured else ""
        (folder / f"{name}.yaml").write_text(
            YAML.format(name=name, text=words, more=more, tokens=TOKENS), encoding="utf-8"
        )
        counts[name] = len(rows)
    return counts


def measured(model: Path, tasks: Path, name: str) -> float:
    """Exact match of a task, as lm-eval reports it. One run a task: it takes no text and pictures in the same run."""
    out = tasks / f"out-{model.name}-{name}"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf-multimodal",
               "--model_args", f"pretrained={model},dtype=float32", "--include_path", str(tasks), "--tasks", f"neuronshield_{name}",
               "--apply_chat_template", "--device", "cpu", "--batch_size", "4", "--output_path", str(out)]  # fmt: skip
    settings = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(tasks / "cache")}
    subprocess.run(command, check=True, cwd=tasks, env={**os.environ, **settings})
    (file,) = out.rglob("results_*.json")
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    return float(results[f"neuronshield_{name}"]["exact_match,none"])


def main() -> None:
    one_thread()
    warnings.simplefilter("ignore")
    update, prompts = shield()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        counts = write_tasks(folder, update.model, prompts)
        merged = update.save_merged(folder / "merged")
        rows = [
            {"model": name, **{task: measured(path, folder, task) for task in TASKS}}
            for name, path in (("merged shield", merged), ("base model", organism.folder()))
        ]
    columns: dict[str, tuple[str, str | None]] = {"model": ("lm-eval on the", None)}
    columns |= {name: (f"exact match, {name} ({counts[name]})", "{:.2f}") for name in TASKS}
    write_result(
        "lm-eval", "Answers of lm-eval (hf-multimodal) that equal those of `ns.generate` with the shielded model",
        columns=columns, rows=rows, settings=f"test prompts of {', '.join(CELLS)}; greedy, at most {TOKENS} tokens",
    )  # fmt: skip


if __name__ == "__main__":
    main()
