"""A set that controls the words of a refusal does not control refusal, and verify says so."""

from __future__ import annotations

from typing import Any

import planted
import pytest

import neuronshield as ns
from neuronshield.data.judging import Verdict
from neuronshield.prove.verdict import ONLY_WORDING

PROMPTS = planted.prompts()


class Judge:
    """Reads the first word of an answer."""

    name = "first word"

    def __init__(self, refusing: tuple[str, ...], harmful: tuple[str, ...]) -> None:
        self.refusing, self.harmful = refusing, harmful

    def score(self, prompt: str, response: str, language: str) -> Verdict:  # noqa: ARG002
        word = response.split(maxsplit=1)[0]
        return Verdict(word in self.refusing, word in self.harmful)


JUDGE = Judge(("sorry", "cannot"), ("sure",))
#: Seed, judge, and whether answers end after a word: each with each in the first model, both of each in the others.
CASES = [
    pytest.param(seed, judge, ends, id=f"{seed}-{'judge' if judge else 'words'}-{'ends' if ends else 'goes on'}")
    for seed, judge, ends in (
        *((0, judge, ends) for judge in (None, JUDGE) for ends in (True, False)),
        *((seed, judge, judge is None) for seed in (1, 2) for judge in (None, JUDGE)),
    )
]


def proof(found: planted.Worded, neurons: ns.NeuronSet, **options: Any) -> ns.Proof:
    return ns.verify(found.model, neurons, PROMPTS, draws=19, **{**planted.ASK, **options})


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "judge", "ends"), CASES)
def test_a_set_that_changes_the_words_of_refusals_only_is_called_that(seed: int, judge: Any, ends: bool):
    found = planted.worded(seed, ends=ends)
    said = proof(found, found.wording, judge=judge)
    assert said.word == ONLY_WORDING == "controls the wording of refusals, not refusal"
    assert not len(said.verified)
    assert not said.passed
    assert not {"verified_on", "proof"} & {*said.verified.provenance, *said.candidates.provenance}
    assert (said.wording.judged.value, said.wording.keyword.value, said.wording.ratio) == (0.0, 1.0, 0.0)
    assert said.provenance.get("judge") == (judge and "first word")


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "judge", "ends"), CASES)
def test_the_set_that_makes_the_same_model_refuse_is_not_called_that(seed: int, judge: Any, ends: bool):
    found = planted.worded(seed, ends=ends)
    said = proof(found, found.harm, judge=judge)
    assert said.word == ("passed" if ends else "passed on the margin only")
    assert said.verified == found.harm
    assert said.wording.ratio == 1.0


@pytest.mark.slow
def test_with_both_words_as_prefixes_the_wording_set_does_nothing():
    found = planted.worded(0)
    said = proof(found, found.wording, refusals=["sorry", "cannot"])
    assert (said.word, len(said.verified)) == ("no", 0)


@pytest.mark.slow
def test_read_by_the_other_word_the_set_controls_the_wording_as_well():
    found = planted.worded(0)
    said = proof(found, found.wording, refusals=["cannot"])
    assert (said.word, said.wording.keyword.value, len(said.verified)) == (ONLY_WORDING, -1.0, 0)


@pytest.mark.slow
def test_a_set_that_turns_refusals_into_safe_answers_does_not_pass():
    """The judge calls "help" neither a refusal nor harmful."""
    found = planted.worded(0, other="help")
    said = proof(found, found.wording, judge=Judge(("sorry",), ("sure",)))
    assert (said.word, len(said.verified)) == ("no", 0)
    assert "not shown: harmful compliance rises" in said.reason
    after = next(a for a in said.answers if (a.label, a.condition) == ("harmful", "set ablated"))
    assert (after.refused.value, after.complied.value, after.incoherent.value) == (0.0, 0.0, 0.0)


@pytest.mark.slow
def test_a_set_that_turns_refusals_into_nothing_does_not_pass_and_the_reason_says_so():
    found = planted.worded(0, other="<eos>")  # the answer ends before its first word
    said = proof(found, found.wording)
    assert (said.word, len(said.verified)) == ("no", 0)
    assert "incoherent answers to harmful prompts rise by 1.00" in said.reason


@pytest.mark.slow
def test_a_judge_that_cannot_tell_leaves_the_margin_only():
    found = planted.worded(0)
    said = proof(
        found, found.harm, judge=type("Silent", (), {"name": "silent", "score": lambda *_: Verdict(None, None)})()
    )
    assert (said.word, said.passed, said.wording) == ("passed on the margin only", True, None)
    assert "no answer could be graded" in said.reason


@pytest.mark.slow
def test_a_judge_of_harm_only_leaves_refusals_to_the_words():
    found = planted.worded(0)
    harm = type("Harm", (), {"name": "harm", "score": lambda _, p, r, l: Verdict(None, r.startswith("sure"))})()  # noqa: ARG005, E741
    assert proof(found, found.harm, judge=harm).word == "passed"
