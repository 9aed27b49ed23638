"""Checkpoints of training: each damaged or foreign one is refused by its name."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from masking import neurons
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import neuronshield as ns
from neuronshield.shield.update import masked_update
from neuronshield.shield.variants import masked_lora

COMMON: dict[str, Any] = {"steps": 4, "progress": False, "allow_unproven": True}


@pytest.fixture(scope="module")
def written(llama: ns.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("run") / "c.safetensors"
    masked_update(llama, neurons(), tiny.prompts(), checkpoint=file, **COMMON)
    return file


def described(file: Path) -> dict[str, Any]:
    with safe_open(file, "pt") as opened:
        return json.loads(opened.metadata()["neuronshield"])  # type: ignore[no-any-return]


def changed(**meta: Any) -> Any:
    return lambda tensors, about: (tensors, {**about, **meta})


def tensors(change: Any) -> Any:
    return lambda kept, about: ({k: v.contiguous() for k, v in change(kept).items()}, about)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (changed(format="neuronshield.training/9"), "not a training checkpoint of neuronshield.training/3"),
        (changed(losses=[1.0, 0.5]), "a damaged training checkpoint"),
        (changed(losses="x"), "a damaged training checkpoint"),
        (changed(about={}), "a damaged training checkpoint"),
        (tensors(lambda t: {k: v for k, v in t.items() if k != "p.1"}), "a damaged training checkpoint"),
        (tensors(lambda t: {k: v for k, v in t.items() if not k.startswith("s.0")}), "a damaged training checkpoint"),
        (tensors(lambda t: {k: v[:1] if v.ndim else v for k, v in t.items()}), "a damaged training checkpoint"),
        (tensors(lambda t: {k: v * float("nan") for k, v in t.items()}), "a damaged training checkpoint"),
        (lambda t, _: (t, []), "not a training checkpoint"),
    ],
)
def test_a_damaged_checkpoint_is_refused_by_its_name(
    llama: ns.Model, written: Path, tmp_path: Path, damage: Any, said: str
):
    kept, about = damage(load_file(written), described(written))
    save_file(kept, tmp_path / "x.safetensors", metadata={"neuronshield": json.dumps(about)})
    with pytest.raises(ns.InputError, match=f"x.safetensors: {said}"):
        masked_update(llama, neurons(), tiny.prompts(), checkpoint=tmp_path / "x.safetensors", **COMMON)


@pytest.mark.parametrize("what", ["cut", "text", "empty", "folder"])
def test_what_is_no_checkpoint_is_refused_by_its_name(llama: ns.Model, written: Path, tmp_path: Path, what: str):
    path = tmp_path / "x"
    if what == "folder":
        path.mkdir()
    else:
        path.write_bytes({"cut": written.read_bytes()[:200], "text": b"not it", "empty": b""}[what])
    with pytest.raises(ns.InputError, match="x: not a training checkpoint"):
        masked_update(llama, neurons(), tiny.prompts(), checkpoint=path, **COMMON)


def with_targets(target: str) -> ns.PromptSet:
    return ns.PromptSet.from_records(
        {**row, "target": target if row["label"] == "harmful" else row["target"]} for row in tiny.records()
    )


@pytest.mark.parametrize(
    ("options", "differ"),
    [
        ({"seed": 1}, "seed"),
        ({"texts": ["the red bread"]}, "taught"),
        ({"optimiser": partial(torch.optim.AdamW, weight_decay=0.5)}, "optimiser"),
        ({"optimiser": torch.optim.SGD}, "optimiser"),
        ({"prompts": with_targets("no i cannot")}, "taught"),
        ({"parts": ["down"]}, "parts"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(llama: ns.Model, written: Path, options: dict[str, Any], differ: str):
    given = {**COMMON, "prompts": tiny.prompts(), **options}
    with pytest.raises(ns.InputError, match=rf"c.safetensors: is of another run \(.*{differ}.* differ\)"):
        masked_update(llama, neurons(), checkpoint=written, **given)


def test_a_checkpoint_of_another_rank_is_refused(llama: ns.Model, tmp_path: Path):
    run = partial(masked_lora, llama, neurons(), tiny.prompts(), checkpoint=tmp_path / "c", **COMMON)
    run(rank=2)
    with pytest.raises(ns.InputError, match=r"of another run \(rank differ\)"):
        run(rank=4)
