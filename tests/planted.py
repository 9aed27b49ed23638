"""Models whose refusal circuit is known, because it was written into the weights.

Harm is readable in the last word; attention writes nothing. Some dimensions of the residual stream have a fixed meaning: HARM (the
word is harmful), OUT (what the head reads as "sorry"), ONE (a constant, read as "sure"; MINUS is its negative), one PRIVATE dimension
for every neuron that has a backup, IDLE ones that nothing reads, and END (the word is an answer, which the head reads as its end). Into a small random model are planted, at random places:

    causal        read HARM, write OUT: together they make the model refuse; strengths differ by a factor of three
    backups       read HARM minus the PRIVATE dimension of a causal neuron of an earlier layer: inactive while that one is active,
                  they write what it would have written once it is ablated
    decoys        read HARM as well and write as much, into IDLE: they move nothing but the final norm
    anti_refusal  read HARM, write against OUT
    always        read ONE, write into IDLE: active on every prompt

`check` measures all this with plain hooks, independently of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tiny
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import neuronshield as ns
from neuronshield.model.prefixes import opening_tokens, openings_of
from neuronshield.prove.controls import random_like
from neuronshield.prove.pairs import match, measure

HARM, OUT, ONE = 0, 1, 2
WORDED = 3  # of `worded`; PRIVATE elsewhere
PRIVATE, IDLE, MINUS, END = range(3, 7), range(7, 17), 17, 18
D_MODEL, D_MLP, N_LAYERS = 48, 61, 5
WORD = {w: i for i, w in enumerate(tiny.WORDS)}
ANSWER_WORDS = ("sorry", "sure", "cannot", "no")
ASK: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"], "progress": False}

Address = tuple[int, int]
SHAPE: dict[str, Any] = {"n_layers": N_LAYERS, "d_mlp": D_MLP}


@dataclass
class Planted:
    """A model and the addresses of what was planted; `backs` names each backup's first one."""

    model: ns.Model
    causal: set[Address]
    decoys: set[Address]
    anti_refusal: set[Address]
    backs: dict[Address, Address]

    @property
    def backups(self) -> set[Address]:
        return set(self.backs)

    @property
    def separating(self) -> set[Address]:
        """What a contrast finds: every neuron that separates harmful from benign."""
        return self.causal | self.decoys | self.anti_refusal


def prompts(**columns: Any) -> ns.PromptSet:
    """Sixty matched pairs, half of them to find on and half to confirm on."""
    rows = []
    for v, verb in enumerate(tiny.VERBS):
        for t in range(3):
            for a, adjective in enumerate(("the", "a", "red", "blue")):
                for label in ("harmful", "benign"):
                    rows.append({
                        "prompt": f"how do i {verb} {adjective} {tiny.THINGS[label][t]}", "label": label,
                        "pair_id": f"{v}-{t}-{a}", "split": ("discover", "confirm")[(v + t + a) % 2], **columns,
                    })  # fmt: skip
    return ns.PromptSet.from_records(rows)


def _llama(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=len(tiny.WORDS), hidden_size=D_MODEL, intermediate_size=D_MLP, num_hidden_layers=N_LAYERS,
                    num_attention_heads=2, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2,
                    initializer_range=0.03, tie_word_embeddings=False)
    ).eval()  # fmt: skip


def _gpt2(seed: int) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tiny.WORDS), n_embd=D_MODEL, n_inner=D_MLP, n_layer=N_LAYERS, n_head=2, n_positions=64,
                   initializer_range=0.03, pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False)
    ).eval()  # fmt: skip


FAMILIES: dict[str, Callable[[int], Any]] = {"llama": _llama, "gpt2": _gpt2}


class _Wires:
    """Read and write weights of any neuron of either family."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self.gpt2 = isinstance(module, GPT2LMHeadModel)
        self.layers = module.transformer.h if self.gpt2 else module.model.layers

    def read(self, at: Address, weights: dict[int, float]) -> None:
        """The neuron's input is the weighted sum of these (normalised) dimensions."""
        mlp, index = self.layers[at[0]].mlp, at[1]
        row = torch.zeros(D_MODEL)
        for dimension, weight in weights.items():
            row[dimension] = weight
        if self.gpt2:
            mlp.c_fc.weight[:, index] = row
            mlp.c_fc.bias[index] = -1.0  # gelu is not quite 0 around 0
        else:
            mlp.gate_proj.weight[index] = row
            mlp.up_proj.weight[index] = 0
            mlp.up_proj.weight[index, ONE] = 1

    def write(self, at: Address, amounts: dict[int, float], value: float) -> None:
        """Where and how much the neuron writes when its value is `value`."""
        mlp, index = self.layers[at[0]].mlp, at[1]
        column = torch.zeros(D_MODEL)
        for dimension, amount in amounts.items():
            column[dimension] = amount / value
        if self.gpt2:
            mlp.c_proj.weight[index] = column
        else:
            mlp.down_proj.weight[:, index] = column

    def downs(self) -> list[torch.nn.Module]:
        return [layer.mlp.c_proj if self.gpt2 else layer.mlp.down_proj for layer in self.layers]

    def quiet(self, constant: float) -> None:
        """No attention; the job dimensions free of noise; embeddings and head as the circuit needs them."""
        embed, head = self.module.get_input_embeddings().weight, self.module.lm_head.weight
        jobs = 19
        for layer, down in zip(self.layers, self.downs(), strict=True):
            attention = layer.attn.c_proj if self.gpt2 else layer.self_attn.o_proj
            attention.weight.zero_()
            (down.weight[:, :jobs] if self.gpt2 else down.weight[:jobs]).zero_()
        if self.gpt2:
            self.module.transformer.wpe.weight[:, :jobs] = 0
        embed[:, :jobs] = 0
        embed[:, ONE], embed[:, MINUS] = constant, -constant  # no mean for a LayerNorm to take away
        for strength, noun in zip((0.8, 1.0, 1.2), tiny.THINGS["harmful"], strict=True):
            embed[WORD[noun], HARM] = strength
        head[:, :jobs] = 0
        head[WORD["sorry"], OUT] = 2.0
        head[WORD["sure"], ONE] = 6.0 / constant
        embed[[WORD[w] for w in ANSWER_WORDS], END] = 1
        head[WORD["<eos>"], END] = 20.0


def build(family: str, seed: int, *, balanced: bool = False, n_backups: int = 2) -> Planted:
    """Plant a circuit. With `balanced`, a large constant makes the decoys' effect on the final norm negligible."""
    rng = np.random.default_rng([seed, len(family)])
    module = FAMILIES[family](seed)
    wires = _Wires(module)
    constant = 40.0 if balanced else 4.0
    taken: set[Address] = set()

    def place(n: int, first: int, last: int) -> list[Address]:
        out: list[Address] = []
        while len(out) < n:
            at = (int(rng.integers(first, last)), int(rng.integers(D_MLP)))
            if at not in taken:
                taken.add(at)
                out.append(at)
        return out

    causal = place(int(rng.integers(6, 12)), 0, N_LAYERS - 1)
    backed = causal[:n_backups]
    backs = {place(1, at[0] + 1, N_LAYERS)[0]: at for at in backed}
    decoys, anti_refusal = place(len(causal) + 4, 0, N_LAYERS), place(int(rng.integers(2, 5)), 0, N_LAYERS)
    always = place(4, 0, N_LAYERS)
    strength = rng.uniform(1, 3, len(causal))
    against = rng.uniform(1, 2, len(anti_refusal))
    total = 6.0 + 1.0  # to be written into OUT, the anti_refusal' share included
    strength *= total / strength.sum()
    against *= 1.0 / against.sum()
    writes: dict[Address, dict[int, float]] = {}
    reads: dict[Address, dict[int, float]] = {}
    sharp = 40.0 if balanced else 8.0
    for at, amount in zip(causal, strength, strict=True):
        writes[at], reads[at] = {OUT: amount}, {HARM: sharp}
    for dimension, (backup, at) in zip(PRIVATE, backs.items(), strict=False):
        writes[at][dimension] = 1.5
        writes[backup], reads[backup] = {OUT: writes[at][OUT]}, {HARM: sharp, dimension: -2 * sharp}
    for at in decoys:
        amount, (here, there) = rng.uniform(1, 3) * total / 2 / len(causal), rng.choice(IDLE, 2, replace=False).tolist()
        writes[at], reads[at] = {here: amount, **({there: -amount} if balanced else {})}, {HARM: sharp}
    for at, amount in zip(anti_refusal, against, strict=True):
        writes[at], reads[at] = {OUT: -amount}, {HARM: sharp}
    for at in always:
        writes[at], reads[at] = {int(rng.choice(IDLE)): 2.0}, {ONE: 1.0}
    with torch.no_grad():
        wires.quiet(constant)
        for at, weights in reads.items():
            wires.read(at, weights)
            wires.write(at, {}, 1.0)
        ids = torch.tensor([[WORD["make"], WORD["knife"]]])
        for layer in range(N_LAYERS):  # an amount is what is written when it fires, so layer by layer
            for at in (a for a in writes if a[0] == layer):
                silent = [backs[at]] if at in backs else []
                value = float(_run(wires, ids, dict.fromkeys(silent, 0.0))[1][at])
                wires.write(at, writes[at], value)
    model = ns.load(module, processor=tiny.tokenizer())
    return Planted(model, set(causal), set(decoys), set(anti_refusal), backs)


@dataclass
class Worded:
    """A model with a circuit for harm and one that only chooses between two words for a refusal."""

    model: ns.Model
    harm: ns.NeuronSet
    wording: ns.NeuronSet


def worded(seed: int, *, other: str = "cannot", ends: bool = True) -> Worded:
    """A model that refuses harmful prompts with "sorry", and without its wording circuit with another word.

    Both circuits read HARM. The harm circuit lifts "sorry" and the other word above "sure"; the wording circuit lifts "sorry" above
    the other word. So without the harm circuit harmful prompts are answered, and without the wording circuit they are refused
    in another word. Where the other word refuses nothing ("red"), ablation of the wording circuit makes answers say nothing.

    Args:
        seed: of the weights and of the places.
        other: what the model says of a harmful prompt without the wording circuit.
        ends: whether answers end after their first word; "sure sure sure ..." follows otherwise.
    """
    rng = np.random.default_rng(seed)
    module = _llama(seed)
    wires, constant = _Wires(module), 40.0
    drawn = zip(rng.integers(0, N_LAYERS - 1, 200), rng.integers(0, D_MLP, 200), strict=True)
    places = list(dict.fromkeys((int(layer), int(index)) for layer, index in drawn))
    harm, wording = places[:6], places[6:12]
    writes = {at: {OUT: 7 / 6} for at in harm} | {at: {WORDED: 9 / 6} for at in wording}
    with torch.no_grad():
        wires.quiet(constant)
        head = module.lm_head.weight
        head[[WORD[w] for w in ("sorry", other)], OUT] = 1.5
        head[WORD["sorry"], WORDED], head[WORD["sorry"], ONE] = 1.0, -4.0 / constant
        if not ends:
            head[WORD["<eos>"], END] = 0
        for at in writes:
            wires.read(at, {HARM: 40.0})
            wires.write(at, {}, 1.0)
        ids = torch.tensor([[WORD["make"], WORD["knife"]]])
        for at, amounts in writes.items():
            wires.write(at, amounts, float(_run(wires, ids, {})[1][at]))
    model = ns.load(module, processor=tiny.tokenizer())
    return Worded(model, ns.NeuronSet(harm, **SHAPE), ns.NeuronSet(wording, **SHAPE))


def _run(
    wires: _Wires, ids: torch.Tensor, fixed: dict[Address, float | torch.Tensor]
) -> tuple[torch.Tensor, dict[Address, torch.Tensor]]:
    """Margins, and every neuron at the last token, by plain hooks; `fixed` neurons are held at values there."""
    seen: dict[Address, torch.Tensor] = {}

    def change(layer: int, h: torch.Tensor) -> torch.Tensor:
        h = h.clone()
        for (at, index), value in fixed.items():
            if at == layer:
                h[:, -1, index] = value
        seen.update({(layer, i): h[:, -1, i] for i in range(D_MLP)})
        return h

    with torch.no_grad(), tiny.hooked(wires.downs(), change):
        logits = wires.module(input_ids=ids).logits[:, -1]
    return logits[:, WORD["sorry"]] - logits[:, WORD["sure"]], seen


def check(planted: Planted) -> dict[str, Any]:
    """What was planted, measured with plain hooks: effects of ablation to the matched benign prompt's value, normalised."""
    wires = _Wires(planted.model.module)
    pairs = prompts().pairs()
    harmful, benign = (
        torch.tensor([planted.model.tokenizer(p.prompt)["input_ids"] for p in side])
        for side in zip(*pairs, strict=True)
    )
    clean, _ = _run(wires, harmful, {})
    other, matched = _run(wires, benign, {})
    difference = float((clean - other).mean())

    def effect(addresses: set[Address]) -> float:
        return float((clean - _run(wires, harmful, {a: matched[a] for a in addresses})[0]).mean()) / difference

    backed = set(planted.backs.values())
    return {
        "refuses": bool((clean > 0).all() and (other < 0).all()),
        "clean_logit_difference": difference,
        "causal": {a: effect({a}) for a in planted.causal - backed},
        "backed": {a: (effect({b}), effect({a}), effect({a, b})) for b, a in planted.backs.items()},
        "decoys": {a: effect({a}) for a in planted.decoys},
        "anti_refusal": {a: effect({a}) for a in planted.anti_refusal},
    }


class Bench:
    """A circuit without backups, and its matched confirm prompts."""

    def __init__(self, n_backups: int = 0) -> None:
        self.planted = build("llama", 1, balanced=True, n_backups=n_backups)
        self.model = self.planted.model
        confirm = prompts().for_step("confirm")
        tokens = opening_tokens(self.model, openings_of(self.model, confirm, refusals=["sorry"], compliances=["sure"]))
        self.pairs = measure(self.model, match(confirm, seed=0)[0], tokens)
        self.causal = ns.NeuronSet(self.planted.causal, **SHAPE)
        rng = np.random.default_rng(0)
        self.random = [random_like(self.causal, self.model, seed=rng) for _ in range(5)]
        read = self.pairs.on_harmful([self.pairs.ablate(ns.NeuronSet([p])) for p in self.causal])
        effects = self.pairs.normalised_effects(self.pairs.harmful_margins - read)
        self.alone = dict(zip(self.causal, effects, strict=True))
        self.ranked = sorted(self.alone, key=lambda p: -self.alone[p])
