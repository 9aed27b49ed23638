"""The strongest and weakest prompts, against a plain sort of all values."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield.core.journal import Journal
from neuronshield.explorer import extremes
from neuronshield.model.engine import InProcess

PAIRS = [(0, 3), (2, 7)]
NEURONS = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)


def sorted_by_hand(values: torch.Tensor, prompts: ns.PromptSet, k: int) -> pd.DataFrame:
    """The frame from the value of every prompt and neuron, [prompt, neuron]."""
    rows = []
    for column, (layer, index) in enumerate(PAIRS):
        for label in ("harmful", "benign"):
            mine = [(float(values[i, column]), p) for i, p in enumerate(prompts) if p.label == label]
            for end, order in (
                ("strongest", sorted(mine, key=lambda v: -v[0])),
                ("weakest", sorted(mine, key=lambda v: v[0])),
            ):
                for rank, (value, p) in enumerate(order[:k], 1):
                    rows.append((layer, index, label, end, rank, p.id, str(p.cell), value))
    return pd.DataFrame(rows, columns=list(extremes.COLUMNS))


def last(model: ns.Model, prompts: ns.PromptSet) -> torch.Tensor:
    h = ns.record(model, prompts, batch_size=1)
    return torch.stack([h[:, layer, index] for layer, index in PAIRS], dim=1)


@pytest.mark.parametrize("shard", [7, 512])
@pytest.mark.parametrize("k", [1, 4, 1000])
def test_they_are_those_of_a_plain_sort_however_prompts_are_cut_into_shards(
    llama: ns.Model, monkeypatch: pytest.MonkeyPatch, shard: int, k: int
):
    monkeypatch.setattr(extremes, "SHARD", shard)
    prompts = tiny.prompts()
    got = ns.top_prompts(llama, prompts, NEURONS, k, batch_size=3, progress=False)
    pd.testing.assert_frame_equal(got, sorted_by_hand(last(llama, prompts), prompts, k), rtol=1e-4, atol=1e-5)


def test_of_pictures_and_words_together_too(llava: ns.Model):
    prompts = tiny.prompts(pictures=True)
    got = ns.top_prompts(llava, prompts, NEURONS, 3, progress=False)
    pd.testing.assert_frame_equal(got, sorted_by_hand(last(llava, prompts), prompts, 3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("role", ["prompt", "image"])
def test_of_a_role_the_largest_value_counts_and_prompts_without_it_are_left_out(llava: ns.Model, role: str):
    prompts = tiny.prompts(pictures=True)
    frame = ns.activations(llava, prompts, NEURONS)
    frame = frame if role == "prompt" else frame[frame["role"] == "image"]
    largest = frame.groupby(["prompt", "layer", "index"])["value"].max()
    kept = ns.PromptSet(p for p in prompts if role == "prompt" or p.images)
    values = torch.tensor([[largest[p.id, layer, index] for layer, index in PAIRS] for p in kept])
    got = ns.top_prompts(llava, prompts, NEURONS, 5, tokens=role, progress=False)  # type: ignore[arg-type]
    pd.testing.assert_frame_equal(got, sorted_by_hand(values, kept, 5), rtol=1e-4, atol=1e-5)


def test_a_stream_is_read_once_a_shard_at_a_time_and_gives_the_same(llama: ns.Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extremes, "SHARD", 10)
    rows, read, ahead = tiny.records(), [0], []

    class Counted(list):  # type: ignore[type-arg]
        def __iter__(self):  # type: ignore[no-untyped-def]
            for row in list.__iter__(self):
                read[0] += 1
                yield row

    work = extremes.extremes_of
    done = [0]

    def counting(model, unit, context):  # type: ignore[no-untyped-def]
        ahead.append(read[0] - done[0])
        done[0] += len(unit.prompts)
        return work(model, unit, context)

    monkeypatch.setattr(extremes, "extremes_of", counting)
    stream = ns.PromptStream.from_dataset(Counted(rows))
    got = ns.top_prompts(llama, stream, NEURONS, 4, progress=False)
    assert read == [len(rows)]
    assert max(ahead) <= 10
    assert got.equals(ns.top_prompts(llama, tiny.prompts(), NEURONS, 4, progress=False))


def test_of_equal_values_the_prompt_that_comes_first_is_first(llama: ns.Model, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extremes, "SHARD", 3)
    same = ns.PromptSet.from_records([{"id": f"{i}", "prompt": "bake bread", "label": "benign"} for i in range(8)])
    got = ns.top_prompts(llama, same, NEURONS, 4, batch_size=1, progress=False)
    assert got["prompt"].tolist() == ["0", "1", "2", "3"] * 4


def test_finished_shards_come_from_the_journal(llama: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(extremes, "SHARD", 20)
    engine = InProcess(Journal(tmp_path / "journal"))
    first = ns.top_prompts(llama, tiny.prompts(), NEURONS, 3, engine=engine, progress=False)
    monkeypatch.setattr(extremes, "extremes_of", None)
    assert first.equals(ns.top_prompts(llama, tiny.prompts(), NEURONS, 3, engine=engine, progress=False))


def test_wrong_calls_are_refused_in_one_line(llama: ns.Model):
    rows = tiny.prompts()
    for call, said in (
        (lambda: ns.top_prompts(llama, NEURONS, rows), "neurons must be NeuronSet"),  # type: ignore[arg-type]
        (lambda: ns.top_prompts(llama, list(rows), NEURONS), "prompts must be PromptSet or PromptStream"),  # type: ignore[arg-type]
        (
            lambda: ns.top_prompts(llama, rows, NEURONS, tokens="image", progress=False),
            "no prompt has a token of role 'image'",
        ),
        (lambda: ns.top_prompts(llama, rows, NEURONS, tokens="first"), "tokens='first' is unknown"),  # type: ignore[arg-type]
        (lambda: ns.top_prompts(llama, ns.PromptSet([]), NEURONS, progress=False), "no prompts"),
        (lambda: ns.top_prompts(llama, rows, NEURONS, 0), "k=0"),
    ):
        with pytest.raises(ns.InputError, match=said):
            call()


def test_an_activation_that_is_not_finite_is_an_error_with_its_prompt():
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[0].mlp.up_proj.weight[3] = float("nan")
    model = ns.load(module, processor=tiny.tokenizer())
    with pytest.raises(ns.InputError, match="not finite on prompt 'en-text-0-0-harmful'"):
        ns.top_prompts(model, tiny.prompts(), NEURONS, progress=False)
