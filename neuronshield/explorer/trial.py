"""One prompt of the user's own, answered as the model is and with neurons scaled."""

from __future__ import annotations

from base64 import b64decode
from binascii import Error
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ..core.errors import InputError
from ..core.neurons import NeuronSet
from ..data.prompts import Prompt
from ..model.intervention import Intervention
from ..model.model import Model
from .replies import Answering
from .view import SaidView

__all__ = ["Trial", "answer", "own_prompt", "tried"]

NAME = "your prompt"
LONGEST = 200  # characters of an error


@dataclass(frozen=True)
class Trial:
    """Two answers to one prompt.

    Attributes:
        before: as the model is.
        after: with the neurons scaled.
    """

    before: SaidView
    after: SaidView


def tried(model: Model, neurons: NeuronSet, prompt: Prompt, *, factor: float = 0.0, max_new_tokens: int = 24) -> Trial:
    """The answers to a prompt as the model is, and with the values of neurons multiplied at the last token of the prompt.

    >>> tried(model, neurons, own_prompt("how do i bake bread"), factor=1.0, max_new_tokens=2)
    Trial(before=SaidView(text='...', outcome='complied'), after=SaidView(text='...', outcome='complied'))

    Args:
        model: the model.
        neurons: the neurons that are scaled.
        prompt: the prompt.
        factor: 0 ablates to zero, 1 changes nothing, -1 turns the sign.
        max_new_tokens: tokens of an answer, at most.

    Raises:
        InputError: neurons of another model, no neurons, or a prompt that the model cannot read whole.
    """
    answering = Answering(model, [prompt], max_new_tokens)
    before, after = (answering.under(each)[0] for each in (None, Intervention(neurons, "scale", factor)))
    return Trial(before, after)


def own_prompt(text: str, *, picture: str = "", language: str = "en") -> Prompt:
    """A prompt of one user turn.

    >>> own_prompt("how do i bake bread")
    Prompt('your prompt', harmful, en/text, 'how do i bake bread')

    Args:
        text: what is asked.
        picture: as a `data:` URI; empty for none.
        language: BCP-47; answers are graded by how refusals are worded in it.

    Raises:
        InputError: no text, or a picture that is no `data:` URI in base64.
    """
    if not text.strip():
        raise InputError("no prompt: write a request first")
    head, comma, body = picture.partition(",")
    if picture and not (head.startswith("data:") and head.endswith(";base64") and comma):
        raise InputError("the picture is not a data: URI in base64; choose a picture file")
    try:
        images = (b64decode(body, validate=True),) if picture else ()
    except Error:
        raise InputError("the picture is damaged; choose it again") from None
    return Prompt(NAME, text, "harmful", images=images, language=language, modality="image" if images else "text")


def answer(
    asked: dict[str, Any], *, neurons: NeuronSet, model: Callable[[], Model], max_new_tokens: int = 24
) -> dict[str, Any]:
    """What a page shows of a prompt that was asked in it: the answers "before" and "after", or an "error" in one line.

    >>> answer({"text": " ", "factor": 0, "language": "en", "picture": ""}, neurons=neurons, model=lambda: model)
    {'error': 'no prompt: write a request first'}

    Args:
        asked: "text", "factor", "language" and "picture", as the page sends them.
        neurons: the neurons that are scaled.
        model: gives the model.
        max_new_tokens: tokens of an answer, at most.
    """
    try:
        factor = float(asked["factor"])
        prompt = own_prompt(str(asked["text"]), picture=str(asked["picture"]), language=str(asked["language"]))
        found = tried(model(), neurons, prompt, factor=factor, max_new_tokens=max_new_tokens)
    except Exception as error:  # whatever goes wrong in the kernel, the page says it
        line = (str(error).splitlines() or [""])[0]
        return {"error": (line if isinstance(error, InputError) else f"{type(error).__name__}: {line}")[:LONGEST]}
    sides = {name: [said.text, said.outcome] for name, said in (("before", found.before), ("after", found.after))}
    return {**sides, "neurons": len(neurons), "factor": factor}
