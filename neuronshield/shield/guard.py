"""A run-time guard, for where weights may not change: the neurons of a set are kept in a half-space as the model answers.

For every layer l with members, a barrier that is linear in x, the activations of its members at one token:

    h_l(x) = w_l . x + b_l >= margin

It is held at every decoding step (the last prompt token, and each generated token that is read again) by the smallest
change that satisfies it. One linear constraint has a closed form:

    min ||x' - x||^2  subject to  h_l(x') >= margin     =>     x' = x + max(0, margin - h_l(x)) w_l / ||w_l||^2

so where the barrier holds nothing changes. w_l separates states in which harmful prompts were answered (h low) from those
of benign and of refused prompts (h high); b_l is put where almost no benign or refused prompt of the fit is touched.

**What is guaranteed** is that these neurons never leave the learned half-space, at no layer and step. That says nothing
about the answers: a model may answer a harmful prompt from inside it, as the barrier is only as good as the separation of
the states it was fitted on, and as those neurons matter. Measure what it does to answers with `evaluate(..., guard=)`.

Ames, Xu, Grizzle, Tabuada (2017), "Control barrier function based quadratic programs"; Agrawal, Sreenath (2017), the
discrete form; Cheng, Alonso (2024), "Linearly controlled language generation" (LiSeCo): closed form for a linear probe.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import nnsight
import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from ..core.errors import InputError
from ..core.files import replacing
from ..core.neurons import NeuronSet
from ..core.provenance import versions
from ..data.grading import grade
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from ..model.encoding import Batch, batches
from ..model.generation import quiet_generation
from ..model.model import Model, by_row
from ..model.prefixes import openings_of
from .barrier import RIDGE, barriers, separation_of

__all__ = ["Guard", "Guarded", "fit_guard", "project"]


FORMAT = "neuronshield.Guard/1"


def project(
    x: Float[Tensor, "row k"], w: Float[Tensor, " k"], b: float, margin: float = 0.0
) -> tuple[Float[Tensor, "row k"], Bool[Tensor, " row"]]:
    """The nearest x' with w . x' + b >= margin, in the dtype of `x`, and which rows had to move.

    >>> new, moved = project(torch.tensor([[3.0, 4.0], [-1.0, 0.0]]), torch.tensor([2.0, 0.0]), 0.0, margin=4.0)
    >>> new.round(decimals=3).tolist(), moved.tolist()
    ([[3.0, 4.0], [2.0, 0.0]], [False, True])

    Rows that move land beyond the boundary by what rounding to that dtype could take away.

    Source: the module's formula.
    """
    wide, size = x.float(), w.abs()
    gap = margin - b - wide @ w
    short = gap > 0
    new = wide + (gap / (w @ w))[:, None] * w
    kept, summed = torch.finfo(x.dtype).eps, (len(w) + 4) * torch.finfo(w.dtype).eps
    gap = gap + kept * (new.abs() @ size) + summed * (wide.abs() @ size + abs(b) + abs(margin))
    new = wide + (gap / (w @ w))[:, None] * w
    return torch.where(short[:, None], new.to(x.dtype), x), short


# -- decoding ---------------------------------------------------------------------------------------------
Change = Callable[[int, "Tensor"], "tuple[Tensor | None, Tensor]"]


class _Decoded(NamedTuple):
    """Answers, each prompt's number of decoding steps, and by layer what `change` kept: [step, ...] for each prompt."""

    texts: list[str]
    steps: list[int]
    kept: dict[int, list[Tensor]]


def _decode(
    model: Model, prompts: Sequence[Prompt], neurons: NeuronSet, change: Change, n: int, batch_size: int, desc: str
) -> _Decoded:
    """Greedy answers, with `change(layer, x)` at every decoding step giving x' (None: as it is) and what to keep.

    A step belongs to a prompt until its answer has ended; rows that only wait for others are not its steps.
    """
    if n < 1:
        raise InputError(f"max_new_tokens={n}: generate at least one token")
    texts, steps = [""] * len(prompts), [0] * len(prompts)
    kept: dict[int, list[Any]] = {layer: [None] * len(prompts) for layer in neurons.by_layer()}
    end = getattr(getattr(model.module, "generation_config", None), "eos_token_id", None)
    ends = torch.tensor([] if end is None else [end] if isinstance(end, int) else list(end))
    with tqdm(total=len(prompts), desc=desc, unit="prompt", disable=not desc, leave=False) as bar:
        for batch in batches(model, prompts, batch_size=batch_size, side="left"):
            new, seen = _decode_batch(model, batch, neurons, change, n)
            ended = torch.isin(new, ends.to(new)).int()
            alive = (ended.cumsum(dim=1) - ended == 0).sum(dim=1).tolist()
            answers = model.tokenizer.batch_decode(new, skip_special_tokens=True)
            for i, row in enumerate(batch.rows):
                texts[row], steps[row] = answers[i].strip(), alive[i]
                for layer, rows in kept.items():
                    rows[row] = torch.stack([seen[s, layer][i] for s in range(alive[i])]).cpu()
            bar.update(len(batch.rows))
    return _Decoded(texts, steps, kept)


def _decode_batch(
    model: Model, batch: Batch, neurons: NeuronSet, change: Change, n: int
) -> tuple[Tensor, dict[tuple[int, int], Tensor]]:
    """The generated ids, and what `change` kept at each (step, layer), every one of which must have run."""
    encoding = {k: v for k, v in batch.encoding.items() if k != "position_ids"}
    pad = next((i for i in (model.tokenizer.pad_token_id, model.tokenizer.eos_token_id) if i is not None), 0)
    answers: list[Tensor] = []

    def run(**kwargs: Any) -> Tensor:
        options = {"max_new_tokens": n, "do_sample": False, "num_beams": 1, "pad_token_id": pad}
        answers.append(model.module.generate(**kwargs, **options))  # type: ignore[operator]
        return answers[0]

    envoys = model.envoys
    idle = model.idle(batch.encoding)
    members = {
        layer: torch.tensor(own, device=model.device) for layer, own in neurons.by_layer().items() if layer not in idle
    }
    with torch.no_grad(), quiet_generation(), model.traced.trace(fn=run, **encoding) as tracer:
        seen = nnsight.save({})
        for step in tracer.iter[:n]:
            for layer, indices in members.items():
                h = envoys[layer].input
                new, seen[step, layer] = change(layer, by_row(h, len(batch.rows))[:, -1, indices])
                if new is not None:
                    h = h.clone()
                    by_row(h, len(batch.rows))[:, -1, indices] = new
                    envoys[layer].input = h
    done = answers[0][:, batch.encoding["input_ids"].shape[1] :]
    missing = {(step, layer) for step in range(done.shape[1]) for layer in members} ^ set(seen)
    if missing:
        raise RuntimeError(f"the guard on {model.id!r} did not run at every (step, layer): {sorted(missing)[:3]}")
    return done, dict(seen)


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
    """Fit a barrier on the neurons' activations, from what the model does with the "train" prompts.

    >>> guard = fit_guard(model, proof.verified, prompts)      # doctest: +SKIP
    >>> guard.weights[3].shape                                 # doctest: +SKIP
    torch.Size([11])

    Args:
        neurons: those that are guarded; the proven ones.
        prompts: the "train" ones are used (all of them, if none is so marked); in each of the two classes (answered
            harmful; benign or refused) every cell counts equally, in a cell every prompt, in a prompt every step.
        refusals, compliances: openings that replace the built-in ones (see `grade`).
        benign_rate: share of the benign and refused prompts of the fit that the guard may touch at all, over all layers
            and steps. Prompts unlike them, as of other cells, are touched more often: `evaluate(..., guard=)` says how often.
        max_new_tokens: tokens an answer.
        seed: decides which requests are held out for `Guard.separation`.

    Raises:
        InputError: an empty neuron set or one of another model, no harmful prompt that was answered, no other prompt,
            a `benign_rate` outside 0 to 1, or a layer whose members are the same in all states.

    Source: ridge logistic regression per layer; the barrier is the module's formula.
    """
    if not len(neurons):
        raise InputError("fit_guard: the neuron set is empty; pass at least one neuron")
    if not 0 <= benign_rate < 1:
        raise InputError(f"benign_rate={benign_rate} is not a share from 0 to below 1")
    model.needs_here("fit_guard")
    neurons.check_model(model)
    chosen = prompts.for_step("train")
    openings = openings_of(model, chosen, refusals=refusals, compliances=compliances)
    desc = "fit guard" if progress else ""
    run = _decode(model, chosen, neurons, lambda _, x: (None, x.float()), max_new_tokens, batch_size, desc)
    harmful = np.array([p.label == "harmful" for p in chosen])
    unsafe = harmful & [not grade(p, t, openings).refused for p, t in zip(chosen, run.texts, strict=True)]
    if not unsafe.any():
        raise InputError(f"fit_guard: none of {harmful.sum()} harmful prompts was answered: nothing to guard against")
    if unsafe.all():
        raise InputError("fit_guard: every prompt is harmful and was answered; add benign ones")
    weights, bias = barriers(run.kept, chosen, unsafe, benign_rate)
    separation = {layer: separation_of(states, chosen, unsafe, seed) for layer, states in run.kept.items()}
    about = {
        **model.provenance(), "data": chosen.hash(), "seed": seed, "benign_rate": benign_rate, "ridge": RIDGE,
        "max_new_tokens": max_new_tokens, "answered": int(unsafe.sum()), "prompts": len(chosen), "versions": versions(),
        "seen": sorted({p.cluster for p in chosen}),
    }  # fmt: skip
    return Guard(neurons, weights, bias, separation=separation, provenance=about)


# -- results ----------------------------------------------------------------------------------------------
class Guarded(NamedTuple):
    """Answers under a guard, and what it did.

    Attributes:
        texts: the answers.
        steps: decoding steps of each prompt, [prompt].
        touched: those at which any layer was changed, [prompt].
        edits: how many steps were changed in each layer, [prompt, layer], layers ascending.
    """

    texts: list[str]
    steps: Int[np.ndarray, " prompt"]
    touched: Int[np.ndarray, " prompt"]
    edits: Int[np.ndarray, "prompt layer"]


@dataclass(eq=False)
class Guard:
    """A barrier on a set's activations, held at run time. Made by `fit_guard`.

    >>> guard = Guard(NeuronSet([(1, 2), (1, 5)]), {1: torch.tensor([1.0, -1.0])}, {1: 0.5})
    >>> guard
    Guard(2 neurons in 1 layer, margin 0)

    Attributes:
        neurons: what is guarded; its layers are the layers with a barrier.
        weights, bias: w [members of the layer, ascending] (float32) and b of each layer. In a fitted guard h is 1 at
            the mean of the safe states.
        margin: what h must be at least; above 0 it touches more, benign prompts too, and pushes further.
        separation: held-out AUC by layer (fit only), 0.5 for a barrier that tells nothing apart.
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
        prompts: Sequence[Prompt],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Guarded:
        """Greedy answers with the barrier held at the last prompt token and every generated one.

        >>> guard.generate(model, prompts[:2]).touched         # doctest: +SKIP
        array([0, 3])

        Raises:
            InputError: a model whose weights the guard was not fitted on.
            RuntimeError: the guard did not run at every layer and step.
        """
        self._check(model)
        lines = {layer: (w.to(model.device), self.bias[layer], self.margin) for layer, w in self.weights.items()}
        hold = lambda layer, x: project(x, *lines[layer])  # noqa: E731
        run = _decode(model, prompts, self.neurons, hold, max_new_tokens, batch_size, "guard" if progress else "")
        fired = [torch.stack(of_layers, dim=1) for of_layers in zip(*run.kept.values(), strict=True)]
        touched = np.array([int(f.any(dim=1).sum()) for f in fired])
        edits = np.array([f.sum(dim=0).tolist() for f in fired])
        return Guarded(run.texts, np.array(run.steps), touched, edits)

    def _check(self, model: Model) -> None:
        self.neurons.check_model(model)
        weights = self.provenance.get("fingerprint")
        if weights is not None and weights != model.fingerprint:
            raise InputError(
                f"the guard was fitted on {self.provenance.get('model')!r} with other weights ({weights}, not "
                f"{model.fingerprint}): fit it on this model"
            )

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
        """Write it as one safetensors file (beside first, then renamed)."""
        from safetensors.torch import save_file

        layer, index = (torch.tensor(column, dtype=torch.int32) for column in zip(*self.neurons, strict=True))
        weight = torch.cat([self.weights[i] for i in self.neurons.per_layer()]).cpu()
        about = {
            "format": FORMAT, "n_layers": self.neurons.n_layers, "d_mlp": self.neurons.d_mlp, "margin": self.margin,
            "bias": self.bias, "separation": {k: v if np.isfinite(v) else None for k, v in self.separation.items()},
            "neurons": self.neurons.provenance, "provenance": self.provenance,
        }  # fmt: skip
        with replacing(path) as partial:
            tensors = {"layer": layer, "index": index, "weight": weight}
            save_file(tensors, partial, metadata={"neuronshield": json.dumps(about)})
        return Path(path)

    @staticmethod
    def load(path: str | os.PathLike[str]) -> Guard:
        """Read a guard that `save` wrote.

        Raises:
            InputError: no such file, or not a guard.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["neuronshield"])
                if about["format"] != FORMAT:
                    raise ValueError(f"format {about['format']!r}")
                pairs = list(zip(file.get_tensor("layer").tolist(), file.get_tensor("index").tolist(), strict=True))
                flat = file.get_tensor("weight")
            neurons = NeuronSet(pairs, n_layers=about["n_layers"], d_mlp=about["d_mlp"], provenance=about["neurons"])
            sizes = neurons.per_layer()
            return Guard(
                neurons,
                dict(zip(sizes, flat.split(list(sizes.values())), strict=True)),
                {int(layer): b for layer, b in about["bias"].items()},
                about["margin"],
                {int(layer): float("nan") if v is None else v for layer, v in about["separation"].items()},
                about["provenance"],
            )
        except FileNotFoundError:
            raise InputError(f"{path}: no such guard") from None
        except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"{path}: not a guard written by Guard.save ({error})") from None
