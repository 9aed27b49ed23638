"""Every family of the table in docs/models.md, checked against plain hooks and TransformerLens; the others refused by name."""

from __future__ import annotations

import re
from pathlib import Path

import families
import pytest
import tiny
import torch
from families import CHECKS, FAMILIES, Family
from unsupported import UNSUPPORTED

import neuronshield as ns

MODELS = Path(__file__).parents[2] / "docs" / "models.md"


#: One family with pictures, two without and one with shared keys are enough for the quick loop.
QUICK = ("LLaVA-1.5", "Llama", "GPT-2", "Gemma 3n (text)")
QUICK_FIRST = [f if f.name in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("family", QUICK_FIRST, ids=lambda f: f.name)
def test_a_family_is(family: Family, check: str) -> None:
    CHECKS[check](family)


@pytest.mark.parametrize("family", QUICK_FIRST, ids=lambda f: f.name)
def test_transformer_lens_reads_and_zeroes_the_same_neurons(family: Family) -> None:
    try:
        families.check_bridge(family)
    except families.NotHere as error:
        reason = str(error)
    else:
        return
    assert re.search(
        "supported architecture|torchvision|its hook_post did not fire|hook_post. does not exist|no hook at the neurons of experts",
        reason,
    )
    pytest.skip(f"TransformerLens: {reason}")


def test_the_page_of_models_lists_these_families() -> None:
    _, rest = MODELS.read_text(encoding="utf-8").split("| family | checkpoint |", 1)
    listed = re.findall(r"^\| ([^|]+?) \|", rest.split("\n\n")[0], re.MULTILINE)
    wanted = [*(f.name for f in FAMILIES), *(kind.name for kind in UNSUPPORTED)]
    assert [name for name in listed if name != "---"] == wanted


# -- by hand ----------------------------------------------------------------------------------------------
def renamed() -> torch.nn.Module:
    """A Llama whose MLPs are called something else, in a list that is called something else."""
    module = tiny.llama()
    for layer in module.model.layers:
        layer.ffn = layer.mlp
        del layer.mlp
        layer.forward = layer.forward  # its own forward would look for `mlp`
    return module


def test_an_unknown_mlp_is_refused_with_what_was_looked_for_and_found_by_hand() -> None:
    module = renamed()
    with pytest.raises(
        ns.InputError, match=r"no MLP we know \(looked for mlp\.down_proj.*layer 0 has .*ffn\.down_proj.*site="
    ):
        ns.load(module, processor=tiny.tokenizer())
    model = ns.load(module, processor=tiny.tokenizer(), site=("ffn.down_proj", "ffn.up_proj", "ffn.gate_proj"))
    assert (model.n_layers, model.d_mlp, model.d_model) == (3, 29, 20)
    assert model.linear(1, model.site.down) is module.model.layers[1].ffn.down_proj


def test_layers_named_by_hand_are_used_and_a_wrong_name_is_refused() -> None:
    module = tiny.llama()
    assert ns.load(module, processor=tiny.tokenizer(), layers="model.layers").layers_path == "model.layers"
    for wrong, says in (("model.blocks", "no such module"), ("model.norm", "not a list of decoder layers")):
        with pytest.raises(ns.InputError, match=says):
            ns.load(module, processor=tiny.tokenizer(), layers=wrong)
    with pytest.raises(ns.InputError, match=r"looked for a\.b"):
        ns.load(module, processor=tiny.tokenizer(), site=("a.b", "a.c", None))
