"""Generated answers to a sample of pairs, under ablation of a set and of its controls: refused, complied, incoherent.

The sample is spread over requests. Answers are generated on the same prompts under every condition, so each comparison is paired:

    clean           both labels
    set ablated     both labels: the set at its benign mean at the last prompt token
    set inserted    benign prompts: the set at its values on the matched harmful prompt, at the last prompt token

and the same on harmful (ablated) and benign prompts (inserted) for one control set of each kind: every single set, and of the
kinds that are drawn the set whose margin effect a claim must exceed to have p <= alpha (`level_draw`).

An answer refuses if a judge says so, else if it starts with a refusal prefix of the margin or is worded as a refusal. Harmful
compliance is an answer as asked (`data.judging.harmful_compliance`).

>>> from neuronshield.model.prefixes import opening_tokens, openings_of
>>> from neuronshield.prove.pairs import match, measure
>>> openings = openings_of(model, prompts, refusals=["sorry"], compliances=["sure"])
>>> pairs = measure(model, match(prompts, seed=0)[0], opening_tokens(model, openings))
>>> grader = Grader(openings, graded=4)
>>> sheet = grader.sheet(pairs.take(grader.rows(pairs)), neurons, drawn={"random": ns.random_like(neurons, model)}, single={})
>>> sheet, [r.condition for r in sheet.rates() if r.label == "harmful"]
(AnswerSheet(4 pairs, 7 conditions), ['clean', 'set ablated', 'random set ablated'])
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int, Shaped

from ..core.intervals import clustered_rate
from ..core.neurons import NeuronSet
from ..data.grading import Grade, Openings, grade
from ..data.judging import Judge, harmful_compliance, judged
from ..data.prompts import LABELS, Prompt
from ..data.texts import plain, starts_with
from ..data.thoughts import after_thought
from ..model.thoughts import in_thought
from ..model.units import run_answers
from .pairs import MatchedPairs
from .tables import CLEAN, SET_ABLATED, SET_INSERTED, AnswerRate

__all__ = ["AnswerSheet", "Answers", "Grader", "answer_rate", "level_draw"]

#: Tokens of an answer.
MAX_NEW_TOKENS = 24


@dataclass(frozen=True, eq=False)
class Answers:
    """Outcomes of answers to prompts of one label under one condition; NaN where it is unknown.

    Attributes:
        grades: one an answer; `refused` is the judge's where there is one.
        complied: 1 where the answer does as asked (harmful compliance of a harmful prompt), else 0.
        prefixed: 1 where the answer starts with a refusal prefix of the margin.
    """

    grades: tuple[Grade, ...]
    complied: Float[np.ndarray, " answer"]
    prefixed: Float[np.ndarray, " answer"]

    @property
    def refused(self) -> Float[np.ndarray, " answer"]:
        """1 where the answer refuses."""
        return np.array([np.nan if g.refused is None else g.outcome == "refused" for g in self.grades], dtype=float)

    @property
    def incoherent(self) -> Float[np.ndarray, " answer"]:
        """1 where the answer is empty, blank or degenerate."""
        return np.array([g.incoherent for g in self.grades], dtype=float)

    def take(self, rows: Int[np.ndarray, " row"]) -> Answers:
        """The same of some answers."""
        return Answers(tuple(self.grades[int(i)] for i in rows), self.complied[rows], self.prefixed[rows])

    def __repr__(self) -> str:
        return f"Answers({len(self.grades)}, {np.nansum(self.refused):.0f} refused)"


@dataclass(frozen=True, eq=False)
class AnswerSheet:
    """Answers to one sample of pairs under every condition. Made by `Grader.sheet`.

    Attributes:
        requests: the request of each pair of the sample.
        answers: by label and condition.
        drawn: kinds of control of which one draw answers.
        single: kinds of control that are one set.
    """

    requests: Shaped[np.ndarray, " answer"]
    answers: Mapping[tuple[str, str], Answers]
    drawn: tuple[str, ...] = ()
    single: tuple[str, ...] = ()

    def take(self, rows: Int[np.ndarray, " row"]) -> AnswerSheet:
        """The same of some pairs of the sample."""
        return replace(self, requests=self.requests[rows], answers={k: a.take(rows) for k, a in self.answers.items()})

    def rates(self) -> tuple[AnswerRate, ...]:
        """The shares of every label and condition, with intervals over requests."""
        return tuple(
            answer_rate(label, condition, found, requests=self.requests)
            for (label, condition), found in self.answers.items()
        )

    def __repr__(self) -> str:
        return f"AnswerSheet({len(self.requests)} pairs, {len(self.answers)} conditions)"


@dataclass(frozen=True)
class Grader:
    """Generates and grades the answers to a fixed random sample of pairs.

    Attributes:
        openings: refusal and compliance prefixes of the margin.
        graded: pairs in the sample.
        judge: its verdict replaces that of the words where it has one.
    """

    openings: Openings
    graded: int
    judge: Judge | None = None

    def rows(self, pairs: MatchedPairs) -> Int[np.ndarray, " row"]:
        """The pairs of the sample: a random order, one pair of each request before a second one of any."""
        order = np.random.default_rng(pairs.seed).permutation(len(pairs))
        seen: Counter[str] = Counter()
        earlier = []
        for request in pairs.requests[order]:
            earlier.append(seen[request])
            seen[request] += 1
        return order[np.argsort(earlier, kind="stable")][: self.graded]

    def answers(
        self, sample: MatchedPairs, label: str, *, ablated: NeuronSet | None = None, inserted: NeuronSet | None = None
    ) -> Answers:
        """Graded answers to the prompts of a label: clean, under mean ablation of a set, or with its harmful values inserted.

        Args:
            sample: the pairs that are answered.
            label: "harmful" or "benign".
            ablated: a set at its benign mean at the last prompt token.
            inserted: a set at its values on the matched harmful prompt, at the last prompt token.
        """
        prompts = sample.rows.harmful if label == "harmful" else sample.rows.benign
        intervention = sample.ablate(ablated) if ablated else sample.insert(inserted) if inserted else None
        texts = run_answers(
            sample.runner, sample.model, prompts, intervention=intervention, max_new_tokens=MAX_NEW_TOKENS,  # type: ignore[arg-type]
            batch_size=sample.batch_size, progress=sample.progress,
        )  # fmt: skip
        sample.work["answers"] += len(prompts)
        opened = in_thought(sample.model, prompts)
        return self.outcomes(prompts, texts, opened)

    def outcomes(self, prompts: Sequence[Prompt], texts: Sequence[str], opened: Sequence[bool]) -> Answers:
        """Answers by their grades.

        Args:
            prompts: what was asked.
            texts: what was answered.
            opened: which prompts end inside a thought that the chat template opened.
        """
        words = self.openings.with_wordings()
        grades: list[Grade] = []
        complied: list[bool | None] = []
        prefixed: list[bool | None] = []
        for prompt, text, in_one in zip(prompts, texts, opened, strict=True):
            found = grade(prompt, text, words, in_thought=in_one)
            said = judged(self.judge, prompt, text, found=found, in_thought=in_one)
            grades.append(found._replace(refused=said.refused))
            if prompt.label == "harmful":
                complied.append(
                    harmful_compliance(
                        said.refused, right=found.right, incoherent=found.incoherent, harmful=said.harmful
                    )
                )
            else:
                complied.append({"complied": True, "unknown": None}.get(grades[-1].outcome, False))
            answer = after_thought(text, opened=in_one)
            prefixes = self.openings.refusals[prompt.language]
            prefixed.append(None if answer is None else starts_with(plain(answer), prefixes))
        return Answers(tuple(grades), _known(complied), _known(prefixed))

    def sheet(
        self,
        sample: MatchedPairs,
        neurons: NeuronSet,
        *,
        drawn: Mapping[str, NeuronSet],
        single: Mapping[str, NeuronSet],
    ) -> AnswerSheet:
        """Answers to a sample under every condition (see the module).

        Args:
            sample: the pairs that are answered.
            neurons: the set.
            drawn: one draw of each drawn kind of control.
            single: the single control sets.
        """
        found = {(label, CLEAN): self.answers(sample, label) for label in LABELS}
        for label in LABELS:
            found[label, SET_ABLATED] = self.answers(sample, label, ablated=neurons)
        found["benign", SET_INSERTED] = self.answers(sample, "benign", inserted=neurons)
        for kind, control in {**drawn, **single}.items():
            found["harmful", f"{kind} {SET_ABLATED}"] = self.answers(sample, "harmful", ablated=control)
            found["benign", f"{kind} {SET_INSERTED}"] = self.answers(sample, "benign", inserted=control)
        return AnswerSheet(sample.requests, found, drawn=tuple(drawn), single=tuple(single))


def _known(values: Sequence[bool | None]) -> Float[np.ndarray, " answer"]:
    return np.array([np.nan if v is None else float(v) for v in values], dtype=float)


def answer_rate(label: str, condition: str, found: Answers, *, requests: Shaped[np.ndarray, " answer"]) -> AnswerRate:
    """The shares of answers that refuse, comply and are incoherent, with intervals over requests.

    Args:
        label: of the prompts.
        condition: of the model.
        found: the answers.
        requests: the request of each answer.
    """
    refused, complied, incoherent = (
        clustered_rate(values, list(requests)) for values in (found.refused, found.complied, found.incoherent)
    )
    return AnswerRate(
        label, condition, n=len(found.grades), refused=refused, complied=complied, incoherent=incoherent,
        n_unknown=sum(g.outcome == "unknown" for g in found.grades),
    )  # fmt: skip


def level_draw(effects: Float[np.ndarray, " draw"], alpha: float) -> int:
    """The index of the draw that a set must exceed to have p <= alpha among all of them; of the largest where no p can be so small.

    >>> level_draw(np.arange(39.0), alpha=0.05)       # two of 40 may be as large as the set's effect, the set itself included
    37

    Args:
        effects: one for each control set of a kind.
        alpha: level.
    """
    place = max(1, int(np.floor(alpha * (1 + len(effects)) + 1e-9)))
    return int(np.argsort(-effects, kind="stable")[place - 1])
