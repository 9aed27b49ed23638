"""What a neuron writes: the tokens that it promotes and suppresses, and what it adds to refusal and compliance prefixes.

A unit of a neuron's activation adds its column of W_down to the residual stream. Through the final norm and the unembedding this
changes the logit of every token, directly:

    W_U (gamma * W_down[:, i]) / s        for a final RMS norm of weight gamma and scale s; a layer norm takes the mean out as well

The change is computed by the model's own modules (`find.paths`): a norm behind the MLP, a softcap, a multiplier, and packed weights are
therefore what the model applies. Norms are held at their scale on one prompt, softcaps at their slope there. A change that all tokens
share changes no probability, so the mean over the vocabulary is taken out. What later layers make of the change is left out: of early
layers the words say little.

Sources: nostalgebraist (2020), "Interpreting GPT: the logit lens"; Geva et al. (2022), "Transformer Feed-Forward Layers Build
Predictions by Promoting Concepts in the Vocabulary Space"; Elhage et al. (2021) for direct paths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float
from torch import Tensor

from ..core.arguments import at_least, require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data import shipped
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from ..find.paths import direct_path
from ..model.model import Model
from ..model.prefixes import opening_tokens, openings_of
from .activations import chosen_neurons

__all__ = ["PROMOTED", "SUPPRESSED", "Written", "vocabulary", "written_by"]

PROMOTED, SUPPRESSED = "promoted", "suppressed"
COLUMNS = ("layer", "index", "end", "rank", "token", "value", "refusal", "compliance")
CUT = "\ufffd"  # what a decoder writes for bytes that are no character


@dataclass(frozen=True)
class Written:
    """What a unit of a neuron's activation adds directly to logits; the mean over the vocabulary is taken out.

    Attributes:
        layer: of the neuron.
        index: of the neuron.
        promoted: (token, logits) of the tokens whose logits rise most.
        suppressed: (token, logits) of those whose logits fall most.
        refusal: mean over the first tokens of refusal prefixes, and over languages.
        compliance: mean over those of compliance prefixes. The difference is `find.signs.directions`.
    """

    layer: int
    index: int
    promoted: tuple[tuple[str, float], ...]
    suppressed: tuple[tuple[str, float], ...]
    refusal: float
    compliance: float


def vocabulary(
    model: Model,
    neurons: NeuronSet,
    k: int = 10,
    *,
    prompts: PromptSet | None = None,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
) -> pd.DataFrame:
    """The k tokens that each neuron promotes most and the k that it suppresses most, and its effect on prefixes.

    >>> frame = vocabulary(model, neurons, k=4, prompts=prompts, refusals=["sorry"], compliances=["sure"])
    >>> frame.shape, frame.columns.tolist()
    ((24, 8), ['layer', 'index', 'end', 'rank', 'token', 'value', 'refusal', 'compliance'])

    `end` is "promoted" or "suppressed", `rank` counts from 1, and `value` is what a unit of the activation adds to the token's logit, the mean
    over the vocabulary taken out. `refusal` and `compliance` are the same for the first tokens of refusal and compliance prefixes: their
    mean, the same in all rows of a neuron. A neuron whose activation is negative does the opposite. A word with and without a space before it is one
    token here; tokens that decode to nothing or to a part of a character are left out, and so are a model's tokens for pictures.
    Neurons of a layer that does not run for the prompts have no rows.

    Args:
        model: the model, loaded here.
        neurons: the neurons.
        k: tokens at each end.
        prompts: their languages say which prefixes count, and norms are held at their scale on the first harmful prompt of each language; the
            shipped English pairs by default.
        refusals: refusal prefixes, a list for every language or {language: list}; the model's own or the built-in ones by default.
        compliances: compliance prefixes, the same.

    Raises:
        InputError: arguments of another type, neurons of another model, a remote model, no prompts, or a language without prefixes.
    """
    found = written_by(model, neurons, k, prompts=prompts, refusals=refusals, compliances=compliances)
    rows = [
        (each.layer, each.index, end, rank, token, value, each.refusal, each.compliance)
        for each in found
        for end, tokens in ((PROMOTED, each.promoted), (SUPPRESSED, each.suppressed))
        for rank, (token, value) in enumerate(tokens, 1)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype({"layer": "int64", "index": "int64", "rank": "int64"})


def written_by(
    model: Model,
    neurons: NeuronSet,
    k: int = 10,
    *,
    prompts: PromptSet | None = None,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
) -> list[Written]:
    """What each neuron writes, in the order of the set; neurons of a layer that does not run are left out.

    >>> first = written_by(model, neurons, k=2, prompts=prompts, refusals=["sorry"], compliances=["sure"])[0]
    >>> first.layer, first.index, len(first.promoted), len(first.suppressed)
    (0, 3, 2, 2)

    Args:
        model: the model, loaded here.
        neurons: the neurons.
        k: tokens at each end.
        prompts: as for `vocabulary`.
        refusals: as for `vocabulary`.
        compliances: as for `vocabulary`.

    Raises:
        InputError: as `vocabulary`.
    """
    members = chosen_neurons("vocabulary", model, neurons)
    model.needs_here("vocabulary")
    at_least(1, "vocabulary", k=k)
    prompts = shipped.matched_pairs(["en"]) if prompts is None else prompts
    require(
        prompts, PromptSet, call="vocabulary(prompts=...)", name="prompts", hint="read them with PromptSet.from_jsonl"
    )
    if not len(prompts):
        raise InputError("vocabulary: no prompts")
    tokens = opening_tokens(model, openings_of(model, prompts, refusals=refusals, compliances=compliances))
    effects: dict[tuple[int, int], list[Float[np.ndarray, " vocab"]]] = {}
    sides: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for language, prompt in _first_of_each(prompts).items():
        for at, change in _changes(model, prompt, members).items():
            effects.setdefault(at, []).append(change)
            side = change[tokens[language].refusal].mean(), change[tokens[language].compliance].mean()
            sides.setdefault(at, []).append((float(side[0]), float(side[1])))
    shown = _Vocabulary(model)
    out = []
    for at, changes in effects.items():
        change = np.mean(changes, axis=0)
        refusal, compliance = np.mean(sides[at], axis=0)
        ends = shown.best(change, k, sign=1), shown.best(change, k, sign=-1)
        out.append(Written(*at, *ends, refusal=float(refusal), compliance=float(compliance)))
    return out


def _first_of_each(prompts: Sequence[Prompt]) -> dict[str, Prompt]:
    """The first harmful prompt of each language, its first one where none is harmful."""
    first: dict[str, Prompt] = {}
    for prompt in sorted(prompts, key=lambda p: p.label != "harmful"):
        first.setdefault(prompt.language, prompt)
    return first


def _changes(model: Model, prompt: Prompt, neurons: NeuronSet) -> dict[tuple[int, int], Float[np.ndarray, " vocab"]]:
    """What a unit of each neuron's activation adds to every logit, the mean taken out."""
    out = {}
    with direct_path(model, prompt) as path:
        for layer, indices in neurons.by_layer().items():
            if layer not in path.written:
                continue
            weight: Tensor = model.down_weight(layer).detach()
            for index in indices:
                change = path.logits_of(layer, weight[:, index].float()).double()
                out[layer, index] = (change - change.mean()).cpu().numpy()
    return out


class _Vocabulary:
    """The words of a model's tokens, decoded as they are asked for."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.words: dict[int, str] = {}

    def word(self, token: int) -> str:
        """The text of a token without the space around it; "" for one that is not shown."""
        if token not in self.words:
            text = self.model.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            shown = text.strip()
            hidden = CUT in shown or shown in self.model.media_tokens
            self.words[token] = "" if hidden else shown
        return self.words[token]

    def best(self, change: Float[np.ndarray, " vocab"], k: int, *, sign: int) -> tuple[tuple[str, float], ...]:
        """The k words with the largest change in one direction, each once."""
        out: dict[str, float] = {}
        for token in np.argsort(-sign * change, kind="stable"):
            if word := self.word(int(token)):
                out.setdefault(word, float(change[token]))
            if len(out) == k:
                break
        return tuple(out.items())
