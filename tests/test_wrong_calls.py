"""The natural wrong call gets one line that names the argument and says what to do."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tiny
import torch
from PIL import Image

import neuronshield as ns
from neuronshield import Cell, InputError, NeuronSet, PromptSet
from neuronshield.check.cells import Answer
from neuronshield.find.cells import CellSets
from neuronshield.run.doctor import Checkup
from neuronshield.shield.barrier import Barrier

ROW = {"prompt": "how do i bake a cake", "label": "benign"}


@dataclass(frozen=True)
class Bench:
    """What wrong calls are made of."""

    model: Any
    prompts: Any
    stats: Any
    scores: Any
    sets: Any
    neurons: Any
    folder: Path
    evaluation: ns.Evaluation


@pytest.fixture(scope="module")
def bench(llama: ns.Model, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    prompts = tiny.prompts()
    stats = ns.capture(llama, prompts, progress=False)
    scores = ns.contrast(stats)
    neurons = NeuronSet([(0, 3), (1, 5)], n_layers=3, d_mlp=29)
    answers = [Answer(p, "sorry", refused=p.cell == Cell("en", "text"), right=None) for p in prompts]
    evaluation = ns.Evaluation(answers)
    return Bench(llama, prompts, stats, scores, scores.top(k=4), neurons, tmp_path_factory.mktemp("wrong"), evaluation)


SEEDED: dict[str, Callable[..., Any]] = {
    "capture": lambda b, seed: ns.capture(b.model, b.prompts, seed=seed, progress=False),
    "with_splits": lambda b, seed: b.prompts.with_splits(seed=seed),
    "random_like": lambda b, seed: ns.random_like(b.neurons, b.model, seed=seed),
    "verify": lambda b, seed: ns.verify(
        b.model, NeuronSet([(0, 3)]), b.prompts, seed=seed, refusals=["sorry"], progress=False
    ),
    "evaluate": lambda b, seed: ns.evaluate(b.model, b.prompts, seed=seed, refusals=["sorry"], progress=False),
    "fit_guard": lambda b, seed: ns.guard.fit_guard(
        b.model, b.neurons, b.prompts, seed=seed, refusals=["sorry"], progress=False
    ),
}
CALLS: dict[str, tuple[Callable[[Bench], Any], str]] = {
    # prompts
    "where(lang=)": (lambda b: b.prompts.where(lang="en"), "where: lang= is unknown; did you mean 'language'? use one of"),
    "where(label=harmfull)": (lambda b: b.prompts.where(label="harmfull"), "label='harmfull' is unknown; did you mean 'harmful'?"),
    "where(modality=video)": (lambda b: b.prompts.where(modality="video"), "modality='video' is unknown; use one of text, image"),
    "where(split=dev)": (lambda b: b.prompts.where(split=["test", "dev"]), "split='dev' is unknown; "),
    "where(language=3)": (lambda b: b.prompts.where(language=3), "where: language must be str, got int 3"),
    "where(cell=en)": (lambda b: b.prompts.where(cell="en"), "cell 'en' is not a language and a modality, as in 'en/text'"),
    "prompts[id] of none": (lambda b: b.prompts["en-text-0-0-harmfull"], "did you mean 'en-text-0-0-harmful'?"),
    "head(0)": (lambda b: b.prompts.head(0), "head: n=0: must be a whole number of at least 1"),
    "prompts + list": (lambda b: operator.add(b.prompts, [ROW]), "prompts + other: other must be PromptSet, got list"),
    "PromptSet of dicts": (lambda _: PromptSet([ROW]), "every row must be Prompt, got dict; read rows with PromptSet.from_records"),  # type: ignore[list-item]
    "PromptSet of a path": (lambda _: PromptSet("p.jsonl"), "every row must be Prompt, got str 'p'; read rows"),  # type: ignore[arg-type]
    "from_jsonl(records)": (lambda _: PromptSet.from_jsonl([ROW]), "path must be str or a path, got list; for records in memory use from_records"),  # type: ignore[arg-type]
    "from_parquet(frame)": (lambda _: PromptSet.from_parquet(pd.DataFrame([ROW])), "path must be str or a path, got DataFrame"),  # type: ignore[arg-type]
    "from_records(path)": (lambda _: PromptSet.from_records("file.jsonl"), "got str; read a file with from_jsonl(path)"),  # type: ignore[arg-type]
    "from_records(dict)": (lambda _: PromptSet.from_records(ROW), "got dict; put it in a list: [record]"),  # type: ignore[arg-type]
    "from_records(frame)": (lambda _: PromptSet.from_records(pd.DataFrame([ROW])), 'got DataFrame; pass frame.to_dict("records")'),  # type: ignore[arg-type]
    "from_records(None)": (lambda _: PromptSet.from_records(None), "must be dicts in a list, got NoneType"),  # type: ignore[arg-type]
    "from_dataset(splits)": (lambda _: PromptSet.from_dataset({"train": [ROW]}), "got dict; choose a split, as in dataset['train']"),  # type: ignore[dict-item]
    "from_dataset(texts)": (lambda _: PromptSet.from_dataset(["a"]), "record 0: expected an object with columns, got str"),  # type: ignore[list-item]
    "from_dataset(frame)": (lambda _: PromptSet.from_dataset(pd.DataFrame([ROW])), 'got DataFrame; pass frame.to_dict("records")'),  # type: ignore[arg-type]
    "folder=5": (lambda _: PromptSet.from_records([ROW], folder=5), "folder must be str or a path or NoneType, got int 5"),  # type: ignore[arg-type]
    "read add=de": (lambda _: ns.read("advbench", [{"goal": "x"}], add="de"), "add must be Mapping or NoneType, got str 'de'; as in add={"),  # type: ignore[arg-type]
    "read of a list": (lambda _: ns.read(["advbench"], [{"goal": "x"}]), "name must be str, got list"),  # type: ignore[arg-type]
    "fractions of two": (lambda b: b.prompts.with_splits(fractions=(1, 1)), "give four numbers, for discover, confirm, train, test"),
    "negative fractions": (lambda b: b.prompts.with_splits(fractions=(1, -1, 1, 1)), "give numbers of at least 0 that are not all 0"),
    "zero fractions": (lambda b: b.prompts.with_splits(fractions=(0, 0, 0, 0)), "give numbers of at least 0 that are not all 0"),
    "fraction of a set": (lambda b: b.prompts.with_splits(fractions=0.5), "give four numbers"),
    "Cell.of(5)": (lambda _: Cell.of(5), "cell 5 is not a language and a modality, as in 'en/text'"),  # type: ignore[arg-type]
    "Cell.of(en)": (lambda _: Cell.of("en"), "cell 'en' is not a language and a modality"),
    "to_jsonl(number)": (lambda b: b.prompts.to_jsonl(3), "to_jsonl(path): path must be str or a path, got int 3"),
    "read swapped": (lambda _: ns.read("advbench.csv", "advbench"), "the arguments are swapped; call read('advbench', 'advbench.csv')"),
    "read of a path alone": (lambda _: ns.read(Path("advbench.csv"), []), "name must be str, got PosixPath; it comes first"),  # type: ignore[arg-type]
    "read of a number": (lambda _: ns.read("advbench", 5), "source must be a path or rows, got int"),  # type: ignore[arg-type]
    # capture
    "capture swapped": (lambda b: ns.capture(b.prompts, b.model), "capture(model, prompts): the arguments are swapped; the model comes first"),
    "capture of a text": (lambda b: ns.capture(b.model, "text"), "prompts must be PromptSet, got str 'text'; read a file with"),  # type: ignore[arg-type]
    "capture of texts": (lambda b: ns.capture(b.model, ["a", "b"]), "prompts must be PromptSet, got list; "),  # type: ignore[arg-type]
    "capture of a model's name": (lambda b: ns.capture("organism", b.prompts), "model must be Model, got str 'organism'; load one with ns.load"),  # type: ignore[arg-type]
    "capture in batches of 0": (lambda b: ns.capture(b.model, b.prompts, batch_size=0), "capture: batch_size=0: must be a whole number of at least 1"),
    "capture in batches of -1": (lambda b: ns.capture(b.model, b.prompts, batch_size=-1), "batch_size=-1: must be"),
    "capture of the last": (lambda b: ns.capture(b.model, b.prompts, tokens="last"), "tokens='last' is unknown; did you mean 'last_prompt'?"),  # type: ignore[arg-type]
    "record swapped": (lambda b: ns.record(b.prompts, b.model), "record(model, prompts): model must be Model, got PromptSet; the model comes first"),
    "record of texts": (lambda b: ns.record(b.model, ["a"]), "every row of prompts must be Prompt, got str 'a'"),  # type: ignore[list-item]
    # scores
    "contrast(prompts)": (lambda b: ns.contrast(b.prompts), "stats must be Stats, got PromptSet; capture makes them"),
    "contrast by an unknown method": (lambda b: ns.contrast(b.stats, "sass"), "method='sass' is unknown; did you mean 'sas'? use one of contribution"),
    "stats of no such cell": (lambda b: b.stats["ko/text"], "nothing captured for harmful prompts of ko/text; there are harmful en/text"),
    "scores of no such cell": (lambda b: b.scores["ko/text"], "scores['ko/text']: no such cell; there are en/text, sw/text"),
    "sets of no such cell": (lambda b: b.sets["ko/text"], "sets['ko/text']: no such cell; there are en/text, sw/text"),
    "sets by number": (lambda b: b.sets[0], "cell 0 is not a language and a modality"),
    "top(64)": (lambda b: b.scores.top(64), "top(64): name the size, as in top(k=64); one of k, fraction, per_layer, param_fraction"),
    "top()": (lambda b: b.scores.top(), "give exactly one of k, fraction, per_layer, param_fraction (got 0)"),
    "top(k=1.5)": (lambda b: b.scores.top(k=1.5), "top(k=1.5): give a whole number of neurons"),
    "top(k='64')": (lambda b: b.scores.top(k="64"), "top(k='64'): give a whole number of neurons"),
    "top(fraction='all')": (lambda b: b.scores.top(fraction="all"), "top(fraction='all'): give a number, such as 0.01"),
    "attribution without pairs": (
        lambda b: ns.attribution(b.model, PromptSet.from_records(tiny.records(pair_id=None)), refusals=["sorry"], compliances=["sure"]),
        "no harmful prompt has a matched benign prompt; give both the same pair_id",
    ),
    "attribution swapped": (lambda b: ns.attribution(b.prompts, b.model), "attribution(model, prompts): the arguments are swapped"),
    "snip of stats": (lambda b: ns.baselines.snip(b.model, b.stats), "snip(model, prompts): prompts must be PromptSet, got Stats"),
    "change_score of one model": (lambda b: ns.baselines.change_score(b.model, b.prompts, b.prompts), "other must be Model, got PromptSet"),
    # sets and overlap
    "NeuronSet(text)": (lambda _: NeuronSet("abc"), "give (layer, index) pairs, as in NeuronSet([(0, 3), (1, 5)]); got str"),  # type: ignore[arg-type]
    "NeuronSet of numbers": (lambda _: NeuronSet([1, 2]), "give (layer, index) pairs, as in NeuronSet([(0, 3), (1, 5)]); got 1"),  # type: ignore[list-item]
    "NeuronSet by layer": (lambda _: NeuronSet({0: [1, 2]}), "give (layer, index) pairs, as in NeuronSet([(0, 3), (1, 5)]); got dict"),  # type: ignore[dict-item]
    "intersection of a list": (lambda b: NeuronSet.intersection([b.neurons]), "every set must be NeuronSet, got list; unpack a list with *"),  # type: ignore[arg-type]
    "save to a number": (lambda b: b.neurons.save(5), "save(path): path must be str or a path, got int 5"),
    "save to nothing": (lambda b: b.stats.save(""), "save(path): path is ''; give the name of a file"),
    "save to None": (lambda b: b.scores.save(None), "save(path): path must be str or a path, got NoneType"),
    "save onto a folder": (lambda b: b.sets.save(b.folder), "is a folder; give the name of a file, such as"),
    "save into no folder": (lambda b: b.neurons.save("/proc/x"), "/proc/x: cannot be written ("),
    "save below a file": (lambda b: b.neurons.save(Path(__file__) / "x"), "test_wrong_calls.py/x: cannot be written ("),
    "to_jsonl of no folder": (lambda b: b.prompts.to_jsonl("/proc/x"), "/proc/x: cannot be written ("),
    "to_jsonl onto a folder": (lambda b: b.prompts.to_jsonl(b.folder), "is a folder; give the name of a file"),
    "load of another kind": (lambda b: ns.Stats.load(b.neurons.save(b.folder / "n")), "holds a neuronshield.NeuronSet, not a neuronshield.Stats; read it with ns.NeuronSet.load"),
    "proof of another kind": (lambda b: ns.Proof.load(b.neurons.save(b.folder / "n")), "read it with ns.NeuronSet.load"),
    "evaluation of another kind": (lambda b: ns.Evaluation.load(b.neurons.save(b.folder / "n")), "read it with ns.NeuronSet.load"),
    "guard of another kind": (lambda b: ns.guard.Guard.load(b.neurons.save(b.folder / "n")), "read it with ns.NeuronSet.load"),
    "proof of None": (lambda _: ns.Proof.load(None), "load(path): path must be str or a path, got NoneType"),  # type: ignore[arg-type]
    "evaluation of a number": (lambda _: ns.Evaluation.load(3), "load(path): path must be str or a path, got int 3"),  # type: ignore[arg-type]
    "guard of a number": (lambda _: ns.guard.Guard.load(3), "load(path): path must be str or a path, got int 3"),  # type: ignore[arg-type]
    "load of a folder": (lambda b: ns.Scores.load(b.folder), ": is a folder; give the name of a file"),
    "proof of a folder": (lambda b: ns.Proof.load(b.folder), ": is a folder; give the name of a file"),
    "load of a text": (lambda _: CellSets.load(__file__), "not a file of neuronshield.CellSets/1 ("),
    "load of a set": (lambda b: NeuronSet.load(b.neurons), "load(path): path must be str or a path, got NeuronSet"),
    "overlap(scores)": (lambda b: ns.overlap(b.scores, k=4), "stats must be Stats, got Scores; capture makes them"),
    "overlap without a size": (lambda b: ns.overlap(b.stats), "give the size of the sets, exactly one of k, fraction, per_layer, param_fraction"),
    "overlap without a dict": (lambda b: ns.overlap(b.stats, k=4, without={}), "without must be NeuronSet, got dict"),  # type: ignore[arg-type]
    "overlap by lape": (lambda b: ns.overlap(b.stats, k=4, method="lape"), "LAPE compares languages, not labels; "),
    "anchored on no such cell": (lambda b: ns.overlaps.anchored(b.sets, "ko/text"), "no such cell; there are en/text, sw/text"),
    "anchored of one set": (lambda b: ns.overlaps.anchored(b.neurons), "sets must be Mapping, got NeuronSet; such as scores.top"),
    # cells, ids and empty sets
    "in_cells(None)": (lambda b: b.prompts.in_cells(None), "in_cells: cells must be Iterable, got NoneType; give a cell such as 'en/text'"),
    "in_cells of a language": (lambda b: b.prompts.in_cells("en"), "cell 'en' is not a language and a modality"),
    "Cell.of(en/text/x)": (lambda _: Cell.of("en/text/x"), "cell 'en/text/x' is not a language and a modality"),
    "PromptSet of a prompt twice": (lambda b: PromptSet([b.prompts[0], b.prompts[0]]), "two prompts have the id 'en-text-0-0-harmful'; ids must be unique"),
    "for_step(dev)": (lambda b: b.prompts.for_step("dev"), "for_step: split='dev' is unknown; use one of discover"),
    "mean over nothing": (lambda b: b.evaluation.mean("refusal", cells=3), "cells must be Iterable, got int 3; give a cell"),  # type: ignore[arg-type]
    "a negative index": (lambda _: NeuronSet([(0, -1)]), "neuron (0, -1): layers and indices are whole numbers that count from 0"),
    "hooks on no neuron": (lambda _: NeuronSet().to_transformer_lens(), "an empty neuron set do nothing; pass at least one neuron"),
    "neurons | pairs": (lambda b: operator.or_(b.neurons, [(0, 1)]), "cannot combine a NeuronSet with list; wrap its pairs in NeuronSet(...)"),
    "neurons & a set": (lambda b: operator.and_(b.neurons, {(0, 1)}), "cannot combine a NeuronSet with set; wrap its pairs in NeuronSet(...)"),
    "neurons - None": (lambda b: operator.sub(b.neurons, None), "cannot combine a NeuronSet with NoneType"),
    "param_fraction(None)": (lambda b: b.neurons.param_fraction(None), "param_fraction(model): model must be a model, got NoneType; load one with ns.load"),
    # seeds
    **{f"{name}(seed={seed!r})": (partial(run, seed=seed), f"{name}: seed={seed!r}: must be a whole number of at least 0")
       for name, run in SEEDED.items() for seed in ("a", -1, None, 1.5, True)},
    "random_like of a wrong list": (lambda b: ns.random_like(b.neurons, b.model, seed=[0, -1]), "random_like: seed=-1: must be a whole number"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_wrong_call_is_one_line(bench: Bench, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    call, said = CALLS[name]
    with pytest.raises(InputError) as caught:
        call(bench)
    message = str(caught.value)
    assert said in message
    assert "\n" not in message
    assert len(message) < 330
    assert list(tmp_path.iterdir()) == []


def test_python_names_a_missing_argument(bench: Bench):
    with pytest.raises(TypeError, match=r"missing .*argument: 'path'"):
        bench.neurons.save()


def test_the_natural_calls_work(bench: Bench):
    both = bench.sets["en/text"], bench.sets[Cell("en", "text")]
    assert both[0] == both[1] == bench.sets["en", "text"]
    assert "en/text" in bench.sets
    assert "ko/text" not in bench.sets
    assert 5 not in bench.sets
    assert bench.sets.get("ko/text") is None
    shared = NeuronSet.intersection(*bench.sets.values())
    assert shared == NeuronSet.intersection(bench.sets) == bench.sets["en/text"] & bench.sets["sw/text"]
    np.testing.assert_array_equal(bench.scores["sw/text"], bench.scores.values[1])
    assert "sw/text" in bench.scores
    assert bench.stats["en/text"].benign.n == 15
    assert bench.prompts["en-text-0-0-harmful"].label == "harmful"
    assert list(bench.prompts.head(3)["id"]) == [p.id for p in bench.prompts[:3]]
    for cell in ("sw/text", ("sw", "text"), Cell("sw", "text"), ["sw/text"], {Cell("sw", "text")}):
        assert bench.prompts.where(cell=cell).cells() == [Cell("sw", "text")]
    assert len(bench.prompts.where(cell=("en/text", "sw/text"))) == 60
    assert ns.contrast(bench.stats, "sas").method == "sas"
    for one in ("sw/text", Cell("sw", "text"), ("sw", "text"), ["sw/text"]):
        assert bench.prompts.in_cells(one).cells() == [Cell("sw", "text")]
        assert bench.evaluation.mean("refusal", cells=one).value == 0
        assert bench.evaluation.gain(bench.evaluation, "refusal", cells=one).value == 0
    assert bench.evaluation.mean("refusal", cells="en/text").value == 1
    assert len(bench.prompts.where(split=None)) == len(bench.prompts)
    assert len(bench.prompts.where(label=None)) == 0
    assert repr(bench.prompts.in_cells("en/text")).endswith(", 1 cell)")


@pytest.mark.slow
def test_what_users_see_offers_no_save_that_raises(bench: Bench, tmp_path: Path):
    own = [bench.stats, bench.scores, bench.sets, bench.neurons, ns.overlap(bench.stats, k=4)]
    for i, value in enumerate(own):
        path = value.save(tmp_path / str(i))
        assert type(value).load(path).__class__ is type(value)
    others = [
        bench.prompts,
        bench.prompts[0],
        bench.prompts[0].cell,
        bench.stats["en/text"],
        bench.stats["en/text"].harmful,
        Checkup(),
    ]
    for value in [*others, next(iter(bench.stats.groups))]:
        assert "save" not in dir(value), type(value)


@pytest.mark.slow
def test_every_repr_is_a_line_and_every_table_a_screen(bench: Bench):
    long = ns.Prompt("an id " * 20, "how do i bake " * 50, "benign")
    shown = [bench.prompts, bench.prompts[0], long, bench.stats, bench.stats["en/text"].harmful, bench.scores, bench.sets,
             bench.neurons, ns.overlap(bench.stats, k=4), next(iter(bench.stats.groups)), bench.prompts[0].cell]  # fmt: skip
    for value in shown:
        assert len(repr(value)) <= 110, repr(value)
        assert "\n" not in repr(value)
        if hasattr(value, "_repr_html_"):
            html = value._repr_html_()
            assert html.count("<tr") <= 14


@pytest.mark.slow
def test_what_is_read_back_is_equal(bench: Bench, tmp_path: Path):
    overlap = ns.overlap(bench.stats, k=4)
    for i, value in enumerate([bench.stats, bench.scores, bench.sets, bench.neurons, overlap]):
        again = type(value).load(value.save(tmp_path / str(i)))
        assert again == value, type(value)
        if value is not bench.sets:
            assert hash(again) == hash(value)
    pictured = PromptSet.from_records(
        [*tiny.records(), {**ROW, "images": [Image.new("RGB", (6, 4))], "modality": "image"}]
    )
    for prompts in (bench.prompts, pictured):
        assert PromptSet.from_jsonl(prompts.to_jsonl(tmp_path / "p.jsonl")) == prompts
        again = PromptSet.from_parquet(prompts.to_parquet(tmp_path / "p.parquet"))
        assert again == prompts
        assert again[-1] == prompts[-1]
        assert {again[-1]} == {prompts[-1]}
    for value in (None, 0.5, bench.stats["en/text"].benign.mean, np.ones((4, 3, 29))):
        kind: Any = "zero" if value is None else "clamp" if isinstance(value, float) else "mean"
        one = ns.Intervention(bench.neurons, kind, value, cells=["en/text"])
        assert ns.Intervention.from_json(one.to_json()) == one
        assert one != ns.Intervention(bench.neurons, kind, value)
    answers = ns.evaluate(bench.model, bench.prompts[:4], refusals=["sorry"], max_new_tokens=2, progress=False)
    assert ns.Evaluation.load(answers.save(tmp_path / "e.json")) == answers
    barrier = Barrier(torch.ones(1), 0.5)
    separation = {0: (float("nan"), 0.5)}
    guard = ns.guard.Guard(bench.neurons, {0: (barrier, barrier), 1: (barrier, barrier)}, separation=separation)
    assert ns.guard.Guard.load(guard.save(tmp_path / "g")) == guard


@pytest.mark.slow
def test_what_differs_is_not_equal(bench: Bench):
    assert bench.stats != replace(bench.stats, down_l1=bench.stats.down_l1 + 1)
    assert bench.scores != ns.contrast(bench.stats, "sas")
    assert ns.overlap(bench.stats, k=4) != ns.overlap(bench.stats, k=5)
    assert bench.prompts != bench.prompts[::-1]
    assert bench.prompts != list(bench.prompts)
    first = bench.prompts[0]
    assert first != replace(first, target="another")
    black, red = (
        replace(first, images=(Image.new("RGB", (6, 4), color),), modality="image") for color in ("black", "red")
    )
    assert first != black
    assert black != red
