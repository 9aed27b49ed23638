"""Other sites than neurons, and directions of the residual stream, against plain PyTorch hooks on one unpadded prompt at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import families
import numpy as np
import pytest
import tiny
import torch
from families import FAMILIES, VISION, Family, close, encode, kinds
from oracles import TOKENS, some

import neuronshield as ns
from neuronshield.core.directions import Directions
from neuronshield.find.residual import record_residual
from neuronshield.model.forward import answer_logits, margins
from neuronshield.model.generation import generate
from neuronshield.model.intervention import Intervention
from neuronshield.model.places import place_of, width_of

QUICK = ("Llama", "Phi-3", "GPT-2", "LLaVA-1.5")  # gated, fused, without a gate, with pictures
PAIRS = ((1, 3), (1, 18), (2, 7))
#: Ends of names, so that the package's own table is not trusted.
ENDS = {
    "gate": (".gate_proj", ".gate_up_proj", ".feed_forward.w1", ".shared_mlp.input_linear"),
    "up": (".up_proj", ".gate_up_proj", ".feed_forward.w3", ".shared_mlp.input_linear", ".mlp.c_fc", ".fc1", ".mlp.fc_in",
           ".dense_h_to_4h"),
    "attention": ("self_attn.o_proj", "cross_attn.o_proj", "self_attn.out_proj", ".attn.out_proj", ".attention.out_proj",
                  ".attn.c_proj", "self_attn.dense", "self_attention.dense", ".attention.dense", "temporal_block.o_proj"),
}  # fmt: skip
SITES = (*ENDS, "residual")


def places(model: ns.Model, site: str, d_mlp: int) -> list[tuple[torch.nn.Module, slice]]:
    """The module of each layer and which of its outputs are at the site; shorter than the layers where some have none."""
    named = [(n, m) for n, m in model.module.named_modules() if not any(word in n for word in VISION)]
    stack = next(m for _, m in named if isinstance(m, torch.nn.ModuleList) and len(m) == families.N_LAYERS)
    if site == "residual":
        return [(layer, slice(None)) for layer in stack]
    inside = [(f".{n}", m) for layer in stack for n, m in layer.named_modules()]
    if site != "attention" and any("expert" in n for n, _ in inside):
        return []
    half = {"gate": slice(0, d_mlp), "up": slice(d_mlp, 2 * d_mlp)}.get(site, slice(None))
    found = [(n, m) for n, m in inside if n.endswith(ENDS[site])]
    return [(m, half if n.endswith(("gate_up_proj", "input_linear")) else slice(None)) for n, m in found]


@contextmanager
def changed(where: list[tuple[torch.nn.Module, slice]], change: Callable[[int, torch.Tensor], Any]) -> Iterator[None]:
    """`change(layer, h [pos, width])` gives what a module's output is at the site, in place of what it was."""

    def hook(layer: int, part: slice) -> Callable[..., Any]:
        def after(module: torch.nn.Module, _: Any, out: Any) -> Any:
            whole = (out[0] if isinstance(out, tuple) else out).clone()
            new = change(layer, whole[..., part].reshape(-1, whole[..., part].shape[-1]).clone())
            if new is not None:
                whole[..., part] = new.reshape(whole[..., part].shape)
            return (whole, *out[1:]) if isinstance(out, tuple) else whole

        return after

    handles = [m.register_forward_hook(hook(i, part)) for i, (m, part) in enumerate(where)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def subject(model: ns.Model, site: str) -> ns.NeuronSet | Directions:
    if site == "residual":
        drawn = np.random.default_rng(0).standard_normal((2, model.d_model))
        return Directions(drawn, layers=[0, 2], n_layers=model.n_layers)
    return ns.NeuronSet(PAIRS, n_layers=model.n_layers, d_mlp=width_of(model, site), site=site)


def clamped(
    what: ns.NeuronSet | Directions, value: float, last_only: bool
) -> Callable[[int, torch.Tensor], torch.Tensor]:
    """What plain code makes of a layer's numbers when a set or the coordinates of directions are set to a value."""

    def change(layer: int, h: torch.Tensor) -> torch.Tensor:
        rows = slice(-1, None) if last_only else slice(None)
        if isinstance(what, Directions):
            if layer in what.layers:
                v = torch.from_numpy(what.vectors)
                h[rows] += (value - h[rows] @ v.T) @ v
            return h
        for at, index in what:
            if at == layer:
                h[rows, index] = value
        return h

    return change


def has(family: Family, model: ns.Model, site: str) -> bool:
    """Whether a family has the site in every layer, as its modules tell."""
    if site == "residual":
        return family.name != "Gemma 3n (text)"  # four streams at once
    return len(places(model, site, family.d_mlp)) == families.N_LAYERS


def check(family: Family) -> None:
    model = family.load()
    for site in SITES:
        if not has(family, model, site):
            with pytest.raises(ns.InputError, match=r"attention block|no gate|mixture of experts|streams at once"):
                place_of(model, site)
            continue
        where, what = places(model, site, family.d_mlp), subject(model, site)
        for pictures in kinds(family):
            rows = list(families.prompts(pictures))[:3]
            read_and_changed(model, rows, site, where=where, what=what)


def read_and_changed(
    model: ns.Model, rows: list[ns.Prompt], site: str, *, where: list[tuple[torch.nn.Module, slice]], what: Any
) -> None:
    """Recording, logits under two kinds of positions, and answers, all against hooks."""
    own = (
        record_residual(model, rows, batch_size=3)
        if site == "residual"
        else ns.record(model, rows, site=site, batch_size=3)
    )
    for prompt, got in zip(rows, torch.as_tensor(own), strict=True):
        seen: dict[int, torch.Tensor] = {}
        with torch.no_grad(), changed(where, lambda i, h, seen=seen: seen.update({i: h[-1]})):  # type: ignore[misc]
            model.module(**encode(model, prompt))
        for layer, h in seen.items():
            close(got[layer], h)
    clean = answer_logits(model, rows, batch_size=3)
    for positions in ("last_prompt", "all"):
        got = answer_logits(model, rows, Intervention(what, "clamp", 2.0, positions), batch_size=3)  # type: ignore[arg-type]
        wanted = []
        for prompt in rows:
            with torch.no_grad(), changed(where, clamped(what, 2.0, positions == "last_prompt")):
                wanted.append(model.module(**encode(model, prompt)).logits[0, -1])
        close(got, torch.stack(wanted))
        assert float((got - clean).abs().max()) > 1e-2
    answers = generate(model, rows, intervention=Intervention(what, "clamp", 2.0, "all"), max_new_tokens=4)
    for prompt, answer in zip(rows, answers, strict=True):
        encoding = encode(model, prompt)
        with torch.no_grad(), changed(where, clamped(what, 2.0, False)):
            ids = model.module.generate(**encoding, max_new_tokens=4, do_sample=False, pad_token_id=0)  # type: ignore[operator]
        assert (
            answer == model.tokenizer.decode(ids[0, encoding["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        )


@pytest.mark.parametrize(
    "family",
    [f if f.name in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES],
    ids=[f.name for f in FAMILIES],
)
def test_every_site_is_read_and_changed_as_hooks_do_it_or_refused(family: Family) -> None:
    check(family)


# -- many conditions ----------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_the_short_way_of_conditions_at_many_sites_gives_what_each_gives_alone(
    request: pytest.FixtureRequest, name: str
) -> None:
    """Prefixes and lower layers are shared; conditions at unlike sites are told apart."""
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    sites = ("neuron", "up", "attention", "residual") if name == "gpt2" else ("neuron", *SITES)
    subjects: list[Any] = [Directions(np.eye(7, 20)[[j, j + 1]], layers=[1], n_layers=3) for j in (0, 5)]
    subjects += [ns.NeuronSet([(layer, 3)], site=site) for site in sites[:-1] for layer in (1, 2)]
    for positions in ("last_prompt", "prompt"):
        conditions = [None, *(Intervention(what, "clamp", 2.0, positions) for what in subjects)]  # type: ignore[arg-type]
        together = margins(model, prompts, conditions, TOKENS, batch_size=5)
        alone = np.concatenate([margins(model, prompts, [c], TOKENS, batch_size=3) for c in conditions])
        np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)
        changes = np.abs(together[1:] - together[0]).max(axis=1)
        assert (changes > 1e-3).all()
        assert len(np.unique(changes.round(6))) == len(changes)


def test_the_layers_below_a_changed_attention_output_are_run_once(llama: ns.Model) -> None:
    prompts, runs = some("llama"), []
    handle = tiny.downs(llama)[0].register_forward_hook(lambda *_: runs.append(1))
    try:
        conditions = [Intervention(ns.NeuronSet([(2, i)], site="attention"), "zero") for i in range(20)]
        margins(llama, prompts, conditions, TOKENS, batch_size=len(prompts))
    finally:
        handle.remove()
    assert len(runs) < 6


def test_an_answer_that_was_given_before_is_a_draft_at_every_site(llama: ns.Model) -> None:
    prompts = some("llama")
    for what in (ns.NeuronSet([(1, 3)], site="gate"), Directions(np.eye(1, 20), layers=[1], n_layers=3)):
        condition = Intervention(what, "clamp", 4.0)
        first = generate(llama, prompts, intervention=condition, max_new_tokens=4)
        assert generate(llama, prompts, intervention=condition, max_new_tokens=4) == first
        assert [generate(llama, p, intervention=condition, max_new_tokens=4) for p in prompts] == first


# -- directions ---------------------------------------------------------------------------------------------
def test_projection_leaves_nothing_along_directions_and_all_that_is_orthogonal_to_them(llama: ns.Model) -> None:
    prompts = some("llama")
    what = Directions(np.random.default_rng(1).standard_normal((3, 20)), layers=[2], n_layers=3)
    inner: Any = llama.module.model  # type: ignore[union-attr]
    for prompt in prompts[:3]:
        seen: dict[str, torch.Tensor] = {}
        # hooks run in the order in which they are registered: this one before the package's, the norm after it
        handles = [
            inner.layers[2].register_forward_hook(lambda *a, seen=seen: seen.update(before=a[2][0, -1].clone())),
            inner.norm.register_forward_pre_hook(lambda _, a, seen=seen: seen.update(after=a[0][0, -1].clone())),
        ]
        answer_logits(llama, prompt, Intervention(what, "zero"))
        for handle in handles:
            handle.remove()
        before, after = seen["before"], seen["after"]
        v = torch.from_numpy(what.vectors)
        torch.testing.assert_close(after, before - v.T @ (v @ before), rtol=1e-5, atol=1e-6)
        assert float((v @ after).abs().max()) < 1e-5


def test_every_prompt_gets_the_coordinates_that_were_given_for_it(llama: ns.Model) -> None:
    prompts = some("llama")
    what = Directions(np.eye(2, 20), layers=[0], n_layers=3)
    values = np.random.default_rng(2).standard_normal((len(prompts), 2)).astype(np.float32)
    got = answer_logits(llama, prompts, Intervention(what, "mean", values), batch_size=3)
    for i, prompt in enumerate(prompts):
        close(got[i], answer_logits(llama, prompt, Intervention(what, "clamp", values[i])))


def test_coordinates_are_scaled_and_a_factor_of_one_changes_nothing(llama: ns.Model) -> None:
    prompts = some("llama")
    what = Directions(np.random.default_rng(1).standard_normal((3, 20)), layers=[0, 1], n_layers=3)
    clean, zero = answer_logits(llama, prompts), answer_logits(llama, prompts, Intervention(what, "zero"))
    close(answer_logits(llama, prompts, Intervention(what, "scale", 1.0)), clean)
    close(answer_logits(llama, prompts, Intervention(what, "scale", 0.0)), zero)


def test_only_the_cells_that_are_named_are_touched_by_directions(llama: ns.Model) -> None:
    prompts = some("llama")
    what = Directions(np.eye(3, 20), layers=[1], n_layers=3)
    moved = answer_logits(llama, prompts, Intervention(what, "zero", cells=["sw/text"])) - answer_logits(llama, prompts)
    sw = torch.tensor([p.language == "sw" for p in prompts])
    assert float(moved[sw].abs().amax(dim=1).min()) > 1e-3
    assert float(moved[~sw].abs().max()) < 1e-5
