"""The chat template of a processor: its text, its options, the date it reads, and the tokens that stand for media.

A chat template is a Jinja program of the checkpoint's. It belongs to the processor, or to the processor's tokenizer. What it
writes depends on its options (`enable_thinking` of Qwen3), and in some checkpoints on today's date (Llama 3.1). An artefact
records all three: the hash of the template, the options, and the date where the template reads it.
"""

from __future__ import annotations

import datetime
import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from ..core.arguments import unknown_keywords
from ..core.errors import InputError

__all__ = ["ChatTemplate", "chat_template", "checked_options", "media_tokens"]


#: The function with which a template reads the date; as an option, the date that it reads.
DATE = "strftime_now"
#: What a format of a date may hold; the longer ones first.
DIRECTIVES = [f"%{flag}{letter}" for flag in ("-", "") for letter in "aAbBcdeHIjmMpSuUVwWxXyYG"]
#: Names of attributes and config entries that hold a token which stands for media, or marks where media start and end.
_MEDIA = re.compile(
    r"(^|_)(image|img|vision|video|audio|boi|eoi|boa|eoa)(_.*)?_(token|tag)(_id|_index)?$|^image_token$"
)


@dataclass(frozen=True)
class ChatTemplate:
    """A chat template with its options.

    >>> template = chat_template(ns.load("organism").processor)
    >>> template.render([{"role": "user", "content": "How do I bake bread?"}])
    '<user>How do I bake bread?<assistant>'
    >>> template.facts()
    {'hash': '...', 'options': {}}

    Attributes:
        owner: the processor or tokenizer that it belongs to.
        text: the Jinja program.
        options: what it is given beside the messages.
        date: today in its eyes, as an ISO date.
    """

    owner: Any
    text: str
    options: Mapping[str, Any] = field(default_factory=dict)
    date: str = ""

    @property
    def takes_pictures(self) -> bool:
        """Whether its owner encodes pictures too."""
        return getattr(self.owner, "image_processor", None) is not None

    def arguments(self) -> dict[str, Any]:
        """Keywords of `apply_chat_template` that do not depend on the messages."""
        fixed = dated(self.text, self.date)
        options = {name: value for name, value in self.options.items() if name != DATE}
        return {
            **({"chat_template": fixed} if fixed != self.text else {}),
            **options,
            "add_generation_prompt": True,
        }

    def render(self, turns: list[dict[str, Any]]) -> str:
        """What the template writes for a conversation.

        >>> template = chat_template(ns.load("organism").processor)
        >>> template.render([{"role": "user", "content": "How do I bake bread?"}])
        '<user>How do I bake bread?<assistant>'

        Args:
            turns: messages, each with its role and content.
        """
        return str(self.owner.apply_chat_template(turns, tokenize=False, **self.arguments()))

    def facts(self) -> dict[str, Any]:
        """What an artefact records of it."""
        out = {"hash": hashlib.sha256(self.text.encode()).hexdigest()[:16], "options": dict(self.options)}
        return {**out, "date": self.date} if DATE in variables(self.text) else out


def chat_template(processor: Any, options: Mapping[str, Any] | None = None, date: str = "") -> ChatTemplate | None:
    """The chat template that a processor uses: its own, else that of its tokenizer; None if there is none.

    >>> chat_template(model.processor) is None
    True

    Args:
        processor: a processor or tokenizer.
        options: what the template is given beside the messages.
        date: what it reads as today; the option of the name "strftime_now" comes before it.

    Raises:
        InputError: several templates, none of which is the default.
    """
    for owner in (processor, getattr(processor, "tokenizer", None)):
        text = getattr(owner, "chat_template", None)
        if isinstance(text, Mapping):
            if "default" not in text:
                names = ", ".join(map(repr, text))
                raise InputError(
                    f"the processor has the chat templates {names} and no 'default'; set processor.chat_template"
                )
            text = text["default"]
        if text:
            options = options or {}
            return ChatTemplate(owner, text, options=options, date=options.get(DATE, date))
    return None


def checked_options(options: Any, template: ChatTemplate | None) -> dict[str, Any]:
    """Template options, each of which the template reads.

    Args:
        options: as in `load`.
        template: the template that they are for.

    Raises:
        InputError: no mapping, no template, an option that the template does not read or that the encoding sets itself, a value that
            JSON cannot hold, or a date that is none.
    """
    call = "load: template_options"
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(name, str) for name in options):
        raise InputError(f"{call} must be a dict of the template's options, got {options!r:.60}")
    if not options:
        return {}
    if template is None:
        raise InputError(f"{call}={dict(options)!r:.80}: the processor has no chat template to give them to")
    own = set(inspect.signature(template.owner.apply_chat_template).parameters)
    taken = sorted(variables(template.text) - own - {"messages", "raise_exception", "bos_token", "eos_token"})
    if not taken:
        raise InputError(f"{call}={dict(options)!r:.80}: the chat template reads no options; leave them out")
    unknown_keywords(options, taken, f"{call} (those that the chat template reads)")
    try:
        json.dumps(options, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(f"{call}={dict(options)!r:.80}: give values that JSON can hold ({error})") from None
    if DATE in options:
        _check_date(options[DATE], call)
    return dict(options)


def _check_date(date: Any, call: str) -> None:
    try:
        datetime.date.fromisoformat(date)
    except (TypeError, ValueError):
        raise InputError(f"{call}: {DATE}={date!r:.40}: give the date as in '2026-01-31'") from None


@lru_cache(maxsize=64)
def dated(text: str, date: str) -> str:
    """A template in whose eyes today is a given date; one that reads no date is left as it is.

    >>> dated("{{ messages[0].content }}", "2026-01-31")
    '{{ messages[0].content }}'
    >>> from jinja2 import Template
    >>> Template(dated("Today is {{ strftime_now('%d %b %Y') }}.", "2026-01-31")).render().strip()
    'Today is 31 Jan 2026.'

    Args:
        text: the template.
        date: an ISO date; empty to leave the template as it is.
    """
    if not date or DATE not in variables(text):
        return text
    day = datetime.datetime.fromisoformat(date)
    filled = "".join(f" | replace({name!r}, {day.strftime(name)!r})" for name in DIRECTIVES)
    return f"{{% macro {DATE}(format) %}}{{{{ format{filled} }}}}{{% endmacro %}}\n{text}"


@lru_cache(maxsize=64)
def variables(text: str) -> frozenset[str]:
    """Names that a template may read from what it is given.

    >>> sorted(variables("{% if enable_thinking is defined %}{{ messages[0].content }}{% endif %}"))
    ['enable_thinking', 'messages']

    Args:
        text: the template. One that is no Jinja reads none.
    """
    from jinja2 import Environment, TemplateError, meta, nodes
    from jinja2.ext import Extension, loopcontrols

    class Generation(Extension):
        """`{% generation %}`, with which transformers marks a model's own turns."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)

    try:
        return frozenset(meta.find_undeclared_variables(Environment(extensions=[Generation, loopcontrols]).parse(text)))
    except TemplateError:
        return frozenset()


def media_tokens(config: Any, processor: Any) -> tuple[str, ...]:
    """Tokens that stand for pictures and other media or mark where they start and end; a prompt's words hold none of them.

    >>> media_tokens(vlm.module.config, vlm.processor), media_tokens(model.module.config, model.processor)
    (('<image>',), ())

    Args:
        config: a transformers config.
        processor: its processor or tokenizer.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    named = {**getattr(tokenizer, "special_tokens_map", {}), **vars(processor)}
    found = [value for name, value in named.items() if _MEDIA.search(name)]
    found += [value for name, value in vars(config).items() if _MEDIA.search(name)]
    known = {tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}
    out = []
    for value in found:
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and 0 <= value < len(tokenizer)
            and value not in known
        ):
            value = tokenizer.convert_ids_to_tokens(value)
        if isinstance(value, str) and value:
            out.append(value)
    return tuple(dict.fromkeys(out))
