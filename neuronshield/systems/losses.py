"""The loss of a system: DPO on the log-probabilities of whole outcomes.

With s = (y_1, ..., y_K) an outcome, s_w the preferred and s_l the rejected one, p the trained and p0 the untouched system,

    loss = -log sigmoid(beta * d)        log p(s | x) = sum_k log p_k(y_k | y_pa(k), x)

**Outputs given** (SysDPO-Direct). Preferences name the output of every node:

    d = [log p(s_w | x) - log p0(s_w | x)] - [log p(s_l | x) - log p0(s_l | x)]

A node that is not trained has p_k = p0_k, and drops out. So does a node whose prompt and output are the same in both outcomes.

**Finals labelled** (SysDPO-Sampling). Only the answers z_w and z_l are judged; the outputs y of the other nodes are summed over:

    log p(z | x) = log sum_y p(y | x) p(z | y, x)
    d = [log p(z_w | x) - log p0(z_w | x)] - [log p(z_l | x) - log p0(z_l | x)]

The sum is over a set Y of different outputs, found in the current system by diverse beam search at every step (`candidates`); p and
p0, z_w and z_l have the same Y. Over a part of all y it is a lower bound of log p(z | x), over all of them it is exact. A node's output
becomes likelier if the preferred answer follows from it more often than the rejected one does, so nodes before the last one learn too.

Source: SysDPO (Wang et al., 2025, arXiv 2502.17721) for both variants, the factorisation, and diverse beam search. The paper's own
estimator could not be compared line by line: the sum over Y is derived here from the definition of the marginal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..data.prompts import Prompt
from ..model.answers import answer_positions, answer_tokens, cross_entropy
from ..model.encoding import batches
from ..model.model import Model
from ..shield.dpo import BETA
from .beams import Output, diverse_outputs
from .nodes import Node
from .preferences import Preference
from .system import System

__all__ = ["Candidate", "Trained", "candidates", "given_loss", "log_probabilities", "sampled_loss"]


@dataclass(frozen=True, eq=False)
class Trained:
    """A system in training.

    Attributes:
        system: the untouched system.
        modules: the module that is trained, by node; nodes that share weights have the same one.
        now: the system as it is, whose models run these modules.
        known: log-probabilities of answers under the untouched system, by node, what it reads, and answer.
    """

    system: System
    modules: Mapping[str, Any]
    now: System
    known: dict[tuple[str, str, str, str | tuple[int, ...]], float] = field(default_factory=dict)


@dataclass(frozen=True)
class Candidate:
    """Outputs of all nodes but the last, for one request.

    Attributes:
        outputs: by node.
    """

    outputs: Mapping[str, Output]

    @property
    def texts(self) -> dict[str, str]:
        """What they say, by node."""
        return {name: output.text for name, output in self.outputs.items()}


def log_probabilities(
    model: Model, module: Any, prompts: Sequence[Prompt], *, answers: Sequence[str | Sequence[int]]
) -> Float[Tensor, " row"]:
    """Log-probability of each answer, summed over its tokens.

    >>> log_probabilities(model, model.module, prompts[:3], answers=["sure", "sure make it", [18, 19]]).shape
    torch.Size([3])

    Args:
        model: encodes the prompts.
        module: the module that is run, such as an adapter on it.
        prompts: the prompts.
        answers: of each, a text (its end counts) or token ids as they are.

    Raises:
        InputError: a prompt with its answer cannot reach the model whole.
    """
    found: dict[int, Tensor] = {}
    for batch in batches(model, prompts, batch_size=max(len(prompts), 1), responses=answers, side="left"):
        _, answer = answer_tokens(batch)
        values = -cross_entropy(answer_positions(model, module, batch), batch) * answer.sum(dim=1)
        found |= dict(zip(batch.rows, values, strict=True))
    return torch.stack([found[row] for row in range(len(prompts))])


# -- outputs given ----------------------------------------------------------------------------------------
def given_loss(trained: Trained, chosen: Sequence[Preference]) -> Float[Tensor, ""]:
    """The mean loss of some preferences whose outputs are given.

    >>> from neuronshield.systems.preferences import preferences
    >>> system = ns.System([ns.Node("answer", model, max_new_tokens=3)])
    >>> given_loss(Trained(system, {"answer": model.module}, system), preferences(system, prompts[:4]))
    tensor(0.6931, ...)

    Args:
        trained: the system in training.
        chosen: the rows of the batch.

    Raises:
        InputError: as `log_probabilities`.
    """
    ahead: Tensor | None = None
    for name, module in trained.modules.items():
        node = trained.system.nodes[name]
        pairs = [(_read(node, p, better=True), _read(node, p, better=False)) for p in chosen]
        rows = [i for i, (best, worst) in enumerate(pairs) if (best[0].prompt, best[1]) != (worst[0].prompt, worst[1])]
        if not rows:
            continue
        asked = [pairs[i][side] for side in (0, 1) for i in rows]
        prompts, answers = [prompt for prompt, _ in asked], [answer for _, answer in asked]
        now = log_probabilities(node.model, module, prompts, answers=answers)
        gain = now - _untouched(trained, node, prompts, answers=answers).to(now)
        own = torch.zeros(len(chosen), dtype=now.dtype, device=now.device)
        own = own.index_add(0, torch.tensor(rows, device=now.device), gain[: len(rows)] - gain[len(rows) :])
        ahead = own if ahead is None else ahead + own.to(ahead.device)
    if ahead is None:
        ahead = torch.zeros(len(chosen), requires_grad=True)
    return -F.logsigmoid(BETA * ahead).mean()


def _read(node: Node, preference: Preference, *, better: bool) -> tuple[Prompt, str]:
    """What a node reads and writes in one of the two outcomes."""
    outputs = (preference.preferred if better else preference.rejected).outputs
    return node.prompt(preference.prompt, outputs), outputs[node.name]


def _untouched(
    trained: Trained, node: Node, asked: Sequence[Prompt], *, answers: Sequence[str | tuple[int, ...]]
) -> Float[Tensor, " row"]:
    """Log-probabilities under the untouched system; each is computed once."""
    keys = [(node.name, p.id, p.prompt, answer) for p, answer in zip(asked, answers, strict=True)]
    if new := {key: i for i, key in enumerate(keys) if key not in trained.known}:
        some, said = [asked[i] for i in new.values()], [answers[i] for i in new.values()]
        with torch.no_grad():
            values = log_probabilities(node.model, node.model.module, some, answers=said)
        trained.known.update(zip(new, values.tolist(), strict=True))
    return torch.tensor([trained.known[key] for key in keys], dtype=torch.float64)


# -- finals labelled --------------------------------------------------------------------------------------
def sampled_loss(
    trained: Trained, chosen: Sequence[Preference], found: Sequence[Sequence[Candidate]]
) -> Float[Tensor, ""]:
    """The mean loss of some preferences of which only the answers are used.

    >>> from neuronshield.systems.preferences import preferences
    >>> system = ns.System([ns.Node("describe", model, max_new_tokens=2), ns.Node("answer", model, "how {describe}")])
    >>> chosen = preferences(system, prompts[:2])
    >>> trained = Trained(system, {"describe": model.module}, system)
    >>> sampled_loss(trained, chosen, candidates(system, [p.prompt for p in chosen], n=2))
    tensor(0.6931, ...)

    Args:
        trained: the system in training.
        chosen: the rows of the batch.
        found: outputs of the other nodes, for each row.

    Raises:
        InputError: as `log_probabilities`.
    """
    now, before = (_finals(trained, chosen, found=found, now=now) for now in (True, False))
    gain = now - before
    return -F.logsigmoid(BETA * (gain[:, 0] - gain[:, 1])).mean()


def _finals(
    trained: Trained, chosen: Sequence[Preference], *, found: Sequence[Sequence[Candidate]], now: bool
) -> Float[Tensor, "row answer"]:
    """log sum_y p(y | x) p(z | y, x) of the preferred and of the rejected answer, of the system as it is or as it was."""
    rows = [i for i, own in enumerate(found) for _ in own]
    flat = [one for own in found for one in own]

    def under(node: Node, asked: Sequence[Prompt], answers: Sequence[str | tuple[int, ...]]) -> Tensor:
        if now and node.name in trained.modules:
            return log_probabilities(node.model, trained.modules[node.name], asked, answers=answers).cpu().double()
        return _untouched(trained, node, asked, answers=answers)

    total = torch.zeros(len(flat), dtype=torch.float64)
    for node in trained.system.between:
        asked = [node.prompt(chosen[i].prompt, one.texts) for i, one in zip(rows, flat, strict=True)]
        total = total + under(node, asked, [one.outputs[node.name].ids for one in flat])
    last = trained.system.last
    asked = [last.prompt(chosen[i].prompt, one.texts) for i, one in zip(rows, flat, strict=True)]
    answers = [
        outcome.answer for side in ("preferred", "rejected") for i in rows for outcome in [getattr(chosen[i], side)]
    ]
    joint = under(last, asked * 2, answers).view(2, -1).T + total[:, None]
    which = torch.tensor(rows)
    return torch.stack([joint[which == i].logsumexp(dim=0) for i in range(len(chosen))])


def candidates(system: System, prompts: Sequence[Prompt], *, n: int) -> list[list[Candidate]]:
    """Up to n different outputs of the nodes before the last one, for each request, likely ones first.

    >>> system = ns.System([ns.Node("describe", model, max_new_tokens=2), ns.Node("answer", model, "how {describe}")])
    >>> [len(own) for own in candidates(system, prompts[:2], n=3)]
    [3, 3]

    Every node in turn gives n outputs by diverse beam search for each that the nodes before it gave; of these the n likeliest stay.
    One that leaves a later node nothing to read is left out.

    Args:
        system: the system, as it is.
        prompts: the requests.
        n: how many, at most.

    Raises:
        InputError: as `ns.generate`.
    """
    found: list[list[Candidate]] = [[Candidate({})] for _ in prompts]
    for node in system.between:
        rows = [(i, one) for i, own in enumerate(found) for one in own]
        asked = [node.prompt(prompts[i], one.texts) for i, one in rows]
        grown: list[list[Candidate]] = [[] for _ in prompts]
        for (i, one), outputs in zip(
            rows, diverse_outputs(node.model, asked, n=n, max_new_tokens=node.max_new_tokens), strict=True
        ):
            grown[i] += [Candidate({**one.outputs, node.name: output}) for output in outputs]
        read = [[one for one in own if _readable(system, p, one)] or own for p, own in zip(prompts, grown, strict=True)]
        found = [_likeliest(system, p, own, n=n) if len(own) > n else own for p, own in zip(prompts, read, strict=True)]
    return found


def _readable(system: System, prompt: Prompt, one: Candidate) -> bool:
    """Whether every node that reads one of these outputs has something to read, as far as its parents have written."""
    texts = one.texts
    ready = [
        node for name, node in system.nodes.items() if system.parents[name] and set(system.parents[name]) <= set(texts)
    ]
    return all(node.text(prompt, texts).strip() for node in ready)


def _likeliest(system: System, prompt: Prompt, own: list[Candidate], *, n: int) -> list[Candidate]:
    """The n candidates of largest probability."""
    total = torch.zeros(len(own))
    for name in own[0].outputs:
        node = system.nodes[name]
        asked = [node.prompt(prompt, one.texts) for one in own]
        with torch.no_grad():
            values = log_probabilities(
                node.model, node.model.module, asked, answers=[one.outputs[name].ids for one in own]
            )
        total += values.float().cpu()
    return [own[i] for i in total.argsort(descending=True, stable=True)[:n].tolist()]
