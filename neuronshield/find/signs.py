"""Signs: on which prompts a neuron is larger, and whether it writes towards refusal or towards compliance.

Scores are ranked by magnitude, so a set mixes neurons that do opposite things. Two signs tell them apart:

    contrast    m_h - m_b, the mean activation on harmful prompts minus that on benign prompts
    writes      what a unit of activation adds directly to the refusal margin,

                    W_down[:, i] . (gamma * (mean of W_U over first refusal tokens - over first compliance tokens)) / s

                with gamma and s the weight and the scale of the final norm, and W_U the unembedding: direct logit attribution

and their product says what the neuron does to the difference between harmful and benign prompts:

    contrast > 0, writes > 0    refusal-promoting: larger on harmful prompts, writes towards refusal
    contrast < 0, writes < 0    compliance-promoting: larger on benign prompts, writes towards compliance
    otherwise                   anti-refusal: its direct effect brings the margins of harmful and benign prompts together

"Direct" is what later layers do not change (see `paths`): a neuron that later neurons read may do the opposite in all. `verify`
measures the total effect, which in early layers can be unlike the direct one. Norms are held at their scale on a prompt, softcaps at
their slope there. So `writes` is a slope at one prompt, and its unit is logits per unit of activation.

Source: Elhage et al. (2021), "A Mathematical Framework for Transformer Circuits" (direct paths to the logits); nostalgebraist (2020),
"Interpreting GPT: the logit lens".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from ..model.model import Model
from ..model.prefixes import OpeningTokens, opening_tokens, openings_of
from .moments import check_inputs
from .paths import direct_path

__all__ = ["ANTI_REFUSAL", "COMPLIANCE_PROMOTING", "REFUSAL_PROMOTING", "Sign", "directions", "kind", "signs_of"]

REFUSAL_PROMOTING, COMPLIANCE_PROMOTING, ANTI_REFUSAL = "refusal-promoting", "compliance-promoting", "anti-refusal"


@dataclass(frozen=True)
class Sign:
    """The two signs of a neuron, and what they make it.

    Attributes:
        contrast: mean activation on harmful prompts minus that on benign prompts.
        writes: what a unit of its activation adds directly to the refusal margin, in logits; NaN in a layer that does not run.
        kind: "refusal-promoting", "compliance-promoting" or "anti-refusal"; "" where one of the two is 0 or not known.
    """

    contrast: float
    writes: float
    kind: str


def kind(contrast: float, writes: float) -> str:
    """ "refusal-promoting", "compliance-promoting" or "anti-refusal"; "" where one of the two is 0 or NaN.

    >>> kind(0.4, 2.0), kind(-0.4, -2.0), kind(0.4, -2.0), kind(0.0, 2.0)
    ('refusal-promoting', 'compliance-promoting', 'anti-refusal', '')

    Args:
        contrast: mean activation on harmful prompts minus that on benign prompts.
        writes: what a unit of its activation adds directly to the refusal margin.
    """
    if contrast > 0 and writes > 0:
        return REFUSAL_PROMOTING
    if contrast < 0 and writes < 0:
        return COMPLIANCE_PROMOTING
    return ANTI_REFUSAL if (contrast > 0 > writes) or (contrast < 0 < writes) else ""


def directions(
    model: Model, prompts: PromptSet, *, refusals: OpeningsArg = None, compliances: OpeningsArg = None
) -> dict[str, Float[np.ndarray, "n_layers d_mlp"]]:
    """What a unit of every neuron's activation adds directly to the refusal margin, in logits, by language.

    Positive is towards the refusal prefixes. Norms are held at their scale on the language's first harmful prompt (its first
    prompt where none is harmful). NaN in a layer that does not run for it.

    >>> found = directions(model, prompts, refusals=["sorry"], compliances=["sure"])
    >>> sorted(found), found["en"].shape
    (['en', 'sw'], (3, 29))

    Args:
        model: the model, loaded here.
        prompts: their languages count, and one prompt of each is read.
        refusals: refusal prefixes, a list for every language or {language: list}; the model's own or the built-in ones by default.
        compliances: compliance prefixes, the same.

    Raises:
        InputError: arguments of another type, a remote model, no prompts, or a language without prefixes.
    """
    check_inputs("directions", model, prompts)
    tokens = opening_tokens(model, openings_of(model, prompts, refusals=refusals, compliances=compliances))
    return _directions(model, list(prompts), tokens)


def signs_of(
    model: Model,
    neurons: NeuronSet,
    prompts: Sequence[Prompt],
    *,
    tokens: Mapping[str, OpeningTokens],
    difference: Float[np.ndarray, "n_layers d_mlp"],
) -> tuple[Sign, ...]:
    """The signs of every neuron of a set, in the order of the set.

    >>> from neuronshield.model.prefixes import OpeningTokens
    >>> tokens = {language: OpeningTokens([19], [18]) for language in ("en", "sw")}     # ids of refusals, compliances
    >>> difference = ns.contrast(ns.capture(model, prompts, progress=False)).difference[0]
    >>> [sign.kind for sign in signs_of(model, neurons, list(prompts), tokens=tokens, difference=difference)]
    ['...', '...', '...']

    Args:
        model: the model, loaded here.
        neurons: the set.
        prompts: prompts of the languages that count; the first harmful one of each is read.
        tokens: first tokens of refusal and compliance prefixes, by language.
        difference: mean activation of every neuron on harmful prompts minus that on benign prompts.

    Raises:
        InputError: a remote model, no prompts, prompts of a language without tokens, or neurons or differences of another model.
    """
    shape = (model.n_layers, model.d_mlp)
    if difference.shape != shape:
        raise InputError(
            f"signs_of(difference=...): {difference.shape} numbers for {shape} neurons (n_layers, d_mlp) of {model.id!r}"
        )
    neurons = NeuronSet(neurons, n_layers=model.n_layers, d_mlp=model.d_mlp)  # members of another model are refused
    neurons.needs_neurons("signs_of")
    writes = np.mean(list(_directions(model, prompts, tokens).values()), axis=0)
    pairs = [(float(difference[at]), float(writes[at])) for at in neurons]
    return tuple(Sign(contrast, writes=written, kind=kind(contrast, written)) for contrast, written in pairs)


def _directions(
    model: Model, prompts: Sequence[Prompt], tokens: Mapping[str, OpeningTokens]
) -> dict[str, Float[np.ndarray, "n_layers d_mlp"]]:
    model.needs_here("directions")
    if not len(prompts):
        raise InputError("directions: no prompts")
    first: dict[str, Prompt] = {}
    for prompt in sorted(prompts, key=lambda p: p.label != "harmful"):
        first.setdefault(prompt.language, prompt)
    if missing := [language for language in first if language not in tokens]:
        raise InputError(
            f"directions: no first tokens of prefixes for language {missing[0]!r} (prompt {first[missing[0]].id!r}); "
            f"there are those of {', '.join(tokens) or 'no language'}"
        )
    slopes = {language: _output_slopes(model, prompt, tokens[language]) for language, prompt in first.items()}
    out = {language: np.full((model.n_layers, model.d_mlp), np.nan) for language in slopes}
    for layer in range(model.n_layers):
        weight = model.down_weight(layer).detach()
        for language, slope in slopes.items():
            if layer in slope:
                out[language][layer] = (slope[layer].to(weight.device) @ weight.float()).double().cpu().numpy()
    return out


def _output_slopes(model: Model, prompt: Prompt, tokens: OpeningTokens) -> dict[int, Float[Tensor, " d_model"]]:
    """Slope of the margin along the output of each layer's down-projection at the last position, by the direct path alone."""
    with direct_path(model, prompt) as path:
        weights = torch.zeros_like(path.logits)
        weights[tokens.refusal] = 1 / len(tokens.refusal)
        weights[tokens.compliance] = -1 / len(tokens.compliance)
        return path.slopes(weights)
