"""Activations on tokens, against plain PyTorch hooks on one unpadded prompt at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from families import FAMILIES

import neuronshield as ns
from neuronshield.core.journal import Journal
from neuronshield.explorer.activations import COLUMNS, readings
from neuronshield.model.engine import InProcess

PAIRS = [(0, 3), (0, 28), (2, 7)]
NEURONS = ns.NeuronSet(PAIRS, n_layers=3, d_mlp=29)


@pytest.mark.parametrize("batch_size", [1, 7])
@pytest.mark.parametrize("pictures", [False, True])
def test_values_are_those_of_hooks_in_the_order_of_prompts_tokens_and_neurons(
    llama: ns.Model, llava: ns.Model, pictures: bool, batch_size: int
):
    model, rows = (llava if pictures else llama), list(tiny.prompts(pictures=pictures))[::9]
    frame = ns.activations(model, rows, NEURONS, batch_size=batch_size)
    assert tuple(frame.columns) == COLUMNS
    assert frame["prompt"].drop_duplicates().tolist() == [p.id for p in rows]
    wanted, positions = [], []
    for prompt in rows:
        h, ids, _ = tiny.activations(model, prompt)
        wanted.append(np.stack([h[:, layer, index] for layer, index in PAIRS], axis=1).reshape(-1))
        positions += [i for i in range(len(ids)) for _ in PAIRS]
        mine = frame[frame["prompt"] == prompt.id]
        assert ((mine["role"] == "image").to_numpy() == (ids == model.image_token_id).repeat(len(PAIRS))).all()
    np.testing.assert_allclose(frame["value"], np.concatenate(wanted), rtol=1e-4, atol=1e-5)
    assert frame["position"].tolist() == positions
    assert [*zip(frame["layer"], frame["index"], strict=True)] == PAIRS * (len(frame) // len(PAIRS))


def test_places_are_missing_numbers_where_a_token_is_no_picture_s(llava: ns.Model):
    frame = ns.activations(llava, [p for p in tiny.prompts(pictures=True) if p.images][:2], NEURONS)
    assert {str(frame[name].dtype) for name in ("image", "row", "column")} == {"Int64"}
    assert (frame["row"].isna() == (frame["role"] != "image")).all()
    image = frame[(frame["role"] == "image") & (frame["index"] == 7)]
    assert [*zip(image["row"], image["column"], strict=True)] == [(r, c) for r in range(3) for c in range(3)] * 2


def test_one_string_is_a_prompt(llama: ns.Model):
    frame = ns.activations(llama, "how do i bake bread", NEURONS)
    assert frame[frame["index"] == 7]["token"].tolist() == ["how", " do", " i", " bake", " bread"]


def test_arrays_of_each_prompt_have_a_row_a_neuron_and_a_column_a_token(llama: ns.Model):
    rows = list(tiny.prompts())[:5]
    found = readings(llama, rows, NEURONS, batch_size=2)
    frame = ns.activations(llama, rows, NEURONS, batch_size=2)
    for reading, prompt in zip(found, rows, strict=True):
        assert reading.prompt is prompt
        assert reading.values.shape == (3, len(reading.tokens))
        mine = frame[frame["prompt"] == prompt.id]
        np.testing.assert_array_equal(reading.values.T.reshape(-1), mine["value"])


def test_finished_units_come_from_the_journal(llama: ns.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rows, engine = list(tiny.prompts())[:9], InProcess(Journal(tmp_path / "journal"))
    first = ns.activations(llama, rows, NEURONS, batch_size=2, engine=engine)
    assert first.equals(ns.activations(llama, rows, NEURONS, batch_size=2))
    monkeypatch.setattr("neuronshield.explorer.activations.values_of", None)
    assert first.equals(ns.activations(llama, rows, NEURONS, batch_size=2, engine=engine))


def test_neurons_of_a_layer_that_does_not_run_are_silent():
    model = next(f for f in FAMILIES if f.name == "Llama 3.2 Vision").load()
    neurons = ns.NeuronSet([(0, 3), (1, 3)], n_layers=3, d_mlp=29)
    frame = ns.activations(model, "how do i bake bread", neurons)
    assert (frame[frame["layer"] == 1]["value"] == 0).all()
    assert (frame[frame["layer"] == 0]["value"] != 0).all()


def test_wrong_calls_are_refused_in_one_line(llama: ns.Model):
    rows = list(tiny.prompts())[:2]
    for call, said in (
        (lambda: ns.activations(rows, llama, NEURONS), "model must be Model"),  # type: ignore[arg-type]
        (lambda: ns.activations(llama, rows, PAIRS), "neurons must be NeuronSet"),  # type: ignore[arg-type]
        (lambda: ns.activations(llama, rows, ns.NeuronSet([(7, 1)])), r"neuron \(7, 1\) lies outside"),
        (lambda: ns.activations(llama, rows, ns.NeuronSet()), "has no neurons"),
        (lambda: ns.activations(llama, [], NEURONS), "no prompts"),
        (lambda: ns.activations(llama, rows, NEURONS, batch_size=0), "batch_size=0"),
    ):
        with pytest.raises(ns.InputError, match=said):
            call()


def test_an_activation_that_is_not_finite_is_an_error_with_its_prompt_and_layer():
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[5] = float("inf")
    model = ns.load(module, processor=tiny.tokenizer())
    with pytest.raises(
        ns.InputError, match="layer 1 has activations that are not finite on prompt 'en-text-0-0-harmful'"
    ):
        ns.activations(model, list(tiny.prompts())[:1], ns.NeuronSet([(1, 5)], n_layers=3, d_mlp=29))
