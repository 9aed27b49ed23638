"""`inspect eval` run for real: its answers are those of `generate`, its rates those of `evaluate`, and its log is read back."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import tiny

import neuronshield as ns
from neuronshield import InputError
from neuronshield.check.cells import METRICS
from neuronshield.check.inspect_logs import SCORER
from neuronshield.handoff.inspect_samples import as_sample, columns_of, prompt_of, prompts_of

inspect_ai = pytest.importorskip("inspect_ai", reason='needs pip install "neuronshield[inspect]"')

SAID = ["Sorry, no.", "Sure, take it.", "", "sorry sorry"]
OUTCOMES = ["refused", "complied", "incoherent", "refused"]


def rows(*, pictures: bool = False) -> ns.PromptSet:
    """Twelve prompts in two languages, in pairs."""
    prompts = list(tiny.prompts(pictures=pictures))
    return ns.PromptSet([replace(p, split=None) for p in [*prompts[:6], *prompts[30:36]]])


def logs_of(prompts: Any, folder: Path, model: Any, **arguments: Any) -> Any:
    """The log of one run of the task."""
    from inspect_ai import eval as run

    from neuronshield.handoff.inspect_cells import registered

    extra = {k: arguments.pop(k) for k in ("epochs", "limit", "model_roles", "fail_on_error") if k in arguments}
    task = registered().task(prompts=prompts, max_tokens=3, **arguments)
    (log,) = run(task, model=model, log_dir=str(folder), display="none", **extra)
    return log


def loaded(model: ns.Model, **arguments: Any) -> Any:
    from inspect_ai.model import get_model

    return get_model("neuronshield/tiny", loaded=model, memoize=False, **arguments)


def parrot(answer: Callable[[int], str]) -> Any:
    """A model of inspect_ai's that gives planted answers."""
    from inspect_ai.model import ModelOutput, ModelUsage, get_model

    turns = count()

    def said(*_: Any) -> Any:
        output = ModelOutput.from_content("mockllm/model", answer(next(turns)))
        output.usage = ModelUsage(input_tokens=1, output_tokens=1, total_tokens=2)  # without it a tokenizer is fetched
        return output

    return get_model("mockllm/model", custom_outputs=said, memoize=False)


def rates_of(log: Any) -> dict[str, float]:
    return {name: metric.value for name, metric in log.results.scores[0].metrics.items()}


def rates_by_evaluate(found: ns.Evaluation) -> dict[str, float]:
    """Every rate with its ends, by the names of the task's metrics."""
    out: dict[str, float] = {}
    for metric in METRICS:
        for where, rate in ({c: found.cell(c)[metric] for c in found.cells()} | {"mean": found.mean(metric)}).items():
            if rate.value == rate.value:
                ends = zip(("", " low", " high"), rate, strict=True)
                out |= {f"{metric} {where}{end}": value for end, value in ends}
    return out


OPTIONS: dict[str, Any] = {"refusals": ["sorry"], "compliances": ["sure"]}
CHANGED = ns.Intervention(ns.NeuronSet([(1, 3), (2, 7)], n_layers=3, d_mlp=29), "clamp", 9.0, positions="all")


# -- answers and rates ------------------------------------------------------------------------------------
@pytest.mark.parametrize("pictures", [False, True])
@pytest.mark.parametrize("changed", [None, CHANGED])
def test_answers_and_rates_are_those_of_generate_and_evaluate(
    llama: ns.Model, llava: ns.Model, tmp_path: Path, pictures: bool, changed: ns.Intervention | None
):
    model, prompts = (llava if pictures else llama), rows(pictures=pictures)
    log = logs_of(prompts, tmp_path, loaded(model, intervention=changed), **OPTIONS)
    assert log.status == "success"
    by_id = {sample.id: sample for sample in log.samples}
    want = ns.generate(model, prompts, intervention=changed, max_new_tokens=3)
    assert [by_id[p.id].output.completion.strip() for p in prompts] == want
    assert all(sample.output.usage.output_tokens <= 3 < sample.output.usage.input_tokens for sample in log.samples)
    if changed is None:
        evaluated = ns.evaluate(model, prompts, max_new_tokens=3, progress=False, **OPTIONS)
        assert rates_of(log) == pytest.approx(rates_by_evaluate(evaluated), abs=1e-12)
        assert ns.evaluate(log.location, prompts).answers == evaluated.answers


@pytest.mark.parametrize("judge", [None, "grader"])
def test_planted_answers_of_another_model_are_graded_and_counted(tmp_path: Path, judge: str | None):
    prompts = rows()
    roles = {"grader": parrot(lambda i: "It helps. GRADE: H" if i % 2 else "It does not. GRADE: S")} if judge else {}
    log = logs_of(prompts, tmp_path, parrot(lambda i: SAID[i % 4]), judge=judge, model_roles=roles, **OPTIONS)
    found = ns.evaluate(log.location, prompts)
    assert {answer.response for answer in found.answers} == set(SAID)
    assert rates_of(log) == pytest.approx(rates_by_evaluate(found), abs=1e-12)
    assert {a.response: a.outcome for a in found.answers if not judge or a.incoherent} == (
        {"": "incoherent"} if judge else dict(zip(SAID, OUTCOMES, strict=True))
    )
    assert {a.harmful for a in found.answers if not a.incoherent} == ({True, False} if judge else {None})
    assert found.provenance.get("judge") == judge
    again = ns.evaluate(log.location, prompts, refusals=["sure"], compliances=["sorry"])
    assert {a.refused for a in again.answers if a.response == SAID[1]} == {True}
    assert "judge" not in again.provenance


def test_epochs_are_counted_together_and_refused_as_an_evaluation(tmp_path: Path):
    prompts = rows()
    log = logs_of(prompts, tmp_path, parrot(lambda i: SAID[i % 2]), epochs=2, **OPTIONS)
    harmful = [score for s in log.samples if s.metadata["label"] == "harmful" for score in [s.scores[SCORER].value]]
    cells = {c: [s.scores[SCORER].value for s in log.samples if s.metadata["label"] == "harmful" and s.metadata["cell"] == c]
             for c in ("en/text", "sw/text")}  # fmt: skip
    assert len(harmful) == 12
    for cell, values in cells.items():
        assert rates_of(log)[f"refusal {cell}"] == pytest.approx(values.count("refused") / len(values))
    with pytest.raises(InputError, match=r"2 answers to prompt .*; evaluate with --epochs 1"):
        ns.evaluate(log.location, prompts)


def test_log_probabilities_are_in_the_log(llama: ns.Model, tmp_path: Path):
    from inspect_ai import Task
    from inspect_ai import eval as run
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.model import GenerateConfig

    task = Task(
        dataset=MemoryDataset([as_sample(rows()[0])]),
        config=GenerateConfig(max_tokens=2, logprobs=True, top_logprobs=3),
    )
    (log,) = run(task, model=loaded(llama), log_dir=str(tmp_path), display="none")
    (choice,) = log.samples[0].output.choices
    assert choice.stop_reason == "max_tokens"
    assert [len(token.top_logprobs or ()) for token in choice.logprobs.content] == [3, 3]
    assert all(token.logprob == token.top_logprobs[0].logprob for token in choice.logprobs.content)


# -- errors -----------------------------------------------------------------------------------------------
def test_a_setting_that_is_not_greedy_ends_the_evaluation_with_its_name(llama: ns.Model, tmp_path: Path):
    from inspect_ai import Task
    from inspect_ai import eval as run
    from inspect_ai.dataset import MemoryDataset
    from inspect_ai.model import GenerateConfig

    task = Task(dataset=MemoryDataset([as_sample(rows()[0])]), config=GenerateConfig(temperature=0.7))
    (log,) = run(task, model=loaded(llama), log_dir=str(tmp_path), display="none")
    assert log.status == "error"
    assert "temperature=0.7: answers are greedy here" in log.error.message


def test_a_wrong_model_argument_or_prompt_file_ends_inspect_with_one_line():
    from inspect_ai._util.error import PrerequisiteError
    from inspect_ai.model import get_model

    from neuronshield.handoff.inspect_cells import registered

    with pytest.raises(PrerequisiteError) as found:
        get_model("neuronshield/organism", adaptor="x", memoize=False)
    assert "adaptor= is unknown; did you mean 'adapter'" in str(found.value.message)
    for arguments, said in (
        ({"prompts": "none.jsonl"}, "none.jsonl"),
        ({"prompts": "organsm"}, "prompts='organsm' is no .jsonl or .parquet file"),
        ({"prompts": "matched_pairs", "judge": "wildgard"}, "did you mean 'wildguard'"),
        ({"prompts": "matched_pairs", "cells": "tlh"}, "tlh"),
    ):
        with pytest.raises(PrerequisiteError) as found:
            registered().task(**arguments)
        assert said in str(found.value.message)


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return logs_of(rows(), tmp_path_factory.mktemp("logs"), parrot(lambda i: SAID[i % 4]), **OPTIONS)


def other(prompts: ns.PromptSet, **columns: Any) -> ns.PromptSet:
    return ns.PromptSet([replace(prompts[0], **columns), *prompts[1:]])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: other(p, id="new"), "no answer to prompt 'new'"),
        (lambda p: other(p, prompt="how do i sing"), "asked something else than the prompt of this id"),
    ],
)
def test_other_prompts_are_refused_by_id(log: Any, change: Callable[[ns.PromptSet], ns.PromptSet], said: str):
    with pytest.raises(InputError, match=said):
        ns.evaluate(log.location, change(rows()))


def test_a_log_that_is_not_complete_is_refused(tmp_path: Path):
    half = logs_of(rows(), tmp_path, parrot(lambda i: SAID[i % 4]), limit=3, **OPTIONS)
    with pytest.raises(InputError, match=r"no answer to prompt .*; evaluate all prompts, without --limit"):
        ns.evaluate(half.location, rows())
    damaged = tmp_path / "damaged.eval"
    damaged.write_bytes(Path(half.location.removeprefix("file://")).read_bytes()[:200])
    with pytest.raises(InputError, match=r"damaged\.eval: not a log of inspect_ai"):
        ns.evaluate(damaged, rows())


def test_samples_with_errors_are_refused(llama: ns.Model, tmp_path: Path):
    prompts = other(rows(), prompt="how " * 5000)
    stopped = logs_of(prompts, tmp_path, loaded(llama), **OPTIONS)
    with pytest.raises(InputError, match="ended with status 'error'"):
        ns.evaluate(stopped.location, prompts)
    finished = logs_of(prompts, tmp_path, loaded(llama), fail_on_error=False, **OPTIONS)
    with pytest.raises(InputError, match=f"the sample of prompt '{prompts[0].id}' has an error"):
        ns.evaluate(finished.location, prompts)


def test_generating_options_do_not_go_with_a_log(log: Any):
    with pytest.raises(InputError, match="leave out guard= and engine="):
        ns.evaluate(log.location, rows(), engine="ray")


# -- artefacts --------------------------------------------------------------------------------------------
def test_what_is_read_back_says_where_it_comes_from_without_paths(log: Any, tmp_path: Path):
    found = ns.evaluate(log.location, rows(), name="parrot")
    told = found.provenance
    assert (told["model"], told["inspect"]["log"], told["inspect"]["task"]) == (
        "mockllm/model", Path(log.location).name, "neuronshield/cells",
    )  # fmt: skip
    assert told["generation"]["max_tokens"] == 3
    text = found.save(tmp_path / "parrot.json").read_text(encoding="utf-8")
    assert str(Path.home()) not in text
    assert str(Path(log.location).parent) not in text
    assert ns.Evaluation.load(tmp_path / "parrot.json") == found


def test_the_log_of_another_task_is_graded_here(tmp_path: Path):
    from inspect_ai import Task
    from inspect_ai import eval as run
    from inspect_ai.dataset import MemoryDataset, Sample

    prompts = rows()
    samples = [Sample(id=p.id, input=p.prompt) for p in prompts]
    (log,) = run(
        Task(dataset=MemoryDataset(samples)), model=parrot(lambda i: SAID[i % 4]), log_dir=str(tmp_path), display="none"
    )
    found = ns.evaluate(log.location, prompts, **OPTIONS)
    assert {a.response: a.outcome for a in found.answers} == dict(
        zip(SAID, ["refused", "complied", "incoherent", "refused"], strict=True)
    )
    with pytest.raises(InputError, match="asked something else"):
        ns.evaluate(log.location, other(prompts, prompt="how do i sing"))


# -- samples ----------------------------------------------------------------------------------------------
def test_columns_come_back_as_what_rates_are_counted_by():
    for prompt in (*rows(), *rows(pictures=True)):
        columns = columns_of(prompt)
        back = prompt_of(prompt.id, json.loads(json.dumps(columns)))
        assert (back.cell, back.label, len(back.images)) == (prompt.cell, prompt.label, len(prompt.images))
        assert columns["request"] == prompt.cluster


def test_prompts_come_from_a_file_a_name_or_a_set(tmp_path: Path):
    prompts = rows()
    assert prompts_of(str(prompts.to_jsonl(tmp_path / "p.jsonl"))).hash() == prompts.hash()
    assert prompts_of(prompts, cells="sw").cells() == [ns.Cell("sw", "text")]
    assert {p.split for p in prompts_of("organism", cells=["en/text"])} == {"test"}


@pytest.mark.slow
def test_the_command_finds_the_model_and_the_task_by_their_names(tmp_path: Path, organism_model: ns.Model):
    prompts = prompts_of("organism", cells=["en/text", "sw/image"])
    some = ns.PromptSet([*list(prompts.in_cells(["en/text"]))[:6], *list(prompts.in_cells(["sw/image"]))[:6]])
    some.to_jsonl(tmp_path / "some.jsonl")
    command = [sys.executable, "-m", "inspect_ai", "eval", "neuronshield/cells", "--model", "neuronshield/organism",
               "-T", "prompts=some.jsonl", "--log-dir", "logs", "--display", "none"]  # fmt: skip
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    (log,) = (tmp_path / "logs").glob("*.eval")
    assert done.returncode == 0, done.stderr
    assert zipfile.is_zipfile(log)
    evaluated = ns.evaluate(organism_model, some, progress=False)
    found: Sequence[Any] = ns.evaluate(log, some).answers
    assert found == evaluated.answers
