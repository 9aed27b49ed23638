"""A run-time guard, for models whose weights must not change: a set's activations are steered while the model answers.

For every layer l with members of the set the guard has two barriers that are linear in x, the activations of these members at
one token: one for the last prompt token, one for generated tokens. The safe set is where all of them are positive.

    h_l(x) = w_l . x + b_l > 0

w_l separates the states of harmful prompts that were answered (h low) from those of benign and of refused prompts (h high). For
every barrier the guard has learnt what h, and a raise of h, do to h at the next token (`transition`). At every decoding step it
makes the smallest change of x with which (1) a state outside the safe set is brought back to the margin, and (2) the *next*
height, as the model will compute it, is expected to be at least alpha times the level now, the level being h within 0 and 1:

    min ||x' - x||^2  subject to  h(x') >= margin where h(x) <= 0,   E[h+ | h(x), h(x') - h(x)] >= alpha S

Both are bounds on w . x', so the solution is x' = x + u w / ||w||^2 with the larger of the two raises as u. Where both hold,
nothing changes.

**The guarantee** is a bound on the probability that the model's own next states leave the safe set within K tokens (`exits`). It
is made of the levels of answers under the finished guard to prompts that had no part in the fit, and holds for prompts drawn
as those were. It is not a guarantee about answers: a model can answer a harmful prompt from inside the safe set, because the
barrier is only as good as the separation of the states it was fitted to, and because the guarded neurons may not decide the
answer. `evaluate(..., guard=guard)` measures its effect on answers.

Sources: Yang et al. (2025), "SHIELD: safety on humanoids via CBFs in expectation on learned dynamics", for the learned residual,
the condition in expectation and the smallest change; Cosner, Culbertson, Taylor, Ames (2023), "Robust safety under stochastic
uncertainty with discrete-time control barrier functions", for the bound; Cheng, Alonso (2024), "Linearly controlled language
generation", for the closed form of a linear probe. In SHIELD the residual comes from a conditional variational autoencoder; here
it is that of a linear model, observed on held-out answers.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from ..core.arguments import at_least, check_seed, one_of, require
from ..core.equality import same
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..core.provenance import provenance
from ..core.results import from_json, load_arrays, reading, save_arrays
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from ..model.encoding import as_prompts
from ..model.model import Model
from ..model.prefixes import openings_of
from .barrier import RIDGE, TOKENS, Barrier, Slot
from .exits import CONFIDENCE, exit_bound, shortfalls
from .fitting import LABELS, learned
from .steering import Guarded, Steering, guarded, steered
from .transition import Transition

__all__ = ["Guard", "Guarded", "fit_guard"]

FORMAT = "neuronshield.Guard/3"


# -- fitting ----------------------------------------------------------------------------------------------
def fit_guard(
    model: Model,
    neurons: NeuronSet,
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    benign_rate: float = 0.01,
    alpha: float = 0.995,
    margin: float = 1.0,
    max_new_tokens: int = 32,
    batch_size: int = 64,
    seed: int = 0,
    progress: bool = True,
) -> Guard:
    """A guard on the activations of `neurons`, learnt from the model's answers to the "train" prompts.

    >>> prefixes = {"refusals": ["sorry"], "compliances": ["sure"]}
    >>> guard = fit_guard(model, neurons, prompts, max_new_tokens=3, progress=False, **prefixes)
    >>> last_prompt_token, generated_tokens = guard.barriers[1]
    >>> last_prompt_token.weight.shape
    torch.Size([1])

    Args:
        model: the model; it is not changed.
        neurons: those that are guarded, normally `verify(...).verified`.
        prompts: those of split "train" are used, all of them if none is so marked. Half of the requests fit the barriers and
            their transitions, a quarter places the zeros and shows the residuals, a quarter shows the shortfalls. In the fit
            each of the two classes (answered harmful prompts; benign or refused prompts) has half of the weight; in a class
            every cell has the same weight, in a cell every prompt, in a prompt every step.
        refusals: refusal prefixes, a list for every language or {language: list}; the model's own without them.
        compliances: compliance prefixes, the same.
        benign_rate: the largest share of the held-out benign and refused prompts that may ever be outside the safe set.
        alpha: factor that the level may fall by at a step, above 0 and at most 1. The bound for K tokens is at least
            1 - alpha ** K.
        margin: height that a state outside the safe set is brought back to; 1 is a quarter of the way from its edge to the
            mean of safe states. With 0 there is no bound for answers that start outside.
        max_new_tokens: tokens an answer, at least 2.
        batch_size: prompts a forward.
        seed: of the deal of the requests, and of the random raises.
        progress: show a progress bar.

    Raises:
        InputError: an empty neuron set or one of another model, fewer than eight requests, no harmful prompt that was answered,
            no other prompt, an option outside its range, or a layer whose members are the same in all states.

    Source: ridge logistic regression for each barrier, least squares for each transition; the module's formulas.
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
    _check_steering(alpha, margin)
    at_least(2, "fit_guard", max_new_tokens=max_new_tokens)
    at_least(1, "fit_guard", batch_size=batch_size)
    model.needs_here("fit_guard")
    neurons.check_model(model)
    chosen = prompts.for_step("train")
    openings = openings_of(model, chosen, refusals=refusals, compliances=compliances)
    steering = Steering(alpha, margin, max_new_tokens, batch_size=batch_size, desc="fit guard" if progress else "")
    found = learned(model, chosen, neurons, steering=steering, openings=openings, benign_rate=benign_rate, seed=seed)
    about = provenance(
        model, chosen, seen=chosen, seed=seed, benign_rate=benign_rate, ridge=RIDGE, max_new_tokens=max_new_tokens,
        answered=found.answered, prompts=len(chosen), parts=found.parts, confidence=CONFIDENCE,
    )  # fmt: skip
    separation = {layer: (found.separation[layer, 0], found.separation[layer, 1]) for layer in neurons.per_layer()}
    return Guard(
        neurons,
        {layer: (found.slots[layer, 0], found.slots[layer, 1]) for layer in separation},
        margin=margin,
        alpha=alpha,
        levels=found.levels,
        separation=separation,
        provenance=about,
    )


def _check_steering(alpha: float, margin: float) -> None:
    if not 0 < alpha <= 1:
        raise InputError(f"alpha={alpha} is not above 0 and at most 1")
    if not (np.isfinite(margin) and margin >= 0):
        raise InputError(f"margin={margin} must be a finite number of at least 0")


# -- results ----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Header:
    """What a file of a guard says beside its arrays; of the pairs, the first is of the last prompt token."""

    n_layers: int | None
    d_mlp: int | None
    margin: float
    alpha: float
    bias: dict[int, tuple[float, float]]
    transition: dict[int, tuple[Transition, Transition]]
    levels: dict[str, tuple[int, int]]
    separation: dict[int, tuple[float, float]]
    neurons: dict[str, Any]
    provenance: dict[str, Any]


@dataclass(frozen=True, eq=False)
class Guard:
    """Barriers on a set's activations, enforced at run time. Made by `fit_guard`.

    >>> barrier = Barrier(torch.tensor([1.0, -1.0]), 0.5)
    >>> guard = Guard(NeuronSet([(1, 2), (1, 5)]), {1: (barrier, barrier)})
    >>> guard
    Guard(2 neurons in 1 layer, margin 1, alpha 1)

    Attributes:
        neurons: the guarded neurons; every layer that has one has barriers.
        barriers: of each layer, for the last prompt token and for generated tokens.
        margin: height that a state outside the safe set is brought back to.
        alpha: factor that the level may fall by at a step.
        levels: by label, S_0, S_1, ... of the calibration answers, [answer, token] (of a fitted guard).
        separation: held-out AUC by layer and kind of token (of a fitted guard); 0.5 is chance.
        provenance: the model, data and options it comes from.

    Raises:
        InputError: barriers that are missing, not finite, of the wrong shape, or zero, or an option or a level outside its range.
    """

    neurons: NeuronSet
    barriers: dict[int, tuple[Barrier, Barrier]]
    margin: float = 1.0
    alpha: float = 1.0
    levels: dict[str, Float[np.ndarray, "_ token"]] = field(default_factory=dict)
    separation: dict[int, tuple[float, float]] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_steering(self.alpha, self.margin)
        shapes = {layer: [(n,), (n,)] for layer, n in self.neurons.per_layer().items()}
        got = {layer: [tuple(b.weight.shape) for b in pair] for layer, pair in self.barriers.items()}
        if not shapes or got != shapes:
            raise InputError(f"a guard needs two barriers in each layer, with one weight a member: {shapes}, not {got}")
        for label, levels in self.levels.items():
            if label not in LABELS or levels.ndim != 2 or not ((levels >= 0) & (levels <= 1)).all():
                raise InputError(f"a guard's levels are [answer, token] for {' and '.join(LABELS)}, from 0 to 1")
        for (layer, _), barrier in self._slots().items():
            learnt = [getattr(barrier.transition, name) for name in ("intercept", "slope", "gain", "reach", "bias")]
            if not np.isfinite([barrier.bias, *learnt, *barrier.weight.tolist()]).all():
                raise InputError(f"weights, bias and transition of layer {layer} must be finite")
            if not barrier.weight.any():
                raise InputError(f"the weights of layer {layer} are all 0: no change of its members could satisfy it")

    def _slots(self) -> dict[Slot, Barrier]:
        return {(layer, kind): b for layer, pair in self.barriers.items() for kind, b in enumerate(pair)}

    def bound(self, tokens: int, *, label: str | None = None, start: float = 1.0) -> float:
        """The largest probability that a prompt's states leave the safe set within so many tokens; 1 says nothing.

        >>> barrier = Barrier(torch.tensor([1.0]), 0.5)
        >>> Guard(NeuronSet([(1, 2)]), {1: (barrier, barrier)}).bound(5)        # nothing was calibrated
        1.0

        It is for prompts drawn as the calibration prompts were, on average; for one start it needs condition (1) of
        `neuronshield.shield.exits` at that start. It is a statement about activations, not about answers.

        Args:
            tokens: K, at least 1.
            label: "harmful" or "benign", what the prompts are; None where it is not known, for the larger of both bounds.
            start: S_0, from 0 to 1, or its mean over prompts: the first of `Guarded.levels`.

        Raises:
            InputError: no such label, a start outside 0 to 1, or a number that is not at least 1 or is more tokens than were
                calibrated (`max_new_tokens` of `fit_guard`, less 1).
        """
        at_least(1, "bound", tokens=tokens)
        if label is not None:
            one_of(label, LABELS, call="bound", name="label")
        if not 0 <= start <= 1:
            raise InputError(f"bound: start={start} is not from 0 to 1")
        return max(self._bound(tokens, x, start) for x in ((label,) if label else LABELS))

    def _bound(self, tokens: int, label: str, start: float) -> float:
        levels = self.levels.get(label)
        if levels is None:
            return 1.0
        if tokens >= levels.shape[1]:
            raise InputError(
                f"bound: tokens={tokens} is more than the {levels.shape[1] - 1} that were calibrated; fit the guard with "
                f"max_new_tokens={tokens + 1}"
            )

        def within(k: int) -> float:
            first, later = shortfalls(levels, k, alpha=self.alpha)
            return exit_bound(k, alpha=self.alpha, start=start, first=first.upper, later=later.upper)

        return max(within(k) for k in range(1, tokens + 1))  # so that more tokens never have a smaller bound

    def generate(
        self,
        model: Model,
        prompts: str | Prompt | Iterable[str | Prompt],
        *,
        max_new_tokens: int = 32,
        batch_size: int = 32,
        progress: bool = False,
    ) -> Guarded:
        """Greedy answers with the barriers enforced at the last prompt token and every generated one.

        >>> barrier = Barrier(torch.tensor([1.0, -1.0]), 0.5)
        >>> guard = Guard(ns.NeuronSet([(1, 2), (1, 5)]), {1: (barrier, barrier)})
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
        steering = Steering(
            self.alpha, self.margin, max_new_tokens, batch_size=batch_size, desc="guard" if progress else ""
        )
        run = steered(model, rows, self.neurons, slots=self._slots(), steering=steering)
        return guarded(run, self.margin)

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
        return hash((self.neurons, self.margin, self.alpha))

    def __repr__(self) -> str:
        known = [v for pair in self.separation.values() for v in pair if np.isfinite(v)]
        auc = f", held-out AUC {min(known):.2f} to {max(known):.2f}" if known else ""
        return f"Guard({repr(self.neurons)[10:-1]}, margin {self.margin:g}, alpha {self.alpha:g}{auc})"

    def to_frame(self) -> pd.DataFrame:
        """One row a barrier: layer, kind of token, members, size of w, b, what was learnt of the next token, and held-out AUC."""
        import pandas as pd

        rows = [
            {"layer": layer, "token": TOKENS[kind], "neurons": len(b.weight), "norm": float(b.weight.norm()), "bias": b.bias,
             "slope": b.transition.slope, "gain": b.transition.gain, "residual": b.transition.bias, "spread": b.transition.spread,
             "separation": self.separation.get(layer, (float("nan"),) * 2)[kind]}
            for (layer, kind), b in self._slots().items()
        ]  # fmt: skip
        return pd.DataFrame(rows)

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
        weight = torch.stack([torch.cat([pair[kind].weight for pair in self.barriers.values()]) for kind in (0, 1)])
        header = _Header(
            self.neurons.n_layers, self.neurons.d_mlp, margin=self.margin, alpha=self.alpha,
            levels={label: (len(levels), levels.shape[1]) for label, levels in self.levels.items()},
            bias={layer: (a.bias, b.bias) for layer, (a, b) in self.barriers.items()},
            transition={layer: (a.transition, b.transition) for layer, (a, b) in self.barriers.items()},
             separation=self.separation, neurons=self.neurons.provenance, provenance=self.provenance,
        )  # fmt: skip
        arrays = {"layer": pairs[:, 0], "index": pairs[:, 1], "weight": weight.cpu().numpy()}
        arrays |= {f"levels.{label}": levels for label, levels in self.levels.items()}
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
            weights = torch.tensor(arrays["weight"], dtype=torch.float32).split(list(sizes.values()), dim=1)
            barriers = {}
            for layer, (w0, w1) in zip(sizes, weights, strict=True):
                (b0, b1), (t0, t1) = header.bias[layer], header.transition[layer]
                barriers[layer] = (Barrier(w0, b0, t0), Barrier(w1, b1, t1))
            levels = {label: arrays[f"levels.{label}"] for label in header.levels}
            if {label: x.shape for label, x in levels.items()} != header.levels:
                raise InputError("levels of another shape than its description says")
            return Guard(
                neurons,
                barriers,
                margin=header.margin,
                alpha=header.alpha,
                levels=levels,
                separation=header.separation,
                provenance=header.provenance,
            )
