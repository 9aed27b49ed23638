"""A run-time guard, for models whose weights must not change: a set's activations are kept in a half-space while it answers.

For every layer l with members of the set, the guard has a barrier that is linear in x, the activations of these members at
one token:

    h_l(x) = w_l . x + b_l >= margin

It is enforced at every decoding step (the last prompt token, and each generated token when it is read) by the smallest
change of x that satisfies it. For one linear constraint this has a closed form:

    min ||x' - x||^2  subject to  h_l(x') >= margin     =>     x' = x + max(0, margin - h_l(x)) w_l / ||w_l||^2

Where the barrier holds, nothing changes. w_l separates the states of harmful prompts that were answered (h low) from the
states of benign and of refused prompts (h high), by logistic regression. b_l is set so that at most a share `benign_rate` of
the benign and refused prompts of the fit are changed at all.

**The guarantee** is that these activations never leave the half-space, at any layer and step. It is not a guarantee about
answers: a model can answer a harmful prompt from inside the half-space, because the barrier is only as good as the separation
of the states it was fitted on, and because the guarded neurons may not decide the answer. `evaluate(..., guard=guard)` measures
its effect on answers.

Sources: Ames, Xu, Grizzle, Tabuada (2017), "Control barrier function based quadratic programs"; Agrawal, Sreenath (2017), the
discrete form; Cheng, Alonso (2024), "Linearly controlled language generation" (LiSeCo), the closed form for a linear probe.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..core.arguments import at_least, check_seed, require
from ..core.equality import same
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.provenance import provenance
from ..core.results import from_json, load_arrays, reading, save_arrays
from ..data.grading import grade
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from ..model.encoding import as_prompts, batches
from ..model.generation import decode, settings
from ..model.model import Model
from ..model.prefixes import openings_of
from ..model.thoughts import decoded, in_thought
from .barrier import RIDGE, barriers, project, separation_of

__all__ = ["Guard", "Guarded", "fit_guard"]


FORMAT = "neuronshield.Guard/2"


# -- decoding ---------------------------------------------------------------------------------------------
#: (layer, activations of its members at one token) -> (what replaces them or None, what is kept)
Change = Callable[[int, "Tensor"], "tuple[Tensor | None, Tensor]"]


@dataclass(frozen=True)
class _Decoded:
    """Answers, each prompt's number of decoding steps, and by layer what `change` kept: [step, ...] for each prompt."""

    texts: list[str]
    steps: list[int]
    kept: dict[int, list[Tensor]]


def _decode(
    model: Model,
    prompts: Sequence[Prompt],
    neurons: NeuronSet,
    *,
    change: Change,
    max_new_tokens: int,
    batch_size: int,
    desc: str,
) -> _Decoded:
    """Greedy answers, with `change` applied at every decoding step of every layer of the set.

    A step belongs to a prompt until its answer has ended; rows that wait for longer answers have no steps.
    """
    at_least(1, "guard", max_new_tokens=max_new_tokens, batch_size=batch_size)
    members = {layer: torch.tensor(own, device=model.device) for layer, own in neurons.by_layer().items()}

    def at_step(step: int, layer: int, h: Float[Tensor, "batch pos d_mlp"]) -> Tensor:
        new, keep = change(layer, h[:, -1, members[layer]])
        if new is not None:
            h[:, -1, members[layer]] = new
        return keep

    texts, steps = [""] * len(prompts), [0] * len(prompts)
    kept: dict[int, list[Any]] = {layer: [None] * len(prompts) for layer in members}
    with tqdm(total=len(prompts), desc=desc, unit="prompt", disable=not desc, leave=False) as bar:
        for batch in batches(model, prompts, batch_size=batch_size, side="left", extra=max_new_tokens):
            layers = [list(members)] * max_new_tokens
            new, seen = decode(model, batch, max_new_tokens=max_new_tokens, layers=layers, change=at_step)
            parts = zip(batch.rows, decoded(model.tokenizer, new.tolist()), _steps(model, new), strict=True)
            for i, (row, text, alive) in enumerate(parts):
                texts[row], steps[row] = text.strip(), alive
                for layer, rows in kept.items():
                    rows[row] = torch.stack([seen[s, layer][i] for s in range(alive)]).cpu()
            bar.update(len(batch.rows))
    return _Decoded(texts, steps, kept)


def _steps(model: Model, new: Int[Tensor, "batch new"]) -> Iterator[int]:
    """How many decoding steps each row took, its end-of-sequence token included."""
    ended = torch.isin(new, torch.tensor(settings(model, new.shape[1])["eos_token_ids"]).to(new)).int()
    yield from (ended.cumsum(dim=1) - ended == 0).sum(dim=1).tolist()


# -- fitting ----------------------------------------------------------------------------------------------
def fit_guard(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    benign_rate: float = 0.01,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Guard:
    """A guard on the activations of `neurons`, fitted to the model's answers to the "train" prompts.

    >>> prefixes = {"refusals": ["sorry"], "compliances": ["sure"]}
    >>> guard = fit_guard(model, neurons, prompts, max_new_tokens=3, progress=False, **prefixes)
    >>> guard.weights[1].shape
    torch.Size([1])

    Args:
        model: the model; it is not changed.
        neurons: those that are guarded, normally `verify(...).verified`.
        prompts: those of split "train" are used, all of them if none is so marked. Each of the two classes (answered harmful
            prompts; benign or refused prompts) has half of the weight; in a class every cell has the same weight, in a cell
            every prompt, in a prompt every step.
        refusals: refusal prefixes, a list for every language or {language: list}; the model's own without them.
        compliances: compliance prefixes, the same.
        benign_rate: the largest share of the benign and refused prompts of the fit that the guard may change at all, over all
            layers and steps. Prompts of other cells are changed more often; `evaluate(..., guard=guard)` counts how often.
        max_new_tokens: tokens an answer.
        batch_size: prompts a forward.
        seed: of the half of the requests that is held out for `Guard.separation`.
        progress: show a progress bar.

    Raises:
        InputError: an empty neuron set or one of another model, no harmful prompt that was answered, no other prompt,
            a `benign_rate` outside 0 to 1, or a layer whose members are the same in all states.

    Source: ridge logistic regression per layer; the barrier is the module's formula.
    """
    call = "fit_guard(model, neurons, prompts)"
    require(model, Model, call=call, name="model")
    require(neurons, NeuronSet, call=call, name="neurons", hint="pass one set, such as proof.verified")
    require(prompts, PromptSet, call=call, name="prompts")
    check_seed(seed, call="fit_guard")
    if not len(neurons):
        raise InputError("fit_guard: the neuron set is empty; pass at least one neuron")
    if not 0 <= benign_rate < 1:
        raise InputError(f"benign_rate={benign_rate} is not a share from 0 to below 1")
    model.needs_here("fit_guard")
    neurons.check_model(model)
    chosen = prompts.for_step("train")
    openings = openings_of(model, chosen, refusals=refusals, compliances=compliances)
    desc = "fit guard" if progress else ""
    run = _decode(
        model, chosen, neurons, change=lambda _, x: (None, x.float()), max_new_tokens=max_new_tokens,
        batch_size=batch_size, desc=desc,
    )  # fmt: skip
    harmful = np.array([p.label == "harmful" for p in chosen])
    opened = in_thought(model, chosen)
    grades = [grade(p, t, openings, in_thought=o) for p, t, o in zip(chosen, run.texts, opened, strict=True)]
    unsafe = harmful & [g.outcome == "complied" for g in grades]
    if not unsafe.any():
        raise InputError(
            f"fit_guard: none of {harmful.sum()} harmful prompts was answered; there is nothing to guard against"
        )
    if unsafe.all():
        raise InputError("fit_guard: every prompt is harmful and was answered; add benign ones")
    weights, bias = barriers(run.kept, chosen, unsafe=unsafe, benign_rate=benign_rate)
    separation = {layer: separation_of(states, chosen, unsafe=unsafe, seed=seed) for layer, states in run.kept.items()}
    about = provenance(
        model, chosen, seen=chosen, seed=seed, benign_rate=benign_rate, ridge=RIDGE, max_new_tokens=max_new_tokens,
        answered=int(unsafe.sum()), prompts=len(chosen),
    )  # fmt: skip
    return Guard(neurons, weights, bias, separation=separation, provenance=about)


# -- results ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Header:
    """What a file of a guard says beside its arrays."""

    n_layers: int | None
    d_mlp: int | None
    margin: float
    bias: dict[int, float]
    separation: dict[int, float]
    neurons: dict[str, Any]
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False, repr=False)
class Guarded:
    """Answers under a guard, and how often the guard changed an activation.

    Attributes:
        texts: the answers.
        steps: decoding steps of each prompt.
        touched: those of its steps at which any layer was changed.
        edits: how many of its steps were changed in each layer, layers ascending.
    """

    texts: list[str]
    steps: Int[np.ndarray, " prompt"]
    touched: Int[np.ndarray, " prompt"]
    edits: Int[np.ndarray, "prompt layer"]

    def __repr__(self) -> str:
        changed = f"{int((self.touched > 0).sum())} of them changed at {int(self.touched.sum())} of {int(self.steps.sum())} steps"
        return f"Guarded({len(self.texts)} answer{'s' * (len(self.texts) != 1)}, {changed})"


@dataclass(frozen=True, eq=False)
class Guard:
    """A barrier on a set's activations, enforced at run time. Made by `fit_guard`.

    >>> guard = Guard(NeuronSet([(1, 2), (1, 5)]), {1: torch.tensor([1.0, -1.0])}, {1: 0.5})
    >>> guard
    Guard(2 neurons in 1 layer, margin 0)

    Attributes:
        neurons: the guarded neurons; every layer that has one has a barrier.
        weights: w of each layer [members of the layer, ascending], float32.
        bias: b of each layer. In a fitted guard h is 1 at the mean of the safe states.
        margin: the least value of h. Above 0 more states are changed, of benign prompts too, and each by more.
        separation: held-out AUC by layer (of a fitted guard); 0.5 is chance.
        provenance: the model, data and options it comes from.

    Raises:
        InputError: weights or biases that are missing, not finite, of the wrong shape, or zero.
    """

    neurons: NeuronSet
    weights: dict[int, Tensor]
    bias: dict[int, float]
    margin: float = 0.0
    separation: dict[int, float] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = {layer: (n,) for layer, n in self.neurons.per_layer().items()}
        got = {layer: tuple(w.shape) for layer, w in self.weights.items()}
        if not shapes or got != shapes or set(self.bias) != set(shapes):
            raise InputError(f"a guard needs one weight a member and one bias in each layer: {shapes}, not {got}")
        if not np.isfinite([self.margin, *self.bias.values(), *torch.cat([*self.weights.values()]).tolist()]).all():
            raise InputError("a guard's weights, biases and margin must be finite")
        if flat := [layer for layer, w in self.weights.items() if not w.any()]:
            raise InputError(f"the weights of layer {flat[0]} are all 0: no change of its members could satisfy it")

    def generate(
        self,
        model: Model,
        prompts: str | Prompt | Iterable[str | Prompt],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Guarded:
        """Greedy answers with the barrier enforced at the last prompt token and every generated one.

        >>> guard = Guard(ns.NeuronSet([(1, 2), (1, 5)]), {1: torch.tensor([1.0, -1.0])}, {1: 0.5})
        >>> run = guard.generate(model, prompts[:2], max_new_tokens=3)
        >>> run.steps.shape, run.edits.shape          # [prompt], [prompt, layer]
        ((2,), (2, 1))

        Args:
            model: the model that the guard was fitted on.
            prompts: a `PromptSet`, a sequence of prompts or strings, or one of either.
            max_new_tokens: tokens an answer.
            batch_size: prompts a forward.
            progress: show a progress bar.

        Raises:
            InputError: no model or no prompts, or a model whose weights the guard was not fitted on.
            RuntimeError: the guard did not run at every layer and step.
        """
        rows = as_prompts(model, prompts, call="Guard.generate")
        if not rows:
            raise InputError("Guard.generate: no prompts")
        self._check(model)
        lines = {layer: (w.to(model.device), self.bias[layer], self.margin) for layer, w in self.weights.items()}
        run = _decode(
            model, rows, self.neurons, change=lambda layer, x: project(x, *lines[layer]),
            max_new_tokens=max_new_tokens, batch_size=batch_size, desc="guard" if progress else "",
        )  # fmt: skip
        fired = [torch.stack(of_layers, dim=1) for of_layers in zip(*run.kept.values(), strict=True)]
        touched = np.array([int(f.any(dim=1).sum()) for f in fired])
        return Guarded(run.texts, np.array(run.steps), touched, edits=np.array([f.sum(dim=0).tolist() for f in fired]))

    def _check(self, model: Model) -> None:
        self.neurons.check_model(model)
        weights = self.provenance.get("fingerprint")
        if weights is not None and weights != model.fingerprint:
            raise InputError(
                f"the guard was fitted on {self.provenance.get('model')!r} with other weights ({weights}, not "
                f"{model.fingerprint}): fit it on this model"
            )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Guard) and same(self, other)

    def __hash__(self) -> int:
        return hash((self.neurons, self.margin))

    def __repr__(self) -> str:
        known = [v for v in self.separation.values() if np.isfinite(v)]
        auc = f", held-out AUC {min(known):.2f} to {max(known):.2f}" if known else ""
        return f"Guard({repr(self.neurons)[10:-1]}, margin {self.margin:g}{auc})"

    def to_frame(self) -> pd.DataFrame:
        """One row a layer: its members, the size of its w, its b and its held-out AUC."""
        import pandas as pd

        rows = [(i, len(w), float(w.norm()), self.bias[i], self.separation.get(i)) for i, w in self.weights.items()]
        return pd.DataFrame(rows, columns=["layer", "neurons", "norm", "bias", "separation"])

    def _repr_html_(self) -> str:
        from html import escape

        about = escape(f"{self!r} {self.provenance.get('model', '')}")
        return f"<p><b>{about}</b></p>{self.to_frame().to_html(index=False, float_format='{:.2f}'.format)}"

    # -- files ----------------------------------------------------------------------------------------
    def save(self, path: str | os.PathLike[str]) -> Path:
        """The path of the safetensors file that the guard is written to.

        Args:
            path: the file; it is written beside and renamed.
        """
        pairs = np.array(list(self.neurons), dtype=np.int32)
        weight = torch.cat([self.weights[i] for i in self.neurons.per_layer()]).cpu().numpy()
        header = _Header(
            self.neurons.n_layers, self.neurons.d_mlp, margin=self.margin, bias=self.bias, separation=self.separation,
            neurons=self.neurons.provenance, provenance=self.provenance,
        )  # fmt: skip
        arrays = {"layer": pairs[:, 0], "index": pairs[:, 1], "weight": weight}
        return save_arrays(path, FORMAT, arrays=arrays, about=header)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Guard:
        """The guard that `save` wrote.

        Args:
            path: the file.

        Raises:
            InputError: no such file, or not a guard.
        """
        arrays, about = load_arrays(path, FORMAT)
        with reading(path, FORMAT):
            header = from_json(_Header, about)
            pairs = zip(arrays["layer"].tolist(), arrays["index"].tolist(), strict=True)
            neurons = NeuronSet(pairs, n_layers=header.n_layers, d_mlp=header.d_mlp, provenance=header.neurons)
            sizes = neurons.per_layer()
            weights = torch.tensor(arrays["weight"], dtype=torch.float32).split(list(sizes.values()))
            return Guard(
                neurons,
                dict(zip(sizes, weights, strict=True)),
                header.bias,
                margin=header.margin,
                separation=header.separation,
                provenance=header.provenance,
            )
