"""Prompts to token ids and pixels, by the processor's own `apply_chat_template`, and the check that all of a prompt is in them.

    model has                      a prompt without pictures               with pictures
    a processor with a template    processor.apply_chat_template           processor.apply_chat_template
    a tokenizer with a template    tokenizer.apply_chat_template           the processor, on what the template writes
    no template                    the tokenizer, on the words             the processor, on placeholders and words

Special tokens are therefore the processor's own: a template brings its own, and where a processor's template writes no
beginning-of-sequence token its tokenizer does. Special tokens in the words of a prompt ("<|im_end|>") are read as such, as in
the processor itself; those that stand for pictures are refused.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core.errors import InputError, out_of_memory
from ..data.prompts import Prompt
from .chat import Reading, brief, reading
from .model import Model

__all__ = ["begins", "check_known", "encoded", "filler", "n_tokens"]


#: Tokenizers keep state (padding side, truncation) and cannot be used by two threads at once.
_LOCK = threading.RLock()


def encoded(model: Model, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """What the processor makes of prompts that have the same number of pictures, padded; the tokenizer is left as it was.

    >>> encoded(model, prompts[:3])["attention_mask"].sum(dim=1)
    tensor([5, 5, 6])

    Args:
        model: the model.
        prompts: the prompts.

    Raises:
        InputError: naming a prompt that the processor cannot encode, that encodes to nothing, whose pictures are not all in what the
            model reads, or that has token ids which the model does not know.
    """
    readings = [reading(model, prompt) for prompt in prompts]
    if len({_begins(model, read) for read in readings}) > 1:
        raise InputError(
            f"prompts {prompts[0].id!r} to {prompts[-1].id!r}: the chat template of {model.id!r} writes {model.tokenizer.bos_token!r} "
            "before some of them only, so they cannot share a batch; use batch_size=1"
        )
    with _LOCK, _padding(model.tokenizer):
        data = _encoding(model, prompts, readings)
    _check_rows(model, prompts, data)
    _check_ends(model, prompts, readings=readings, data=data)
    return data


# -- encoding ---------------------------------------------------------------------------------------------
def _encoding(model: Model, prompts: Sequence[Prompt], readings: Sequence[Reading]) -> dict[str, Tensor]:
    """The tensors of a batch; what cannot be encoded is found by encoding each prompt by itself."""
    pictures = [prompt.load_images() for prompt in prompts]
    try:
        encoding = _processed(model, readings, pictures)
    except Exception as error:
        for row in zip(prompts, readings, pictures, strict=True):
            with naming([row[0]], model):
                _processed(model, [row[1]], [row[2]])
        with naming(prompts, model):
            raise error
    data = {}
    for name, value in encoding.items():
        tensor = _tensor(model, prompts[0], name, value=value)
        if tensor is not None and name != "labels":
            data[name] = tensor
    if not prompts[0].images:
        for name in (
            "token_type_ids",
            "mm_token_type_ids",
        ):  # no token is a picture's; forwards assume that by themselves
            data.pop(name, None)
        if model.answer_token_type:  # PaliGemma's text is a prefix that sees all of itself, which has to be said
            data["token_type_ids"] = torch.zeros_like(data["input_ids"])
    return data


def _processed(model: Model, readings: Sequence[Reading], pictures: Sequence[list[Any]]) -> Any:
    """What the processor or the tokenizer makes of a batch."""
    template, some = model.template, any(pictures)
    turns = [read.turns for read in readings if read.turns is not None]
    if template is not None and template.takes_pictures and not (some and any(map(_written_out, turns))):
        talks = [_filled(talk, images) for talk, images in zip(turns, pictures, strict=True)]
        options = {**template.arguments(), "tokenize": True, "return_dict": True, "return_tensors": "pt"}
        return template.owner.apply_chat_template(talks, processor_kwargs={"padding": True}, **options)
    if template is not None and not some:
        options = {
            **template.arguments(),
            "tokenize": True,
            "return_dict": True,
            "return_tensors": "pt",
            "padding": True,
        }
        return template.owner.apply_chat_template(turns, **options)
    texts: list[str] = [read.text for read in readings]
    if not some:
        return model.tokenizer(texts, padding=True, return_tensors="pt")
    specials = template is None or (template.takes_pictures and not _begins(model, readings[0]))
    return model.processor(
        text=texts, images=list(pictures), padding=True, return_tensors="pt", add_special_tokens=specials
    )


def _written_out(turns: list[dict[str, Any]]) -> bool:
    """Whether the pictures of a conversation are placeholders in its words (see `chat`), so that no part can hold them."""
    return all(isinstance(turn["content"], str) for turn in turns)


def begins(model: Model, prompt: Prompt) -> bool:
    """Whether a processor's template writes the beginning-of-sequence token, so that the tokenizer does not add it.

    >>> begins(model, prompts[0])
    False

    Prompts in which it does and prompts in which it does not cannot share a batch.

    Args:
        model: the model.
        prompt: the prompt.

    Raises:
        InputError: as `neuronshield.model.chat.reading`.
    """
    template = model.template
    return template is not None and template.takes_pictures and _begins(model, reading(model, prompt))


def _begins(model: Model, read: Reading) -> bool:
    template, bos = model.template, model.tokenizer.bos_token
    return template is not None and template.takes_pictures and bos is not None and read.text.startswith(bos)


def _filled(turns: Any, images: Sequence[Any]) -> list[dict[str, Any]]:
    """The conversation with each picture in its part."""
    rest = iter(images)
    out = []
    for turn in turns:
        content = turn["content"]
        if not isinstance(content, str):
            content = [{**part, "image": next(rest)} if part["type"] == "image" else part for part in content]
        out.append({**turn, "content": content})
    return out


def _tensor(model: Model, prompt: Prompt, name: str, *, value: Any) -> Tensor | None:
    """A part of an encoding as one tensor; None for what is no input of a model.

    Raises:
        InputError: pictures that are a list of unlike sizes, which no forward is known to take.
    """
    if isinstance(value, Tensor):
        return value
    parts = _leaves(value)
    if not parts:
        if model.forward_takes(name):
            raise InputError(
                f"prompt {prompt.id!r}: the processor of {model.id!r} gives {name!r} as {type(value).__name__}, which is no tensor"
            )
        return None
    if len({part.shape for part in parts}) > 1:
        sizes = " and ".join(str(tuple(part.shape)) for part in parts[:2])
        raise InputError(
            f"prompt {prompt.id!r}: the processor of {model.id!r} gives {name!r} as a list of unlike sizes ({sizes}), "
            "which is not supported; give pictures of one size"
        )
    return torch.stack(parts)


def _leaves(value: Any) -> list[Tensor]:
    """The tensors of a list, or a list of lists, in order."""
    if isinstance(value, (Tensor, np.ndarray)):
        return [torch.as_tensor(value)]
    if isinstance(value, (list, tuple)):
        return [leaf for part in value for leaf in _leaves(part)]
    return []


# -- checks -----------------------------------------------------------------------------------------------
def n_tokens(model: Model) -> int:
    """Number of token ids that the model knows: rows of its embedding.

    >>> n_tokens(model)
    38

    Args:
        model: the model.
    """
    return model.module.get_input_embeddings().weight.shape[0]  # type: ignore[operator,union-attr,return-value,no-any-return]


def filler(model: Model, *ids: int | None) -> int:
    """The first id that there is and that the model knows, or 0: what stands where nothing is read.

    >>> filler(model, None, 99, 2)
    2

    A padding token that was added to the tokenizer alone has no row in the embedding.

    Args:
        model: the model.
        *ids: candidates.
    """
    rows = n_tokens(model)
    return next((i for i in ids if i is not None and i < rows), 0)


def check_known(model: Model, ids: Sequence[int], *, what: str) -> None:
    """Raise on a token id that the model does not know.

    >>> check_known(model, [3, 4], what="prompt 'a'")

    Args:
        model: the model.
        ids: token ids.
        what: whose they are, for the message.

    Raises:
        InputError: names the first unknown id.
    """
    rows = n_tokens(model)
    unknown = next((i for i in ids if i >= rows), None)
    if unknown is not None:
        token = model.tokenizer.convert_ids_to_tokens(unknown)
        raise InputError(
            f"{what}: token id {unknown} is not among the {rows} of {model.id!r} ({token!r}); its tokenizer is of another model, "
            "or tokens were added to it: module.resize_token_embeddings(len(tokenizer)) adds their rows"
        )


def _check_rows(model: Model, prompts: Sequence[Prompt], data: dict[str, Tensor]) -> None:
    """Raise on a row without tokens, with ids that the model does not know, or whose pictures are not all there."""
    ids, real = data["input_ids"], data["attention_mask"].bool()
    image = model.image_token_id
    for i, prompt in enumerate(prompts):
        row = ids[i][real[i]]
        if not len(row):
            raise InputError(f"prompt {prompt.id!r} encodes to no tokens with the tokenizer of {model.id!r}")
        n = int((row == image).sum()) if image is not None else 0
        known = row[row != image] if image is not None else row
        check_known(model, known.tolist(), what=f"prompt {prompt.id!r}")
        if (n == 0 and prompt.images and image is not None) or (n > 0 and not prompt.images):
            raise InputError(
                f"prompt {prompt.id!r} has {len(prompt.images)} pictures, and {n} tokens of what {model.id!r} reads stand for pictures; "
                f"the token is {model.tokenizer.convert_ids_to_tokens(image)!r}"
            )


def _check_ends(
    model: Model, prompts: Sequence[Prompt], *, readings: Sequence[Reading], data: dict[str, Tensor]
) -> None:
    """Raise if the tokenizer ends a prompt with the end-of-sequence token: the model would answer after the end."""
    token, eos = model.tokenizer.eos_token, model.tokenizer.eos_token_id
    for i, (prompt, read) in enumerate(zip(prompts, readings, strict=True)):
        last = int(data["input_ids"][i][data["attention_mask"][i].bool()][-1])
        if eos is not None and last == eos and not read.text.rstrip().endswith(token):
            raise InputError(
                f"prompt {prompt.id!r}: the tokenizer of {model.id!r} writes {token!r} after it, and the model would answer a text "
                "that has ended; set tokenizer.add_eos_token = False, or another post-processor"
            )


@contextmanager
def naming(prompts: Sequence[Prompt], model: Model) -> Iterator[None]:
    """What a processor has to say, in one line that names the prompt.

    >>> with naming([prompts[0]], model):
    ...     raise ValueError("absolute aspect ratio must be smaller than 200")
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: prompt 'en-text-0-0-harmful': the processor of 'LlamaForCausalLM' cannot encode it (absolute ...)

    Args:
        prompts: what it was given.
        model: its model.

    Raises:
        InputError: instead of what is raised inside.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a processor may raise anything
        which = f"prompt {prompts[0].id!r}" if len(prompts) == 1 else f"prompts {prompts[0].id!r} to {prompts[-1].id!r}"
        what = "it" if len(prompts) == 1 else "them together; lower batch_size"
        said = "out of memory; use smaller pictures" if out_of_memory(error) else brief(error)
        raise InputError(f"{which}: the processor of {model.id!r} cannot encode {what} ({said})") from error


@contextmanager
def _padding(tokenizer: Any) -> Iterator[None]:
    """A tokenizer that pads on the right, with a padding token lent to it if it has none."""
    lent = tokenizer.pad_token_id is None
    kept = tokenizer.padding_side, tokenizer.pad_token
    backend = getattr(tokenizer, "backend_tokenizer", None)
    padding: Any = getattr(backend, "padding", None)
    tokenizer.padding_side = "right"
    if lent:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    try:
        yield
    finally:
        tokenizer.padding_side = kept[0]
        if lent:
            tokenizer.pad_token = kept[1]
        if backend is not None and padding is None:
            backend.no_padding()
        elif backend is not None:
            backend.enable_padding(**padding)
