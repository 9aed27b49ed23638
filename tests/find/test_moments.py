"""Streaming moments against a plain forward hook, one unpadded prompt at a time, in float64."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuronshield as ns
from neuronshield import Cell, InputError, PromptSet
from neuronshield.find.folds import SPLITS
from neuronshield.find.moments import Group, Moments, Stats, capture, record, record_norms
from neuronshield.model.encoding import Role

IMAGE = tiny.WORDS.index("<image>")
#: which positions a role means, given the token ids and the number of prompt tokens
CHOOSE: dict[Role, Callable[[np.ndarray, int], np.ndarray]] = {
    "last_prompt": lambda ids, n: np.arange(len(ids)) == n - 1,
    "prompt": lambda ids, n: np.arange(len(ids)) < n,
    "image": lambda ids, n: (np.arange(len(ids)) < n) & (ids == IMAGE),
    "text": lambda ids, n: (np.arange(len(ids)) < n) & (ids != IMAGE),
    "response": lambda ids, n: np.arange(len(ids)) >= n,
}


def oracle(model: ns.Model, prompts: PromptSet, role: Role) -> dict[tuple[str, Cell], np.ndarray]:
    """{(label, cell): [token, n_layers, d_mlp]} from hooks alone."""
    out: dict[tuple[str, Cell], list[np.ndarray]] = {}
    for p in prompts:
        acts, ids, n = tiny.activations(model, p, p.target if role == "response" else None)
        out.setdefault((p.label, p.cell), []).append(acts[CHOOSE[role](ids, n)])
    return {key: np.concatenate(parts) for key, parts in out.items() if sum(map(len, parts))}


def assert_moments(got: Moments, h: np.ndarray) -> None:
    assert got.n == len(h)
    assert got.mean.shape == (3, 29)
    np.testing.assert_allclose(got.mean, h.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.m2, ((h - h.mean(0)) ** 2).sum(0), rtol=1e-3, atol=1e-8)
    np.testing.assert_allclose(got.var, got.m2 / max(len(h) - 1, 1), rtol=1e-12)
    np.testing.assert_allclose(got.mean_abs, np.abs(h).mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got.positive, (h > 0).mean(0), atol=1e-6)


CASES: list[tuple[str, Role]] = [
    (m, r) for m in ("llama", "gpt2", "llava") for r in CHOOSE if m == "llava" or r != "image"
]


@pytest.mark.parametrize(("name", "role"), CASES)
def test_moments_are_those_of_a_plain_hook_for_any_batch_size(request: pytest.FixtureRequest, name: str, role: Role):
    model: ns.Model = request.getfixturevalue(name)
    prompts = tiny.prompts(pictures=True, languages=["en"])[::5] if name == "llava" else tiny.prompts()[::5]
    want = oracle(model, prompts, role)
    assert want
    for size in (1, 7) if role in ("last_prompt", "image") else (7,):
        stats = capture(model, prompts, tokens=role, batch_size=size, progress=False)
        assert {(g.label, g.cell) for g in stats.groups} == set(want)
        for (label, cell), h in want.items():
            assert_moments(stats.moments(label, cell), h)
        assert stats.tokens == role


def test_order_of_prompts_does_not_matter(llava: ns.Model):
    prompts = tiny.prompts(pictures=True)
    shuffled = PromptSet(np.random.default_rng(0).permutation(np.array(list(prompts), dtype=object)))
    a = capture(llava, prompts, tokens="text", progress=False)
    b = capture(llava, shuffled, tokens="text", progress=False, batch_size=13)
    assert a.groups.keys() == b.groups.keys()
    for key, moments in a.groups.items():
        assert moments.n == b.groups[key].n
        np.testing.assert_allclose(moments.mean, b.groups[key].mean, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(moments.m2, b.groups[key].m2, rtol=1e-3, atol=1e-6)


def test_the_order_of_unlike_lengths_inside_a_cell_does_not_mix_labels(llama: ns.Model):
    # trap: tokens owned by the wrong row of the batch; very different labels would then look alike
    prompts = tiny.prompts(languages=["en"])
    want = oracle(llama, prompts, "prompt")
    shift = want["harmful", Cell("en", "text")].mean(0) - want["benign", Cell("en", "text")].mean(0)
    stats = capture(llama, prompts, tokens="prompt", batch_size=30, progress=False)
    got = stats.moments("harmful", ("en", "text")).mean - stats.moments("benign", ("en", "text")).mean
    np.testing.assert_allclose(got, shift, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["llama", "gpt2", "llava"])
def test_record_keeps_each_prompts_own_last_token_in_order(request: pytest.FixtureRequest, name: str):
    model: ns.Model = request.getfixturevalue(name)
    prompts = tiny.prompts(pictures=name == "llava")[:: 7 if name == "llava" else 5]
    got = record(model, list(prompts), batch_size=4)
    assert got.shape == (len(prompts), 3, 29)
    for row, p in zip(got.numpy(), prompts, strict=True):
        acts, _, n = tiny.activations(model, p)
        np.testing.assert_allclose(row, acts[n - 1], rtol=1e-3, atol=1e-5)


# -- folds ----------------------------------------------------------------------------------------------
def test_folds_merge_to_the_whole_and_share_no_request(llama: ns.Model):
    prompts = tiny.prompts()
    stats = capture(llama, prompts, tokens="prompt", progress=False)
    want = oracle(llama, prompts, "prompt")
    for cell in prompts.cells():
        for first, second in SPLITS:
            a, b = (stats.moments("harmful", cell, part) for part in (first, second))
            assert a.n + b.n == stats.moments("harmful", cell).n
            assert min(a.n, b.n) > 0
            assert_moments(a.merge(b), want["harmful", cell])
            assert_moments(b.merge(a), want["harmful", cell])
    with pytest.raises(InputError, match=r"nothing captured for benign prompts of en/text in the folds \[9\]"):
        stats.moments("benign", "en/text", {9})


def test_all_prompts_of_a_request_are_in_one_fold(llama: ns.Model):
    # one request in two languages and both labels: capture it alone and see a single fold
    for pair in ("0-0", "1-2", "4-1"):
        stats = capture(llama, tiny.prompts().where(pair_id=pair), progress=False, seed=3)
        assert len({g.fold for g in stats.groups}) == 1
        assert len(stats.groups) == 4


def test_the_seed_deals_the_folds(llama: ns.Model):
    prompts = tiny.prompts(languages=["en"])
    runs = [capture(llama, prompts, progress=False, seed=s) for s in (0, 0, 1)]
    means = [r.moments("harmful", ("en", "text"), {0, 1}).mean for r in runs]
    assert np.array_equal(means[0], means[1])
    assert not np.array_equal(means[0], means[2])


# -- recorded activations ---------------------------------------------------------------------------------
def assert_same_groups(got: Stats, want: Stats) -> None:
    assert list(got.groups) == list(want.groups)
    for group, moments in want.groups.items():
        assert got.groups[group].n == moments.n
        for name in ("mean", "m2", "mean_abs", "positive", "least", "share"):
            np.testing.assert_allclose(getattr(got.groups[group], name), getattr(moments, name), rtol=1e-4, atol=1e-6)


def test_moments_of_recorded_activations_are_those_of_capture(llava: ns.Model):
    prompts = tiny.prompts(pictures=True)
    stats = capture(llava, prompts, progress=False, seed=4)
    h, norms = record(llava, prompts), record_norms(llava, prompts)
    got = Stats.of(h, prompts, like=stats, output_norms=norms)
    assert_same_groups(got, stats)
    assert (got.n_params, got.params_per_neuron, got.provenance) == (
        stats.n_params,
        stats.params_per_neuron,
        stats.provenance,
    )
    assert got.down_norms is stats.down_norms
    assert all(m.share.max() == 0 for m in Stats.of(h, prompts, like=stats).groups.values())


def test_moments_under_other_labels_are_those_of_prompts_that_have_them(llama: ns.Model):
    prompts = tiny.prompts()
    rng = np.random.default_rng(0)
    swapped = {pair: rng.random() < 0.5 for pair in sorted({p.cluster for p in prompts})}
    other = {"harmful": "benign", "benign": "harmful"}
    labels = [other[p.label] if swapped[p.cluster] else p.label for p in prompts]
    assert 0 < sum(swapped.values()) < len(swapped)
    renamed = [replace(p, label=label) for p, label in zip(prompts, labels, strict=True)]
    stats, h = capture(llama, prompts, progress=False), record(llama, prompts).numpy()
    got = Stats.of(h, prompts, labels=labels, like=stats)
    for label in other:
        for cell in stats.cells():
            mine = [i for i, p in enumerate(renamed) if p.label == label and p.cell == cell]
            assert_moments(got.moments(label, cell), h[mine].astype(np.float64))
    assert not np.allclose(got["en/text"].harmful.mean, stats["en/text"].harmful.mean)


def test_recorded_activations_that_do_not_fit_are_refused(llama: ns.Model):
    prompts = tiny.prompts()
    stats, h = capture(llama, prompts, progress=False), record(llama, prompts)
    with pytest.raises(InputError, match=r"3 rows of activations, 60 prompts and 60 labels"):
        Stats.of(h[:3], prompts, like=stats)
    with pytest.raises(InputError, match=r"60 rows of activations, 60 prompts and 2 labels"):
        Stats.of(h, prompts, like=stats, labels=["harmful", "benign"])
    with pytest.raises(InputError, match=r"activations of 2 x 29 neurons, but like= has 3 x 29"):
        Stats.of(h[:, :2], prompts, like=stats)
    with pytest.raises(InputError, match=r"a label 'bad'; use 'harmful' or 'benign'"):
        Stats.of(h, prompts, like=stats, labels=["bad"] * 60)


@pytest.mark.parametrize("cut", [(1, 22), (11, 12), (22, 1)])
def test_chans_merge_is_numpy_on_the_whole(cut: tuple[int, int]):
    # a mean far from zero: a sum of squares would cancel, Chan's update does not
    h = np.random.default_rng(0).normal(1e6, 1e-2, (23, 2, 5))
    a, b = Moments.of(h[: cut[0]]), Moments.of(h[cut[0] :])
    whole = a.merge(b)
    assert whole.n == 23
    np.testing.assert_allclose(whole.mean, h.mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.var, h.var(0, ddof=1), rtol=1e-4)
    np.testing.assert_allclose(whole.mean_abs, np.abs(h).mean(0), rtol=1e-14)
    np.testing.assert_allclose(whole.positive, (h > 0).mean(0))


def test_merging_counts_positives_by_weight():
    h = np.array([[[1.0]], [[-1.0]], [[2.0]], [[3.0]], [[-4.0]]])
    assert Moments.of(h[:1]).merge(Moments.of(h[1:])).positive.item() == pytest.approx(3 / 5)


# -- memory ---------------------------------------------------------------------------------------------
def size(stats: Stats) -> int:
    return len(pickle.dumps([list(stats.groups.values()), stats.down_norms]))


def test_memory_does_not_grow_with_prompts_or_tokens(llama: ns.Model):
    some = tiny.prompts(languages=["en"])
    many = PromptSet.from_records(
        [{**r, "id": f"{i}-{r['id']}", "prompt": f"{r['prompt']} {'red ' * i}".strip()}
         for i in range(5) for r in tiny.records(languages=["en"])]
    )  # fmt: skip
    a = capture(llama, some, tokens="prompt", progress=False)
    b = capture(llama, many, tokens="prompt", progress=False)
    assert b.moments("benign", ("en", "text")).n > 5 * a.moments("benign", ("en", "text")).n
    assert size(a) == pytest.approx(size(b), rel=0.01)
    for moments in b.groups.values():
        for array in (moments.mean, moments.m2, moments.mean_abs, moments.positive):
            # trap: a view keeps the array of all groups alive
            assert (array if array.base is None else array.base).size <= 16 * 3 * 29


def test_the_forward_stops_before_the_head(llama: ns.Model):
    calls = []
    handle = llama.module.lm_head.register_forward_hook(lambda *_: calls.append(1))
    try:
        capture(llama, tiny.prompts()[:4], progress=False)
    finally:
        handle.remove()
    assert not calls


# -- provenance and errors ------------------------------------------------------------------------
def test_stats_carry_what_contrast_needs(llama: ns.Model):
    prompts = tiny.prompts()
    stats = capture(llama, prompts, progress=False, seed=5)
    assert stats.cells() == prompts.cells()
    assert (stats.n_layers, stats.d_mlp, stats.n_params, stats.params_per_neuron) == (3, 29, llama.n_params, 60)
    np.testing.assert_allclose(stats.down_norms, llama.down_norms().numpy())
    assert stats.provenance["seed"] == 5
    assert stats.provenance["data"] == prompts.hash()
    assert stats.provenance["seen"] == sorted({p.cluster for p in prompts})
    assert "act(W_gate x) * (W_up x)" in stats.provenance["neuron_value"]
    assert set(stats.provenance["versions"]) >= {"neuronshield", "torch", "transformers", "nnsight"}


def test_only_the_discover_split_is_seen(llama: ns.Model):
    prompts = tiny.prompts().with_splits(seed=0)
    stats = capture(llama, prompts, progress=False)
    discover = prompts.where(split="discover")
    assert stats.provenance["seen"] == sorted({p.cluster for p in discover})
    assert sum(m.n for m in stats.groups.values()) == len(discover)


def test_a_cell_with_one_label_cannot_be_contrasted(llama: ns.Model):
    prompts = tiny.prompts(languages=["en"]) + tiny.prompts(languages=["sw"]).where(label="benign")
    stats = capture(llama, prompts, progress=False)
    assert stats.cells() == [Cell("en", "text")]
    with pytest.raises(InputError, match="nothing captured for harmful prompts of sw/text"):
        stats.moments("harmful", ("sw", "text"))


def test_bad_requests_are_refused(llama: ns.Model):
    prompts = tiny.prompts()
    with pytest.raises(InputError, match="tokens='last'"):
        capture(llama, prompts, tokens="last")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no prompts"):
        capture(llama, prompts.where(language="eu"))
    with pytest.raises(InputError, match="no prompt has a token of role 'image'"):
        capture(llama, prompts[:4], tokens="image", progress=False)
    untargeted = PromptSet.from_records(tiny.records(target=None)[:4])
    with pytest.raises(InputError, match="needs a 'target'"):
        capture(llama, untargeted, tokens="response")


def test_activations_that_are_not_finite_are_named_by_layer():
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[4] = float("inf")
    with pytest.raises(
        InputError, match=r"layer 1 has activations that are not finite on prompt 'en-text-0-0-harmful'"
    ):
        capture(ns.load(module, processor=tiny.tokenizer()), tiny.prompts()[:4], progress=False)


def test_cells_come_in_the_order_of_the_prompts_not_of_the_batches(llama: ns.Model):
    rows = tiny.prompts()
    for order in (["en", "sw"], ["sw", "en"]):
        mixed = ns.PromptSet([p for language in order for p in rows if p.language == language])
        stats = ns.capture(llama, mixed, batch_size=3, progress=False)
        assert [c.language for c in stats.cells()] == order


# -- exact zeros ------------------------------------------------------------------------------------------
def test_a_neuron_at_exactly_zero_is_not_active():
    h = np.array([[[0.0, 1.0]], [[0.0, 0.0]], [[-1.0, 2.0]], [[0.0, -3.0]]])
    np.testing.assert_array_equal(Moments.of(h).positive, [[0.0, 0.5]])


def test_a_silent_neuron_is_not_active_in_a_trace():
    # trap: P(h >= 0) of a neuron that never writes would be 1, and LAPE would take it for one of every language
    module = tiny.llama()
    with torch.no_grad():
        module.model.layers[1].mlp.up_proj.weight[4] = 0
    stats = capture(ns.load(module, processor=tiny.tokenizer()), tiny.prompts()[:8], tokens="prompt", progress=False)
    for moments in stats.groups.values():
        assert moments.positive[1, 4] == moments.mean_abs[1, 4] == moments.least[1, 4] == moments.share[1, 4] == 0
        assert (moments.positive[1] > 0).any()


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_least_and_share_are_those_of_a_plain_hook(scale: float):
    module = tiny.llama()
    with torch.no_grad():
        for layer in module.model.layers:
            layer.mlp.down_proj.weight.mul_(scale)  # the share does not depend on how large the output is
    model = ns.load(module, processor=tiny.tokenizer())
    prompts = tiny.prompts(languages=["en"])[:6]
    stats = capture(model, prompts, tokens="prompt", batch_size=4, progress=False)
    weights: list[Any] = [down.weight.detach().double().numpy() for down in tiny.downs(model)]  # type: ignore[union-attr,operator]
    for label in ("harmful", "benign"):
        h = np.concatenate([tiny.activations(model, p)[0] for p in prompts if p.label == label])
        out = np.stack([np.linalg.norm(h[:, layer] @ weights[layer].T, axis=-1) for layer in range(3)], axis=1)
        got = stats.moments(label, "en/text")
        np.testing.assert_allclose(got.least, np.abs(h).min(0), rtol=1e-3, atol=1e-7)
        np.testing.assert_allclose(got.share, (np.abs(h) / out[:, :, None]).mean(0), rtol=1e-3)
        np.testing.assert_allclose(got.share, Moments.of(h, out).share, rtol=1e-3)


def test_merging_keeps_the_least_and_weighs_the_share():
    rng = np.random.default_rng(0)
    h, out = rng.normal(0, 1, (11, 2, 5)), rng.uniform(1, 2, (11, 2))
    whole, merged = Moments.of(h, out), Moments.of(h[:3], out[:3]).merge(Moments.of(h[3:], out[3:]))
    for name in ("mean", "m2", "mean_abs", "positive", "least", "share"):
        np.testing.assert_allclose(getattr(merged, name), getattr(whole, name), rtol=1e-12)


# -- files ------------------------------------------------------------------------------------------------
def test_moments_come_back_from_their_file(llava: ns.Model, tmp_path: Path):
    stats = capture(llava, tiny.prompts(pictures=True), tokens="prompt", progress=False, seed=3)
    back = Stats.load(stats.save(tmp_path / "new" / "stats.safetensors"))
    assert list(back.groups) == list(stats.groups)
    for group, moments in stats.groups.items():
        assert back.groups[group].n == moments.n
        for name in ("mean", "m2", "mean_abs", "positive", "least", "share"):
            np.testing.assert_array_equal(getattr(back.groups[group], name), getattr(moments, name))
    np.testing.assert_array_equal(back.down_norms, stats.down_norms)
    np.testing.assert_array_equal(back.down_l1, stats.down_l1)
    for name in ("tokens", "n_params", "params_per_neuron", "provenance"):
        assert getattr(back, name) == getattr(stats, name)
    assert ns.contrast(back, "cett").top(k=9) == ns.contrast(stats, "cett").top(k=9)
    with pytest.raises(
        InputError, match=r"holds a neuronshield\.Stats, not a neuronshield\.Scores; read it with ns\.Stats\.load"
    ):
        ns.Scores.load(tmp_path / "new" / "stats.safetensors")


def test_results_cannot_be_changed(llama: ns.Model):
    stats = capture(llama, tiny.prompts()[:8], progress=False)
    for value, name in ((stats, "tokens"), (next(iter(stats.groups.values())), "n"), (ns.contrast(stats), "method")):
        with pytest.raises(FrozenInstanceError):
            setattr(value, name, 1)


@pytest.mark.slow
def test_tables_of_many_cells_fit_a_screen():
    zeros = np.zeros((2, 3))
    moments = Moments(4, zeros, zeros, zeros, zeros, zeros, zeros)
    groups = {Group(label, f"en-x-{a}{b}", "text", fold): moments
              for a in "abcdef" for b in "abcde" for label in ("harmful", "benign") for fold in range(8)}  # fmt: skip
    stats = Stats(groups, zeros + 1, zeros + 1, "prompt", 1000, 10)
    scores = ns.contrast(stats)
    for value in (stats, scores, scores.top(k=2), ns.overlap(stats, k=2)):
        html = value._repr_html_()
        assert html.count("<tr") <= 14
        assert "more rows" in html
        assert len(repr(value)) <= 110


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_default_dtype_of_the_script_changes_no_activation(llama: ns.Model, dtype: torch.dtype) -> None:
    prompts = tiny.prompts(languages=("en",))
    wanted, condition = (
        record(llama, prompts),
        ns.Intervention(ns.NeuronSet([(0, 3)], n_layers=3, d_mlp=29), "clamp", 0.1),
    )
    torch.set_default_dtype(dtype)
    try:
        got, back = record(llama, prompts), ns.Intervention.from_json(condition.to_json())
    finally:
        torch.set_default_dtype(torch.float32)
    assert got.dtype == torch.float32
    assert torch.equal(got, wanted)
    assert back == condition
