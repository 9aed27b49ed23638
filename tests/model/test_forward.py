"""Interventions against plain PyTorch hooks on one unpadded prompt at a time, and against TransformerLens."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.model import edits
from neuronshield.model.forward import margins
from neuronshield.model.generation import generate
from neuronshield.model.intervention import KINDS, Intervention
from neuronshield.model.prefixes import OpeningTokens

PAIRS = [(0, 3), (0, 28), (2, 7), (2, 8)]
NEURONS = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)
WORD = {w: i for i, w in enumerate(tiny.WORDS)}
TOKENS = {x: OpeningTokens([WORD["sorry"], WORD["no"]], [WORD["sure"]]) for x in ("en", "sw")}


def some(name: str) -> ns.PromptSet:
    """Unlike lengths in every batch, so that padding would show."""
    return ns.PromptSet(list(tiny.prompts(pictures=name == "llava"))[:: 11 if name == "llava" else 7])


def values(kind: str, n: int) -> torch.Tensor | None:
    shape = {"zero": None, "mean": (3, 29), "resample": (n, 3, 29), "patch": (n, 3, 29), "clamp": (), "scale": ()}[kind]
    return None if shape is None else 2 * torch.randn(shape, generator=torch.Generator().manual_seed(1))


def logits_by_hand(
    model: ns.Model,
    prompt: ns.Prompt,
    new: torch.Tensor | None,
    positions: str,
    more: Sequence[int] = (),
    scale: bool = False,
) -> torch.Tensor:
    """Last logits of the prompt and `more` generated tokens, with `new` [n_layers, d_mlp] written in by hooks."""
    encoding, n = tiny.encode(model, prompt)
    if more:
        ids = torch.cat([encoding["input_ids"], torch.tensor([list(more)])], dim=1)
        encoding |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    image = encoding["input_ids"][0] == WORD["<image>"]
    at_all = torch.arange(encoding["input_ids"].shape[1])
    here = {
        "last_prompt": at_all == n - 1, "prompt": at_all < n, "all": at_all >= 0, "response": at_all >= n,
        "image": image, "text": ~image & (at_all < n),
    }[positions]  # fmt: skip

    def change(layer: int, h: torch.Tensor) -> torch.Tensor | None:
        if new is None:
            return None
        h = h.clone()
        for at, index in PAIRS:
            if at == layer:
                to = new[layer, index].to(h.dtype)
                h[:, here, index] = h[:, here, index] * to if scale else to
        return h

    with torch.no_grad(), tiny.hooked(tiny.downs(model), change):
        return model.module(**encoding).logits[0, -1].double()


def margin_by_hand(logits: torch.Tensor) -> float:
    x = logits.numpy()
    return float(np.log(np.exp(x[[WORD["sorry"], WORD["no"]]]).sum()) - x[WORD["sure"]])


def by_hand(model: ns.Model, prompts: ns.PromptSet, condition: Intervention) -> list[float]:
    """Margins under an intervention, one unpadded prompt at a time."""
    value, out = condition.value, []
    for i, p in enumerate(prompts):
        new = torch.zeros(3, 29) if value is None else value[i] if value.ndim == 3 else value.expand(3, 29)
        if condition.cells is not None and p.cell not in condition.cells:
            out.append(margin_by_hand(logits_by_hand(model, p, None, "all")))
            continue
        logits = logits_by_hand(model, p, new, condition.positions, scale=condition.kind == "scale")
        out.append(margin_by_hand(logits))
    return out


@pytest.mark.parametrize("positions", ["last_prompt", "prompt", "all"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_margins_in_padded_batches_equal_hooks_on_each_prompt_alone(
    request: pytest.FixtureRequest, name: str, kind: str, positions: str
) -> None:
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    value = values(kind, len(prompts))
    condition = Intervention(NEURONS, kind, value, positions)  # type: ignore[arg-type]
    got = margins(model, prompts, [None, condition], TOKENS, batch_size=4)
    clean = [margin_by_hand(logits_by_hand(model, p, None, positions)) for p in prompts]
    np.testing.assert_allclose(got, [clean, by_hand(model, prompts, condition)], rtol=2e-3, atol=2e-4)
    assert np.median(np.abs(got[1] - got[0])) > 1e-2  # the change can be seen


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_the_short_way_of_many_conditions_gives_what_each_gives_alone(request: pytest.FixtureRequest, name: str) -> None:
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    conditions = [None, *(Intervention(NEURONS, k, values(k, len(prompts))) for k in ("zero", "mean", "patch")), None]  # type: ignore[arg-type]
    together = margins(model, prompts, conditions, TOKENS, batch_size=5)
    alone = np.concatenate([margins(model, prompts, [c], TOKENS, batch_size=3) for c in conditions])
    np.testing.assert_allclose(together, alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("positions", ["image", "text"])
def test_tokens_are_chosen_by_their_role(llava: ns.Model, positions: str) -> None:
    prompts = ns.PromptSet([p for p in some("llava") if p.images])
    condition = Intervention(NEURONS, "clamp", 3.0, positions)  # type: ignore[arg-type]
    got = margins(llava, prompts, [None, condition], TOKENS, batch_size=4)
    np.testing.assert_allclose(got[1], by_hand(llava, prompts, condition), rtol=2e-3, atol=2e-4)
    assert np.abs(got[1] - got[0]).max() > 1e-2


@pytest.mark.parametrize("positions", ["last_prompt", "prompt"])
def test_only_prompts_of_its_cells_are_touched(llama: ns.Model, positions: str) -> None:
    prompts = some("llama")
    condition = Intervention(NEURONS, "clamp", 3.0, positions, cells=["sw/text"])  # type: ignore[arg-type]
    got = margins(llama, prompts, [None, condition, condition, None], TOKENS, batch_size=4)
    np.testing.assert_allclose(got[1], by_hand(llama, prompts, condition), rtol=2e-3, atol=2e-4)
    sw = np.array([p.language == "sw" for p in prompts])
    assert (np.abs(got[1] - got[0])[sw] > 1e-3).all()
    np.testing.assert_allclose(got[1][~sw], got[0][~sw], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_intervention_survives_json(llama: ns.Model, kind: str) -> None:
    prompts = some("llama")
    value = values(kind, len(prompts))
    value = value.numpy() if value is not None and value.ndim == 2 else value
    before = Intervention(NEURONS, kind, value, "prompt", cells=["en/text"])  # type: ignore[arg-type]
    text = before.to_json()
    after = Intervention.from_json(text)
    assert after.to_json() == text
    assert (after.neurons, after.kind, after.positions, after.cells) == (
        NEURONS,
        kind,
        "prompt",
        (ns.Cell("en", "text"),),
    )
    a, b = (margins(llama, prompts, [x], TOKENS) for x in (before, after))
    np.testing.assert_array_equal(a, b)  # bit for bit


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "neuronshield.Intervention/9"}', '{"format": 3}'])
def test_json_that_is_not_an_intervention_is_refused(text: str) -> None:
    with pytest.raises(ns.InputError, match="not an intervention written by to_json"):
        Intervention.from_json(text)


def test_layers_below_are_not_run_again(llama: ns.Model) -> None:
    """Twenty draws in the last layer: the first layer's MLP runs for the shared part only."""
    prompts, runs = some("llama"), []
    handle = tiny.downs(llama)[0].register_forward_hook(lambda *_: runs.append(1))
    try:
        conditions = [
            Intervention(ns.NeuronSet([(2, i)]), "zero", None, p) for p in ("last_prompt", "prompt") for i in range(20)
        ]
        margins(llama, prompts, conditions[:20], TOKENS, batch_size=len(prompts))
        shared_last = len(runs)
        margins(llama, prompts, conditions[20:], TOKENS, batch_size=len(prompts))
    finally:
        handle.remove()
    assert shared_last <= 3  # full, all tokens but the last, the last
    assert len(runs) - shared_last == 1


def test_with_norms_frozen_what_nothing_reads_has_no_effect_at_all() -> None:
    module = tiny.llama(seed=3)
    with torch.no_grad():  # neuron (0, 5) writes, loudly, where nothing reads
        for layer in module.model.layers:
            for linear in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj, layer.mlp.gate_proj,
                           layer.mlp.up_proj, module.lm_head):  # fmt: skip
                linear.weight[:, 19] = 0
        module.model.layers[0].mlp.down_proj.weight[:, 5] = 0
        module.model.layers[0].mlp.down_proj.weight[19, 5] = 40
    model = ns.load(module, processor=tiny.tokenizer())
    prompts = some("llama")
    conditions = [
        None,
        Intervention(ns.NeuronSet([(0, 5)]), "clamp", 1.0),
        Intervention(ns.NeuronSet([(0, 6)]), "clamp", 1.0),
    ]
    free, frozen = (margins(model, prompts, conditions, TOKENS, frozen=f) for f in (False, True))
    assert np.abs(free[1] - free[0]).max() > 0.05
    np.testing.assert_allclose(frozen[1], frozen[0], atol=1e-5)
    assert np.abs(frozen[2] - frozen[0]).max() > 1e-3
    np.testing.assert_allclose(frozen[0], free[0], atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_frozen_norms_equal_the_same_by_hand(request: pytest.FixtureRequest, name: str) -> None:
    """The last layer's neuron, with the final norm's mean and scale of the clean run."""
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    got = margins(
        model, prompts, [Intervention(ns.NeuronSet([(2, 7)]), "clamp", 4.0)], TOKENS, batch_size=4, frozen=True
    )[0]
    down = tiny.downs(model)[2]
    norm = model.module.model.norm if name == "llama" else model.module.transformer.ln_f
    column = down.weight[:, 7] if name == "llama" else down.weight[7]
    for margin, prompt in zip(got, prompts, strict=True):
        encoding, _ = tiny.encode(model, prompt)
        seen: dict[str, torch.Tensor] = {}
        handles = [norm.register_forward_pre_hook(lambda _, a, s=seen: s.update(x=a[0][0, -1])),
                   down.register_forward_pre_hook(lambda _, a, s=seen: s.update(h=a[0][0, -1, 7]))]  # fmt: skip
        with torch.no_grad():
            model.module(**encoding)
            for handle in handles:
                handle.remove()
            x, moved = seen["x"], seen["x"] + (4.0 - seen["h"]) * column
            if name == "llama":
                out = norm.weight * moved / (x.pow(2).mean() + norm.variance_epsilon).sqrt()
            else:
                out = norm.weight * (moved - x.mean()) / (x.var(unbiased=False) + norm.eps).sqrt() + norm.bias
            logits = model.module.lm_head(out).double()
        assert margin == pytest.approx(margin_by_hand(logits), rel=2e-3, abs=2e-4)


@pytest.mark.parametrize("positions", ["last_prompt", "response", "all"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_generation_equals_a_greedy_loop_under_hooks(request: pytest.FixtureRequest, name: str, positions: str) -> None:
    model: ns.Model = request.getfixturevalue(name)
    prompts = some(name)
    value = 3 * torch.randn((3, 29), generator=torch.Generator().manual_seed(6))
    condition = Intervention(NEURONS, "mean", value, positions)  # type: ignore[arg-type]
    got = generate(model, prompts, intervention=condition, max_new_tokens=5, batch_size=4)
    for text, prompt in zip(got, prompts, strict=True):
        ids: list[int] = []
        while len(ids) < 5 and (not ids or ids[-1] != WORD["<eos>"]):
            ids.append(
                int(logits_by_hand(model, prompt, value, positions, ids).argmax())
            )  # response: from the second on
        assert text == model.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert got != generate(model, prompts, max_new_tokens=5)


def test_nothing_is_left_behind_not_even_after_an_error(llama: ns.Model) -> None:
    prompts = some("llama")
    before = margins(llama, prompts, [None], TOKENS)
    zero = Intervention(NEURONS, "zero", None, "all")
    generate(llama, prompts, intervention=zero, max_new_tokens=3)
    margins(llama, prompts, [zero], TOKENS)
    with pytest.raises(KeyError):
        margins(llama, prompts, [zero], {})
    np.testing.assert_array_equal(margins(llama, prompts, [None], TOKENS), before)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Intervention(ns.NeuronSet([]), "zero"), "empty neuron set"),
        (lambda: Intervention(NEURONS, "noise"), "kind='noise' is unknown"),
        (lambda: Intervention(NEURONS, "zero", positions="first"), "positions='first' is unknown"),
        (lambda: Intervention(NEURONS, "mean"), "needs a value"),
        (lambda: Intervention(NEURONS, "zero", torch.zeros(3, 29)), "takes no value"),
        (lambda: Intervention(NEURONS, "scale", torch.zeros(3, 29)), "value has shape (3, 29); expected a number"),
        (lambda: Intervention(NEURONS, "patch", 1.0), "value has shape (); expected"),
        (lambda: Intervention(NEURONS, "zero", cells=[]), "touches no prompt"),
        (lambda: Intervention(NEURONS, "zero", cells=["en"]), "is not a language and a modality"),
        (lambda: Intervention(NEURONS, "clamp", float("nan")), "not finite"),
        (lambda: Intervention(ns.NeuronSet([(0, 3)]), "mean", torch.zeros(3, 29)).to_json(), "does not know its shape"),
    ],
)
def test_an_intervention_that_makes_no_sense_is_said_at_once(make, said: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ns.InputError, match=re.escape(said)):
        make()


@pytest.mark.parametrize(
    ("condition", "said"),
    [
        (Intervention(ns.NeuronSet([(3, 0)]), "zero"), r"neuron \(3, 0\) does not exist"),
        (Intervention(ns.NeuronSet([(0, 29)]), "zero"), r"neuron \(0, 29\) does not exist"),
        (Intervention(NEURONS, "mean", torch.zeros(3, 28)), r"value has shape \(3, 28\)"),
        (Intervention(NEURONS, "patch", torch.zeros(2, 3, 29)), r"value has shape \(2, 3, 29\)"),
        (Intervention(ns.NeuronSet([(0, 1)], n_layers=4, d_mlp=29), "zero"), "a model of 4 layers x 29 neurons"),
        (
            Intervention(ns.NeuronSet([(0, 1)], provenance={"fingerprint": "f00d", "model": "x"}), "zero"),
            "with other weights",
        ),
        (Intervention(NEURONS, "zero", cells=["fr/text"]), "no prompt is of the cells it names"),
        (Intervention(NEURONS, "zero", None, "image"), "has no such token; name the cells that have"),
    ],
)
def test_one_that_does_not_fit_the_model_or_the_prompts_is_an_error(
    llama: ns.Model, condition: Intervention, said: str
) -> None:
    prompts = some("llama")
    for use in (
        lambda: margins(llama, prompts, [condition], TOKENS),
        lambda: generate(llama, prompts, intervention=condition),
    ):
        with pytest.raises(ns.InputError, match=said):
            use()


def test_what_could_never_fire_is_an_error_not_a_null_effect(llama: ns.Model) -> None:
    later = Intervention(NEURONS, "zero", None, "response")
    with pytest.raises(ns.InputError, match="read before the first answer token; use generate"):
        margins(llama, some("llama"), [later], TOKENS)
    with pytest.raises(ns.InputError, match="max_new_tokens of 2 or more"):
        generate(llama, some("llama"), intervention=later, max_new_tokens=1)


def test_a_layer_that_does_not_run_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A firing that is counted short is never passed over."""
    model = ns.load(tiny.llama(), processor=tiny.tokenizer())
    kept = edits.Edit.apply
    monkeypatch.setattr(edits.Edit, "apply", lambda self, h: kept(self, h) - 1)
    zero = Intervention(NEURONS, "zero", None, "all")
    with pytest.raises(RuntimeError, match="fired"):
        margins(model, some("llama"), [zero], TOKENS)
    with pytest.raises(RuntimeError, match="did not fire as named"):
        generate(model, some("llama"), intervention=zero, max_new_tokens=2)


def test_transformer_lens_ablates_the_same_neurons_to_the_same_logits(gpt2: ns.Model, tmp_path: Path) -> None:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import AutoTokenizer

    tiny.tokenizer().save_pretrained(tmp_path)  # it asks the tokenizer where it came from
    bridge = TransformerBridge.boot_transformers(
        "gpt2", hf_model=tiny.gpt2(), tokenizer=AutoTokenizer.from_pretrained(tmp_path)
    )
    prompts = some("gpt2")
    conditions = [None, Intervention(NEURONS, "zero", None, "all")]
    got = margins(gpt2, prompts, conditions, TOKENS)

    def zero(h: torch.Tensor, hook) -> torch.Tensor:  # type: ignore[no-untyped-def]
        h = h.clone()
        h[:, :, [i for layer, i in PAIRS if layer == int(hook.name.split(".")[1])]] = 0
        return h

    hooks = [(f"blocks.{layer}.mlp.hook_post", zero) for layer in {layer for layer, _ in PAIRS}]
    for i, p in enumerate(prompts):
        ids = tiny.encode(gpt2, p)[0]["input_ids"]
        with torch.no_grad():
            clean, cut = bridge(ids)[0, -1].double(), bridge.run_with_hooks(ids, fwd_hooks=hooks)[0, -1].double()
        np.testing.assert_allclose(got[:, i], [margin_by_hand(clean), margin_by_hand(cut)], rtol=2e-3, atol=2e-4)
