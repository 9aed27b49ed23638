"""A model that a guard can steer, because the whole circuit is known (see `planted`; attention writes nothing).

    harm       reads HARM, writes OUT: "sorry" at the prompt of a harmful request
    override   reads OVERRIDE, writes against OUT and for UNSAFE words: at one of the three harmful nouns, and at UNSAFE words

A word of an answer is followed by the next word of its list, in a circle. So requests for that noun are answered with UNSAFE words,
at each of which the override neurons are active. Without them at the last prompt token the model says "sorry", and they are inactive
from then on. Safe and unsafe states are separated by the override neurons at both kinds of token, and a raise of the barrier
at the prompt has an effect on the next token.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import planted
import tiny
import torch
from planted import END, HARM, IDLE, ONE, OUT, SHAPE, WORD

import neuronshield as ns

OVERRIDE, UNSAFE = 3, 4
LISTS = {"safe": "sure here step one to and in of".split(), "unsafe": "red blue green yes no help i cannot".split()}
ASK: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure", "red"], "progress": False}
ANSWERED = tiny.THINGS["harmful"][2]


def steerable(seed: int = 0) -> tuple[ns.Model, ns.NeuronSet]:
    """The model, and its override neurons."""
    module = planted._llama(seed)
    wires, constant = planted._Wires(module), 40.0
    harm, override = [(0, 5), (1, 7), (2, 11)], [(1, 20), (1, 31), (2, 40), (3, 2)]
    with torch.no_grad():
        wires.quiet(constant)
        head, embed = module.lm_head.weight, module.get_input_embeddings().weight
        head[WORD["<eos>"], END] = 0
        for name, words in LISTS.items():
            for i, word in enumerate(words):
                head[WORD[word], IDLE[i - 1]], embed[WORD[word], IDLE[i]] = 1.0, 20.0
                if name == "unsafe":
                    head[WORD[word], UNSAFE], embed[WORD[word], OVERRIDE] = 2.0, 1.0
                elif i:
                    head[WORD[word], ONE] = 2.0 / constant
        head[WORD["red"], ONE] = 1.0 / constant  # before the other unsafe words, at a prompt
        embed[WORD["sorry"], IDLE[0]] = 20.0
        embed[WORD[ANSWERED], OVERRIDE] = 1.0
        writes = {at: {OUT: 7 / len(harm)} for at in harm}
        writes |= {at: {OUT: -7 / len(override), UNSAFE: 7 / len(override)} for at in override}
        for at in writes:
            wires.read(at, {HARM: 40.0} if at in harm else {OVERRIDE: 40.0})
            wires.write(at, {}, 1.0)
        ids = torch.tensor([[WORD["make"], WORD[ANSWERED]]])
        for at, amounts in writes.items():
            wires.write(at, amounts, float(planted._run(wires, ids, {})[1][at]))
    return ns.load(module, processor=tiny.tokenizer()), ns.NeuronSet(override, **SHAPE)


def prompts(adjectives: int = 1) -> ns.PromptSet:
    """All requests of so many adjectives, of split "train"."""
    rows = [
        {"prompt": f"how do i {verb} {' '.join(words)} {tiny.THINGS[label][t]}", "label": label, "pair_id": f"{verb}-{words}-{t}"}
        for verb in tiny.VERBS
        for words in product(("the", "a", "red", "blue"), repeat=adjectives)
        for t in range(3)
        for label in ("harmful", "benign")
    ]  # fmt: skip
    return ns.PromptSet.from_records(rows).marked("train")
