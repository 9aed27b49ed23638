"""Prompts as samples of inspect_ai, with their pictures and columns, and back.

Objects of inspect_ai are made only where a sample is, so that this module does not import it.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..check.evaluation import LEFT_OUT
from ..core.arguments import require
from ..core.errors import InputError
from ..core.results import to_json
from ..data import shipped
from ..data.pictures import picture_file
from ..data.prompts import Prompt, PromptSet
from ..run.plan import given_prompts

if TYPE_CHECKING:
    from inspect_ai.dataset import Sample
    from inspect_ai.model import ChatMessage

__all__ = ["as_sample", "columns_of", "prompt_of", "prompts_of"]

#: Prompts of this package that come by name, beside those of its models.
SHIPPED = {"matched_pairs": shipped.matched_pairs}


def prompts_of(source: str | PromptSet, cells: str | Sequence[str] = ()) -> PromptSet:
    """The prompts that `evaluate` would answer.

    >>> prompts_of("matched_pairs", cells="en/text")
    PromptSet(40 harmful + 40 benign, 1 cell)

    Args:
        source: a JSONL or Parquet file, "matched_pairs", the name of a model of this package for its own prompts ("organism"), or a
            set.
        cells: languages, modalities or cells; all without them.

    Raises:
        InputError: no such prompts or cells, a bad file, or no prompts of split "test" among prompts with a split.
    """
    call = "neuronshield/cells"
    require(source, (str, os.PathLike, PromptSet), call=call, name="prompts", hint="as in -T prompts=prompts.jsonl")
    name = source if isinstance(source, str) else ""
    is_file = not isinstance(source, PromptSet) and os.fspath(source).lower().endswith((".jsonl", ".parquet"))
    given: Any = SHIPPED[name]() if name in SHIPPED else source if is_file or not name else None
    try:
        found = given_prompts(name, given, seed=0, cells=[cells] if isinstance(cells, str) else cells)
    except InputError as error:
        if given is not None:
            raise
        known = ", ".join([*SHIPPED, "organism"])
        raise InputError(
            f"{call}: prompts={name!r} is no .jsonl or .parquet file and no set of this package; use {known}"
        ) from error
    return found.for_step("test")


def as_sample(prompt: Prompt) -> Sample:
    """A prompt as a sample: its id, what is asked with its pictures as data URIs, its target, and its columns as metadata.

    Args:
        prompt: the prompt.

    Raises:
        InputError: a picture that cannot be read, or a column that JSON cannot hold.
    """
    from inspect_ai.dataset import Sample

    plain = prompt.messages is None and not prompt.images
    asked: Any = prompt.prompt if plain else list(_messages(prompt))
    return Sample(id=prompt.id, input=asked, target=prompt.target or "", metadata=columns_of(prompt))


def _messages(prompt: Prompt) -> Iterator[ChatMessage]:
    from inspect_ai.model import ChatMessageAssistant, ChatMessageSystem, ChatMessageUser, ContentImage, ContentText

    kinds: dict[str, Any] = {"user": ChatMessageUser, "system": ChatMessageSystem, "assistant": ChatMessageAssistant}
    pictures = iter([_data_uri(image) for image in prompt.images])
    words: list[dict[str, Any]] = [{"type": "text", "text": prompt.prompt}] if prompt.prompt else []
    alone: tuple[dict[str, Any], ...] = (
        {"role": "user", "content": [*({"type": "image"} for _ in prompt.images), *words]},
    )
    for turn in alone if prompt.messages is None else prompt.messages:
        content = turn["content"]
        if not isinstance(content, str):
            content = [
                ContentText(text=part["text"]) if part["type"] == "text" else ContentImage(image=next(pictures))
                for part in content
            ]
        yield kinds[turn["role"]](content=content)


def _data_uri(image: Any) -> str:
    data, kind = picture_file(image)
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def columns_of(prompt: Prompt) -> dict[str, Any]:
    """The columns of a prompt, its cell, its request (what intervals are over) and the hash of its content, as metadata.

    >>> {key: columns_of(prompts[0])[key] for key in ("cell", "label", "pictures")}
    {'cell': 'en/text', 'label': 'harmful', 'pictures': 0}

    Args:
        prompt: the prompt.

    Raises:
        InputError: a column that JSON cannot hold.
    """
    names = ("label", "language", "modality", "category", "source", "pair_id", "target", "expect", "split", "extra")
    try:
        columns = {name: to_json(getattr(prompt, name)) for name in names}
    except TypeError as error:
        raise InputError(f"prompt {prompt.id!r}: a column has no form in JSON ({error}); leave it out") from None
    told = {
        "cell": str(prompt.cell),
        "request": prompt.cluster,
        "content": prompt.content_hash,
        "pictures": len(prompt.images),
    }
    return {**told, **{name: value for name, value in columns.items() if value not in (None, [], {})}}


def prompt_of(name: str, columns: dict[str, Any]) -> Prompt:
    """The prompt that a sample's metadata describe, without its text and its pictures: what a rate is counted by.

    >>> prompt_of("p", columns_of(prompts[0])).cell == prompts[0].cell
    True

    Args:
        name: of the sample.
        columns: the metadata.

    Raises:
        InputError: metadata of another task.
    """
    try:
        pictures = (LEFT_OUT,) * columns["pictures"]
        facts = {key: columns[key] for key in ("language", "modality")}
        return Prompt(name, name, columns["label"], images=pictures, pair_id=columns.get("pair_id"), **facts)
    except (KeyError, TypeError) as error:
        raise InputError(f"sample {name!r} is not of the task neuronshield/cells: its metadata lack {error}") from None
