"""Every formula beside an independent restatement from raw activations; every size of `top`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from neuronshield import Cell, InputError, NeuronSet
from neuronshield.find.moments import Group, Moments, Stats
from neuronshield.find.scores import METHODS, Scores, contrast, language_entropy

L, D = 3, 29
CELLS = [Cell("en", "text"), Cell("sw", "image")]


@pytest.fixture(scope="module")
def raw() -> dict[tuple[str, Cell], np.ndarray]:
    """[prompt, n_layers, d_mlp]; the labels differ in number, mean and spread, one neuron never varies."""
    rng = np.random.default_rng(0)
    out = {}
    for i, cell in enumerate(CELLS):
        out["harmful", cell] = rng.normal(rng.normal(0, 1, (L, D)), 1 + i, (13, L, D))
        out["benign", cell] = rng.normal(rng.normal(0, 1, (L, D)), 0.5, (17, L, D))
        out["harmful", cell][:, 1, 4] = out["benign", cell][:, 1, 4] = 0.25
    return out


@pytest.fixture(scope="module")
def weights() -> np.ndarray:
    """W_down of every layer, [n_layers, d_model, d_mlp]."""
    rng = np.random.default_rng(1)
    return rng.normal(0, rng.uniform(0.1, 3, (L, 1, D)), (L, 5, D))


@pytest.fixture(scope="module")
def norms(weights: np.ndarray) -> np.ndarray:
    return np.linalg.norm(weights, axis=1)


@pytest.fixture(scope="module")
def stats(raw: dict[tuple[str, Cell], np.ndarray], weights: np.ndarray, norms: np.ndarray) -> Stats:
    groups = {}
    for (label, cell), h in raw.items():
        out = np.linalg.norm(np.einsum("lmd,pld->plm", weights, h), axis=-1)
        groups[Group(label, *cell, 0)] = Moments.of(h[:5], out[:5])
        groups[Group(label, *cell, 1)] = Moments.of(h[5:], out[5:])
    one = np.abs(weights).sum(axis=1)
    return Stats(groups, norms, one, "last_prompt", 100_000, 60, {"model": "m", "seen": ["x"]})


def cett_of(h: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """||W[:, i] h_i|| / ||W h||, prompt by prompt, layer by layer, neuron by neuron."""
    out = np.zeros((len(h), L, D))
    for p in range(len(h)):
        for layer in range(L):
            whole = np.linalg.norm(weights[layer] @ h[p, layer])
            for i in range(D):
                out[p, layer, i] = np.linalg.norm(weights[layer][:, i] * h[p, layer, i]) / whole
    return out.mean(0)


def by_hand(method: str, h: np.ndarray, b: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(score, what is taken away) restated from activations [prompt, layer, neuron] and weights."""
    norms = np.sqrt((w**2).sum(1))
    shift = h.mean(0) - b.mean(0)
    if method == "effect_size":
        pooled = ((len(h) - 1) * h.var(0, ddof=1) + (len(b) - 1) * b.var(0, ddof=1)) / (len(h) + len(b) - 2)
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(shift / np.sqrt(pooled)), None
    if method == "contribution":
        return np.abs(shift) * norms, None
    if method == "sas":
        return np.stack([(x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean()) for x in shift]), None
    if method == "cett":
        return cett_of(h, w) - cett_of(b, w), None

    def one(x: np.ndarray) -> np.ndarray:
        if method == "precise_shield":
            return np.stack([np.abs(x.mean(0)[i]) * norms[i] / (np.abs(x.mean(0)[i]) @ norms[i]) for i in range(L)])
        if method == "sn_tune":  # the smallest change that leaving the neuron out makes
            left = w[None] * x[:, :, None, :]  # [prompt, layer, d_model, neuron]: what each neuron writes
            return np.linalg.norm(left, axis=2).min(axis=0)
        return (np.abs(w) * np.sqrt((x**2).mean(0))[:, None, :]).sum(axis=1)  # wanda

    return one(h), one(b)


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_the_formula(raw: dict, weights: np.ndarray, stats: Stats, method: str):
    scores = contrast(stats, method=method)
    assert scores.cells == CELLS
    assert scores.values.shape == (2, L, D)
    assert scores.method == method
    for i, cell in enumerate(CELLS):
        want, against = by_hand(method, raw["harmful", cell], raw["benign", cell], weights)
        np.testing.assert_allclose(scores.values[i], want, rtol=1e-9, atol=1e-9)
        assert scores.difference is not None
        shift = raw["harmful", cell].mean(0) - raw["benign", cell].mean(0)
        np.testing.assert_allclose(scores.difference[i], shift, rtol=1e-9, atol=1e-12)
        assert (scores.against is None) == (against is None)
        if scores.against is not None and against is not None:
            np.testing.assert_allclose(scores.against[i], against, rtol=1e-9, atol=1e-9)


def test_lape_scores_what_a_language_alone_activates():
    """Neuron 0 fires in every language, 1 in one, 2 rarely: only 1 is bound, and only in its own language's cells."""
    rng = np.random.default_rng(0)
    groups = {}
    for label in ("harmful", "benign"):
        for language in ("en", "sw", "ko"):
            h = -np.ones((200, 1, D))
            h[:, 0, [0, 3, 4]] = 1
            h[:, 0, 1] = 1 if language == "sw" else -1
            h[:, 0, 2] = np.where(rng.random(200) < 0.01, 1, -1)
            groups[Group(label, language, "text", 0)] = Moments.of(h)
    stats = Stats(groups, np.ones((1, D)), np.ones((1, D)), "last_prompt", 1000, 3)
    scores = contrast(stats, method="lape")
    where = {str(c): v for c, v in zip(scores.cells, scores.values[:, 0], strict=True)}
    assert where["sw/text"][1] == pytest.approx(np.log(3))
    assert where["en/text"][1] == where["ko/text"][1] == 0
    for cell in where.values():
        assert np.abs(np.delete(cell, 1)).max() < 1e-12
    assert scores.difference is not None
    assert scores.difference.shape == scores.values.shape
    some = {g: m for g, m in groups.items() if (g.label, g.language) != ("benign", "ko")}
    assert contrast(Stats(some, stats.down_norms, stats.down_l1, "x", 1000, 3), method="lape").difference is None
    alone = Stats(
        {g: m for g, m in groups.items() if g.language == "en"}, stats.down_norms, stats.down_l1, "x", 1000, 3
    )
    with pytest.raises(InputError, match="lape: needs prompts in at least two languages"):
        contrast(alone, method="lape")


def test_effect_size_is_signed_and_zero_where_nothing_varies(stats: Stats, raw: dict):
    values = contrast(stats, method="effect_size").values[0]
    assert values[1, 4] == 0
    assert (np.sign(values) == np.sign(raw["harmful", CELLS[0]].mean(0) - raw["benign", CELLS[0]].mean(0)))[0].all()


def test_effect_size_ignores_how_loud_a_neuron_writes(stats: Stats):
    louder = Stats(stats.groups, stats.down_norms * 7, stats.down_l1 * 7, "last_prompt", 100_000, 60)
    for method, same in (("effect_size", True), ("contribution", False)):
        a, b = (contrast(s, method=method).values for s in (stats, louder))
        assert np.allclose(a, b) is same


def test_precise_shield_is_normalised_within_the_layer(stats: Stats):
    np.testing.assert_allclose(contrast(stats, method="precise_shield").values.sum(axis=2), 1)


# -- top ------------------------------------------------------------------------------------------------
def best(values: np.ndarray, k: int) -> set[tuple[int, int]]:
    flat = sorted(((abs(values[a, i]), -a, -i) for a in range(L) for i in range(D)), reverse=True)[:k]
    return {(-a, -i) for _, a, i in flat}


@pytest.mark.parametrize("method", ["effect_size", "contribution"])
@pytest.mark.parametrize(
    ("size", "k"),
    [({"k": 1}, 1), ({"k": 11}, 11), ({"k": 87}, 87), ({"fraction": 0.1}, 8), ({"fraction": 1.0}, 87),
     # 100,000 parameters, 60 a neuron: 0.01 buys 16.67 neurons, so 16
     ({"param_fraction": 0.01}, 16), ({"param_fraction": 0.0006}, 1)],
)  # fmt: skip
def test_top_is_the_largest_magnitudes_and_never_more_than_the_budget(stats: Stats, method: str, size: dict, k: int):
    scores = contrast(stats, method=method)
    for i, (cell, chosen) in enumerate(scores.top(**size).items()):
        assert cell == CELLS[i]
        assert set(chosen) == best(scores.values[i], k)
        assert len(chosen) == k


def test_top_per_layer_takes_as_many_from_each(stats: Stats):
    scores = contrast(stats, method="effect_size")
    for i, chosen in enumerate(scores.top(per_layer=7).values()):
        for layer in range(L):
            want = set(np.argsort(-np.abs(scores.values[i, layer]))[:7].tolist())
            assert set(chosen.by_layer()[layer]) == want


def ranks(row: np.ndarray, k: int) -> set[int]:
    return set(np.argsort(-np.abs(row), kind="stable")[:k].tolist())


def test_precise_shield_takes_the_top_of_harmful_minus_the_top_of_benign(stats: Stats):
    scores = contrast(stats, method="precise_shield")
    assert scores.against is not None
    for i, chosen in enumerate(scores.top(per_layer=11).values()):
        for layer in range(L):
            want = ranks(scores.values[i, layer], 11) - ranks(scores.against[i, layer], 11)
            assert set(chosen.by_layer().get(layer, [])) == want
        assert len(chosen) < 33  # something was taken away, or the test shows nothing


def test_precise_shield_of_a_total_size_uses_one_k_in_every_layer(stats: Stats):
    scores = contrast(stats, method="precise_shield")
    assert scores.against is not None
    for i, chosen in enumerate(scores.top(k=8).values()):
        assert len(chosen) == 8
        for k in range(1, D + 1):  # the smallest k that leaves 8
            left = {(a, j) for a in range(L) for j in ranks(scores.values[i, a], k) - ranks(scores.against[i, a], k)}
            if len(left) >= 8:
                break
        want = set(sorted(left, key=lambda n: -scores.values[i][n])[:8])
        assert set(chosen) == want


def test_ties_go_to_the_lower_layer_and_index():
    scores = Scores(CELLS[:1], np.ones((1, L, D)), None, "contribution", 1000, 60)
    assert list(scores.top(k=31)[CELLS[0]]) == [(0, i) for i in range(29)] + [(1, 0), (1, 1)]


def test_a_set_says_where_it_came_from(stats: Stats):
    chosen = contrast(stats, method="contribution").top(k=5)[CELLS[1]]
    assert isinstance(chosen, NeuronSet)
    assert (chosen.n_layers, chosen.d_mlp) == (L, D)
    about = chosen.provenance
    assert (about["method"], about["cell"], about["size"], about["model"]) == (
        "contribution",
        "sw/image",
        {"k": 5},
        "m",
    )
    assert about["seen"] == ["x"]


@pytest.mark.parametrize("size", [{}, {"k": 3, "fraction": 0.1}, {"k": 3, "per_layer": 1, "param_fraction": 0.1}])
def test_exactly_one_size_is_wanted(stats: Stats, size: dict):
    with pytest.raises(InputError, match="exactly one of k, fraction, per_layer, param_fraction"):
        contrast(stats).top(**size)


@pytest.mark.parametrize(
    "size",
    [
        {"k": 0},
        {"k": -3},
        {"k": 88},
        {"per_layer": 30},
        {"fraction": 0.001},
        {"fraction": 1.1},
        {"param_fraction": 0.0005},
    ],
)
def test_a_size_that_buys_nothing_or_too_much_is_refused(stats: Stats, size: dict):
    with pytest.raises(InputError, match="must be 1 to"):
        contrast(stats).top(**size)


def test_the_frame_lists_the_best_first(stats: Stats):
    scores = contrast(stats, method="effect_size")
    frame = scores.to_frame(k=4)
    assert len(frame) == 8
    first = frame[frame.cell == "en/text"]
    assert list(first["rank"]) == [1, 2, 3, 4]
    assert [abs(v) for v in first.effect_size] == sorted((abs(v) for v in first.effect_size), reverse=True)
    top = set(zip(first["layer"].tolist(), first["index"].tolist(), strict=True))
    assert top == best(scores.values[0], 4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("k", [1, 6, 87, 1000])
def test_the_frame_lists_the_neurons_of_top_with_their_scores(stats: Stats, method: str, k: int):
    """Of a set difference, only what is left of it."""
    scores = contrast(stats, method=method)
    frame, sets = scores.to_frame(k=k), scores.top(k=min(k, L * D))
    for cell, neurons in sets.items():
        rows = frame[frame.cell == str(cell)]
        listed = list(zip(rows["layer"], rows["index"], strict=True))
        assert set(listed) == set(neurons)
        assert rows[method].tolist() == [scores[cell][at] for at in listed]
        assert rows["rank"].tolist() == list(range(1, len(neurons) + 1))
        assert np.abs(rows[method]).is_monotonic_decreasing


def test_scores_whose_arrays_do_not_fit_their_cells_are_refused():
    with pytest.raises(InputError, match=r"2 cells, but values has shape \(1, 3, 29\); give \[cell, n_layers, d_mlp\]"):
        Scores(CELLS, np.zeros((1, L, D)), None, "contribution", 1000, 60)


@pytest.mark.parametrize(
    ("directions", "said"),
    [
        ({"en": np.zeros((1, 2)), "sw": np.zeros((L, D))}, r"'en' has \(1, 2\) numbers for \(3, 29\) neurons"),
        ({"en": np.zeros((L, D))}, "none for the language of sw/image; there are en"),
    ],
)
def test_directions_of_another_model_are_refused(stats: Stats, directions: Any, said: str):
    with pytest.raises(InputError, match=said):
        contrast(stats).to_frame(k=3, directions=directions)


def test_an_unknown_method_and_a_lone_label_are_refused(stats: Stats):
    with pytest.raises(InputError, match="method='cohen' is unknown; use one of contribution, effect_size"):
        contrast(stats, method="cohen")
    alone = Stats(
        {g: m for g, m in stats.groups.items() if g.label == "harmful"},
        stats.down_norms,
        stats.down_l1,
        "last_prompt",
        1,
        1,
    )
    with pytest.raises(InputError, match="needs both"):
        contrast(alone)


def sparse(rates: dict[str, list[float]]) -> Stats:
    """Moments of one layer whose neurons are active that often, by language, the same for both labels."""
    zeros = np.zeros((1, len(next(iter(rates.values())))))
    groups = {
        Group(label, language, "text", fold): Moments(
            4, zeros, zeros, zeros, np.array([rate], dtype=np.float64), zeros, zeros
        )
        for language, rate in rates.items() for label in ("harmful", "benign") for fold in (0, 1)
    }  # fmt: skip
    return Stats(groups, zeros + 1, zeros + 1, "last_prompt", 1000, 10)


def test_a_neuron_that_is_never_active_is_bound_to_no_language():
    """Entropy of nothing is zero, which would be the most bound of all."""
    stats = sparse({"en": [0.5, *[0.0] * 39], "sw": [0.0, 0.5, *[0.0] * 38]})
    scores = contrast(stats, method="lape")
    assert {cell.language: list(s) for cell, s in scores.top(k=1).items()} == {"en": [(0, 0)], "sw": [(0, 1)]}
    assert np.count_nonzero(scores.values) == 2


def test_neurons_chosen_for_a_score_of_zero_are_counted_aloud(caplog: pytest.LogCaptureFixture):
    scores = contrast(sparse({"en": [0.5, *[0.0] * 39], "sw": [0.0, 0.5, *[0.0] * 38]}), method="lape")
    with caplog.at_level("WARNING", logger="neuronshield"):
        assert [len(s) for s in scores.top(k=5).values()] == [5, 5]
    assert "en/text: 4 of 5 chosen neurons have a score of zero" in caplog.text
    with pytest.raises(InputError, match="give a number"):
        scores.top(param_fraction=float("nan"))


def test_lape_is_its_formula_on_rates_of_groups_of_unequal_size():
    rng = np.random.default_rng(0)
    languages, n_layers, d_mlp = ("en", "sw", "ko", "th"), 3, 41
    groups, active, counts = {}, dict.fromkeys(languages, 0), dict.fromkeys(languages, 0)
    for i, language in enumerate(languages):
        for label in ("harmful", "benign"):
            for fold in (0, 1):
                n = 5 + 7 * i + 11 * fold + 3 * (label == "benign")
                h = rng.normal(rng.normal(-1, 1.5, (n_layers, d_mlp)), 1, (n, n_layers, d_mlp))
                h[:, 0, 0] = -1  # never active
                groups[Group(label, language, "text", fold)] = Moments.of(h)
                active[language] = active[language] + (h > 0).sum(axis=0)
                counts[language] += n
    stats = Stats(groups, np.ones((n_layers, d_mlp)), np.ones((n_layers, d_mlp)), "prompt", 1000, 3)
    rates = np.array([active[x] / counts[x] for x in languages])
    often = np.quantile(rates, 0.95)
    entropy, scores = language_entropy(stats), contrast(stats, "lape")
    assert np.isinf(entropy[0, 0])
    for layer in range(n_layers):
        for i in range(d_mlp):
            p = rates[:, layer, i] / max(rates[:, layer, i].sum(), 1e-12)
            want = -sum(x * np.log(x) for x in p if x > 0) if rates[:, layer, i].max() >= often else np.inf
            assert entropy[layer, i] == pytest.approx(want)
            for k, language in enumerate(languages):
                here = np.log(4) - want if rates[k, layer, i] >= often else 0.0
                assert scores[language, "text"][layer, i] == pytest.approx(here)


def test_the_entropy_is_of_moments():
    with pytest.raises(InputError, match=r"language_entropy\(stats\): stats must be Stats, got str"):
        language_entropy("moments")  # type: ignore[arg-type]


def test_a_neuron_that_is_never_active_has_no_entropy():
    # trap: where most rates are 0 their quantile is 0 too, and the entropy of nothing would be the lowest of all
    entropy = language_entropy(sparse({"en": [0.5, *[0.0] * 39], "sw": [0.0, 0.5, *[0.0] * 38]}))
    assert np.isfinite(entropy).sum() == 2
