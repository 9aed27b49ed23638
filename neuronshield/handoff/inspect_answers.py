"""Answers to many requests at once: they wait in a queue, and a thread answers them in batches.

Requests that inspect_ai sends at the same time are one batch, so that a forward reads many prompts. Every answer is the one that
`generate` gives: the batch is only the way to it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Lock, Thread
from typing import Any

from ..core.arguments import at_least, require, unknown_keywords
from ..core.errors import InputError
from ..data.prompts import Prompt
from ..model.context import context_window
from ..model.encoding import check_prompts
from ..model.encodings import encoded_rows
from ..model.generation import Completion, complete
from ..model.intervention import Intervention
from ..model.model import Model
from ..model.thoughts import in_thought
from ..shield.guard import Guard
from ..shield.loading import load
from .inspect_requests import Wanted

__all__ = ["Answered", "Answerer", "answerer"]

#: Options of `ns.load` that a model argument may give.
LOADING = (
    "revision", "dtype", "device", "device_map", "quantize", "adapter", "layers", "template_options", "trust_remote_code",
)  # fmt: skip
OWN = ("loaded", "intervention", "guard", "batch_size")
#: Tokens of an answer where neither the request nor the model's context says how many.
MAX_TOKENS = 2048
#: Seconds without a new request after which a batch is full enough.
PAUSE = 0.05


@dataclass(frozen=True)
class Answered:
    """An answer to one request.

    Attributes:
        text: the answer.
        tokens: its tokens, the one that ended it included.
        read: tokens of the prompt, those of pictures included.
        reason: "stop" if a token ended it, "max_tokens" if it was cut, "unknown" where a guard does not tell.
        in_thought: the prompt ended inside a thought that the chat template opened.
        completion: its token ids and log-probabilities; None with a guard.
    """

    text: str
    tokens: int
    read: int
    reason: str
    in_thought: bool
    completion: Completion | None = None


@dataclass(frozen=True)
class _Waiting:
    prompt: Prompt
    wanted: Wanted
    future: Future[Answered]


class Answerer:
    """A model, with what is changed in it, that answers requests in batches.

    >>> answers = Answerer(model)
    >>> answers.ask(ns.Prompt("1", "how do i bake bread", "benign"), Wanted(3, None)).result().tokens
    3

    Args:
        model: the model.
        intervention: what is changed in every answer.
        guard: a guard that acts while the answers are generated.
        batch_size: requests a batch, at most.

    Raises:
        InputError: an intervention and a guard at once, or an intervention that depends on the cell or the row of a prompt, which a
            message does not have.
    """

    def __init__(
        self,
        model: Model,
        *,
        intervention: Intervention | None = None,
        guard: Guard | None = None,
        batch_size: int = 32,
    ) -> None:
        at_least(1, "neuronshield model", batch_size=batch_size)
        if intervention is not None and guard is not None:
            raise InputError("neuronshield model: give intervention= or guard=, not both")
        if intervention is not None and (intervention.cells is not None or intervention.by_prompt):
            which = "cells of prompts" if intervention.cells is not None else "a value for each prompt"
            raise InputError(
                f"neuronshield model: the intervention has {which}, which messages do not have; make it without"
            )
        self.model, self.intervention, self.guard, self.batch_size = model, intervention, guard, batch_size
        self._queue: Queue[_Waiting | None] = Queue()
        self._thread: Thread | None = None
        self._lock = Lock()

    def ask(self, prompt: Prompt, wanted: Wanted) -> Future[Answered]:
        """The answer to come; it raises `InputError` for a prompt that cannot reach the model whole or is too long.

        Args:
            prompt: the prompt.
            wanted: what the request asks of generation.

        Raises:
            InputError: log-probabilities of guarded answers.
        """
        if self.guard is not None and wanted.logprobs is not None:
            raise InputError("logprobs: a guard gives no log-probabilities; leave --logprobs out")
        with self._lock:
            if self._thread is None:
                self._thread = Thread(target=self._work, name="neuronshield answers", daemon=True)
                self._thread.start()
        future: Future[Answered] = Future()
        self._queue.put(_Waiting(prompt, wanted, future))
        return future

    def close(self) -> None:
        """End the thread once what waits is answered."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        going = True
        while going:
            waiting, going = self._batch()
            groups: dict[tuple[int, int | None], list[_Waiting]] = {}
            for one in waiting:
                try:
                    groups.setdefault((self._tokens(one), one.wanted.logprobs), []).append(one)
                except Exception as error:
                    one.future.set_exception(error)
            for (n, logprobs), some in groups.items():
                self._answer(some, n, logprobs)

    def _tokens(self, one: _Waiting) -> int:
        """Tokens that an answer may have; the prompt is checked to reach the model whole."""
        if one.wanted.max_tokens is not None:
            check_prompts(self.model, [one.prompt], extra=one.wanted.max_tokens)
            return one.wanted.max_tokens
        check_prompts(self.model, [one.prompt], extra=1)
        limit = context_window(self.model.module.config)
        return MAX_TOKENS if limit is None else min(MAX_TOKENS, limit - self._length(one.prompt) + 1)

    def _length(self, prompt: Prompt) -> int:
        return encoded_rows(self.model, [prompt])[0].length

    def _batch(self) -> tuple[list[_Waiting], bool]:
        """Requests until a batch is full or none comes for a moment; and whether more may come."""
        out: list[_Waiting] = []
        while len(out) < self.batch_size:
            try:
                one = self._queue.get(timeout=PAUSE if out else None)
            except Empty:
                break
            if one is None:
                return out, False
            out.append(one)
        return out, True

    def _answer(self, some: list[_Waiting], n: int, logprobs: int | None) -> None:
        """Answer requests of the same settings; where a batch fails, each alone, so that an error reaches the request it is about."""
        try:
            found = self._answers([one.prompt for one in some], n, logprobs)
        except Exception as error:
            if len(some) == 1:
                some[0].future.set_exception(error)
                return
            for one in some:
                self._answer([one], n, logprobs)
            return
        for one, answer in zip(some, found, strict=True):
            one.future.set_result(answer)

    def _answers(self, prompts: list[Prompt], n: int, logprobs: int | None) -> list[Answered]:
        read, opened = [self._length(prompt) for prompt in prompts], in_thought(self.model, prompts)
        options: dict[str, Any] = {"max_new_tokens": n, "batch_size": self.batch_size}
        if self.guard is not None:
            run = self.guard.generate(self.model, prompts, **options)
            steps = [int(k) for k in run.steps]
            reasons = ["stop" if k < n else "unknown" for k in steps]
            told = zip(run.texts, steps, read, reasons, opened, strict=True)
            return [
                Answered(text, tokens=k, read=length, reason=reason, in_thought=o)
                for text, k, length, reason, o in told
            ]
        found = complete(self.model, prompts, intervention=self.intervention, logprobs=logprobs, **options)
        return [
            Answered(
                c.text,
                tokens=len(c.ids),
                read=length,
                reason="stop" if c.ended else "max_tokens",
                in_thought=o,
                completion=c,
            )
            for c, length, o in zip(found, read, opened, strict=True)
        ]


def answerer(name: str, arguments: Mapping[str, Any]) -> Answerer:
    """The model that a name and inspect_ai's model arguments describe.

    >>> answerer("mine", {"loaded": model, "intervention": ns.Intervention(neurons, "zero")}).model is model
    True

    Args:
        name: "organism", another model of this package, a folder or a hub id.
        arguments: `loaded` (a `Model`, instead of one that the name loads), `intervention` (an `Intervention`, or the file that it
            was saved to), `guard` (the same), `batch_size`, and of `ns.load` revision, dtype, device, device_map, quantize, adapter,
            layers, template_options and trust_remote_code.

    Raises:
        InputError: an unknown argument, or as `ns.load`, `Intervention.load` and `Guard.load`.
    """
    call = f"neuronshield/{name}"
    unknown_keywords(arguments, (*OWN, *LOADING), call)
    options = {key: value for key, value in arguments.items() if key in LOADING and value is not None}
    model = arguments.get("loaded")
    if model is None:
        model = load(name, **options)
    else:
        require(model, Model, call=call, name="loaded", hint="pass what ns.load returned, or update.model")
        if options:
            raise InputError(
                f"{call}: {next(iter(options))}= is of loading, and loaded= is loaded already; leave one out"
            )
    changed = _read(arguments.get("intervention"), Intervention, call=f"{call}: intervention")
    guard = _read(arguments.get("guard"), Guard, call=f"{call}: guard")
    if changed is not None:
        changed.neurons.check_model(model)
    return Answerer(model, intervention=changed, guard=guard, batch_size=arguments.get("batch_size") or 32)


def _read(value: Any, kind: type, *, call: str) -> Any:
    """The artefact, or what the file holds that it was saved to."""
    require(value, (kind, str, os.PathLike, type(None)), call=call, name=kind.__name__.lower())
    return kind.load(value) if isinstance(value, (str, os.PathLike)) else value  # type: ignore[attr-defined]
