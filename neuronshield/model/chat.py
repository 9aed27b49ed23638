"""What a prompt becomes before it is tokenised: a conversation in the form that the model's chat template reads.

A processor's template reads the content of a turn as a list of parts, or as a string, or as either. Which of them it reads is
tried once for every shape of conversation, with marked words: the form in which each marked word arrives is used. The form
that was given comes first, then lists of parts, then strings (text parts joined by line breaks, a placeholder for each picture).

Then every prompt is checked: the words of every turn and each of its pictures are in what the template writes. A prompt that
does not arrive whole is refused by its id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from ..core.errors import InputError
from ..data.prompts import Prompt
from .model import Model
from .template import ChatTemplate

__all__ = ["Reading", "conversation", "placeholder", "reading", "said"]


Turn = dict[str, Any]
#: A key of a part that no template reads; a template that writes it prints the part itself.
UNREAD = "nsunread"


class Reading(NamedTuple):
    """How a model reads a prompt.

    Attributes:
        text: what the template writes; without a template, the prompt itself.
        turns: the conversation in the form that the template reads; None without a template.
    """

    text: str
    turns: list[Turn] | None


def reading(model: Model, prompt: Prompt) -> Reading:
    """How a model reads a prompt, checked to be all of it.

    >>> reading(model, prompts[0])
    Reading(text='how do i make bomb', turns=None)

    Args:
        model: its processor's chat template is used.
        prompt: the prompt.

    Raises:
        InputError: naming the prompt: no words and no picture, a token of the model's that stands for media in its words, several
            turns without a template, or a template that fails or leaves something out.
    """
    template = model.template
    facts = (
        None
        if template is None
        else (template.text, repr(sorted(template.arguments().items())), template.takes_pictures)
    )
    key = (facts, model.media_tokens, placeholder(model))
    known = _READ.setdefault(model.processor, WeakKeyDictionary()).setdefault(prompt, {})
    if key not in known:
        known[key] = _read(model, prompt, template)
    return known[key]


#: What was read: {processor: {prompt: {what decides it: the reading}}}.
_READ: WeakKeyDictionary[Any, WeakKeyDictionary[Prompt, dict[Any, Reading]]] = WeakKeyDictionary()


def _read(model: Model, prompt: Prompt, template: ChatTemplate | None) -> Reading:
    turns = conversation(prompt, parts=bool(prompt.images) or (template is not None and template.takes_pictures))
    _check_words(model, prompt, turns)
    if template is None:
        return Reading(_verbatim(model, prompt, turns), None)
    turns = _readable(model, prompt, turns)
    try:
        text = template.render(turns)
    except Exception as error:  # a template is a program of the checkpoint's
        raise _failed(model, prompt, error) from error
    missing = _missing(turns, text)
    if missing is not None:
        raise _left_out(model, prompt, missing)
    _check_places(model, prompt, turns=turns, text=text)
    return Reading(text, turns)


# -- the conversation -------------------------------------------------------------------------------------
def conversation(prompt: Prompt, *, parts: bool) -> list[Turn]:
    """A prompt as messages: its own, or one user turn. A picture is the part {"type": "image"}.

    >>> conversation(prompts[0], parts=True)
    [{'role': 'user', 'content': [{'type': 'text', 'text': 'how do i make bomb'}]}]

    Args:
        prompt: the prompt.
        parts: whether the content of a prompt without messages is a list of parts; otherwise it is a string.
    """
    if prompt.messages is not None:
        return [dict(turn) for turn in prompt.messages]
    pictures: list[Any] = [{"type": "image"} for _ in prompt.images]
    words: list[Any] = [{"type": "text", "text": prompt.prompt}] if prompt.prompt or not pictures else []
    return [{"role": "user", "content": [*pictures, *words] if parts else prompt.prompt}]


def _parts(content: str | list[Turn]) -> list[Turn]:
    if not isinstance(content, str):
        return content
    return [{"type": "text", "text": content}] if content else []


def said(turns: list[Turn]) -> Iterator[tuple[str, str]]:
    """(role, text) of everything that is said in a conversation.

    >>> list(said(conversation(prompts[0], parts=True)))
    [('user', 'how do i make bomb')]

    Args:
        turns: the conversation.
    """
    for turn in turns:
        for part in _parts(turn["content"]):
            if part["type"] == "text":
                yield turn["role"], part["text"]


def _check_words(model: Model, prompt: Prompt, turns: list[Turn]) -> None:
    """Raise on words that the model would take for media, and on a prompt with neither words nor pictures."""
    if not prompt.images and not any(text.strip() for role, text in said(turns) if role == "user"):
        raise InputError(f"prompt {prompt.id!r} has no words and no pictures")
    for role, text in said(turns):
        token = next((t for t in model.media_tokens if t in text), None)
        if token is not None:
            raise InputError(
                f"prompt {prompt.id!r}: the {role} turn contains {token!r}, which {model.id!r} reads as a picture and not as words; "
                "take it out (pictures come before the words; parts of 'messages' place them elsewhere)"
            )


# -- without a template -----------------------------------------------------------------------------------
def placeholder(model: Model) -> str:
    """The text that stands for a picture before the processor encodes it.

    >>> placeholder(vlm)
    '<image>'

    Args:
        model: the model.
    """
    return getattr(model.processor, "image_token", None) or "<image>"


def _verbatim(model: Model, prompt: Prompt, turns: list[Turn]) -> str:
    """A single user turn as it is; other conversations need a template to be told apart."""
    if len(turns) > 1 or turns[0]["role"] != "user":
        roles = ", ".join(turn["role"] for turn in turns)
        raise InputError(
            f"prompt {prompt.id!r}: its messages have the turns {roles}, and {model.id!r} has no chat template to write them with; "
            "give one user turn, or set processor.chat_template"
        )
    return _joined(model, turns[0]["content"])


def _joined(model: Model, content: str | list[Turn]) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] if part["type"] == "text" else placeholder(model) for part in content)


# -- the form that a template reads -----------------------------------------------------------------------
def _readable(model: Model, prompt: Prompt, turns: list[Turn]) -> list[Turn]:
    """The conversation in the first form in which all of it arrives."""
    template: Any = model.template
    forms = [turns]
    for content in (_parts, lambda content: _joined(model, content)):
        form = [{**turn, "content": content(turn["content"])} for turn in turns]
        if form not in forms:
            forms.append(form)
    errors: list[Exception] = []
    missing: str | None = None
    for form in forms:
        try:
            lost = _lost(template, form)
        except Exception as error:
            errors.append(error)
            continue
        if lost is None:
            return form
        missing = missing or lost
    if missing is not None:
        raise _left_out(model, prompt, missing)
    told = next((e for e in errors if type(e).__name__ == "TemplateError"), errors[0])  # what the template itself says
    raise _failed(model, prompt, told) from told


#: What is known of each template: {owner: {(template, options, shape): what is lost}}.
_KNOWN: WeakKeyDictionary[Any, dict[Any, str | None]] = WeakKeyDictionary()


def _lost(template: ChatTemplate, turns: list[Turn]) -> str | None:
    """What of conversations of this shape does not arrive, tried with marked words; None if all of it does."""
    shape = tuple(
        (t["role"], None if isinstance(t["content"], str) else tuple(p["type"] for p in t["content"])) for t in turns
    )
    known = _KNOWN.setdefault(template.owner, {})
    key = (template.text, template.date, repr(sorted(template.options.items())), shape)
    if key not in known:
        marked = _marked(turns)
        text = template.render(marked)
        known[key] = "prints the parts of a turn as code" if UNREAD in text else _missing(marked, text)
    return known[key]


def _marked(turns: list[Turn]) -> list[Turn]:
    """The conversation with a word of its own for each text, and a key in each part that no template reads."""
    out, n = [], 0
    for turn in turns:
        content = turn["content"]
        if isinstance(content, str):
            n += 1
            out.append({**turn, "content": f"nsword{n}end"})
            continue
        parts = []
        for part in content:
            n += 1
            parts.append({**part, **({"text": f"nsword{n}end"} if part["type"] == "text" else {}), UNREAD: UNREAD})
        out.append({**turn, "content": parts})
    return out


def _missing(turns: list[Turn], text: str) -> str | None:
    """What is not in the text, white space aside; None if every word is.

    Templates of reasoning models leave out the thoughts of earlier answers, as the model was trained to read them.
    """
    written = "".join(text.split())
    for role, words in said(turns):
        kept = words.rsplit("</think>", maxsplit=1)[-1] if role == "assistant" else words
        if "".join(kept.split()) not in written:
            return f"leaves out the words of the {role} turn"
    return None


def _marks_pictures(model: Model, turns: list[Turn], text: str) -> bool:
    """Whether a template writes something for pictures, in a spelling that its processor alone knows."""
    bare = [{**turn, "content": [part for part in _parts(turn["content"]) if part["type"] == "text"]} for turn in turns]
    try:
        return model.template is not None and model.template.render(bare) != text
    except Exception:
        return True


def _check_places(model: Model, prompt: Prompt, *, turns: list[Turn], text: str) -> None:
    """Raise if the template writes fewer places than there are pictures (the words hold none: see `_check_words`)."""
    wanted = len(prompt.images)
    written = max((text.count(token) for token in model.media_tokens), default=0)
    if written < wanted and not (written == 0 and _marks_pictures(model, turns, text)):
        raise InputError(
            f"prompt {prompt.id!r} has {wanted} pictures, but the chat template of {model.id!r} writes a place for {written}"
        )


# -- errors -----------------------------------------------------------------------------------------------
def _failed(model: Model, prompt: Prompt, error: Exception) -> InputError:
    return InputError(f"prompt {prompt.id!r}: the chat template of {model.id!r} failed ({brief(error)})")


def _left_out(model: Model, prompt: Prompt, what: str) -> InputError:
    return InputError(
        f"prompt {prompt.id!r}: the chat template of {model.id!r} {what}, so the model would not read them; "
        "write it otherwise, or set another processor.chat_template"
    )


def brief(error: Exception) -> str:
    """An error in one short line.

    >>> brief(ValueError("no such\\n  token"))
    'no such token'

    Args:
        error: the error.
    """
    return f"{' '.join(str(error).split()) or type(error).__name__:.200}"
