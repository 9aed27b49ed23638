"""A node of a system: one model, and the template that makes its prompt.

A template is text with fields in braces. `{prompt}` is what the user asks, any other field is the output of the node of that name:

    Node("describe", model)                                              the request as it is
    Node("answer", model, "{prompt} The picture shows: {describe}")      the request, then what the other node wrote

Fields are names and nothing else: nothing of an output or a request is evaluated, and braces in them stay braces.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from string import Formatter

from ..core.arguments import at_least, require
from ..core.errors import InputError
from ..data.prompts import Prompt
from ..model.model import Model, require_model

__all__ = ["REQUEST", "Node"]

#: The field that is the user's request.
REQUEST = "prompt"


@dataclass(frozen=True, eq=False, repr=False)
class Node:
    """One model of a system, and what it reads.

    >>> node = ns.Node("answer", model, "how do i {describe} a cake", pictures=False)
    >>> node, node.fields
    (Node('answer', 'LlamaForCausalLM', reads 'how do i {describe} a cake', no pictures), ('describe',))

    Args:
        name: by which other nodes read its output.
        model: nodes that have the same `Model` share its weights.
        reads: the template of its prompt; `{prompt}` is the request, `{name}` the output of another node, `{{` a brace.
        pictures: whether it sees the pictures of the request.
        max_new_tokens: tokens of its output, at most.

    Raises:
        InputError: a name that no field can have, no model, or a template with a field that is no name.
    """

    name: str
    model: Model
    reads: str = "{prompt}"
    pictures: bool = True
    max_new_tokens: int = 32

    def __post_init__(self) -> None:
        call = "Node(name, model, reads)"
        require(self.name, str, call=call, name="name")
        if not self.name.isidentifier() or self.name == REQUEST:
            raise InputError(
                f"Node({self.name!r:.60}): a name is one word of letters, digits and _, and not {REQUEST!r}, the request"
            )
        require_model(self.model, call=call)
        require(self.reads, str, call=call, name="reads", hint="a template, such as '{prompt} {describe}'")
        require(self.pictures, bool, call=call, name="pictures")
        at_least(1, f"Node({self.name!r})", max_new_tokens=self.max_new_tokens)
        _ = self._parts

    @cached_property
    def _parts(self) -> tuple[tuple[str, str | None], ...]:
        """The template as pieces of text, each with the field that comes after it."""
        try:
            parsed = list(Formatter().parse(self.reads))
        except ValueError as error:
            raise InputError(
                f"Node({self.name!r}): reads={self.reads!r:.60}: {error}; write {{{{ for a brace"
            ) from None
        for _, name, form, conversion in parsed:
            if name is not None and (not name.isidentifier() or form or conversion):
                raise InputError(
                    f"Node({self.name!r}): reads={self.reads!r:.60}: {{{name:.40}}} is no field; a field is {{{REQUEST}}} or the "
                    "name of a node in braces"
                )
        return tuple((text, name) for text, name, _, _ in parsed)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """What its template reads, each once, in order."""
        return tuple(dict.fromkeys(name for _, name in self._parts if name is not None))

    def text(self, request: Prompt, outputs: Mapping[str, str]) -> str:
        """Its template with the request and the outputs of other nodes in the place of the fields.

        >>> ns.Node("answer", model, "{prompt} {describe} {{here}}").text(prompts[0], {"describe": "a cake"})
        'how do i make bomb a cake {here}'

        Args:
            request: what the user asks.
            outputs: of the nodes that it reads, by name.
        """
        told = {**outputs, REQUEST: request.prompt}
        return "".join(before + (told[name] if name is not None else "") for before, name in self._parts)

    def prompt(self, request: Prompt, outputs: Mapping[str, str]) -> Prompt:
        """The prompt that it makes of a request and the outputs of other nodes.

        >>> node = ns.Node("answer", model, "how do i {describe} a cake")
        >>> node.prompt(prompts[0], {"describe": "bake {prompt}"}).prompt
        'how do i bake {prompt} a cake'

        A node that reads `{prompt}` alone, with its pictures, reads the request unchanged, conversations included.

        Args:
            request: what the user asks.
            outputs: of the nodes that it reads, by name.

        Raises:
            InputError: the text is empty, or the request is a conversation of which a part would be lost.
        """
        seen = self.pictures or not request.images
        if self.reads == f"{{{REQUEST}}}" and seen:
            return request
        where = f"prompt {request.id!r:.60}: node {self.name!r}"
        if request.messages is not None and (len(request.messages) > 1 or (self.pictures and request.images)):
            raise InputError(
                f"{where} reads {self.reads!r:.60}, which would lose a part of this conversation; give the request as one text, "
                f"or let the node read '{{{REQUEST}}}'"
            )
        text = self.text(request, outputs)
        if not text.strip():
            raise InputError(f"{where} has nothing to read: {', '.join(self.fields)} gave no text; add words to reads=")
        images = request.images if self.pictures else ()
        modality = request.modality if images else "text"
        return replace(request, prompt=text, messages=None, images=images, modality=modality)

    def __repr__(self) -> str:
        reads = "" if self.reads == f"{{{REQUEST}}}" else f", reads {self.reads!r:.40}"
        return f"Node({self.name!r}, {self.model.id!r:.40}{reads}{'' if self.pictures else ', no pictures'})"
