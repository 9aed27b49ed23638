"""From prompts to one padded batch of tokens, with the role of each token.

`chat` writes a prompt as its model's chat template wants it, `tokens` encodes it with the processor, and here rows become
batches. A batch must be all with or all without pictures (an nnsight trace takes one encoding), so `batches` groups prompts by
their number of pictures and by length before it cuts them up. Batches carry row numbers, so the order of the prompts never
matters. All prompts are checked before the first batch: one that cannot be encoded whole, or is longer than the model's context
window, is refused by its id before any forward pass.

    role           tokens
    last_prompt    the last token of the prompt, where the first answer token is decided
    prompt         all tokens of the prompt, the template's included
    image, text    those of the prompt that stand for image features, and the others
    response       the tokens of a given answer

Padding has no role.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ..core.arguments import at_least, require
from ..core.errors import InputError
from ..data.prompts import Prompt, PromptSet
from .chat import reading
from .context import check_length
from .encodings import PER_TOKEN, Encoded, encoded_rows, joined
from .model import Model
from .padding import pads_on_the_left
from .rotary import stretched
from .tokens import check_known, filler

__all__ = ["PER_TOKEN", "Batch", "Role", "as_prompts", "batches", "check_length", "check_prompts", "collate", "render"]


Role = Literal["last_prompt", "prompt", "image", "text", "response"]


@dataclass
class Batch:
    """One padded batch.

    Attributes:
        encoding: what the model's forward takes.
        rows: index of each row's prompt in the list that `batches` was given.
        roles: {role: mask [batch, pos]}.
        ids: id of each row's prompt.
    """

    encoding: dict[str, Tensor]
    rows: list[int]
    roles: dict[str, Bool[Tensor, "batch pos"]]
    ids: tuple[str, ...] = ()

    @property
    def last(self) -> Int[Tensor, " batch"]:
        """Position of each row's last prompt token."""
        return self.roles["last_prompt"].int().argmax(dim=1)

    def __repr__(self) -> str:
        n, width = self.encoding["input_ids"].shape
        return f"Batch({n} x {width} tokens, {', '.join(self.encoding)})"


# -- requests ---------------------------------------------------------------------------------------------
def as_prompts(model: Model, requests: str | Prompt | Iterable[str | Prompt], *, call: str) -> Sequence[Prompt]:
    """Requests as prompts: a string becomes a prompt of one user turn, in English and without a picture.

    >>> [p.prompt for p in as_prompts(model, ["how do i bake bread", prompts[0]], call="generate")]
    ['how do i bake bread', 'how do i make bomb']

    Args:
        model: checked to be a model, since swapped arguments are the usual mistake.
        requests: a `PromptSet`, a sequence of prompts or strings, or one of either.
        call: the function that was called, for messages.

    Raises:
        InputError: `model` is no model, or `requests` are no requests.
    """
    swapped = isinstance(requests, Model)
    require(
        model,
        Model,
        call=f"{call}(model, prompts)",
        name="model",
        hint="the model comes first" if swapped else "use load",
    )
    if isinstance(requests, PromptSet):
        return requests
    given: Any = [requests] if isinstance(requests, (str, Prompt)) else requests
    if isinstance(given, (Mapping, bytes)) or not isinstance(given, Iterable):
        require(
            given,
            PromptSet,
            call=f"{call}(model, prompts)",
            name="prompts",
            hint="a string or a list of strings is right too",
        )
    rows = list(given)
    for i, row in enumerate(rows):
        require(
            row,
            (Prompt, str),
            call=f"{call}(model, prompts)",
            name=f"prompts[{i}]",
            hint="PromptSet.from_records reads dicts",
        )
    texts = [row for row in rows if isinstance(row, str)]
    if not texts:
        return rows
    made = iter(PromptSet.from_records([{"prompt": text, "label": "benign"} for text in texts]))
    return [next(made) if isinstance(row, str) else row for row in rows]


@overload
def render(model: Model, prompts: str | Prompt) -> tuple[str, bool]: ...  # type: ignore[overload-overlap]
@overload
def render(model: Model, prompts: Iterable[str | Prompt]) -> list[tuple[str, bool]]: ...
def render(model: Model, prompts: str | Prompt | Iterable[str | Prompt]) -> tuple[str, bool] | list[tuple[str, bool]]:
    """The text that the model reads, and whether a chat template made it (it then brings its own special tokens).

    >>> render(model, "how do i bake bread")
    ('how do i bake bread', False)

    Without a chat template a prompt is used verbatim, after one image token for each picture.

    Args:
        model: the model, whose processor's or tokenizer's chat template is used.
        prompts: one prompt or string; of several, a list is returned.

    Raises:
        InputError: as `neuronshield.model.chat.reading`.
    """
    rows = as_prompts(model, prompts, call="render")
    templated = model.template is not None
    texts = [(reading(model, row).text, templated) for row in rows]
    return texts[0] if isinstance(prompts, (str, Prompt)) else texts


# -- batches ----------------------------------------------------------------------------------------------
def batches(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    responses: Sequence[str | Sequence[int]] | None = None,
    side: str = "right",
    extra: int = 0,
) -> Iterator[Batch]:
    """Padded batches of prompts that have the same number of pictures and are of like length.

    >>> sorted(row for batch in batches(model, prompts[:7], batch_size=3) for row in batch.rows)
    [0, 1, 2, 3, 4, 5, 6]

    Args:
        model: the model.
        prompts: the prompts, all of which are checked before the first batch.
        batch_size: prompts a batch, at most.
        responses: an answer for each prompt, appended to it: a text, or token ids as they are.
        side: where padding goes, "right" or "left".
        extra: tokens that are generated after each prompt, at most.

    Raises:
        InputError: as in `check_prompts`.
    """
    at_least(1, "batches", batch_size=batch_size)
    seen = encoded_rows(model, prompts)
    _check_lengths(model, prompts, seen, responses=responses, extra=extra)
    kinds = [row.kind for row in seen]
    order = sorted(range(len(prompts)), key=lambda i: (kinds[i], len(prompts[i].prompt), i))
    for rows in _cut(kinds, order, batch_size):
        batch = _collated(model, prompts, rows, responses=responses, side=side)
        lengths = batch.encoding["attention_mask"].sum(dim=1).tolist()
        together = side != "left" or pads_on_the_left(model)
        if len(set(lengths)) == 1 or (together and not stretched(model.module, max(lengths) + extra)):
            yield batch
            continue
        for length in sorted(set(lengths)):  # padding, or a longer row, would change what a row gives
            alike = [row for row, n in zip(rows, lengths, strict=True) if n == length]
            yield _collated(model, prompts, alike, responses=responses, side=side)


def _collated(
    model: Model,
    prompts: Sequence[Prompt],
    rows: list[int],
    *,
    responses: Sequence[str | Sequence[int]] | None,
    side: str,
) -> Batch:
    answers = [responses[i] for i in rows] if responses is not None else None
    return collate(model, [prompts[i] for i in rows], responses=answers, side=side, rows=rows)


def _cut(kinds: Sequence[Any] | Mapping[int, Any], order: list[int], size: int) -> Iterator[list[int]]:
    """Rows in order, in pieces of one kind."""
    start = 0
    while start < len(order):
        kind = kinds[order[start]]
        rows = [i for i in order[start : start + size] if kinds[i] == kind]
        start += len(rows)
        yield rows


def check_prompts(
    model: Model, prompts: Sequence[Prompt], *, responses: Sequence[str | Sequence[int]] | None = None, extra: int = 0
) -> None:
    """Raise if a prompt cannot reach the model whole, or is too long for it.

    >>> check_prompts(model, prompts, extra=32)

    Every prompt is encoded once, with its pictures (see `encodings`): a later check of the same prompt costs nothing.

    Args:
        model: the model.
        prompts: the prompts.
        responses: an answer for each prompt, appended to it.
        extra: tokens that are generated after each prompt, at most.

    Raises:
        InputError: naming the prompt: pictures for a model that takes none, and what `neuronshield.model.chat.reading`,
            `neuronshield.model.tokens.encoded` and `check_length` refuse.
    """
    _check_lengths(model, prompts, encoded_rows(model, prompts), responses=responses, extra=extra)


def _check_lengths(
    model: Model,
    prompts: Sequence[Prompt],
    seen: Sequence[Encoded],
    *,
    responses: Sequence[str | Sequence[int]] | None,
    extra: int,
) -> None:
    answers = [len(ids) for ids in _answers(model, prompts, responses)]
    check_length(model, prompts, [row.length + n for row, n in zip(seen, answers, strict=True)], extra=extra)


def collate(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    responses: Sequence[str | Sequence[int]] | None = None,
    side: str = "right",
    rows: list[int] | None = None,
) -> Batch:
    """One padded batch of prompts, with the role of every token.

    >>> batch = collate(model, prompts[:3], side="left")
    >>> batch.encoding["input_ids"].shape, batch.roles["last_prompt"].sum(dim=1)
    (torch.Size([3, 6]), tensor([1, 1, 1]))

    With `responses`, each is appended to its prompt as the answer (ended by the end-of-sequence token) and has the role
    "response"; "last_prompt" stays where the first answer token is decided.

    Args:
        model: the model.
        prompts: the prompts, all with the same number of pictures.
        responses: an answer for each prompt: a text, or token ids as they are.
        side: where padding goes, "right" or "left".
        rows: each prompt's row number in a longer list; default 0, 1, ...

    Raises:
        InputError: no prompts, different numbers of pictures, or as in `check_prompts`.
    """
    prompts = as_prompts(model, prompts, call="collate")
    counts = {len(p.images) for p in prompts}
    if len(counts) != 1:
        what = f"different numbers of pictures {sorted(counts)} in one batch; use batches" if counts else "no prompts"
        raise InputError(f"collate: {what}")
    rows_of = encoded_rows(model, prompts)
    if len({row.kind for row in rows_of}) > 1:
        raise InputError(
            f"prompts {prompts[0].id!r} to {prompts[-1].id!r}: the chat template of {model.id!r} writes {model.tokenizer.bos_token!r} "
            "before some of them only, so they cannot share a batch; use batch_size=1"
        )
    tokens, others = joined(model, prompts, rows_of)
    answers = _answers(model, prompts, responses)
    check_length(model, prompts, [row.length + len(a) for row, a in zip(rows_of, answers, strict=True)])
    fill = {"input_ids": filler(model, model.tokenizer.pad_token_id), "token_type_ids": model.answer_token_type}
    data, roles = _lay_out(tokens, answers, side=side, fill=fill)
    data = {**others, **data}
    if model.image_token_id is not None:
        roles["image"] = roles["prompt"] & (data["input_ids"] == model.image_token_id)
    roles["text"] = roles["prompt"] & ~roles["image"]
    if _wants_positions(model):
        data["position_ids"] = (data["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    device, dtype = model.device, model.module.get_input_embeddings().weight.dtype  # type: ignore[operator,union-attr]
    data = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in data.items()}
    roles = {k: v.to(device) for k, v in roles.items()}
    return Batch(data, rows or list(range(len(prompts))), roles, ids=tuple(p.id for p in prompts))


def _answers(
    model: Model, prompts: Sequence[Prompt], responses: Sequence[str | Sequence[int]] | None
) -> list[list[int]]:
    """Token ids of the answers to prompts; texts are ended by the end-of-sequence token. Without answers, none."""
    if responses is None:
        return [[] for _ in prompts]
    eos = model.tokenizer.eos_token_id
    out = []
    for prompt, response in zip(prompts, responses, strict=True):
        if not isinstance(response, str):
            out.append(list(response))
            continue
        token = next((t for t in model.media_tokens if t in response), None)
        if token is not None:
            raise InputError(
                f"prompt {prompt.id!r}: its answer contains {token!r}, which {model.id!r} reads as a picture and not as words; "
                "take it out"
            )
        ids = model.tokenizer(response, add_special_tokens=False)["input_ids"]
        out.append([*ids, *([eos] if eos is not None else [])])
        check_known(model, out[-1], what=f"prompt {prompt.id!r}: its answer")
    return out


def _lay_out(
    tokens: list[dict[str, Tensor]], answers: list[list[int]], *, side: str, fill: dict[str, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Join prompts and answers row by row and pad once, on `side`; every per-token tensor follows."""
    lengths = [len(row["input_ids"]) for row in tokens]
    n, width = len(lengths), max(length + len(a) for length, a in zip(lengths, answers, strict=True))
    out = {k: torch.full((n, width, *v.shape[1:]), fill.get(k, 0), dtype=v.dtype) for k, v in tokens[0].items()}
    roles = {r: torch.zeros(n, width, dtype=torch.bool) for r in ("last_prompt", "prompt", "image", "text", "response")}
    for row, (length, answer) in enumerate(zip(lengths, answers, strict=True)):
        total = length + len(answer)
        start = width - total if side == "left" else 0
        middle, end = start + length, start + total
        for key, values in tokens[row].items():
            out[key][row, start:middle] = values
        if "cross_attention_mask" in out:  # an answer sees the pictures that the end of its prompt saw
            out["cross_attention_mask"][row, middle:end] = out["cross_attention_mask"][row, middle - 1]
        out["input_ids"][row, middle:end] = torch.tensor(answer, dtype=torch.long)
        out["attention_mask"][row, middle:end] = 1
        roles["prompt"][row, start:middle] = True
        roles["response"][row, middle:end] = True
        roles["last_prompt"][row, middle - 1] = True
    return out, roles


def _wants_positions(model: Model) -> bool:
    """Whether positions are one number a token, so that we may give them (multi-axis rotary ones are not)."""
    config = model.module.config.get_text_config()  # type: ignore[union-attr,operator]
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return "mrope_section" not in rope and model.forward_takes("position_ids")
