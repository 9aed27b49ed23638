"""Reference answers of prompts, and their likelihood under a model.

    prompt    reference answer
    harmful   its `target`, else the first refusal prefix, else a refusal sentence in its language
    benign    its `target`; without one, what the model itself answers (greedy), to be retained
    text      generic text of any language without a prompt; every token (of the first 128) is to be retained

Training teaches the first kind and retains the others; SNIP differentiates the likelihood of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..core.errors import InputError
from ..data.languages import REFUSAL_SENTENCES, OpeningsArg, check_openings, chosen_openings
from ..data.prompts import LABELS, Prompt, PromptSet
from .context import check_length
from .encoding import Batch, batches, check_prompts
from .generation import generate
from .model import Model
from .running import running
from .tokens import check_known

__all__ = ["Example", "answer_loss", "check_targets", "examples", "refusal_for"]


#: Tokens of a generic text that are retained; the rest of a longer text is not read.
GENERIC = 128


@dataclass(frozen=True)
class Example:
    """A prompt with its reference answer.

    Attributes:
        prompt: the prompt; of a generic text, an empty one.
        response: the answer.
        keep: whether the answer is the model's own, to be retained, and not taught.
        generic: whether it is a text without a prompt.
    """

    prompt: Prompt
    response: str
    keep: bool = False
    generic: bool = False


def examples(
    model: Model,
    prompts: PromptSet,
    *,
    texts: Sequence[str] = (),
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    labels: Sequence[str] = LABELS,
    progress: bool = False,
) -> list[Example]:
    """Each prompt with its reference answer (see the module), then the texts.

    >>> [(e.prompt.label, e.response) for e in examples(model, prompts[:2])]
    [('harmful', 'sorry i cannot help'), ('benign', 'sure make it')]

    Args:
        model: answers benign prompts that have no `target`.
        prompts: the prompts.
        texts: generic sentences of any language; the first 128 tokens of each are retained.
        refusals: refusal prefixes, a list for every language or {language: list}.
        compliances: compliance prefixes, the same; the first is retained where the model's own answer is empty.
        labels: labels that must have an answer.
        progress: show a progress bar.

    Raises:
        InputError: only one label, a language without a refusal, a target that cannot be read whole (before the first answer), or
            nothing to teach for a label.
    """
    check_openings(refusals=refusals, compliances=compliances)
    if tuple(labels) == LABELS:
        prompts.require_both_labels("masked_update")
    check_targets(model, prompts)
    harmful = [p for p in prompts if p.label == "harmful" and p.target is None]
    refused = {p.id: refusal_for(p, refusals) for p in harmful}
    own = [p for p in prompts if p.label == "benign" and p.target is None]
    said = generate(model, own, max_new_tokens=24, batch_size=32, progress=progress, desc="retain") if own else []
    kept = dict(zip([p.id for p in own], said, strict=True))
    out = []
    for p in prompts:
        if p.target is not None:
            out.append(Example(p, p.target))
        elif p.label == "harmful":
            out.append(Example(p, refused[p.id]))
        elif kept[p.id] or _first(compliances, p.language):
            out.append(Example(p, kept[p.id] or _first(compliances, p.language), keep=True))
    for label in labels:
        if not any(e.prompt.label == label for e in out):
            raise InputError(
                f"masked_update: no {label} prompt has an answer to teach (the model's own were empty); give 'target's"
            )
    return out + [_generic(i, text) for i, text in enumerate(texts)]


def check_targets(model: Model, prompts: Sequence[Prompt]) -> None:
    """Raise if the `target` of a prompt cannot be read whole after it.

    >>> check_targets(model, prompts)

    Args:
        model: the model.
        prompts: the prompts; those without a target are passed over.

    Raises:
        InputError: as `check_prompts`.
    """
    given = [(prompt, prompt.target) for prompt in prompts if prompt.target is not None]
    check_prompts(model, [prompt for prompt, _ in given], responses=[target for _, target in given])


def _generic(number: int, text: str) -> Example:
    """Text that is no request: all of it is to stay as likely as it was."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"masked_update: texts[{number}] is empty or no text; give sentences to retain")
    return Example(Prompt(f"text-{number}", "", "benign", language="und"), text, keep=True, generic=True)


def refusal_for(prompt: Prompt, refusals: OpeningsArg) -> str:
    """The refusal that is taught for a prompt without a `target`.

    >>> refusal_for(prompts[0], None)
    "Sorry, I can't help with that."

    Args:
        prompt: its language counts.
        refusals: refusal prefixes, whose first is taken; None for the sentence of the language.

    Raises:
        InputError: neither has one for the language.
    """
    check_openings(refusals=refusals)
    sentence = _first(refusals, prompt.language) or REFUSAL_SENTENCES.get(
        prompt.language, REFUSAL_SENTENCES.get(prompt.language.split("-")[0], "")
    )
    if not sentence:
        raise InputError(
            f"masked_update: no refusal to teach in language {prompt.language!r} (prompt {prompt.id!r}); "
            "give its harmful prompts a 'target', or pass refusals={language: [...]}"
        )
    return sentence


def _first(given: OpeningsArg, language: str) -> str:
    texts = chosen_openings(given, {}, language)
    return texts[0] if texts else ""


def answer_loss(model: Model, batch: Batch) -> Float[Tensor, " batch"]:
    """Mean negative log-likelihood of each row's answer, in nats a token.

    >>> batch = next(answer_batches(model, examples(model, prompts[:4])))
    >>> answer_loss(model, batch).shape
    torch.Size([4])

    Args:
        model: the model.
        batch: prompts with answers, from `answer_batches`.
    """
    return cross_entropy(answer_positions(model, model.module, batch), batch)


def answer_batches(model: Model, chosen: Sequence[Example]) -> Iterator[Batch]:
    """Batches of examples: prompts together (padded on the left, so that answers end each row), then generic texts.

    >>> [len(batch.rows) for batch in answer_batches(model, examples(model, prompts[:4], texts=["one step"]))]
    [4, 1]

    Args:
        model: the model.
        chosen: the examples, whose prompts all have the same number of pictures.
    """
    requests = [e for e in chosen if not e.generic]
    if requests:
        yield from batches(
            model, [e.prompt for e in requests], batch_size=len(requests), responses=[e.response for e in requests],
            side="left",
        )  # fmt: skip
    if plain := [e for e in chosen if e.generic]:
        yield _plain_batch(model, plain)


def _plain_batch(model: Model, texts: Sequence[Example]) -> Batch:
    """Text without a template, of which the first `GENERIC` tokens are read; every token but the first answers those before it."""
    for text in texts:
        token = next((t for t in model.media_tokens if t in text.response), None)
        if token is not None:
            raise InputError(
                f"texts: {text.prompt.id!r} contains {token!r}, which {model.id!r} reads as a picture; take it out"
            )
    ids = [model.tokenizer(text.response)["input_ids"][:GENERIC] for text in texts]
    for text, row in zip(texts, ids, strict=True):
        check_known(model, row, what=f"texts: {text.prompt.id!r}")
    check_length(model, [text.prompt for text in texts], list(map(len, ids)))
    width = max(map(len, ids))
    rows = torch.zeros(len(ids), width, dtype=torch.long)
    mask = torch.zeros_like(rows)
    for i, row in enumerate(ids):
        rows[i, width - len(row) :] = torch.tensor(row)
        mask[i, width - len(row) :] = 1
    response = mask.bool() & (mask.cumsum(dim=1) > 1)
    encoding = {"input_ids": rows.to(model.device), "attention_mask": mask.to(model.device)}
    return Batch(encoding, list(range(len(texts))), {"response": response.to(model.device)})


def answer_positions(model: Model, module: Any, batch: Batch) -> Float[Tensor, "batch pos vocab"]:
    """Logits from before the first answer token on; the last one predicts nothing and is left out.

    >>> batch = next(answer_batches(model, examples(model, prompts[:4])))
    >>> answer_positions(model, model.module, batch).shape        # 5 answer tokens
    torch.Size([4, 5, 38])

    Args:
        model: the model, for what its forward takes.
        module: the module that is run, such as an adapter on it.
        batch: prompts with answers.
    """
    keep = _width(batch)
    encoding: dict[str, Any] = dict(batch.encoding)
    encoding |= model.last_logits(keep)
    with running(model, rows=len(batch.rows), width=batch.encoding["input_ids"].shape[1]):
        logits = module(**encoding).logits[:, -keep:-1]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _width(batch: Batch) -> int:
    response = batch.roles["response"]
    first = int(response.any(dim=0).int().argmax())
    return min(response.shape[1] - first + 1, response.shape[1])


def answer_tokens(batch: Batch) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """The tokens that `answer_positions` predicts, and which of them belong to an answer.

    >>> ids, answer = answer_tokens(next(answer_batches(model, examples(model, prompts[:4]))))
    >>> ids.shape, answer.sum(dim=1)
    (torch.Size([4, 5]), tensor([5, 4, 5, 4]))

    Args:
        batch: prompts with answers.
    """
    keep = _width(batch)
    return batch.encoding["input_ids"][:, -keep:][:, 1:], batch.roles["response"][:, -keep:][:, 1:]


def cross_entropy(logits: Float[Tensor, "batch pos vocab"], batch: Batch) -> Float[Tensor, " batch"]:
    """Cross-entropy of each row's answer, mean over its tokens.

    >>> batch = next(answer_batches(model, examples(model, prompts[:4])))
    >>> cross_entropy(answer_positions(model, model.module, batch), batch).shape
    torch.Size([4])

    Args:
        logits: from `answer_positions`.
        batch: the same batch.
    """
    ids, answer = answer_tokens(batch)
    return mean_over(F.cross_entropy(logits.transpose(1, 2), ids, reduction="none"), answer)


def mean_over(values: Float[Tensor, "batch pos"], keep: Bool[Tensor, "batch pos"]) -> Float[Tensor, " batch"]:
    """Mean of each row over the positions that are kept; 0 where none is.

    >>> mean_over(torch.tensor([[1.0, 3.0, 9.0]]), torch.tensor([[True, True, False]]))
    tensor([2.])

    Args:
        values: one number a position.
        keep: which positions count.
    """
    return (values * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
