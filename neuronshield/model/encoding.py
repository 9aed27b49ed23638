"""From prompts to one padded batch of tokens, with the role of each token.

A prompt is rendered by the chat template of the model's processor or tokenizer; without one it is used verbatim. A batch must be
all with or all without pictures (an nnsight trace takes one encoding), so `batches` groups prompts by their number of pictures
and by length before it cuts them up. Batches carry row numbers, so the order of the prompts never matters.

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
from .model import Model

__all__ = ["PER_TOKEN", "Batch", "Role", "as_prompts", "batches", "collate", "render"]


#: What an encoding may hold that has one entry a token, [batch, pos, ...].
PER_TOKEN = (
    "input_ids",
    "attention_mask",
    "position_ids",
    "token_type_ids",
    "mm_token_type_ids",
    "cross_attention_mask",
)


Role = Literal["last_prompt", "prompt", "image", "text", "response"]


@dataclass
class Batch:
    """One padded batch.

    Attributes:
        encoding: what the model's forward takes.
        rows: index of each row's prompt in the list that `batches` was given.
        roles: {role: mask [batch, pos]}.
    """

    encoding: dict[str, Tensor]
    rows: list[int]
    roles: dict[str, Bool[Tensor, "batch pos"]]

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
        InputError: the chat template fails on a prompt.
    """
    rows = as_prompts(model, prompts, call="render")
    if isinstance(prompts, (str, Prompt)):
        return _rendered(model, rows[0])
    return [_rendered(model, row) for row in rows]


def _rendered(model: Model, prompt: Prompt) -> tuple[str, bool]:
    for owner in (model.processor, model.tokenizer):
        if getattr(owner, "chat_template", None):
            try:
                text = owner.apply_chat_template(_messages(prompt), tokenize=False, add_generation_prompt=True)
            except Exception as error:  # a template is a program of the checkpoint's; say which prompt broke it
                raise InputError(f"prompt {prompt.id!r}: the chat template of {model.id!r} failed ({error})") from error
            return text, True
    token = getattr(model.processor, "image_token", "<image>")
    return "".join(f"{token}\n" for _ in prompt.images) + prompt.prompt, False


def _messages(prompt: Prompt) -> list[dict[str, Any]]:
    if prompt.messages is not None:
        return list(prompt.messages)
    if not prompt.images:
        return [{"role": "user", "content": prompt.prompt}]
    parts: list[dict[str, Any]] = [{"type": "image"} for _ in prompt.images]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": prompt.prompt}]}]


# -- batches ----------------------------------------------------------------------------------------------
def batches(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    batch_size: int,
    responses: Sequence[str] | None = None,
    side: str = "right",
) -> Iterator[Batch]:
    """Padded batches of prompts that have the same number of pictures and are of like length.

    >>> sorted(row for batch in batches(model, prompts[:7], batch_size=3) for row in batch.rows)
    [0, 1, 2, 3, 4, 5, 6]

    Args:
        model: the model.
        prompts: the prompts.
        batch_size: prompts a batch, at most.
        responses: an answer for each prompt, appended to it.
        side: where padding goes, "right" or "left".

    Raises:
        InputError: as in `collate`.
    """
    at_least(1, "batches", batch_size=batch_size)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i].images), len(prompts[i].prompt), i))
    start = 0
    while start < len(order):
        kind = len(prompts[order[start]].images)
        rows = [i for i in order[start : start + batch_size] if len(prompts[i].images) == kind]
        start += len(rows)
        yield collate(
            model,
            [prompts[i] for i in rows],
            responses=[responses[i] for i in rows] if responses is not None else None,
            side=side,
            rows=rows,
        )


def collate(
    model: Model,
    prompts: Sequence[Prompt],
    *,
    responses: Sequence[str] | None = None,
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
        responses: an answer for each prompt.
        side: where padding goes, "right" or "left".
        rows: each prompt's row number in a longer list; default 0, 1, ...

    Raises:
        InputError: no prompts, different numbers of pictures, pictures for a model that takes none, or a prompt that encodes
            to nothing.
    """
    prompts = as_prompts(model, prompts, call="collate")
    counts = {len(p.images) for p in prompts}
    if len(counts) != 1:
        what = f"different numbers of pictures {sorted(counts)} in one batch; use batches" if counts else "no prompts"
        raise InputError(f"collate: {what}")
    n_images = counts.pop()
    if n_images and not model.takes_images:
        raise InputError(f"prompt {prompts[0].id!r} has pictures but {model.id!r} has no image processor")
    data = _encoded(model, prompts, n_images)
    lengths = data["attention_mask"].sum(dim=1)
    if int(lengths.min()) == 0:
        empty = prompts[int(lengths.argmin())]
        raise InputError(f"prompt {empty.id!r} encodes to no tokens with the tokenizer of {model.id!r}")
    answers = [_response_ids(model, r) for r in responses] if responses is not None else [[] for _ in prompts]
    fill = {"input_ids": model.tokenizer.pad_token_id or 0, "token_type_ids": model.answer_token_type}
    data, roles = _lay_out(data, lengths, answers, side=side, fill=fill)
    if model.image_token_id is not None:
        roles["image"] = roles["prompt"] & (data["input_ids"] == model.image_token_id)
    roles["text"] = roles["prompt"] & ~roles["image"]
    if _wants_positions(model):
        data["position_ids"] = (data["attention_mask"].cumsum(dim=1) - 1).clamp(min=0)
    device, dtype = model.device, model.module.get_input_embeddings().weight.dtype  # type: ignore[operator,union-attr]
    data = {k: v.to(device, dtype) if v.is_floating_point() else v.to(device) for k, v in data.items()}
    return Batch(data, rows or list(range(len(prompts))), {k: v.to(device) for k, v in roles.items()})


def _encoded(model: Model, prompts: Sequence[Prompt], n_images: int) -> dict[str, Tensor]:
    """What the processor, or the tokenizer, makes of the prompts; the tokenizer is left as it was."""
    texts, templated = zip(*(_rendered(model, p) for p in prompts), strict=True)
    tokenizer = model.tokenizer
    added_pad = tokenizer.pad_token_id is None
    kept = tokenizer.padding_side, tokenizer.pad_token
    tokenizer.padding_side = "right"
    if added_pad:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    try:
        common = {"padding": True, "return_tensors": "pt", "add_special_tokens": not templated[0]}
        if n_images:
            pictures = [p.load_images() for p in prompts]
            encoding = model.processor(text=list(texts), images=pictures, **common)
        else:
            encoding = tokenizer(list(texts), **common)
    finally:
        tokenizer.padding_side = kept[0]
        if added_pad:
            tokenizer.pad_token = kept[1]
    data = {k: v for k, v in encoding.items() if isinstance(v, torch.Tensor)}
    data.pop("labels", None)
    if not n_images:  # PaliGemma's text is a prefix that sees all of itself, which has to be said; others know no types
        data.pop("token_type_ids", None)
        if model.answer_token_type:
            data["token_type_ids"] = torch.zeros_like(data["input_ids"])
    return data


def _response_ids(model: Model, response: str) -> list[int]:
    ids = list(model.tokenizer(response, add_special_tokens=False)["input_ids"])
    eos = model.tokenizer.eos_token_id
    return ids + ([eos] if eos is not None else [])


def _lay_out(
    data: dict[str, Tensor], lengths: Tensor, answers: list[list[int]], *, side: str, fill: dict[str, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Join prompts and answers row by row and pad once, on `side`; every per-token tensor follows.

    Rows are read by their attention mask: some processors pad on the left whatever their tokenizer is told.
    """
    per_token = [k for k in PER_TOKEN if k in data]
    n, width = len(lengths), int((lengths + torch.tensor([len(a) for a in answers])).max())
    out = {k: torch.full((n, width, *data[k].shape[2:]), fill.get(k, 0), dtype=data[k].dtype) for k in per_token}
    roles = {r: torch.zeros(n, width, dtype=torch.bool) for r in ("last_prompt", "prompt", "image", "text", "response")}
    real = data["attention_mask"].bool()
    for row, (length, answer) in enumerate(zip(lengths.tolist(), answers, strict=True)):
        total = length + len(answer)
        start = width - total if side == "left" else 0
        middle, end = start + length, start + total
        for key in per_token:
            out[key][row, start:middle] = data[key][row, real[row]]
        if "cross_attention_mask" in out:  # an answer sees the pictures that the end of its prompt saw
            out["cross_attention_mask"][row, middle:end] = out["cross_attention_mask"][row, middle - 1]
        out["input_ids"][row, middle:end] = torch.tensor(answer, dtype=torch.long)
        out["attention_mask"][row, middle:end] = 1
        roles["prompt"][row, start:middle] = True
        roles["response"][row, middle:end] = True
        roles["last_prompt"][row, middle - 1] = True
    return {**data, **out}, roles


def _wants_positions(model: Model) -> bool:
    """Whether positions are one number a token, so that we may give them (multi-axis rotary ones are not)."""
    config = model.module.config.get_text_config()  # type: ignore[union-attr,operator]
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    return "mrope_section" not in rope and model.forward_takes("position_ids")
