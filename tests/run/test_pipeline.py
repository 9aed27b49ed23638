"""The command line, from outside: what it leaves behind, what it says of bad input, and how it stops."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

import neuronshield as ns
from neuronshield import organism
from neuronshield.model.answers import examples
from neuronshield.run.pipeline import run

OFFLINE = {**os.environ, "HF_HUB_OFFLINE": "1"}


def cli(*args: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "neuronshield.cli", *args]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, env=OFFLINE)


def small_grid(folder: Path) -> Path:
    """A quick job: two languages and two modalities of the organism's own prompts, as a user's file."""
    rows = organism.records(languages=["en", "sw"], modalities=["text", "image"], max_pairs=6)
    (folder / "images").mkdir(parents=True)
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for row in rows:
            names = []
            for image in row.pop("images"):
                names.append(f"images/{row['id']}.png")
                image.save(folder / names[-1])
            file.write(json.dumps({**row, "images": names}, ensure_ascii=False) + "\n")
    return folder / "prompts.jsonl"


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("run")
    prompts = small_grid(folder / "data")
    return folder, cli("run", "--prompts", str(prompts), "--out", str(folder / "out"), "--quiet")


@pytest.mark.slow
def test_run_leaves_what_it_promises_and_nothing_else(done: tuple[Path, subprocess.CompletedProcess[str]]):
    folder, process = done
    assert process.returncode == 0, process.stderr
    assert sorted(p.name for p in folder.iterdir()) == ["data", "out"]
    out = folder / "out"
    left = sorted(p.name for p in out.iterdir())
    assert left == ["adapter", "controls", "curves", "neurons", "report.html", "results.json"]
    assert (out / "adapter" / "adapter_model.safetensors").is_file()
    for file in (out / "neurons").glob("*.safetensors"):
        ns.NeuronSet.load(file)
    assert "report.html" in process.stdout
    said = process.stderr.splitlines()  # of six requests a cell, most claims cannot be told; --quiet leaves warnings
    assert all(line.startswith("neuronshield: ") and line.endswith("too few") for line in said), process.stderr


@pytest.mark.slow
def test_results_hold_every_step_every_condition_and_every_cell(done: tuple[Path, subprocess.CompletedProcess[str]]):
    r: dict[str, Any] = json.loads((done[0] / "out" / "results.json").read_text(encoding="utf-8"))
    assert r["format"] == "neuronshield.results/5"
    assert {"find", "prove", "shield", "check"} <= set(r)
    cells = {"en/text", "en/image", "sw/text", "sw/image"}
    assert set(r["prompts"]["cells"]) == cells
    conditions = r["check"]["cells"]
    assert {"no update", "shield", "plain LoRA", "random mask 1"} <= set(conditions)
    assert all(set(c) == cells for c in conditions.values())
    found = r["check"]["matched"]["over random masks"]
    assert r["check"]["beats_random_mask"] == (found["difference"][1] > 0)
    assert (found["n"], found["over"]) == (3, "requests and masks")
    trained = ["shield", "random mask 1", "random mask 2", "random mask 3", "plain LoRA"]
    steps = {c: [p["steps"] for p in curve] for c, curve in r["check"]["curves"].items()}
    assert steps == {c: [0, 10, 20, 40] for c in trained}
    # every benign prompt of the organism has a target: the KL term acts on nothing
    assert (r["shield"]["retention"], r["shield"]["prompts"]["held"]) == (None, 0)
    assert r["shield"]["prompts"]["targets"] > 0


@pytest.mark.slow
def test_the_adapter_loads_with_plain_peft_and_answers_as_the_update_did(
    done: tuple[Path, subprocess.CompletedProcess[str]], organism_model: ns.Model
):
    import copy

    from peft import PeftModel

    out = done[0] / "out"
    prompts = ns.PromptSet.from_jsonl(done[0] / "data" / "prompts.jsonl")
    wrapped = PeftModel.from_pretrained(copy.deepcopy(organism_model.module), out / "adapter").merge_and_unload()
    model = ns.load(wrapped, processor=organism_model.processor)
    mine = ns.evaluate(
        model, prompts, refusals=organism.REFUSALS, compliances=organism.COMPLIANCES, progress=False, max_new_tokens=20
    )
    said = json.loads((out / "results.json").read_text(encoding="utf-8"))["check"]["cells"]["shield"]
    for cell in mine.cells():
        assert mine.cell(cell)["refusal"].value == pytest.approx(said[str(cell)]["refusal"][0], abs=0.17)


@pytest.mark.slow
def test_steps_run_one_by_one_on_the_same_folder_say_what_they_need_first(
    done: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
):
    prompts = str(done[0] / "data" / "prompts.jsonl")
    early = cli("check", "--prompts", prompts, "--out", str(tmp_path / "o"))
    assert early.returncode == 2
    assert "run 'neuronshield shield' first" in early.stderr
    found = cli("find", "--prompts", prompts, "--out", str(tmp_path / "o"), "--quiet")
    assert found.returncode == 0, found.stderr
    assert json.loads((tmp_path / "o" / "results.json").read_text(encoding="utf-8"))["find"]["n_neurons"] == 64


# -- bad input ------------------------------------------------------------------------------------------
GOOD = [
    {"id": f"{label}{i}", "prompt": f"{label} {i}", "label": label, "language": "en"}
    for label in ("harmful", "benign")
    for i in range(8)
]


def lines(*rows: Any) -> bytes:
    return "\n".join(json.dumps(r) for r in rows).encode()


def with_image(name: str) -> bytes:
    return lines(*GOOD[:3], {**GOOD[3], "images": [name]}, *GOOD[4:])


BAD = {
    "not JSON": (lines(*GOOD[:2]) + b"\n{nope\n", "prompts.jsonl:3"),
    "empty": (b"", "empty"),
    "missing label": (lines(*GOOD[:2], {"id": "x", "prompt": "y"}), "prompts.jsonl:3"),
    "unknown label": (lines(*GOOD[:2], {**GOOD[2], "label": "evil"}), "prompts.jsonl:3"),
    "image outside": (with_image("../secret.png"), "prompts.jsonl:4"),
    "image missing": (with_image("gone.png"), "prompts.jsonl:4"),
    "not an image": (with_image("prompts.jsonl"), "prompts.jsonl:4"),
    "enormous image": (with_image("huge.png"), "prompts.jsonl:4"),
    "one label": (lines(*GOOD[:8]), "benign"),
    "duplicate id": (lines(*GOOD, GOOD[0]), "prompts.jsonl:17"),
    "not UTF-8": (lines(*GOOD) + b"\n\xff\xfe", "UTF-8"),
}


def one_clear_line(process: subprocess.CompletedProcess[str], said: str) -> None:
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("neuronshield: ")
    assert process.stderr.count("\n") == 1
    assert said in process.stderr
    assert "Traceback" not in process.stderr + process.stdout


@pytest.mark.parametrize("kind", [k if k == "missing label" else pytest.param(k, marks=pytest.mark.slow) for k in BAD])
def test_a_bad_prompt_file_is_one_line_and_leaves_nothing(kind: str, tmp_path: Path):
    content, said = BAD[kind]
    data = tmp_path / "data"
    data.mkdir()
    (data / "prompts.jsonl").write_bytes(content)
    (tmp_path / "secret.png").write_bytes(b"x")
    Image.new("1", (20_000, 20_000)).save(data / "huge.png")
    process = cli("run", "--prompts", "data/prompts.jsonl", "--out", "out", cwd=tmp_path)
    one_clear_line(process, said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "secret.png"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--prompts", "gone.jsonl"], "gone.jsonl"),
        (["--model", "nobody/nothing", "--prompts", "good.jsonl"], "nobody/nothing"),
        (["--model", "bert", "--prompts", "good.jsonl"], "reads in both directions"),
        (["--model", "smollm2"], "--prompts is needed"),
        (["--out", "good.jsonl"], "is a file"),
        (["--out", "bert"], "choose another folder"),
        (["--out", "/proc/nowhere"], "cannot be written"),
        (["--seed", "x"], "not a valid integer"),
    ],
)
def test_a_bad_argument_is_one_line_and_leaves_nothing(args: list[str], said: str, tmp_path: Path):
    from transformers import BertConfig, BertModel

    (tmp_path / "good.jsonl").write_bytes(lines(*GOOD))
    bert = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, vocab_size=9)
    BertModel(bert).save_pretrained(tmp_path / "bert")
    before = sorted(p.name for p in tmp_path.rglob("*"))
    one_clear_line(cli("run", *args, cwd=tmp_path), said)
    assert sorted(p.name for p in tmp_path.rglob("*")) == before


@pytest.mark.slow
@pytest.mark.parametrize(
    "error",
    [
        "torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')",
        "MemoryError()",
        "RuntimeError('DefaultCPUAllocator: can\\'t allocate memory: you tried to allocate 9 bytes.')",
    ],
)
@pytest.mark.parametrize("where", ["a step", "a forward"])
def test_too_little_memory_is_one_line_and_leaves_nothing(where: str, error: str, tmp_path: Path):
    tiny.llama().save_pretrained(tmp_path / "tiny")
    tiny.tokenizer().save_pretrained(tmp_path / "tiny")
    (tmp_path / "good.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny.records(languages=("en",))))
    before = sorted(tmp_path.iterdir())
    broken = "neuronshield.run.pipeline.capture" if where == "a step" else "torch.nn.functional.silu"
    code = (
        "import sys, torch, neuronshield.run.pipeline, neuronshield.cli as c\n"
        f"def boom(*a, **k): raise {error}\n{broken} = boom\n"
        "sys.argv = ['neuronshield', 'run', '--model', 'tiny', '--prompts', 'good.jsonl', '--out', 'out', '--quiet']\nc.main()"
    )
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False, env=OFFLINE
    )
    assert process.returncode == 2
    assert "Traceback" not in process.stderr
    assert process.stderr.splitlines()[-1].startswith("neuronshield: ")  # after the progress bar of the weights
    assert "out of memory" in process.stderr.splitlines()[-1]
    assert ("lower batch_size=" in process.stderr) is (where == "a forward")
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.slow
def test_ctrl_c_exits_130_and_leaves_nothing(tmp_path: Path):
    # a job in the background ignores SIGINT, and so would what it starts
    begin = "import signal, neuronshield.cli as c; signal.signal(signal.SIGINT, signal.default_int_handler); c.main()"
    command = [sys.executable, "-c", begin, "run", "--out", "out", "--quiet"]
    process = subprocess.Popen(
        command, cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=OFFLINE
    )
    try:
        for _ in range(600):  # until it has begun to work in its folder
            if any(tmp_path.iterdir()) or process.poll() is not None:
                break
            time.sleep(0.1)
        assert [p.name for p in tmp_path.iterdir()] == [f".out.{process.pid}.partial"]
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert errors.strip() == "neuronshield: interrupted; no partial results are left"  # after the line of ^C
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("held", [(), ("sw",)])
def test_the_report_draws_transfer_only_where_a_cell_was_held_out(held: tuple[str, ...], tmp_path: Path):
    from neuronshield.run.pipeline import run

    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    results = run(model, tiny.prompts(), tmp_path / "out", hold_out=held, progress=False)
    assert results["shield"]["train_cells"] == (["en/text"] if held else ["en/text", "sw/text"])
    assert results["check"]["compared_on"] == ("untrained" if held else "all")
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert ("every other cell is zero-shot" in page) == bool(held)
    assert ("this run does not ask whether safety transfers" in page) != bool(held)


def test_a_language_without_a_refusal_to_teach_is_found_before_the_first_forward(tmp_path: Path):
    # trap: the third of four steps stops, hours later
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    model.module.register_forward_pre_hook(lambda *_: pytest.fail("a forward"))
    rows = [{**row, "target": None} for row in tiny.records(languages=("sw",))]
    dutch = ns.PromptSet.from_records([{**row, "language": "nl"} for row in rows])
    with pytest.raises(ns.InputError, match="no refusal to teach in language 'nl'"):
        run(model, dutch, tmp_path / "out", progress=False)
    with pytest.raises(ns.InputError, match="no refusal to teach in language 'nl'"):
        examples(model, dutch)  # and before the model answers the benign ones
    assert not list(tmp_path.iterdir())


def test_what_each_claim_has_and_needs_is_said_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def stop(job: Any) -> None:
        raise InterruptedError("first step")

    monkeypatch.setattr("neuronshield.run.pipeline.STEPS", {"find": stop})
    prompts = tiny.prompts().with_splits()
    with caplog.at_level("INFO", "neuronshield"), pytest.raises(InterruptedError):
        run(ns.load(tiny.llama(), processor=tiny.tokenizer()), prompts, tmp_path / "out", progress=False)
    n = len({p.pair_id for p in prompts.where(split="confirm")})
    assert caplog.messages[0] == f"necessity: zero of the set: {n} requests, needs 5: too few"
    assert caplog.messages[-1] == "find"
    assert len(caplog.messages) == 20
