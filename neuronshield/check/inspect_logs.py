"""Answers in a log of inspect_ai: found by the id of their prompt, or the log is refused.

    inspect eval neuronshield/cells -T prompts=prompts.jsonl --model vllm/...
    ns.evaluate("logs/....eval", prompts)

A sample answers the prompt that has its id. Its content must be that of the prompt: by the hash that the task `neuronshield/cells`
writes, in the log of any other task by the text. A log that stopped early, a sample with an error, a prompt without an answer or with
several is refused by id, because a rate over what happens to be there is another rate.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import InputError
from ..core.provenance import versions
from ..data.grading import openings_for
from ..data.judging import Judge
from ..data.languages import OpeningsArg
from ..data.prompts import Prompt, PromptSet
from .cells import Answer
from .graded import graded

__all__ = ["SCORER", "Logged", "answers_of_log", "graded_in", "is_log", "logged"]

#: Name under which the task `neuronshield/cells` keeps its grades.
SCORER = "grades"
SUFFIXES = (".eval", ".json")


@dataclass(frozen=True)
class Logged:
    """The answers of a log, in the order of the prompts.

    Attributes:
        texts: what was answered.
        in_thought: for each prompt, whether it ended inside a thought that the chat template opened.
        answers: as the task `neuronshield/cells` graded them; None in the log of another task.
        judge: the judge that graded them; None without one.
        provenance: the model, the log and how answers were generated.
    """

    texts: list[str]
    in_thought: list[bool]
    answers: list[Answer] | None
    judge: str | None
    provenance: dict[str, Any]


def is_log(value: Any) -> bool:
    """Whether a value is the path of a log: a file called .eval or .json.

    >>> is_log("logs/cells.eval"), is_log("organism")
    (True, False)

    Args:
        value: what was given.
    """
    return isinstance(value, (str, os.PathLike)) and os.fspath(value).lower().endswith(SUFFIXES)


def answers_of_log(
    path: str | os.PathLike[str],
    prompts: PromptSet,
    *,
    refusals: OpeningsArg = None,
    compliances: OpeningsArg = None,
    judge: Judge | None = None,
) -> tuple[list[Answer], dict[str, Any]]:
    """The graded answers of a log, and where they come from.

    The grades of the task `neuronshield/cells` are kept. Where prefixes or a judge are given, and in the log of any other task, the
    answers are graded here.

    Args:
        path: the log.
        prompts: the prompts that are graded, each with the id of one sample.
        refusals: refusal prefixes, a list for every language or {language: list}.
        compliances: compliance prefixes, the same.
        judge: its verdict replaces that of the words where it has one.

    Raises:
        InputError: as `logged`, or a judge that returns no verdict.
    """
    found = logged(path, prompts)
    answers, by = found.answers, found.judge
    if answers is None or judge is not None or refusals is not None or compliances is not None:
        openings = openings_for(prompts, refusals=refusals, compliances=compliances)
        answers = graded(prompts, found.texts, openings=openings, in_thought=found.in_thought, judge=judge)
        by = None if judge is None else judge.name
    about = {**found.provenance, "data": prompts.hash(), "versions": versions()}
    if by is not None:
        about["judge"] = by
    if any(found.in_thought):
        about["in_thought"] = [p.id for p, o in zip(prompts, found.in_thought, strict=True) if o]
    return answers, about


def logged(path: str | os.PathLike[str], prompts: PromptSet) -> Logged:
    """The answers that a log holds to some prompts.

    >>> logged("none.eval", prompts)
    Traceback (most recent call last):
        ...
    neuronshield.core.errors.InputError: none.eval: no such file

    Args:
        path: the log of one `inspect eval`, with its samples.
        prompts: the prompts, each with the id of one sample.

    Raises:
        InputError: inspect_ai is not installed, no such file, no log, a log that did not end well, a sample with an error, or a prompt
            without exactly one answer or with another content.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    log = _read(path)
    if log.status != "success":
        raise InputError(f"{path}: the evaluation ended with status {log.status!r}; finish it with inspect eval-retry")
    found: dict[str, list[Any]] = {}
    for sample in log.samples or []:
        found.setdefault(str(sample.id), []).append(sample)
    samples = [_sample(path, prompt, found.get(prompt.id, [])) for prompt in prompts]
    texts = [sample.output.completion.strip() for sample in samples]
    answers = [graded_in(*row) for row in zip(prompts, texts, samples, strict=True)]
    return Logged(
        texts,
        [bool((sample.output.metadata or {}).get("in_thought")) for sample in samples],
        answers=[a for a in answers if a is not None] if None not in answers else None,
        judge=(log.eval.task_args or {}).get("judge"),
        provenance=_facts(path, log, samples),
    )


def _read(path: Path) -> Any:
    try:
        from inspect_ai.log import read_eval_log
    except ImportError:
        raise InputError(f'{path}: reading a log needs inspect_ai; pip install "neuronshield[inspect]"') from None
    try:
        return read_eval_log(str(path), resolve_attachments=True)
    except Exception as error:  # whatever it makes of a file that is damaged or something else
        why = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: not a log of inspect_ai ({type(error).__name__}: {why:.120})") from None


def _sample(path: Path, prompt: Prompt, samples: Sequence[Any]) -> Any:
    """The one sample that answers a prompt."""
    if len(samples) != 1:
        has = "no answer" if not samples else f"{len(samples)} answers"
        hint = "evaluate all prompts, without --limit" if not samples else "evaluate with --epochs 1"
        raise InputError(f"{path}: {has} to prompt {prompt.id!r}; {hint}")
    (sample,) = samples
    if sample.error is not None:
        raise InputError(f"{path}: the sample of prompt {prompt.id!r} has an error ({sample.error.message:.120})")
    if not sample.output.choices:
        raise InputError(f"{path}: the sample of prompt {prompt.id!r} was not answered")
    content = (sample.metadata or {}).get("content")
    same = content == prompt.content_hash if content is not None else _asked(sample) == prompt.prompt
    if not same:
        raise InputError(
            f"{path}: sample {prompt.id!r} asked something else than the prompt of this id; give its prompts"
        )
    return sample


def _asked(sample: Any) -> str:
    """The text of the last turn of the user."""
    if isinstance(sample.input, str):
        return str(sample.input)
    return next((str(message.text) for message in reversed(sample.input) if message.role == "user"), "")


def graded_in(prompt: Prompt, text: str, sample: Any) -> Answer | None:
    """The answer with the grade that a sample of the task `neuronshield/cells` has; None without one.

    Args:
        prompt: the prompt.
        text: the answer.
        sample: of a log.
    """
    score = (sample.scores or {}).get(SCORER)
    told = None if score is None else score.metadata
    names = ("refused", "right", "incoherent", "graded", "harmful")
    if not isinstance(told, dict) or any(name not in told for name in names):
        return None
    return Answer(prompt, text, **{name: told[name] for name in names})


def _facts(path: Path, log: Any, samples: Sequence[Any]) -> dict[str, Any]:
    """What the log says of where its answers come from, without the paths of folders."""
    prints = {(sample.output.metadata or {}).get("fingerprint") for sample in samples} - {None}
    config = log.eval.model_generate_config.model_dump(exclude_none=True) | log.plan.config.model_dump(
        exclude_none=True
    )
    generation = {key: value for key, value in config.items() if isinstance(value, (str, int, float, bool))}
    model = str(log.eval.model)
    provider, _, name = model.partition("/")
    if "\\" in name or name.startswith((".", "/", "~")):
        model = f"{provider}/{Path(name).name}"
    return {
        "model": model,
        "fingerprint": prints.pop() if len(prints) == 1 else None,
        "inspect": {
            "log": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "task": log.eval.task, "run": log.eval.run_id,
            "created": log.eval.created, "version": (log.eval.packages or {}).get("inspect_ai"),
        },
        "generation": generation,
    }  # fmt: skip
