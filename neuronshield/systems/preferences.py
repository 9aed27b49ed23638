"""Which of two outcomes of a system is preferred, for each request.

    request    preferred answer                           rejected answer
    harmful    its `target`, else a refusal               the system's own
    benign     its `target`, else the system's own        a refusal

as in the preference training of one model (`neuronshield.shield.dpo`). The outputs of the other nodes are the system's own, in both
outcomes. Where these should be judged too, give preferences of your own, in which they differ.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.arguments import require
from ..core.errors import InputError
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from ..model.answers import refusal_for
from .system import Outcome, System

__all__ = ["Preference", "checked", "hash_of", "preferences"]


@dataclass(frozen=True)
class Preference:
    """Two outcomes for one request.

    Attributes:
        prompt: the request.
        preferred: the better outcome.
        rejected: the other one.
    """

    prompt: Prompt
    preferred: Outcome
    rejected: Outcome


def preferences(
    system: System, prompts: PromptSet, *, refusals: OpeningsArg = None, batch_size: int = 32, progress: bool = False
) -> list[Preference]:
    """The preference of each request (see the module), without those whose two answers are the same.

    >>> system = ns.System([ns.Node("answer", model, max_new_tokens=4)])
    >>> found = preferences(system, prompts[:2])
    >>> found[0].preferred.answer, found[1].rejected.answer
    ('sorry i cannot help', "Sorry, I can't help with that.")

    Args:
        system: the untouched system.
        prompts: all of them are used.
        refusals: refusal prefixes; the refusal of a request without a `target` is the first of them. The model's own without them.
        batch_size: prompts a forward.
        progress: show a progress bar.

    Raises:
        InputError: as `System.run`, or a language without a refusal.
    """
    given = system.last.model.prefixes.refusals if refusals is None else refusals
    out = []
    own = system.run(prompts, batch_size=batch_size, progress=progress, desc="own outcomes")
    for prompt, outcome in zip(prompts, own, strict=True):
        harmful = prompt.label == "harmful"
        best = prompt.target or (refusal_for(prompt, given) if harmful else outcome.answer)
        worst = outcome.answer if harmful else refusal_for(prompt, given)
        if best != worst and best and worst:
            out.append(Preference(prompt, _answered(system, outcome, best), _answered(system, outcome, worst)))
    return out


def _answered(system: System, outcome: Outcome, answer: str) -> Outcome:
    """An outcome with another answer."""
    return Outcome({**outcome.outputs, system.last.name: answer})


def checked(system: System, given: Iterable[Preference], *, call: str) -> list[Preference]:
    """The preferences, if each has an output of every node.

    Args:
        system: the system.
        given: the preferences.
        call: the function, for the message.

    Raises:
        InputError: something else, an outcome with other nodes, or no preference for a label.
    """
    hint = "pass prompts, or what ns.systems.preferences(system, prompts) gives"
    require(given, Iterable, call=call, name="preferences", hint=hint)
    out = [require(one, Preference, call=call, name="every preference", hint=hint) for one in given]
    for one in out:
        for outcome in (one.preferred, one.rejected):
            if set(outcome.outputs) != set(system.nodes):
                raise InputError(
                    f"prompt {one.prompt.id!r:.60}: an outcome has outputs of {', '.join(outcome.outputs)}; the system has the "
                    f"nodes {', '.join(system.nodes)}"
                )
    PromptSet(one.prompt for one in out).require_both_labels(call.split("(", maxsplit=1)[0])
    return out


def hash_of(given: Sequence[Preference]) -> str:
    """Short hash of every request with its two outcomes, in order.

    >>> len(hash_of([]))
    16

    Args:
        given: the preferences.
    """
    told = [[p.prompt.content_hash, p.prompt.label, dict(p.preferred.outputs), dict(p.rejected.outputs)] for p in given]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]
