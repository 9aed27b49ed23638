"""What is checked before a training: the model, the set, the parts that are trained, and the budget."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from numbers import Real

from ..core.arguments import require
from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import PromptSet
from ..model.families import PARTS
from ..model.model import Model, require_model
from .adapter import Adapter

__all__ = ["check_budget", "check_subject", "present_parts", "warn_unproven"]


def check_subject(call: str, model: Model, neurons: NeuronSet, *, prompts: PromptSet) -> None:
    """Raise on a model, set or prompts that nothing can be trained with.

    Args:
        call: how the call reads when it is right, such as "masked_update(model, neurons, prompts)".
        model: must have its weights here, not packed.
        neurons: must not be empty, and must fit the model.
        prompts: must be prompts.

    Raises:
        InputError: one of these.
    """
    name = call.split("(", maxsplit=1)[0]
    require_model(model, call=call)
    require(
        neurons, NeuronSet, call=call, name="neurons", hint="pass one set, such as proof.verified or sets['en/text']"
    )
    require(prompts, PromptSet, call=call, name="prompts", hint="read them with PromptSet.from_jsonl or from_records")
    if not len(neurons):
        why = neurons.provenance.get("verdict")
        said = f"verify said: {why}" if why else "nothing was proven or selected"
        raise InputError(f"{name}: the neuron set is empty; {said}")
    neurons.check_model(model)
    model.needs_weights(name)


def present_parts(call: str, model: Model, parts: Sequence[str], *, known: Sequence[str] = PARTS) -> tuple[str, ...]:
    """Those of `parts` that the model has, in the order gate, up, down.

    Args:
        call: the trainer, for messages.
        model: its family decides (a plain MLP has no gate).
        parts: names.
        known: those that the trainer takes.

    Raises:
        InputError: an unknown part, or none that the model has.
    """
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise InputError(f"{call}: parts={parts!r:.60}: must be a list of names, some of {', '.join(known)}")
    if unknown := [p for p in parts if p not in known]:
        raise InputError(f"{call}: parts={unknown[0]!r} is unknown; use some of {', '.join(known)}")
    present = tuple(p for p in PARTS if p in parts and getattr(model.site, p) is not None)
    if not present:
        raise InputError(f"{call}: parts={list(parts)}: {model.id!r} has none of them to train")
    return present


def check_budget(call: str, adapter: Adapter, n: int, *, budget: float | None) -> None:
    """Raise if the adapter trains more than `budget`, a share of all parameters.

    Args:
        call: the trainer, for messages.
        adapter: what is trained.
        n: size of the set.
        budget: the largest share; None for any.

    Raises:
        InputError: over the budget; says how many neurons are within it.
    """
    if budget is not None and (not isinstance(budget, Real) or isinstance(budget, bool) or not 0 <= budget < math.inf):
        raise InputError(f"{call}: budget={budget!r:.60}: must be a share of the parameters, such as 3e-4, or None")
    share = adapter.trained / adapter.model.n_params
    if budget is not None and share > budget:
        raise InputError(
            f"{call}: {n} neurons are {adapter.trained} trained numbers, {share:.3%} of the parameters, over the budget of "
            f"{budget:.3%}; take at most {int(n * budget / share)} neurons or raise budget="
        )


def warn_unproven(call: str, neurons: NeuronSet) -> None:
    """Warn if the set has not passed `verify`."""
    if "verified_on" in neurons.provenance:
        return
    source = ", ".join(str(neurons.provenance[k]) for k in ("method", "cell") if k in neurons.provenance)
    warnings.warn(
        f"{call}: {len(neurons)} neurons{f' ({source})' if source else ''} were not proven to cause refusals; run verify() "
        "first, or pass allow_unproven=True",
        stacklevel=3,
    )
